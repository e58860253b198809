package org.meteora.data.source;

import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import com.fasterxml.jackson.core.json.JsonWriteFeature;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.function.BiConsumer;
import org.meteora.UserException;
import org.meteora.data.PythonText;
import org.meteora.io.Digests;
import org.meteora.io.Jsonl;

/**
 * A {@code task.json}: its prefixes, and where its distinct examples lie.
 *
 * @param minimum validation examples at least
 * @param distinct the examples that count; null when the file has no key {@code examples}
 */
record TaskJsonExamples(
    Path file, Map<String, JsonNode> settings, int minimum, List<Example> distinct) {
  /** Choices are keys: no table of keys that is kept for ever, none that a hostile file fills. */
  private static final ObjectMapper JSON =
      new ObjectMapper(
          JsonFactory.builder()
              .disable(JsonFactory.Feature.INTERN_FIELD_NAMES)
              .disable(JsonFactory.Feature.FAIL_ON_SYMBOL_HASH_OVERFLOW)
              // half a surrogate pair too has a serialised form
              .enable(JsonWriteFeature.ESCAPE_NON_ASCII)
              .build());

  private static final List<String> PREFIXES =
      List.of("task_prefix", "example_input_prefix", "choice_prefix", "example_output_prefix");
  private static final String APPEND_CHOICES = "append_choices_to_input";
  private static final List<String> OTHER_SETTINGS =
      List.of(APPEND_CHOICES, "preferred_score", "metrics");

  /**
   * Where an example lies in the file, in bytes.
   *
   * @param number among all, from 0
   */
  record Example(int number, long start, int length) {}

  /** The first 128 bits of an example's digest. */
  private record Key(long high, long low) {}

  static TaskJsonExamples scan(Path file, int minimum) {
    var settings = new HashMap<String, JsonNode>();
    List<Example> found = null;
    try (var in = Files.newInputStream(file);
        var parser = JSON.getFactory().createParser(in)) {
      if (parser.nextToken() != JsonToken.START_OBJECT) {
        throw new UserException(file + ": a JSON object was expected");
      }
      if (parser.currentLocation().getByteOffset() < 0) {
        throw new UserException(file + ": not UTF-8 text");
      }
      while (parser.nextToken() == JsonToken.FIELD_NAME) {
        var name = parser.currentName();
        parser.nextToken();
        if (name.equals("examples")) {
          found = examples(file, parser);
        } else if (PREFIXES.contains(name) || OTHER_SETTINGS.contains(name)) {
          settings.put(name, JSON.readTree(parser));
        } else {
          parser.skipChildren();
        }
      }
      if (parser.nextToken() != null) {
        throw new UserException(
            "%s:%s: something follows the JSON object"
                .formatted(file, parser.currentTokenLocation().getLineNr()));
      }
    } catch (IOException e) {
      throw Jsonl.unreadable(file, e);
    }
    for (var prefix : PREFIXES) {
      if (settings.containsKey(prefix) && !settings.get(prefix).isTextual()) {
        throw new UserException(file + ": \"" + prefix + "\" must be a string");
      }
    }
    return new TaskJsonExamples(file, settings, minimum, found);
  }

  private static List<Example> examples(Path file, JsonParser parser) throws IOException {
    if (!parser.isExpectedStartArrayToken()) {
      throw new UserException(file + ": \"examples\" must be a list");
    }
    var distinct = new ArrayList<Example>();
    var seen = new HashSet<Key>();
    var digest = Digests.sha256();
    for (int number = 0; parser.nextToken() != JsonToken.END_ARRAY; number++) {
      if (parser.currentToken() != JsonToken.START_OBJECT) {
        throw new UserException(file + ": example " + number + " (from 0) is not an object");
      }
      long start = parser.currentTokenLocation().getByteOffset();
      var node = JSON.readTree(parser);
      var bits = ByteBuffer.wrap(digest.digest(JSON.writeValueAsBytes(node)));
      if (seen.add(new Key(bits.getLong(), bits.getLong()))) {
        long length = parser.currentLocation().getByteOffset() - start;
        distinct.add(new Example(number, start, Math.toIntExact(length)));
      }
    }
    return distinct;
  }

  private int validation() {
    return Math.max(distinct.size() / 5, minimum);
  }

  /** BIG-bench gives empty splits for the whole task when one file is too small. */
  void requireSplit() {
    if (validation() >= distinct.size()) {
      throw new UserException(
          "%s: %s different examples are too few for a split: more than %s are needed"
              .formatted(file, distinct.size(), validation()));
    }
  }

  /** Hands over one split in its published order. */
  void forEach(boolean train, BiConsumer<JsonNode, String> each) {
    int total = distinct.size();
    var order = MersenneTwister.examples(total);
    int from = train ? 0 : total - validation();
    int to = train ? total - validation() : total;
    try (var channel = FileChannel.open(file)) {
      for (int i = from; i < to; i++) {
        var example = distinct.get(order[i]);
        var where = file + ": example " + example.number() + " (from 0)";
        each.accept(record(JSON.readTree(bytes(channel, example)), i - from, where), where);
      }
    } catch (IOException e) {
      throw Jsonl.unreadable(file, e);
    }
  }

  private byte[] bytes(FileChannel channel, Example example) throws IOException {
    var buffer = ByteBuffer.allocate(example.length());
    while (buffer.hasRemaining()) {
      if (channel.read(buffer, example.start() + buffer.position()) < 0) {
        throw new UserException(file + ": has become shorter while it was read");
      }
    }
    return buffer.array();
  }

  private String prefix(String name, String other) {
    return settings.containsKey(name) ? settings.get(name).textValue() : other;
  }

  /** The record published for an example. */
  private ObjectNode record(JsonNode example, int index, String where) {
    var choices = example.get("target_scores");
    if (choices != null && !choices.isObject()) {
      throw new UserException(where + ": \"target_scores\" must be an object");
    }
    var text = new StringBuilder(prefix("task_prefix", ""));
    text.append(prefix("example_input_prefix", "\nQ: "));
    text.append(Jsonl.text(example, "input", where));
    if (choices != null && isTrue(settings.get(APPEND_CHOICES))) {
      var sorted = new ArrayList<String>();
      choices.fieldNames().forEachRemaining(sorted::add);
      sorted.sort(TaskJsonExamples::byCodePoint);
      for (int i : MersenneTwister.choices(sorted.size())) {
        text.append(prefix("choice_prefix", "\n  choice: ")).append(sorted.get(i));
      }
    }
    text.append(prefix("example_output_prefix", "\nA: "));
    var record = JSON.createObjectNode();
    record.put("idx", index);
    record.put("inputs", PythonText.strip(text.toString()));
    var targets = record.putArray("targets");
    targets(example, where).forEach(target -> targets.add(PythonText.strip(target)));
    var texts = record.putArray("multiple_choice_targets");
    var scores = record.putArray("multiple_choice_scores");
    if (choices != null) {
      for (var choice : choices.properties()) {
        texts.add(PythonText.strip(choice.getKey()));
        scores.add((int) score(choice, where));
      }
    }
    return record;
  }

  /** As Python judges a value, where a text is true, {@code "false"} too; true when missing. */
  private static boolean isTrue(JsonNode value) {
    return value == null
        || switch (value.getNodeType()) {
          case BOOLEAN -> value.booleanValue();
          case NUMBER -> value.doubleValue() != 0;
          case STRING -> !value.textValue().isEmpty();
          case ARRAY, OBJECT -> !value.isEmpty();
          default -> false;
        };
  }

  private static double score(Map.Entry<String, JsonNode> choice, String where) {
    if (!choice.getValue().isNumber()) {
      throw new UserException("%s: the score of \"%s\" must be a number", where, choice.getKey());
    }
    return choice.getValue().doubleValue();
  }

  private static List<String> targets(JsonNode example, String where) {
    var target = example.get("target");
    if (target != null) {
      var texts = new ArrayList<String>();
      for (var each : target.isArray() ? target : List.of(target)) {
        if (!each.isTextual()) {
          throw new UserException(
              where + ": \"target\" must be a string or a list of strings, it holds " + each);
        }
        texts.add(each.textValue());
      }
      if (texts.isEmpty()) {
        throw new UserException(where + ": \"target\" is an empty list");
      }
      return texts;
    }
    var choices = example.get("target_scores");
    if (choices == null) {
      throw new UserException(where + ": neither \"target\" nor \"target_scores\"");
    }
    if (choices.isEmpty()) {
      throw new UserException(where + ": \"target_scores\" is empty");
    }
    var scores = new LinkedHashMap<String, Double>();
    for (var choice : choices.properties()) {
      scores.put(choice.getKey(), score(choice, where));
    }
    double highest = Collections.max(scores.values());
    double lowest = Collections.min(scores.values());
    if (choices.size() == 1 ? highest == 0 : highest == lowest) {
      throw new UserException(
          where
              + (choices.size() == 1
                  ? ": the only choice has score 0"
                  : ": all choices have the same score")
              + ", so there is no right one");
    }
    return scores.keySet().stream().filter(each -> scores.get(each) == highest).limit(1).toList();
  }

  static int byCodePoint(String a, String b) {
    return Arrays.compare(a.codePoints().toArray(), b.codePoints().toArray());
  }
}
