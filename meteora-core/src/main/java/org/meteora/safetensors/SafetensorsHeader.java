package org.meteora.safetensors;

import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.charset.CharacterCodingException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import org.meteora.tensor.Dtype;

/**
 * The header of a safetensors file. Nothing in it is believed before it is checked: its length,
 * every dtype, shape and offset, and that the tensors fill the file without overlap.
 *
 * @param tensors those of a dtype that is used here, by name, in the header's order
 * @param unread the dtypes of the others, by name
 * @param metadata what it holds under {@code __metadata__}
 * @param dataStart where in the file the tensors' bytes begin
 */
record SafetensorsHeader(
    Map<String, TensorInfo> tensors,
    Map<String, String> unread,
    Map<String, String> metadata,
    long dataStart) {
  private static final long MAX_HEADER = 100L << 20;
  private static final ObjectMapper STRICT =
      new ObjectMapper()
          .enable(JsonParser.Feature.STRICT_DUPLICATE_DETECTION)
          .enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

  /**
   * Reads the header.
   *
   * @param size of the file, bytes
   * @throws UserException naming the file, the tensor, what was found and what was expected
   */
  static SafetensorsHeader read(Path path, FileChannel channel, long size) throws IOException {
    var lengthBytes = ByteBuffer.allocate(8).order(ByteOrder.LITTLE_ENDIAN);
    if (size < 8 || !readFully(channel, lengthBytes, 0)) {
      throw broken(
          path,
          "the file has %s bytes, a safetensors file begins with 8 bytes of header length"
              .formatted(size));
    }
    long length = lengthBytes.getLong(0);
    if (length < 2 || length > size - 8) {
      throw broken(
          path,
          "the header is said to have %s bytes, the file has %s"
              .formatted(Long.toUnsignedString(length), size));
    }
    if (length > MAX_HEADER) {
      throw broken(path, "a header of " + length + " bytes is longer than any real one (100 MB)");
    }
    var bytes = ByteBuffer.allocate((int) length);
    readFully(channel, bytes, 8);
    JsonNode json;
    try {
      var text = StandardCharsets.UTF_8.newDecoder().decode(bytes.flip()).toString();
      json = text.startsWith("{") ? STRICT.readTree(text) : null;
    } catch (CharacterCodingException e) {
      throw broken(path, "the header is not UTF-8 text");
    } catch (JsonProcessingException e) {
      throw broken(path, "the header is not JSON: " + Jsonl.reason(e));
    }
    if (json == null || !json.isObject()) {
      throw broken(path, "the header is not a JSON object");
    }
    long dataSize = size - 8 - length;
    var tensors = new LinkedHashMap<String, TensorInfo>();
    var unread = new LinkedHashMap<String, String>();
    var all = new ArrayList<TensorInfo>();
    Map<String, String> metadata = Map.of();
    for (var entry : json.properties()) {
      var name = entry.getKey();
      if (name.equals("__metadata__")) {
        metadata = metadata(path, entry.getValue());
        continue;
      }
      var tensor = tensor(path, name, entry.getValue(), dataSize);
      all.add(tensor);
      if (tensor.dtype() != null) {
        tensors.put(name, tensor);
      } else {
        unread.put(name, entry.getValue().path("dtype").textValue());
      }
    }
    checkLayout(path, all, dataSize);
    return new SafetensorsHeader(
        Collections.unmodifiableMap(tensors),
        Collections.unmodifiableMap(unread),
        Collections.unmodifiableMap(metadata),
        8 + length);
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

  /** What the header says of a tensor; without a dtype where it is one that is not used here. */
  private static TensorInfo tensor(Path path, String name, JsonNode node, long dataSize) {
    var offsets = node.path("data_offsets");
    if (offsets.size() != 2 || !isLong(offsets.path(0)) || !isLong(offsets.path(1))) {
      throw broken(path, "tensor " + name + " has no data_offsets [begin, end]");
    }
    long begin = offsets.get(0).longValue();
    long end = offsets.get(1).longValue();
    if (begin < 0 || end < begin || end > dataSize) {
      throw broken(
          path,
          "tensor %s lies at bytes %s to %s, the file holds %s (is it truncated?)"
              .formatted(name, begin, end, dataSize));
    }
    var dtype = node.path("dtype").asText("");
    if (!node.path("dtype").isTextual() || dtype.isEmpty()) {
      throw broken(path, "tensor " + name + " has no dtype");
    }
    if (!node.path("shape").isArray()) {
      throw broken(path, "tensor " + name + " has no shape");
    }
    var shape = new ArrayList<Long>();
    long count = 1;
    for (var dimension : node.path("shape")) {
      if (!isLong(dimension) || dimension.longValue() < 0) {
        throw broken(path, "tensor " + name + " has the dimension " + dimension);
      }
      shape.add(dimension.longValue());
      try {
        count = Math.multiplyExact(count, dimension.longValue());
      } catch (ArithmeticException e) {
        throw broken(path, "tensor " + name + " has an impossible shape " + node.path("shape"));
      }
    }
    int bits = bits(dtype);
    if (count > Long.MAX_VALUE / 64 || bits > 0 && (count * bits + 7) / 8 != end - begin) {
      throw broken(
          path,
          "tensor %s %s %s does not fill its %s bytes".formatted(name, dtype, shape, end - begin));
    }
    return new TensorInfo(name, known(dtype).orElse(null), List.copyOf(shape), begin, end);
  }

  private static boolean isLong(JsonNode number) {
    return number.isIntegralNumber() && number.canConvertToLong();
  }

  private static Optional<Dtype> known(String dtype) {
    return Arrays.stream(Dtype.values()).filter(each -> each.name().equals(dtype)).findFirst();
  }

  /** Bits of a number: also of what the format knows and this model never uses; 0 of others. */
  private static int bits(String dtype) {
    return switch (dtype) {
      case "F4" -> 4;
      case "F6_E2M3", "F6_E3M2" -> 6;
      case "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ" -> 8;
      case "I16", "U16" -> 16;
      case "U32" -> 32;
      case "U64", "C64" -> 64;
      default -> known(dtype).map(each -> 8 * each.bytes()).orElse(0);
    };
  }

  private static void checkLayout(Path path, List<TensorInfo> tensors, long dataSize) {
    var sorted = new ArrayList<>(tensors);
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
}
