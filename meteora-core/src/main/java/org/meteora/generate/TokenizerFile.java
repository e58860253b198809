package org.meteora.generate;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.text.Normalizer;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.regex.Pattern;
import java.util.regex.PatternSyntaxException;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import org.meteora.io.Texts;

/**
 * Checks a {@code tokenizer.json} before the native library parses it: where that meets what it
 * does not expect, it ends the process instead of saying so.
 */
final class TokenizerFile {
  private static final int DEEPEST = 60;
  private static final int HIGHEST_ID = 1 << 24;
  private static final int LARGEST_GROWTH = 256;

  /** Normalizers of Unicode's normal forms; BERT's strips accents in one. */
  private static final Set<String> NORMAL_FORMS =
      Set.of("NFC", "NFD", "NFKC", "NFKD", "BertNormalizer");

  private final Path file;

  private TokenizerFile(Path file) {
    this.file = file;
  }

  /**
   * What a file says.
   *
   * @param pieces the vocabulary's entries by id; null where an id has none
   * @param growth times as many characters that its patterns may see as a text has
   * @param normalizes whether a text is brought into a Unicode normal form before
   */
  record Checked(String[] pieces, double growth, boolean normalizes) {}

  /**
   * @throws UserException when it cannot be a tokenizer
   */
  static Checked check(Path file) {
    return new TokenizerFile(file).check();
  }

  private Checked check() {
    var json = Jsonl.readFile(file);
    if (!json.isObject() || !json.path("model").isObject()) {
      throw refused("not a tokenizer: there is no \"model\"");
    }
    requireSane(json, "", 0);
    for (var part : List.of("normalizer", "pre_tokenizer", "post_processor", "decoder")) {
      requirePart(json.path(part), part);
      if (growth(json.path(part)) > LARGEST_GROWTH) {
        throw refused(part + " makes a text more than " + LARGEST_GROWTH + " times as long");
      }
    }
    var pieces = new TreeMap<Integer, String>();
    var vocab = json.path("model").path("vocab");
    if (vocab.isArray()) {
      for (int i = 0; i < vocab.size(); i++) {
        pieces.put(i, vocab.get(i).path(0).asText());
      }
    } else {
      vocab.properties().forEach(entry -> put(pieces, entry.getValue(), entry.getKey()));
    }
    for (var added : json.path("added_tokens")) {
      if (!added.path("content").isTextual()) {
        throw refused("added_tokens: a token without \"content\"");
      }
      put(pieces, added.path("id"), added.path("content").textValue());
    }
    if (pieces.isEmpty()) {
      throw refused("the vocabulary is empty");
    }
    var table = new String[pieces.lastKey() + 1];
    pieces.forEach((id, piece) -> table[id] = piece);
    var normalizer = json.path("normalizer");
    double growth = characters(normalizer, false) * characters(json.path("pre_tokenizer"), true);
    var types = Set.copyOf(normalizer.findValuesAsText("type"));
    return new Checked(table, growth, NORMAL_FORMS.stream().anyMatch(types::contains));
  }

  private void put(Map<Integer, String> pieces, JsonNode id, String piece) {
    if (!id.isInt() || id.intValue() < 0 || id.intValue() > HIGHEST_ID) {
      throw refused("the token \"" + cut(piece) + "\" has the id " + cut(id.toString()));
    }
    pieces.put(id.intValue(), piece);
  }

  /** Depth and numbers of any part. */
  private void requireSane(JsonNode node, String path, int depth) {
    if (depth > DEEPEST) {
      throw refused(cut(path) + " is nested too deeply");
    }
    if (node.isTextual() && !isWellFormed(node.textValue())) {
      throw refused(cut(path) + " holds half a surrogate pair");
    }
    if (node.isNumber()
        && (node.isIntegralNumber()
            ? !node.canConvertToLong()
            : !Double.isFinite(node.doubleValue()))) {
      throw refused(cut(path) + " is an impossible number");
    }
    if (node.isObject()) {
      // a vocabulary's keys are tokens, whatever words they are
      if (!path.equals("model.vocab")) {
        requireKnownPart(node, path);
      }
      node.properties()
          .forEach(
              entry -> {
                if (!isWellFormed(entry.getKey())) {
                  throw refused(cut(path) + " has a key with half a surrogate pair");
                }
                requireSane(
                    entry.getValue(),
                    depth > 4 ? path : path + (path.isEmpty() ? "" : ".") + entry.getKey(),
                    depth + 1);
              });
    } else if (node.isArray()) {
      node.forEach(each -> requireSane(each, path, depth + 1));
    }
  }

