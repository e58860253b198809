package org.meteora.safetensors;

import ai.djl.ndarray.NDArray;
import java.io.IOException;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.Map;
import java.util.TreeMap;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Jsonl;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Writes safetensors files, atomically; the same tensors always give the same bytes. */
public final class SafetensorsWriter {
  private static final long CHUNK = 1L << 28;

  private SafetensorsWriter() {}

  /**
   * Creates or replaces a file.
   *
   * @param tensors by name, on any device, any dtype of {@link Dtype}; written in order of name
   * @param metadata goes under {@code __metadata__}
   * @throws org.meteora.UserException when the file system refuses; an older file stays as it was
   */
  public static void write(Path file, Map<String, NDArray> tensors, Map<String, String> metadata) {
    var sorted = new TreeMap<>(tensors);
    var header = Jsonl.JSON.createObjectNode();
    var meta = header.putObject("__metadata__");
    new TreeMap<>(metadata).forEach(meta::put);
    long offset = 0;
    for (var entry : sorted.entrySet()) {
      var node = header.putObject(entry.getKey());
      var dtype = Ops.dtype(entry.getValue());
      node.put("dtype", dtype.name());
      var shape = node.putArray("shape");
      for (long dimension : entry.getValue().getShape().getShape()) {
        shape.add(dimension);
      }
      long bytes = entry.getValue().getShape().size() * dtype.bytes();
      node.putArray("data_offsets").add(offset).add(offset + bytes);
      offset += bytes;
    }
    AtomicFiles.write(
        file,
        channel -> {
          var json = Jsonl.JSON.writeValueAsBytes(header);
          int padded = (json.length + 7) / 8 * 8;
          var head = ByteBuffer.allocate(8 + padded).order(ByteOrder.LITTLE_ENDIAN);
          head.putLong(padded).put(json);
          while (head.hasRemaining()) {
            head.put(" ".getBytes(StandardCharsets.US_ASCII));
          }
          writeFully(channel, head.flip());
          for (var tensor : sorted.values()) {
            writeTensor(channel, tensor);
          }
        });
  }

  private static void writeTensor(FileChannel channel, NDArray tensor) throws IOException {
    var dtype = Ops.dtype(tensor);
    long bytes = tensor.getShape().size() * dtype.bytes();
    if (bytes == 0) {
      return;
    }
    // a row-major copy in host memory, whatever the tensor's device and strides
    try (var host = Devices.newHostManager()) {
      var plain = Ops.empty(host, dtype, tensor.getShape().getShape());
      Ops.copy(plain, tensor);
      var segment = MemorySegment.ofAddress(Ops.dataPointer(plain)).reinterpret(bytes);
      for (long at = 0; at < bytes; at += CHUNK) {
        writeFully(channel, segment.asSlice(at, Math.min(CHUNK, bytes - at)).asByteBuffer());
      }
    }
  }

  private static void writeFully(FileChannel channel, ByteBuffer buffer) throws IOException {
    while (buffer.hasRemaining()) {
      channel.write(buffer);
    }
  }
}
