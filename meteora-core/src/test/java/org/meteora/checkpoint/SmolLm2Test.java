package org.meteora.checkpoint;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.meteora.Fixtures;
import org.meteora.io.Jsonl;
import org.meteora.moe.Flags;
import org.meteora.router.Routers;

/**
 * A real model and its real tokenizer, SmolLM2-135M-Instruct, against transformers 5.24 in float32:
 * 30 prompts (chat tokens, emoji, tabs, CRLF, German, Japanese, code) to the same ids, and 32
 * greedy tokens each. The model's folder is the property {@code meteora.smollm2}, the variable
 * {@code METEORA_SMOLLM2}, or {@code ~/.cache/meteora/smollm2}; without it the tests are skipped.
 */
class SmolLm2Test {
  private static Path model() {
    var named =
        System.getProperty("meteora.smollm2", System.getenv().getOrDefault("METEORA_SMOLLM2", ""));
    var folder =
        named.isEmpty()
            ? Path.of(System.getProperty("user.home"), ".cache/meteora/smollm2")
            : Path.of(named);
    Assumptions.assumeTrue(
        Files.isRegularFile(folder.resolve("config.json")),
        "no SmolLM2-135M-Instruct in " + folder);
    return folder;
  }

  private static Path expected() {
    var file =
        Path.of(
            System.getProperty(
                "meteora.smollm2.expected",
                Path.of(System.getProperty("meteora.root", ".."))
                    .resolve("../shared/smollm2/expected.jsonl")
                    .toString()));
    Assumptions.assumeTrue(Files.isRegularFile(file), "the expected ids are not at " + file);
    return file;
  }

  private static void answersAsTransformersDoes(String device) {
    var expected = expected();
    var spec =
        new LoadedModel.Spec(
            model(),
            "base",
            Optional.empty(),
            Optional.empty(),
            Optional.empty(),
            Optional.empty(),
            device,
            Optional.of("f32"),
            Flags.AUTO,
            Routers.GATE);
    try (var model = LoadedModel.load(spec)) {
      var settings =
          model.generationConfig().withGreedy().withNoRepeatNgramSize(0).withMaxNewTokens(32);
      Jsonl.forEach(
          expected,
          (node, line) -> {
            var ids = model.tokenizer().encode(node.get("prompt").textValue(), true);
            assertThat(ids)
                .as("prompt of line %d", line)
                .isEqualTo(Fixtures.ints(node.get("prompt_ids")));
            // transformers gives the end token too
            var tokens =
                Arrays.stream(Fixtures.ints(node.get("token_ids")))
                    .takeWhile(token -> !settings.eosTokenIds().contains(token))
                    .toArray();
            assertThat(model.generator().generate(List.of(ids), settings).getFirst())
                .as("answer of line %d", line)
                .isEqualTo(tokens);
          });
    }
  }

  @Test
  void answersAsTransformersDoesOnTheCpu() {
    answersAsTransformersDoes("cpu");
  }

  @Test
  @Tag("gpu")
  void answersAsTransformersDoesOnTheGpu() {
    answersAsTransformersDoes("cuda");
  }
}
