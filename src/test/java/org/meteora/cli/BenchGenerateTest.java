package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.HashMap;
import java.util.stream.Stream;
import javax.imageio.ImageIO;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.io.Jsonl;

/** What {@code bench generate} prints and draws, on a very small model. */
class BenchGenerateTest {
  @TempDir private Path folder;

  private static String run(int code, String... more) {
    var config =
        Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny/base/config.json");
    var out = new ByteArrayOutputStream();
    var stdout = System.out;
    var stderr = System.err;
    System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
    System.setErr(System.out);
    try {
      var arguments =
          Stream.concat(
              Stream.of("bench", "generate", "--device=cpu", "--model-config=" + config),
              Stream.of(more));
      assertThat(Main.run(arguments.toArray(String[]::new))).isEqualTo(code);
    } finally {
      System.setOut(stdout);
      System.setErr(stderr);
    }
    return out.toString(StandardCharsets.UTF_8);
  }

  @Test
  void measuresEveryNumberOfSequencesAndDraws() throws Exception {
    var picture = folder.resolve("throughput.png");
    var lines =
        run(
                0,
                "--adapters=3",
                "--rank=2",
                "--sequences=1,3",
                "--prompt-tokens=80",
                "--new-tokens=4",
                "--shared-tokens=0,70",
                "--base",
                "--router=logo,lora-flow,oracle",
                "--json",
                "--plot=" + picture)
            .lines()
            .filter(line -> line.startsWith("{"))
            .toList();
    assertThat(lines).hasSize(5 * 4);
    assertThat(lines.getLast()).contains("router oracle, 70 shared, 3 at once");
    var base = new HashMap<String, Double>();
    for (var line : lines) {
      var json = Jsonl.JSON.readTree(line);
      double ms = json.get("ms").asDouble();
      double its =
          base.computeIfAbsent(
              json.get("what").asText().replaceFirst("^(MeteoRA|base model|router [a-z-]+)", ""),
              key -> ms);
      assertThat(json.get("ratio").asDouble())
          .isCloseTo(ms / its, org.assertj.core.data.Offset.offset(1e-9));
      int atOnce = json.get("what").asText().endsWith("3 at once") ? 3 : 1;
      double tokens = 2.0 * atOnce * 4; // two prompts for each
      assertThat(json.get("tokens_per_second").asDouble() * json.get("ms").asDouble() / 1000)
          .isCloseTo(tokens, org.assertj.core.data.Offset.offset(1e-6));
    }
    assertThat(ImageIO.read(picture.toFile()).getWidth()).isEqualTo(1100);
  }

  @Test
  void impossibleSizesAreNamed() {
    assertThat(run(2, "--shared-tokens=90", "--prompt-tokens=80"))
        .contains("--shared-tokens", "90");
    assertThat(run(2, "--rounds=0")).contains("--rounds");
    assertThat(run(2, "--sequences=1,0")).contains("--sequences");
    assertThat(run(2, "--router=arow"))
        .contains("no router arow: choose one of gate, arrow, ")
        .doesNotContain("MeteoRA");
    assertThat(run(2, "--sequences=1,100000000")).contains("a cache of 100,000,000 x 218 tokens");
  }
}
