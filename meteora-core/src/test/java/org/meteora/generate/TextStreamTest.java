package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;

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
        var shown = new StringBuilder();
        int[] tokens = tokenizer.encode(text.toString(), false);
        int count = 0;
        while (count < tokens.length) {
          stream.add(tokens[count++]);
          if (random.nextInt(4) > 0) { // or later, of several
            shown.append(stream.fresh());
          }
          assertThat(text.substring(0, end)).startsWith(shown.toString());
          if (texts.end(Arrays.copyOf(tokens, count))) {
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
}
