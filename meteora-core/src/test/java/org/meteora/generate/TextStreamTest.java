package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.io.TempDir;

/** The text of an answer, piece by piece. */
class TextStreamTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "configs/tiny/base");

  /** Texts of few different characters, some of several tokens, against a search in the whole. */
  @Test
  void anAnswerEndsBeforeTheFirstOfItsStopsAndShowsNothingOfIt() {
    var random = new Random(3);
    var letters = List.of("a", "b", "é", "\n");
    try (var tokenizer = Tokenizer.load(TINY, Integer.MAX_VALUE)) {
      int ended = 0;
      for (int round = 0; round < 300; round++) {
        var text = new StringBuilder();
        for (int i = 0; i < 12; i++) {
          text.append(letters.get(random.nextInt(letters.size())));
        }
        var stops = new ArrayList<String>();
        for (int i = random.nextInt(3); i >= 0; i--) {
          int from = random.nextInt(8);
          stops.add(
              random.nextInt(4) == 0 ? "abab" : text.substring(from, from + 1 + random.nextInt(4)));
        }
        int end = text.length();
        for (int length = 1; length <= text.length() && end == text.length(); length++) {
          var some = text.substring(0, length); // the first that is whole ends it
          end = stops.stream().mapToInt(some::indexOf).filter(at -> at >= 0).min().orElse(end);
        }
        var texts = new StopTexts(tokenizer, stops);
        var stream = new TextStream(texts);
        var ends = texts.ofAnswer();
        var shown = new StringBuilder();
        int[] tokens = tokenizer.encode(text.toString(), false);
        int count = 0;
        while (count < tokens.length) {
          stream.add(tokens[count++]);
          if (random.nextInt(4) > 0) { // or later, of several
            shown.append(stream.fresh());
          }
          assertThat(text.substring(0, end)).startsWith(shown.toString());
          if (ends.test(tokens[count - 1])) {
            ended++;
            break;
          }
        }
        shown.append(stream.rest());
        assertThat(shown.toString())
            .as("%s without %s", text, stops)
            .isEqualTo(text.substring(0, end));
        assertThat(texts.before(Arrays.copyOf(tokens, count))).isEqualTo(shown.toString());
      }
      assertThat(ended).isGreaterThan(200);
    }
  }

  /** Any bytes and special tokens; in far less time than if all were read again at each. */
  @Test
  @Timeout(10)
  void aLongAnswerIsTheTextOfItsTokens() {
    try (var tokenizer = Tokenizer.load(TINY, Integer.MAX_VALUE)) {
      for (int count : new int[] {1, 2, 3, 5, 8, 100, 20_000}) {
        compare(tokenizer, new Random(count).ints(count, 0, 258).toArray());
      }
    }
  }

  /** A family whose texts lose the space that they begin with. */
  @Test
  void aTokensTextMayDependOnThoseBefore(@TempDir Path folder) throws IOException {
    Files.writeString(
        folder.resolve("tokenizer.json"),
        """
        {"version": "1.0", "normalizer": null, "pre_tokenizer": null, "post_processor": null,
         "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false,
           "rstrip": false, "normalized": false, "special": true}],
         "decoder": {"type": "Sequence", "decoders": [
           {"type": "Replace", "pattern": {"String": "_"}, "content": " "},
           {"type": "ByteFallback"}, {"type": "Fuse"},
           {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
         "model": {"type": "BPE", "merges": [], "vocab": {"<s>": 0, "_": 1, "__": 2, "_a": 3,
           "b": 4, "<0xC3>": 5, "<0xA9>": 6, "<0xE2>": 7, "<0x82>": 8, "<0xAC>": 9}}}
        """);
    var whole = List.of("0", "1", "2", "3", "4", "56", "789"); // é and € are bytes
    try (var tokenizer = Tokenizer.load(folder, Integer.MAX_VALUE)) {
      for (int round = 0; round < 300; round++) {
        compare(
            tokenizer,
            new Random(round)
                .ints(1 + round / 20, 0, whole.size())
                .mapToObj(whole::get)
                .flatMapToInt(String::chars)
                .map(digit -> digit - '0')
                .toArray());
      }
    }
  }

  private static void compare(Tokenizer tokenizer, int[] tokens) {
    var stream = new TextStream(new StopTexts(tokenizer, List.of("never")));
    var shown = new StringBuilder();
    for (int token : tokens) {
      stream.add(token);
      shown.append(stream.fresh());
    }
    shown.append(stream.rest());
    assertThat(shown.toString()).isEqualTo(tokenizer.decode(tokens, true));
  }
}
