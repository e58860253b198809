package org.meteora.eval.routes;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;
import javax.imageio.ImageIO;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.io.Jsonl;

class RoutingTraceTest {
  @TempDir Path folder;

  @Property(tries = 200)
  void tokenTextsJoinedAreTheText(@ForAll String text) {
    var tokens = Traces.byteTokens(text, 0);
    var joined = tokens.stream().map(RoutedToken::text).collect(Collectors.joining());
    assertThat(joined).isEqualTo(Traces.decodeBytes(Traces.bytes(text)));
  }

  @Test
  void aCharacterOfSeveralTokensStandsWholeOnItsFirst() {
    assertThat(Traces.byteTokens("a€😀b", 1).stream().map(RoutedToken::text))
        .containsExactly("a", "€", "", "", "😀", "", "", "", "b");
    // broken UTF-8 stays what the decoder made of it, and does not swallow what follows
    var broken = RoutedToken.of(Traces::decodeBytes, id -> "", new int[] {'a', 0xE2, 0x82, 'b'}, 0);
    assertThat(broken.stream().map(RoutedToken::text)).containsExactly("a", "\uFFFD", "", "b");
  }

  @Test
  void prefillAndDecodeAreRecordedInOrder() {
    var recorder = new RoutingRecorder();
    recorder.onRouting(0, 0, 1, 2, 1, new int[] {1, 2}, new float[2]);
    recorder.onRouting(0, 0, 1, 1, 1, new int[] {3}, new float[] {0.5f});
    var trace =
        recorder.trace(
            List.of("a", "b", "c", "d"), Traces.byteTokens("xyzw", 2), List.of(), Map.of());
    assertThat(trace.routedTokens()).isEqualTo(3);
    assertThat(
            List.of(
                trace.adapter(0, 0, 0, 0), trace.adapter(0, 0, 1, 0), trace.adapter(0, 0, 2, 0)))
        .containsExactly(1, 2, 3);
    assertThat(trace.weight(0, 0, 2, 0)).isEqualTo(0.5f);
    // gates that never spoke, and the token without routing
    assertThat(trace.adapter(0, 6, 0, 0)).isEqualTo(-1);
    assertThat(trace.shares(RoutingTrace.ALL, RoutingTrace.ALL, 3)).containsOnly(0);
    assertThatThrownBy(() -> recorder.onRouting(0, 0, 1, 1, 2, new int[2], new float[2]))
        .isInstanceOf(IllegalStateException.class)
        .hasMessageContaining("from 1 to 2");
  }

  @Test
  void compositePartsFollowQuestionsAndNumberedAnswers() {
    var tasks = List.of("alpha", "beta");
    var prompt =
        "Example 1:\n\n[INST] a [/INST]\n\n[INST] b\n1. no answer [/INST]\n\n1. x y\n2. z\n\nNow:\n"
            + "[INST] c [/INST]\n\n[INST] d [/INST]\n";
    var tokens = Traces.words(prompt, "1. yes\n2. [INST] no [/INST]\n3. more");
    var parts = Part.composite(tasks, tokens);
    assertThat(parts.stream().map(part -> part.label() + " " + part.task() + " " + part.output()))
        .containsExactly(
            "question 1 alpha false",
            "question 2 beta false",
            "answer 1 alpha false",
            "answer 2 beta false",
            "question 1 alpha false",
            "question 2 beta false",
            "answer 1 alpha true",
            "answer 2 beta true");
    for (int i = 1; i < parts.size(); i++) {
      assertThat(parts.get(i).from()).isGreaterThanOrEqualTo(parts.get(i - 1).to());
    }
  }

  @Test
  void verdictsSayWhichAdapterIsInCharge() {
    var tokens = Traces.words("one two three", "four five six");
    var parts =
        List.of(new Part(0, 3, "prompt", "beta", false), new Part(3, 6, "answer", "gamma", true));
    var trace = Traces.trace(List.of("alpha", "beta"), tokens, parts, 6, t -> t < 3 ? 1 : 0, 1);
    var verdicts = trace.verdicts();
    assertThat(verdicts.get(0).right()).isTrue();
    assertThat(verdicts.get(0).rightTokens()).isEqualTo(1);
    assertThat(verdicts.get(1).right()).isFalse();
    assertThat(verdicts.get(1).expected()).isEqualTo(-1);
    assertThat(verdicts.get(1).dominant()).isZero();
  }

  @Test
  void jsonAndCsvHoldTheRawNumbers() throws Exception {
    var tokens = Traces.words("one two", "three four");
    var trace =
        Traces.trace(List.of("a,\"b\"", "c", "d"), tokens, Part.single("c", tokens), 2, t -> 1, 2);
    RoutesData.writeJson(trace, folder.resolve("routes.json"));
    RoutesData.writeCsv(trace, folder.resolve("routes.csv"));
    var json = Jsonl.readFile(folder.resolve("routes.json"));
    var sums = new HashMap<String, Double>();
    for (int layer = 0; layer < 2; layer++) {
      for (var module : RoutingRecorder.MODULES) {
        var gate = json.get("routing").get(layer).get(module);
        assertThat(gate.get("indices")).hasSize(3);
        for (int k = 0; k < 2; k++) {
          var name = json.get("adapters").get(gate.get("indices").get(1).get(k).intValue());
          sums.merge(
              name.textValue(), gate.get("weights").get(1).get(k).doubleValue() / 14, Double::sum);
        }
      }
    }
    sums.forEach(
        (name, share) ->
            assertThat(json.get("tokens").get(1).get("shares").get(name).doubleValue())
                .isCloseTo(share, within(1e-6)));
    var csv = Files.readAllLines(folder.resolve("routes.csv"));
    assertThat(csv).hasSize(1 + 3 * 2 * 7 * 2);
    assertThat(csv.getFirst()).isEqualTo("token,id,output,layer,module,rank,adapter,weight");
    assertThat(String.join("\n", csv)).contains(",\"a,\"\"b\"\"\",");
  }

  @Test
  void codesAreShortAndNeverShared() {
    var codes = Palette.codes(Traces.TASKS);
    assertThat(codes).doesNotHaveDuplicates().allMatch(code -> code.length() <= 4);
    assertThat(Palette.codes(List.of("x", "x ", "", "日本_語"))).containsExactly("X", "X2", "?", "日語");
  }

  @Test
  void thePictureIsDrawnWithTextOfEveryKind() throws Exception {
    var tokens =
        Traces.words("[INST] Fünf 日本 words\n\tof " + "long".repeat(400) + " [/INST]\n", "one\ntwo");
    var trace = Traces.trace(Traces.TASKS, tokens, Part.single("gsm8k", tokens), 2, t -> 10, 3);
    RoutesPng.write(trace, "A picture", folder.resolve("routes.png"));
    var image = ImageIO.read(folder.resolve("routes.png").toFile());
    assertThat(image.getWidth()).isEqualTo(2200);
    assertThat(image.getHeight()).isBetween(700, 4000);
  }
}
