package org.meteora.io;

import com.fasterxml.jackson.core.JsonGenerator;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.nio.charset.CharacterCodingException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.function.BiFunction;
import java.util.function.ObjIntConsumer;
import org.meteora.UserException;

/** JSON lines: one JSON object a line, UTF-8. Errors name the file and the line. */
public final class Jsonl {
  /** The project's JSON mapper: strict about what follows a value, floats in shortest form. */
  public static final ObjectMapper JSON =
      new ObjectMapper().enable(DeserializationFeature.FAIL_ON_TRAILING_TOKENS);

  private static final Set<String> STANDARD_INPUT = Set.of("-", "/dev/stdin", "/dev/fd/0");

  private Jsonl() {}

  /**
   * Calls {@code each} with every object of the file and its line number (from 1); blank lines are
   * passed over. {@code -} is standard input; a pipe will do.
   *
   * @throws UserException when the file is missing, is not UTF-8, or a line is not a JSON object
   */
  public static void forEach(Path file, ObjIntConsumer<JsonNode> each) {
    boolean standardInput = STANDARD_INPUT.contains(file.toString());
    if (!standardInput && (!Files.exists(file) || Files.isDirectory(file))) {
      throw new UserException("no such file: " + file);
    }
    int number = 0;
    try (var in = standardInput ? System.in : Files.newInputStream(file);
        var reader = Texts.lines(in)) {
      for (String line; (line = reader.readLine()) != null; ) {
        number++;
        if (line.isBlank()) {
          continue;
        }
        JsonNode node;
        try {
          node = JSON.readTree(line);
        } catch (JsonProcessingException e) {
          throw new UserException(file + ":" + number + ": not valid JSON: " + reason(e));
        }
        if (!node.isObject()) {
          throw new UserException(
              "%s:%s: a JSON object was expected, found %s"
                  .formatted(file, number, node.getNodeType().name().toLowerCase()));
        }
        each.accept(node, number);
      }
    } catch (CharacterCodingException e) {
      throw new UserException(file + ":" + (number + 1) + " or soon after: not UTF-8 text");
    } catch (IOException e) {
      throw unreadable(file, e);
    }
  }

  /**
   * Every object of the file, converted; the converter gets the object and {@code file:line} for
   * its own errors.
   */
  public static <T> List<T> read(Path file, BiFunction<JsonNode, String, T> convert) {
    var result = new ArrayList<T>();
    forEach(file, (node, line) -> result.add(convert.apply(node, file + ":" + line)));
    return result;
  }

  /**
   * The text field {@code name} of {@code node}.
   *
   * @throws UserException naming {@code where} when it is missing or not a string
   */
  public static String text(JsonNode node, String name, String where) {
    var value = node.get(name);
    if (value == null || !value.isTextual()) {
      throw new UserException(
          "%s: the field \"%s\" %s"
              .formatted(where, name, value == null ? "is missing" : "must be a string"));
    }
    return Texts.wellFormed(value.textValue());
  }

  /**
   * The texts of the list {@code name} in {@code node}; none where there is no such field.
   *
   * @throws UserException naming {@code where} when it is another thing than a list of texts
   */
  public static List<String> texts(JsonNode node, String name, String where) {
    var list = node.path(name);
    var texts = new ArrayList<String>();
    for (var each : list) {
      if (!list.isArray() || !each.isTextual()) {
        throw new UserException("%s: \"%s\" must be a list of texts, it is %s", where, name, list);
      }
      texts.add(each.textValue());
    }
    return texts;
  }

  /**
   * Reads a whole JSON file.
   *
   * @throws UserException when it is missing or not JSON
   */
  public static JsonNode readFile(Path file) {
    if (!Files.isRegularFile(file)) {
      throw new UserException("no such file: " + file);
    }
    var text = Texts.read(file);
    try {
      var node = JSON.readTree(text);
      if (node == null || node.isMissingNode()) {
        throw new UserException(file + ": the file is empty, JSON was expected");
      }
      return node;
    } catch (JsonProcessingException e) {
      throw unreadable(file, e);
    }
  }

  /** What to say of a JSON file that is none, naming the line, or that cannot be read. */
  public static UserException unreadable(Path file, IOException e) {
    if (e instanceof JsonProcessingException json) {
      var at = json.getLocation();
      return new UserException(
          "%s%s: not valid JSON: %s",
          file, at == null ? "" : ":" + at.getLineNr(), reason(json), e);
    }
    return new UserException("cannot read " + file + ": " + AtomicFiles.reason(e), e);
  }

  /**
   * Writes a JSON file; an iterator in the value is a list whose elements are made on the way.
   *
   * @throws UserException when it cannot be written; what was there before stays
   */
  public static void write(Path file, Object value) {
    AtomicFiles.writeStream(
        file,
        out ->
            JSON.writer().without(JsonGenerator.Feature.AUTO_CLOSE_TARGET).writeValue(out, value));
  }

  /** JSON over several lines, which ends with a line feed. */
  public static String pretty(Object value) {
    return JSON.valueToTree(value).toPrettyString() + "\n";
  }

  /** What a parser found wrong, in one line, without advice to programmers. */
  public static String reason(JsonProcessingException e) {
    var message = e.getOriginalMessage();
    return message == null
        ? ""
        : message
            .replaceAll("\\s*\\R\\s*", " ")
            .replaceFirst("^Trailing token.*", "something follows its end")
            .replaceFirst(" \\(start marker at .*", "")
            .replaceFirst(": enable `.*", "");
  }
}
