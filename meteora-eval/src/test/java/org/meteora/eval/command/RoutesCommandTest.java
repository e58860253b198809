package org.meteora.eval.command;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import picocli.CommandLine;

class RoutesCommandTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "../shared/fixtures/tiny-llama");

  @TempDir Path folder;
  private final StringWriter out = new StringWriter();

  private int run(String... arguments) {
    var command = new CommandLine(new RoutesCommand());
    command.setOut(new PrintWriter(out));
    command.setExecutionExceptionHandler(
        (e, line, result) -> {
          throw e;
        });
    return command.execute(arguments);
  }

  @Test
  void mistakesAreNamedBeforeAnythingIsLoaded() {
    for (var wrong :
        List.of(
            List.of("either --prompt TEXT or --task NAME"),
            List.of("either --prompt", "--prompt", "x", "--task", "gsm8k"),
            List.of("--sample goes with --task", "--prompt", "x", "--sample", "1"),
            List.of("not base", "--prompt", "x", "--model", "base"),
            List.of("--max-new-tokens", "--prompt", "x", "--max-new-tokens", "0"))) {
      var command = new RoutesCommand();
      new CommandLine(command).parseArgs(wrong.subList(1, wrong.size()).toArray(String[]::new));
      assertThatThrownBy(command::call)
          .isInstanceOf(UserException.class)
          .hasMessageContaining(wrong.getFirst());
    }
  }

  @Test
  void aCompositeSampleIsRoutedAndReported() throws Exception {
    assumeTrue(Files.isDirectory(TINY), "the tiny model's files are not here: " + TINY);
    var data = Files.createDirectories(folder.resolve("datasets/composite_3"));
    Files.writeString(
        data.resolve("test.jsonl"),
        Jsonl.JSON
            .createObjectNode()
            .put("prompt", "[INST] a [/INST]\n\n[INST] b [/INST]\n\n[INST] c [/INST]\n")
            .put("response", "x@@@@\ny@@@@\nz")
            .toString());
    var arguments =
        new ArrayList<>(
            List.of("--task", "composite_3", "--greedy", "--max-new-tokens", "4", "--out"));
    arguments.add(folder.resolve("out").toString());
    arguments.addAll(List.of("--base-model-path", TINY.resolve("base").toString()));
    arguments.addAll(
        List.of("--meteora-ckpt-path", TINY.resolve("meteora/model.safetensors").toString()));
    arguments.addAll(List.of("--adapter-dir", TINY.resolve("adapters").toString()));
    arguments.addAll(List.of("--target-dir", folder.resolve("datasets").toString()));
    assertThat(run(arguments.toArray(String[]::new))).isZero();
    assertThat(out.toString()).contains("question 3", "strategyqa", "routes.html");
    var json = Jsonl.readFile(folder.resolve("out/routes.json"));
    assertThat(json.get("parts")).hasSizeGreaterThanOrEqualTo(3);
    assertThat(json.at("/settings/model/routing_temperature").asDouble()).isEqualTo(15);
    assertThat(json.at("/settings/task").asText()).isEqualTo("composite_3");
  }
}
