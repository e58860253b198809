package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.llama.LlamaConfig;

class MergeCommandTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "configs/tiny");

  @TempDir Path folder;

  private final StringWriter err = new StringWriter();

  private int merge(String output, String... options) {
    var all = new ArrayList<>(List.of("merge", "--output-dir", folder.resolve(output).toString()));
    all.addAll(List.of("--adapter-dir", TINY.resolve("adapters").toString()));
    all.addAll(List.of("--base-model-path", TINY.resolve("base").toString()));
    all.addAll(List.of(options));
    return Main.commandLine()
        .setOut(new PrintWriter(new StringWriter()))
        .setErr(new PrintWriter(err))
        .execute(all.toArray(String[]::new));
  }

  @Test
  void writesAnAdapterAndAWholeModel() {
    assertThat(merge("two", "--method", "ties", "--tasks", "sort_letters,count_vowels"))
        .as(err::toString)
        .isZero();
    try (var adapter = LoraAdapter.open(folder.resolve("two"))) {
      assertThat(adapter.config().rank()).isEqualTo(4);
    }
    assertThat(merge("whole", "--method", "svd", "--rank", "2", "--into-base"))
        .as(err::toString)
        .isZero();
    assertThat(LlamaConfig.read(folder.resolve("whole")).numHiddenLayers()).isEqualTo(2);
    assertThat(folder.resolve("whole/tokenizer.json")).exists();
  }

  @Test
  void whatDoesNotFitTheMethodIsRefused() throws Exception {
    refused("--weights has 2 numbers for 4 adapters", "--method", "cat", "--weights", "1,2");
    refused("--density has no meaning", "--method", "cat", "--density", "0.5");
    refused("--rank goes with", "--method", "ties", "--rank", "2");
    refused("--seed goes with", "--method", "ties", "--seed", "2");
    refused("no such adapter", "--method", "cat", "--tasks", "sort_letters,gone");
    refused("'--method': expected one of [LINEAR, CAT, SVD, TIES, ", "--method", "tyes");
    refused("twice", "--method", "cat", "--tasks", "sort_letters,sort_letters");
    Files.writeString(Files.createDirectories(folder.resolve("x")).resolve("file"), "mine");
    refused("is not empty", "--method", "cat");
  }

  private void refused(String message, String... options) {
    err.getBuffer().setLength(0);
    assertThat(merge("x", options)).isEqualTo(2);
    assertThat(err.toString().strip()).contains(message).doesNotContain("\n");
  }
}
