package org.meteora.safetensors;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * One safetensors file, mapped into memory. Nothing in the header is believed before it is checked:
 * its length, every dtype, shape and offset, and that the tensors fill the file without overlap.
 */
public final class SafetensorsFile implements AutoCloseable {
  private static final long MAX_HEADER = 100L << 20;
  private static final ObjectMapper STRICT =
      new ObjectMapper().enable(JsonParser.Feature.STRICT_DUPLICATE_DETECTION);

  private final Path path;
  private final Map<String, TensorInfo> tensors;
  private final Map<String, String> metadata;
  private final Arena arena;
  private final MemorySegment data;

  private SafetensorsFile(
      Path path,
      Map<String, TensorInfo> tensors,
      Map<String, String> metadata,
      Arena arena,
      MemorySegment data) {
    this.path = path;
    this.tensors = tensors;
    this.metadata = metadata;
    this.arena = arena;
    this.data = data;
  }

  /**
   * Maps a file and checks its header.
   *
   * @throws UserException naming the file, the tensor, what was found and what was expected
   */
  public static SafetensorsFile open(Path path) {
    if (!Files.isRegularFile(path)) {
      throw new UserException("no such file: " + path);
    }
    var arena = Arena.ofShared();
    boolean opened = false;
    try (var channel = FileChannel.open(path, StandardOpenOption.READ)) {
      long size = channel.size();
      var lengthBytes = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN);
      if (size < 8 || !readFully(channel, lengthBytes, 0)) {
        throw broken(
            path,
            "the file has "
                + size
                + " bytes, a safetensors file begins with 8 bytes of header length");
      }
      long length = lengthBytes.getLong(0);
      if (length < 2 || length > size - 8) {
        throw broken(
            path,
            "the header is said to have "
                + Long.toUnsignedString(length)
                + " bytes, the file has "
                + size);
      }
      if (length > MAX_HEADER) {
        throw broken(path, "a header of " + length + " bytes is longer than any real one (100 MB)");
      }
      var header = ByteBuffer.allocate((int) length);
      readFully(channel, header, 8);
      JsonNode json;
      try {
        json = STRICT.readTree(header.array());
      } catch (JsonProcessingException e) {
        throw broken(
            path, "the header is not JSON: " + e.getOriginalMessage().replaceAll("\\s+", " "));
      }
      if (json == null || !json.isObject()) {
        throw broken(path, "the header is not a JSON object");
      }
      long dataSize = size - 8 - length;
      var tensors = new LinkedHashMap<String, TensorInfo>();
      Map<String, String> metadata = Map.of();
      for (var entry : json.properties()) {
        if (entry.getKey().equals("__metadata__")) {
          metadata = metadata(path, entry.getValue());
        } else {
          tensors.put(entry.getKey(), tensor(path, entry.getKey(), entry.getValue(), dataSize));
        }
      }
      checkLayout(path, tensors, dataSize);
      var data =
          dataSize == 0
              ? MemorySegment.NULL
              : channel.map(FileChannel.MapMode.READ_ONLY, 0, size, arena).asSlice(8 + length);
      opened = true;
      return new SafetensorsFile(
          path,
          Collections.unmodifiableMap(tensors),
          Collections.unmodifiableMap(metadata),
          arena,
          data);
    } catch (IOException e) {
      throw new UserException("cannot read " + path + ": " + AtomicFiles.reason(e), e);
    } finally {
      if (!opened) {
        arena.close();
      }
    }
  }

  private static boolean readFully(FileChannel channel, ByteBuffer buffer, long position)
      throws IOException {
    while (buffer.hasRemaining()) {
      int read = channel.read(buffer, position + buffer.position());
      if (read < 0) {
        return false;
      }
    }
    return true;
  }

  private static UserException broken(Path path, String why) {
    return new UserException(path + ": not a whole safetensors file: " + why);
  }

  private static Map<String, String> metadata(Path path, JsonNode node) {
    if (!node.isObject()) {
      throw broken(path, "__metadata__ is not an object");
    }
    var result = new LinkedHashMap<String, String>();
    for (var entry : node.properties()) {
      if (!entry.getValue().isTextual()) {
        throw broken(path, "__metadata__." + entry.getKey() + " is not a string");
      }
      result.put(entry.getKey(), entry.getValue().textValue());
    }
    return result;
  }

  private static TensorInfo tensor(Path path, String name, JsonNode node, long dataSize) {
    var dtypeName = node.path("dtype").asText("");
    Dtype dtype = null;
    for (var each : Dtype.values()) {
      if (each.safetensorsName().equals(dtypeName)) {
        dtype = each;
      }
    }
    if (dtype == null) {
      throw broken(
          path,
          "tensor "
              + name
              + " has the dtype \""
              + dtypeName
              + "\"; known are "
              + Dtype.safetensorsNames());
    }
    var shape = new ArrayList<Long>();
    long count = 1;
    if (!node.path("shape").isArray()) {
      throw broken(path, "tensor " + name + " has no shape");
    }
    for (var dimension : node.path("shape")) {
      if (!dimension.isIntegralNumber()
          || !dimension.canConvertToLong()
          || dimension.longValue() < 0) {
        throw broken(path, "tensor " + name + " has the dimension " + dimension);
      }
      shape.add(dimension.longValue());
      try {
        count = Math.multiplyExact(count, dimension.longValue());
      } catch (ArithmeticException e) {
        throw broken(path, "tensor " + name + " has an impossible shape " + node.path("shape"));
      }
    }
    var offsets = node.path("data_offsets");
    if (!offsets.isArray()
        || offsets.size() != 2
        || !offsets.get(0).canConvertToLong()
        || !offsets.get(1).canConvertToLong()
        || !offsets.get(0).isIntegralNumber()
        || !offsets.get(1).isIntegralNumber()) {
      throw broken(path, "tensor " + name + " has no data_offsets [begin, end]");
    }
    long begin = offsets.get(0).longValue();
    long end = offsets.get(1).longValue();
    if (begin < 0 || end < begin || end > dataSize) {
      throw broken(
          path,
          "tensor "
              + name
              + " lies at bytes "
              + begin
              + " to "
              + end
              + ", the file holds "
              + dataSize
              + " (is it truncated?)");
    }
    if (count > Long.MAX_VALUE / 8 || count * dtype.bytes() != end - begin) {
      throw broken(
          path,
          "tensor "
              + name
              + " "
              + dtypeName
              + " "
              + shape
              + " does not fill its "
              + (end - begin)
              + " bytes");
    }
    return new TensorInfo(name, dtype, List.copyOf(shape), begin, end);
  }

  private static void checkLayout(Path path, Map<String, TensorInfo> tensors, long dataSize) {
    var sorted = new ArrayList<>(tensors.values());
    sorted.sort(Comparator.comparingLong(TensorInfo::begin).thenComparingLong(TensorInfo::end));
    long at = 0;
    for (var tensor : sorted) {
      if (tensor.begin() < at) {
        throw broken(
            path, "tensor " + tensor.name() + " overlaps another at byte " + tensor.begin());
      }
      if (tensor.begin() > at) {
        throw broken(path, "bytes " + at + " to " + tensor.begin() + " belong to no tensor");
      }
      at = tensor.end();
    }
    if (at != dataSize) {
      throw broken(path, "bytes " + at + " to " + dataSize + " belong to no tensor");
    }
  }

  public Path path() {
    return path;
  }

  /** What the header holds under {@code __metadata__}. */
  public Map<String, String> metadata() {
    return metadata;
  }

  /** All tensors by name, in the header's order. */
  public Map<String, TensorInfo> tensors() {
    return tensors;
  }

  /** The bytes of a tensor, in the mapped file. Valid until this file is closed. */
  public MemorySegment bytes(TensorInfo tensor) {
    return tensor.bytes() == 0 ? MemorySegment.NULL : data.asSlice(tensor.begin(), tensor.bytes());
  }

  /**
   * A tensor over the mapped bytes, on the CPU, in the file's dtype. It is read-only, and valid
   * until this file is closed; a tensor that does not lie on a multiple of its element size is
   * copied.
   *
   * @throws UserException when there is no such tensor
   */
  public NDArray read(NDManager manager, String name) {
    var tensor = tensors.get(name);
    if (tensor == null) {
      throw new UserException(path + ": there is no tensor " + name);
    }
    if (tensor.bytes() == 0) {
      return Ops.empty(manager, tensor.dtype(), tensor.dimensions());
    }
    var segment = bytes(tensor);
    if (segment.address() % tensor.dtype().bytes() != 0) {
      var copy = Ops.empty(manager, tensor.dtype(), tensor.dimensions());
      MemorySegment.ofAddress(Ops.dataPointer(copy)).reinterpret(tensor.bytes()).copyFrom(segment);
      return copy;
    }
    return Ops.wrap(manager, segment, tensor.dtype(), tensor.dimensions());
  }

  @Override
  public void close() {
    arena.close();
  }
}
