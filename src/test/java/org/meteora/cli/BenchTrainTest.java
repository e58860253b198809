package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import org.junit.jupiter.api.Test;
import org.meteora.io.Jsonl;
import picocli.CommandLine;

/** What {@code bench train} prints, on a very small model. */
class BenchTrainTest {
  @Test
  void measuresTheBaseAndEveryMode() throws Exception {
    var config =
        Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny/base/config.json");
    var out = new ByteArrayOutputStream();
    var stdout = System.out;
    System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
    int code;
    try {
      code =
          Main.run(
              "bench",
              "train",
              "--model-config",
              config.toString(),
              "--adapters=3",
              "--rank=2",
              "--batch=2",
              "--tokens=8",
              "--repeat=1",
              "--json");
    } finally {
      System.setOut(stdout);
    }
    assertThat(code).isZero();
    var lines = new ArrayList<JsonNode>();
    for (var line : out.toString(StandardCharsets.UTF_8).lines().toList()) {
      lines.add(Jsonl.JSON.readTree(line));
    }
    assertThat(lines)
        .hasSize(12)
        .allSatisfy(line -> assertThat(line.get("ms").asDouble()).isPositive());
    // the base again beside each of what is compared with it
    for (int i = 0; i < lines.size(); i += 2) {
      assertThat(lines.get(i).get("what").asText()).startsWith("base model");
      assertThat(lines.get(i).get("ratio").asDouble()).isEqualTo(1);
      assertThat(lines.get(i + 1).get("ratio").asDouble())
          .isCloseTo(
              lines.get(i + 1).get("ms").asDouble() / lines.get(i).get("ms").asDouble(),
              within(1e-3));
      // absent where a step takes less than the processors' time is counted in
      assertThat(lines.get(i).path("processor_ratio").asDouble(1)).isEqualTo(1);
      assertThat(lines.get(i + 1).path("processor_ms").asDouble(0)).isNotNegative();
    }
    assertThat(lines.toString()).contains("auto", "masked", "gather", "all", "layers recomputed");
  }

  @Test
  void dropoutIsAShare() {
    var config =
        Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny/base/config.json");
    var err = new ByteArrayOutputStream();
    var stderr = System.err;
    System.setErr(new PrintStream(err, true, StandardCharsets.UTF_8));
    try {
      for (var dropout : new String[] {"1", "-1"}) {
        assertThat(
                Main.run(
                    "bench", "train", "--model-config", config.toString(), "--dropout=" + dropout))
            .isNotZero();
        assertThat(err.toString(StandardCharsets.UTF_8))
            .contains("--dropout must be at least 0 and less than 1, it is " + dropout + ".0");
      }
    } finally {
      System.setErr(stderr);
    }
  }

  @Test
  void whatIsNotMeasuredIsALineOfJsonToo() throws Exception {
    var out = new ByteArrayOutputStream();
    var stdout = System.out;
    System.setOut(new PrintStream(out, true, StandardCharsets.UTF_8));
    try {
      CommandLine.populateCommand(new BenchModel(), "--json").reportNotMeasured("steps", "no room");
      CommandLine.populateCommand(new BenchModel()).reportNotMeasured("steps", "no room");
    } finally {
      System.setOut(stdout);
    }
    assertThat(out.toString(StandardCharsets.UTF_8).lines())
        .containsExactly(
            "{\"what\":\"steps\",\"not_measured\":\"no room\"}", "steps are not measured: no room");
  }
}
