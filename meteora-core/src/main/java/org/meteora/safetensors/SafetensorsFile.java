package org.meteora.safetensors;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.FileTime;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
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
  private static final long MAX_HEADER = 100L << 20;
  private static final ObjectMapper STRICT =
      new ObjectMapper()
          .enable(JsonParser.Feature.STRICT_DUPLICATE_DETECTION)
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

  /** Bits of the dtypes that are passed over: what the format knows and this model never uses. */
  private static final Map<String, Integer> OTHER_DTYPES =
      Map.ofEntries(
          Map.entry("I8", 8),
          Map.entry("I16", 16),
          Map.entry("U16", 16),
          Map.entry("U32", 32),
          Map.entry("U64", 64),
          Map.entry("C64", 64),
          Map.entry("F8_E4M3", 8),
          Map.entry("F8_E5M2", 8),
          Map.entry("F8_E8M0", 8),
          Map.entry("F8_E4M3FNUZ", 8),
          Map.entry("F8_E5M2FNUZ", 8),
          Map.entry("F6_E2M3", 6),
          Map.entry("F6_E3M2", 6),
          Map.entry("F4", 4));

  private static final ValueLayout.OfLong LONG =
      ValueLayout.JAVA_LONG_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfInt INT =
      ValueLayout.JAVA_INT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);
  private static final ValueLayout.OfShort SHORT =
      ValueLayout.JAVA_SHORT_UNALIGNED.withOrder(ByteOrder.LITTLE_ENDIAN);

  private final Path path;
  private final long size;
  private final FileTime modified;
  private final Map<String, TensorInfo> tensors;
  private final Map<String, String> unread;
  private final Map<String, String> metadata;
  private final Arena arena;
  private final MemorySegment data;

  private SafetensorsFile(
      Path path,
      long size,
      FileTime modified,
      Map<String, TensorInfo> tensors,
      Map<String, String> unread,
      Map<String, String> metadata,
      Arena arena,
      MemorySegment data) {
    this.path = path;
    this.size = size;
    this.modified = modified;
    this.tensors = tensors;
    this.unread = unread;
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
      var modified = Files.getLastModifiedTime(path);
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
        var text = StandardCharsets.UTF_8.newDecoder().decode(header.flip()).toString();
        json = text.startsWith("{") ? STRICT.readTree(text) : null;
      } catch (CharacterCodingException e) {
        throw broken(path, "the header is not UTF-8 text");
      } catch (JsonProcessingException e) {
        throw broken(
            path, "the header is not JSON: " + e.getOriginalMessage().replaceAll("\\s+", " "));
      }
      if (json == null || !json.isObject()) {
        throw broken(path, "the header is not a JSON object");
      }
      long dataSize = size - 8 - length;
      var tensors = new LinkedHashMap<String, TensorInfo>();
      var unread = new LinkedHashMap<String, String>();
      var extents = new ArrayList<Extent>();
      Map<String, String> metadata = Map.of();
      for (var entry : json.properties()) {
        if (entry.getKey().equals("__metadata__")) {
          metadata = metadata(path, entry.getValue());
        } else {
          var name = entry.getKey();
          var extent = extent(path, name, entry.getValue(), dataSize);
          extents.add(extent);
          var dtype = dtype(path, name, entry.getValue());
          if (dtype.isPresent()) {
            tensors.put(name, tensor(path, extent, dtype.get(), entry.getValue()));
          } else {
            unread.put(name, entry.getValue().path("dtype").textValue());
          }
        }
      }
      checkLayout(path, extents, dataSize);
      var data =
          dataSize == 0
              ? MemorySegment.NULL
              : channel.map(FileChannel.MapMode.READ_ONLY, 0, size, arena).asSlice(8 + length);
      opened = true;
      return new SafetensorsFile(
          path,
          size,
          modified,
          Collections.unmodifiableMap(tensors),
          Collections.unmodifiableMap(unread),
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

  /** Where a tensor lies. */
  private record Extent(String name, long begin, long end) {}

  /** Empty for a dtype that is not used here: such a tensor is passed over. */
  private static Optional<Dtype> dtype(Path path, String name, JsonNode node) {
    var text = node.path("dtype").asText("");
    if (!node.path("dtype").isTextual() || text.isEmpty()) {
      throw broken(path, "tensor " + name + " has no dtype");
    }
    return Arrays.stream(Dtype.values())
        .filter(each -> each.safetensorsName().equals(text))
        .findFirst();
  }

  private static List<Long> shape(Path path, String name, JsonNode node, long bits, long bytes) {
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
    if (count > Long.MAX_VALUE / 64 || bits > 0 && (count * bits + 7) / 8 != bytes) {
      throw broken(
          path,
          "tensor "
              + name
              + " "
              + node.path("dtype").asText()
              + " "
              + shape
              + " does not fill its "
              + bytes
              + " bytes");
    }
    return List.copyOf(shape);
  }

  private static Extent extent(Path path, String name, JsonNode node, long dataSize) {
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
    int bits = OTHER_DTYPES.getOrDefault(node.path("dtype").asText(""), 0);
    shape(path, name, node, bits, end - begin);
    return new Extent(name, begin, end);
  }

  private static TensorInfo tensor(Path path, Extent extent, Dtype dtype, JsonNode node) {
    var shape = shape(path, extent.name(), node, 8L * dtype.bytes(), extent.end() - extent.begin());
    return new TensorInfo(extent.name(), dtype, shape, extent.begin(), extent.end());
  }

  private static void checkLayout(Path path, List<Extent> tensors, long dataSize) {
    var sorted = new ArrayList<>(tensors);
    sorted.sort(Comparator.comparingLong(Extent::begin).thenComparingLong(Extent::end));
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

  /** Tensors of a dtype that is not read here, by name, and their dtypes. */
  public Map<String, String> unread() {
    return unread;
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
    var tensor = tensors.get(name);
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
            case 8 -> segment.get(LONG, at);
            case 4 -> segment.get(INT, at);
            default -> segment.get(SHORT, at);
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
    var tensor = tensors.get(name);
    if (tensor == null) {
      throw new UserException(
          unread.containsKey(name)
              ? path
                  + ": the tensor "
                  + name
                  + " is "
                  + unread.get(name)
                  + ", expected F32, F16 or BF16"
              : path + ": there is no tensor " + name);
    }
    return tensor;
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
    try (var host = Devices.newManager(ai.djl.Device.cpu())) {
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
