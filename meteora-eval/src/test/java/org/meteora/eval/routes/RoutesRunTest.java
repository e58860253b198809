package org.meteora.eval.routes;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.Collectors;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.moe.Flags;
import org.meteora.router.Routers;

/** A real, tiny model, routed from its prompt to the reports. */
class RoutesRunTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "../shared/fixtures/tiny-llama");
  @TempDir Path folder;

  @BeforeEach
  void needsTheTinyModel() {
    assumeTrue(Files.isDirectory(TINY), "the tiny model's files are not here: " + TINY);
  }

  private static LoadedModel load(String model) {
    return LoadedModel.load(
        new LoadedModel.Spec(
            TINY.resolve("base"),
            model,
            Optional.of(TINY.resolve("meteora/model.safetensors")),
            Optional.of(TINY.resolve("adapters")),
            Optional.empty(),
            Optional.empty(),
            "cpu",
            Optional.empty(),
            Flags.AUTO,
            Routers.GATE));
  }

  @Test
  void everyGateOfEveryTokenIsRecorded() {
    try (var model = load("meteora")) {
      var names = List.of("task_a", "task_b", "task_c", "task_d");
      var prompt = "[INST] Grüße, 日本 € 😀? [/INST]\n";
      var config = model.generationConfig().withGreedy().withMaxNewTokens(8);
      var trace =
          Routes.run(
              model.generator(),
              model.tokenizer(),
              names,
              prompt,
              config,
              tokens -> Part.single("task_b", tokens),
              Map.of("model", model.describe()));
      var text =
          trace.tokens().stream()
              .filter(token -> !token.output())
              .map(RoutedToken::text)
              .collect(Collectors.joining());
      assertThat(text).isEqualTo(prompt);
      assertThat(trace.layers()).isEqualTo(2);
      int written = trace.tokens().size() - trace.promptTokens();
      assertThat(written).isBetween(1, 8);
      assertThat(trace.routedTokens()).isEqualTo(trace.tokens().size() - (written == 8 ? 1 : 0));
      for (int t = 0; t < trace.routedTokens(); t++) {
        for (int layer = 0; layer < 2; layer++) {
          for (int module = 0; module < 7; module++) {
            double sum = 0;
            for (double share : trace.shares(layer, module, t)) {
              sum += share;
            }
            assertThat(sum).isCloseTo(1, within(1e-5));
            assertThat(trace.weight(layer, module, t, 0))
                .isGreaterThanOrEqualTo(trace.weight(layer, module, t, 1));
          }
        }
      }
      Routes.write(trace, "Tiny", folder);
      assertThat(folder.toFile().list())
          .contains("routes.html", "routes.png", "routes.json", "routes.csv");
    }
  }

  @Test
  void aModelWithoutGatesIsRefused() {
    try (var model = load("base")) {
      assertThatThrownBy(
              () ->
                  Routes.run(
                      model.generator(),
                      model.tokenizer(),
                      List.of(),
                      "hello",
                      model.generationConfig().withGreedy().withMaxNewTokens(2),
                      tokens -> List.of(),
                      Map.of()))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("no gates");
    }
  }

  @Test
  void aSampleThatIsNotThereIsNamed() throws Exception {
    var file = folder.resolve("gsm8k/test.jsonl");
    Files.createDirectories(file.getParent());
    Files.writeString(file, "{\"prompt\":\"p\",\"response\":\"r\"}\n");
    assertThat(Routes.prompt(folder, "gsm8k", 0)).isEqualTo("p");
    assertThatThrownBy(() -> Routes.prompt(folder, "gsm8k", 3))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("samples 0 to 0, not 3");
  }
}
