package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.UserException;
import org.meteora.io.Jsonl;

/** What the native library must not see, and what must not change on the way to it. */
class TokenizerTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "configs/tiny/base");

  @TempDir Path folder;

  @Test
  void halfASurrogatePairIsOneReplacementAndNothingElse() {
    try (var tokenizer = Tokenizer.load(TINY, Integer.MAX_VALUE)) {
      for (var half : new String[] {"\ud83d", "\ude00", "\ud83d\ud83d", "\ude00\ud83d"}) {
        var text = "Größe 😀 " + half + " 日本語 and more";
        assertThat(tokenizer.encode(text, false))
            .isEqualTo(
                tokenizer.encode(
                    "Größe 😀 " + "\ufffd".repeat(half.length()) + " 日本語 and more", false));
      }
    }
  }

  /** At ten million steps the library ends the process; one step a character is nothing unusual. */
  @Test
  void aTextThatMayEndTheProcessIsRefused() {
    try (var tokenizer = Tokenizer.load(TINY, Integer.MAX_VALUE)) {
      refuses(tokenizer, " ".repeat(1_000_001), "1,000,001", "1,000,000");
      assertThat(tokenizer.encode("a ".repeat(1_000), false)).isNotEmpty();
    }
  }

  private static void refuses(Tokenizer tokenizer, String text, String length, String longest) {
    assertThatThrownBy(() -> tokenizer.encode(text, false))
        .isInstanceOf(UserException.class)
        .hasMessage(
            "a text has %s characters, more than the %s that the tokenizer is given"
                .formatted(length, longest));
  }

  private Tokenizer tinyWith(String normalizer) throws IOException {
    var json = (ObjectNode) Jsonl.readFile(TINY.resolve("tokenizer.json"));
    json.set("normalizer", new ObjectMapper().readTree(normalizer));
    Files.writeString(folder.resolve("tokenizer.json"), json.toString());
    return Tokenizer.load(folder, Integer.MAX_VALUE);
  }

  /** What counts is what the patterns see. */
  @Test
  void aTextThatNormalizersMakeTooLongIsRefused() throws IOException {
    var replace =
        """
        {"type": "Sequence", "normalizers":
          [{"type": "Replace", "pattern": {"String": "a"}, "content": "12345678"}]}\
        """;
    try (var tokenizer = tinyWith(replace)) {
      refuses(tokenizer, "a".repeat(125_001), "125,001", "125,000");
      assertThat(tokenizer.encode("aa", false)).hasSize(16);
    }
    try (var tokenizer = tinyWith("{\"type\": \"NFKC\"}")) {
      refuses(tokenizer, "\ufdfa".repeat(60_000), "1,080,000", "1,000,000"); // 18 letters each
      assertThat(tokenizer.encode("\ufdfa".repeat(10), false)).isNotEmpty();
    }
    var normalized =
        """
        {"type": "Sequence", "normalizers": [
          {"type": "Replace", "pattern": {"String": "a"}, "content": "\ufdfa"},
          {"type": "NFKC"}]}\
        """;
    try (var tokenizer = tinyWith(normalized)) {
      refuses(tokenizer, "a".repeat(55_556), "55,556", "55,555");
      assertThat(tokenizer.encode("a", false)).isEqualTo(tokenizer.encode("\ufdfa", false));
    }
  }

  @Test
  void aLongTextBeforeEveryTextIsRefused() {
    var prepend = "{\"type\": \"Prepend\", \"prepend\": \"%s\"}".formatted("_".repeat(257));
    assertThatThrownBy(() -> tinyWith(prepend))
        .isInstanceOf(UserException.class)
        .hasMessageEndingWith("normalizer.prepend is longer than any token");
  }

  @Test
  void aZeroCharacterIsAnOrdinaryOne() {
    try (var tokenizer = Tokenizer.load(TINY, Integer.MAX_VALUE)) {
      var with = tokenizer.encode("ab\0cd", false);
      assertThat(tokenizer.decode(with, false)).isEqualTo("ab\0cd");
    }
  }

  /** Every one of these is a token of some real vocabulary; none is a part of the file. */
  @Test
  void wordsOfTheVocabularyAreNoPartsOfTheFile() throws IOException {
    var json = Jsonl.readFile(TINY.resolve("tokenizer.json"));
    var vocab = (ObjectNode) json.at("/model/vocab");
    int id = 1000;
    for (var word :
        List.of(
            "single",
            "pair",
            "special_tokens",
            "type",
            "pattern",
            "prepend",
            "normalizers",
            "precompiled_charsmap")) {
      vocab.put(word, id++);
    }
    Files.writeString(folder.resolve("tokenizer.json"), json.toString());
    try (var tokenizer = Tokenizer.load(folder, Integer.MAX_VALUE);
        var tiny = Tokenizer.load(TINY, Integer.MAX_VALUE)) {
      var text = "a single pair of words";
      assertThat(tokenizer.encode(text, true)).isEqualTo(tiny.encode(text, true));
    }
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      value = {
        "decoder|1e999",
        "normalizer|-1e999",
        "truncation|99999999999999999999999",
        "version|DEEP",
        "decoder|{\"type\": \"Fuse\", \"x\": \"\\ud800\"}",
        "decoder|{\"type\": \"Fuse\", \"\\udc00\": 1}",
        "normalizer|{\"type\": \"Precompiled\"}",
        "post_processor|{\"type\": \"TemplateProcessing\", \"single\": [{\"SpecialToken\":"
            + " {\"id\": \"x\", \"type_id\": 0}}], \"pair\": [], \"special_tokens\": {}}",
        "post_processor|{\"type\": 0.5, \"single\": [{\"SpecialToken\": {\"id\": \"x\","
            + " \"type_id\": 0}}], \"pair\": [], \"special_tokens\": {}}",
        "post_processor|{\"single\": \"<x> $A\", \"pair\": \"$A $B\", \"special_tokens\": {}}",
        "normalizer|{\"type\": \"Prepend\", \"prepend\": \"\"}",
        "normalizer|{\"normalizers\": [{\"type\": \"Replace\", \"pattern\": {\"String\": \"\"},"
            + " \"content\": \"x\"}]}",
        "normalizer|{\"type\": \"Replace\", \"pattern\": {\"Regex\": \"a*\"}, \"content\": \"x\"}",
        "normalizer|[[[\"\"]]]",
        "normalizer|{\"type\": \"Sequence\", \"normalizers\": [[\"\"]]}",
        "model|7",
        "model|null",
        "added_tokens|[{\"id\": -1, \"content\": \"x\"}]",
        "added_tokens|[{\"id\": 99999999, \"content\": \"x\"}]",
        "added_tokens|[{\"id\": 1}]"
      })
  void whatIsNoTokenizerIsRefusedBeforeTheNativeParser(String key, String value)
      throws IOException {
    var json = Jsonl.readFile(TINY.resolve("tokenizer.json"));
    var changed = ((ObjectNode) json).put(key, "VALUE");
    Files.writeString(
        folder.resolve("tokenizer.json"),
        changed
            .toString()
            .replace("\"VALUE\"", value.replace("DEEP", "[".repeat(70) + "]".repeat(70))));
    assertThatThrownBy(() -> Tokenizer.load(folder, Integer.MAX_VALUE))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("tokenizer.json");
  }
}