  /** A part is an object that says its type; the library takes a list for an object's values. */
  private void requirePart(JsonNode part, String path) {
    if (part.isMissingNode() || part.isNull()) {
      return;
    }
    if (!part.path("type").isTextual()) {
      throw refused(path + " is not an object with a type");
    }
    if (part.has("pattern") && !part.path("pattern").isObject()) {
      throw refused(path + " has a pattern that is not an object");
    }
    for (var list : List.of("normalizers", "pretokenizers", "processors", "decoders")) {
      for (var each : part.path(list)) {
        if (each.isNull()) {
          throw refused(path + "." + list + " has a part that is null");
        }
        requirePart(each, path + "." + list);
      }
    }
  }

  /** How much longer replacements, one after the other, may make a text. */
  private static double growth(JsonNode part) {
    double result = 1;
    for (var each : part) {
      result *= each.isContainerNode() ? growth(each) : 1;
    }
    return part.path("type").asText("").equals("Replace")
        ? result * Math.max(1, bytes(part.path("content")))
        : result;
  }

  /**
   * How many times as many characters patterns behind it, or in it, see as it is given.
   *
   * @param last whether nothing comes behind it
   */
  private static double characters(JsonNode part, boolean last) {
    double result =
        switch (part.path("type").asText("")) {
          case "Replace" -> Math.max(1, normalizedLength(part.path("content").asText("")));
          case "Lowercase" -> 2;
          case "BertNormalizer" -> 6; // spaces beside each character, small letters
          case "ByteLevel" -> last ? 1 : 4;
          default -> 1;
        };
    for (var list : List.of(part.path("normalizers"), part.path("pretokenizers"))) {
      for (int i = 0; i < list.size(); i++) {
        result *= characters(list.get(i), last && i == list.size() - 1);
      }
    }
    return result;
  }

  /** Characters of a text in the normal form that has the most. */
  static int normalizedLength(String text) {
    return Normalizer.normalize(text, Normalizer.Form.NFKD).length();
  }

  private static int bytes(JsonNode text) {
    return text.asText("").getBytes(StandardCharsets.UTF_8).length;
  }

  /** A text that is put at every token, or before a whole text. */
  private void requireShort(JsonNode text, String path) {
    if (bytes(text) > LARGEST_GROWTH) {
      throw refused(cut(path) + " is longer than any token");
    }
  }

  private static boolean isWellFormed(String text) {
    return Texts.wellFormed(text).equals(text);
  }

  /** Parts whose own content the native library believes. */
  private void requireKnownPart(JsonNode node, String path) {
    var type = node.path("type").asText("");
    if (type.equals("Precompiled") || node.has("precompiled_charsmap")) {
      throw refused(cut(path) + ": a Precompiled normalizer is not supported");
    }
    // the library loses its place in a text where nothing is to be replaced or put before it
    var pattern = node.path("pattern");
    if (path.startsWith("normalizer")
        && (node.path("prepend").asText("x").isEmpty()
            || pattern.path("String").asText("x").isEmpty()
            || matchesNothing(pattern.path("Regex").asText("x")))) {
      throw refused(cut(path) + ": an empty text, or a pattern that matches one");
    }
    var regex = pattern.path("Regex");
    if (regex.isTextual() && !PatternCost.isBounded(regex.textValue())) {
      throw refused(
          "%s: a pattern whose matching may take for ever: %s"
              .formatted(cut(path), cut(regex.textValue())));
    }
    for (var text :
        List.of("prepend", "prefix", "suffix", "continuing_subword_prefix", "end_of_word_suffix")) {
      requireShort(node.path(text), path + "." + text);
    }
    // the library does not ask whether it is called a template
    if (node.has("single") || node.has("pair") || node.has("special_tokens")) {
      requireTemplate(node, path);
    }
  }

  private static boolean matchesNothing(String regex) {
    try {
      return Pattern.compile(regex).matcher("").find();
    } catch (PatternSyntaxException | StackOverflowError e) {
      return false; // the library has a syntax of its own, and says what it does not understand
    }
  }

  private void requireTemplate(JsonNode node, String path) {
    var known = node.path("special_tokens");
    for (var list : List.of(node.path("single"), node.path("pair"))) {
      boolean whole = list.isArray() && known.isObject();
      for (var piece : list) {
        var special = piece.path("SpecialToken");
        whole &= piece.isObject();
        whole &= special.isMissingNode() || known.has(special.path("id").asText(""));
      }
      if (!whole) {
        throw refused(
            cut(path)
                + ": a template is made of pieces, and its special tokens are among"
                + " special_tokens");
      }
    }
    for (var token : known) {
      if (!token.path("ids").isArray() || token.path("ids").size() != token.path("tokens").size()) {
        throw refused(cut(path) + ": a special token with other ids than tokens");
      }
    }
  }

  private UserException refused(String why) {
    return new UserException(file + ": " + why);
  }

  private static String cut(String text) {
    return text.length() <= 100 ? text : text.substring(0, 100) + "…";
  }
}
