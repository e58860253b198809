package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.UserException;

/** What the native library must not see, and what must not change on the way to it. */
class TokenizerTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "configs/tiny/base");

  @TempDir Path folder;

  @Test
  void halfASurrogatePairIsOneReplacementAndNothingElse() {
    try (var tokenizer = Tokenizer.load(TINY)) {
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
    try (var tokenizer = Tokenizer.load(TINY)) {
      org.assertj.core.api.Assertions.assertThatThrownBy(
              () -> tokenizer.encode(" ".repeat(1_000_001), false))
          .isInstanceOf(org.meteora.UserException.class)
          .hasMessage(
              "a text has 1,000,001 characters, more than the 1,000,000 that a tokenizer is given");
      assertThat(tokenizer.encode("a ".repeat(1_000), false)).isNotEmpty();
    }
  }

  @Test
  void aZeroCharacterIsAnOrdinaryOne() {
    try (var tokenizer = Tokenizer.load(TINY)) {
      var with = tokenizer.encode("ab\0cd", false);
      assertThat(tokenizer.decode(with, false)).isEqualTo("ab\0cd");
    }
  }

  /** Every one of these is a token of some real vocabulary; none is a part of the file. */
  @Test
  void wordsOfTheVocabularyAreNoPartsOfTheFile() throws IOException {
    var json = org.meteora.io.Jsonl.readFile(TINY.resolve("tokenizer.json"));
    var vocab = (com.fasterxml.jackson.databind.node.ObjectNode) json.at("/model/vocab");
    int id = 1000;
    for (var word :
        java.util.List.of(
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
    try (var tokenizer = Tokenizer.load(folder);
        var tiny = Tokenizer.load(TINY)) {
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
    var json = org.meteora.io.Jsonl.readFile(TINY.resolve("tokenizer.json"));
    var changed = ((com.fasterxml.jackson.databind.node.ObjectNode) json).put(key, "VALUE");
    Files.writeString(
        folder.resolve("tokenizer.json"),
        changed
            .toString()
            .replace("\"VALUE\"", value.replace("DEEP", "[".repeat(70) + "]".repeat(70))));
    assertThatThrownBy(() -> Tokenizer.load(folder))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("tokenizer.json");
  }
}
