package org.meteora.safetensors;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileTime;
import java.util.Arrays;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * One safetensors file, mapped into memory. Nothing in the header is believed before it is checked:
 * its length, every dtype, shape and offset, and that the tensors fill the file without overlap.
 */
public final class SafetensorsFile implements AutoCloseable {
  private final Path path;
  private final long size;
  private final FileTime modified;
  private final SafetensorsHeader header;
  private final Arena arena;
  private final MemorySegment data;

  private SafetensorsFile(Path path, FileChannel channel, Arena arena) throws IOException {
    this.path = path;
    this.arena = arena;
    size = channel.size();
    modified = Files.getLastModifiedTime(path);
    header = SafetensorsHeader.read(path, channel, size);
    data =
        header.dataStart() == size
            ? MemorySegment.NULL
            : channel
                .map(FileChannel.MapMode.READ_ONLY, 0, size, arena)
                .asSlice(header.dataStart());
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
    SafetensorsFile file = null;
    try (var channel = FileChannel.open(path, StandardOpenOption.READ)) {
      file = new SafetensorsFile(path, channel, arena);
      return file;
    } catch (IOException e) {
      throw new UserException("cannot read " + path + ": " + AtomicFiles.reason(e), e);
    } finally {
      if (file == null) {
        arena.close();
      }
    }
  }

  /** The file. */
  public Path path() {
    return path;
  }

  /** What the header holds under {@code __metadata__}. */
  public Map<String, String> metadata() {
    return header.metadata();
  }

  /** All tensors by name, in the header's order. */
  public Map<String, TensorInfo> tensors() {
    return header.tensors();
  }

  /** Tensors of a dtype that is not read here, by name, and their dtypes. */
  public Map<String, String> unread() {
    return header.unread();
  }

  /**
   * Mapped pages of a file that has become shorter kill the process when they are touched.
   *
   * @throws UserException when the file is not the one that was opened
   */
  private void requireUnchanged() {
    try {
      if (Files.size(path) == size && Files.getLastModifiedTime(path).equals(modified)) {
        return;
      }
    } catch (IOException e) {
      // gone, or out of reach: it is not the file that was opened
    }
    throw new UserException(path + " was changed while it was being read; start again");
  }

  /**
   * Looks through a tensor of floating-point numbers.
   *
   * @throws UserException when one of its values is NaN or infinite
   */
  public void requireFinite(String name) {
    var tensor = header.tensors().get(name);
    if (tensor == null || !tensor.dtype().isFloatingPoint() || tensor.bytes() == 0) {
      return;
    }
    var segment = bytes(tensor);
    // not a finite number: all bits of the exponent set
    long mask =
        switch (tensor.dtype()) {
          case F64 -> 0x7ff0L << 48;
          case F32 -> 0x7f80L << 16;
          case F16 -> 0x7c00;
          default -> 0x7f80;
        };
    int width = tensor.dtype().bytes();
    for (long at = 0; at < tensor.bytes(); at += width) {
      long value =
          switch (width) {
            case 8 -> segment.get(ValueLayout.JAVA_LONG_UNALIGNED, at);
            case 4 -> segment.get(ValueLayout.JAVA_INT_UNALIGNED, at);
            default -> segment.get(ValueLayout.JAVA_SHORT_UNALIGNED, at);
          };
      if ((value & mask) == mask) {
        throw new UserException(
            path + ": the tensor " + name + " holds a value that is no finite number");
      }
    }
  }

  /**
   * What the header says of a tensor.
   *
   * @throws UserException when there is no such tensor, or its dtype is not read
   */
  public TensorInfo requireInfo(String name) {
    var tensor = header.tensors().get(name);
    if (tensor == null) {
      throw header.unread().containsKey(name)
          ? notFloating(name, header.unread().get(name))
          : new UserException(path + ": there is no tensor " + name);
    }
    return tensor;
  }

  /**
   * As {@link #requireInfo}, of a tensor of floating-point numbers.
   *
   * @throws UserException also when it is of others
   */
  public TensorInfo requireFloating(String name) {
    var tensor = requireInfo(name);
    if (!tensor.dtype().isFloatingPoint()) {
      throw notFloating(name, tensor.dtype());
    }
    return tensor;
  }

  private UserException notFloating(String name, Object dtype) {
    return new UserException(
        "%s: the tensor %s is %s, expected F32, F16 or BF16", path, name, dtype);
  }

  /**
   * What the header says of a tensor of finite float32 numbers.
   *
   * @throws UserException when there is no such tensor, or it is of another dtype or shape, or not
   *     finite
   */
  public TensorInfo requireFloat32(String name, long... shape) {
    var info = requireInfo(name);
    if (!info.hasShape(shape) || info.dtype() != Dtype.F32) {
      throw new UserException(
          "%s: %s is %s %s, expected F32 %s",
          path, name, info.dtype(), info.shape(), Arrays.toString(shape));
    }
    requireFinite(name);
    return info;
  }

  /**
   * Whether a tensor here holds the numbers of another file's, those rounded to this one's dtype.
   *
   * @throws UserException when either is missing
   */
  public boolean equal(String name, SafetensorsFile other, String otherName) {
    var here = requireInfo(name);
    var there = other.requireInfo(otherName);
    if (!here.shape().equals(there.shape())) {
      return false;
    }
    if (here.dtype() == there.dtype()) {
      return bytes(here).mismatch(other.bytes(there)) == -1;
    }
    try (var host = Devices.newHostManager()) {
      var rounded = Ops.cast(other.read(host, otherName), here.dtype());
      var memory = MemorySegment.ofAddress(Ops.dataPointer(rounded)).reinterpret(here.bytes());
      return bytes(here).mismatch(memory) == -1;
    }
  }

  /** The bytes of a tensor, in the mapped file. Valid until this file is closed. */
  public MemorySegment bytes(TensorInfo tensor) {
    requireUnchanged();
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
    var tensor = requireInfo(name);
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
