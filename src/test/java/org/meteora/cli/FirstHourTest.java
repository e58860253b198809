package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.data.config.MeteoraConfig;

/** What someone meets who types commands without having read anything. */
class FirstHourTest {
  @TempDir Path folder;

  private final StringWriter out = new StringWriter();
  private final StringWriter err = new StringWriter();

  private int run(String... arguments) {
    out.getBuffer().setLength(0);
    err.getBuffer().setLength(0);
    return Main.commandLine()
        .setOut(new PrintWriter(out))
        .setErr(new PrintWriter(err))
        .execute(arguments);
  }

  @Test
  void theNameAloneShowsTheCommands() {
    assertThat(run()).isZero();
    assertThat(out.toString())
        .contains("Usage: meteora", "create-dataset", "train-lora", "compare");
    assertThat(err.toString()).isEmpty();
  }

  @Test
  void initWritesAConfigThatIsRead() throws Exception {
    var file = folder.resolve("config.yaml");
    assertThat(run("init", "--out", file.toString())).isZero();
    assertThat(out.toString()).contains("base_model_path", "adapter_dir", "meteora_ckpt_path");
    var config = MeteoraConfig.read(file);
    assertThat(config.targetDir()).isEqualTo(MeteoraConfig.DEFAULTS.targetDir());
    assertThat(config.bigbenchDatasetDir()).isEqualTo(Path.of("data"));
    assertThat(config.evalResultSaveDir()).isEqualTo(MeteoraConfig.DEFAULTS.evalResultSaveDir());
    // every key is in it, and what stands behind a # is a setting too
    var text = Files.readString(file);
    assertThat(MeteoraConfig.KEYS).allSatisfy(key -> assertThat(text).contains(key + ":"));
    var open = text.replaceAll("(?m)^# ((?:routing|moelinear|train|  )[a-z_ 0-9]*:)", "$1");
    assertThat(MeteoraConfig.parse(open, "all keys").train()).containsKey("lora");
    assertThat(run("init", "--out", file.toString())).isEqualTo(2);
    assertThat(err.toString()).contains("is there already");
  }

  /** What a command needs stands in its first line, its options under headings. */
  @Test
  void helpIsShortAndGrouped() {
    assertThat(run("merge", "--help")).isZero();
    assertThat(out.toString())
        .startsWith("Usage: meteora merge --method NAME --output-dir DIR [OPTIONS]");
    assertThat(run("eval", "--help")).isZero();
    var help = out.toString();
    assertThat(help.lines().findFirst())
        .contains("Usage: meteora eval (--task NAME,… | --rescore FILE) [OPTIONS]");
    int at = 0;
    for (var heading :
        new String[] {
          "Options:", "--task=", "Model and device:", "--device", "Routing:", "--routing-top-k",
          "Sampling:", "--temperature", "Output:", "--save", "Settings and folders", "--config",
          "Which implementation runs", "--moelinear", "Examples:"
        }) {
      assertThat(help.indexOf(heading, at)).as(heading).isNotNegative();
      at = help.indexOf(heading, at);
    }
    // every command has a help text, and every option stands in it
    for (var command : Main.commandLine().getSubcommands().values()) {
      var text = command.getUsageMessage();
      assertThat(text).as(command.getCommandName()).containsPattern("(?m)^Examples?\\b.*:$");
      assertThat(command.getSubcommands().values())
          .allSatisfy(
              each -> assertThat(each.getUsageMessage()).containsPattern("(?m)^Examples?\\b.*:$"));
      for (var option : command.getCommandSpec().options()) {
        var name = option.longestName().replaceFirst("^--(no-)?", "");
        assertThat(text.lines().map(String::strip).filter(line -> line.startsWith("-")))
            .as(command.getCommandName() + " " + name)
            .anyMatch(
                line ->
                    line.matches(
                        "-.*--(\\[no-]|no-)?" + name + "\\b.*|--(\\[no-]|no-)?" + name + "\\b.*"));
      }
    }
  }

  /** A file that is missing is named, and the command that makes it. */
  @Test
  void whatIsMissingNamesTheCommandThatMakesIt() {
    var data = folder.resolve("datasets").toString();
    var base = Path.of(System.getProperty("meteora.root", ".."), "configs/tiny/base").toString();
    refused("create-dataset", "create-composite", "--n", "3", "--target-dir", data);
    refused(
        "create-dataset",
        "eval",
        "--task",
        "gsm8k",
        "--target-dir",
        data,
        "--base-model-path",
        base,
        "--model",
        "base");
    refused("meteora download", "generate", "--prompt", "a", "--model", "base");
    refused(
        "meteora download",
        "generate",
        "--prompt",
        "a",
        "--model",
        "base",
        "--base-model-path",
        data);
    refused("meteora train\"", "generate", "--prompt", "a", "--base-model-path", base);
    refused(
        "meteora train\"",
        "generate",
        "--prompt",
        "a",
        "--base-model-path",
        base,
        "--meteora-ckpt-path",
        data);
    refused(
        "meteora train-lora",
        "generate",
        "--prompt",
        "a",
        "--base-model-path",
        base,
        "--model",
        "x");
    refused(
        "meteora train-lora",
        "merge",
        "--method",
        "cat",
        "--adapter-dir",
        data,
        "--output-dir",
        data);
    refused(
        "create-dataset",
        "train-lora",
        "--task",
        "all",
        "--target-dir",
        data,
        "--base-model-path",
        base);
  }

  private void refused(String hint, String... arguments) {
    assertThat(run(arguments)).as(String.join(" ", arguments)).isEqualTo(2);
    assertThat(err.toString().strip()).contains(hint).doesNotContain("\n");
  }

  @Test
  void completionIsForBash() throws Exception {
    assertThat(run("completion")).isZero();
    var script = Files.writeString(folder.resolve("completion"), out.toString());
    assertThat(out.toString()).contains("complete", "zsh", "routing-temperature");
    var bash = new ProcessBuilder("bash", "-n", script.toString()).inheritIO().start();
    assertThat(bash.waitFor(30, TimeUnit.SECONDS)).isTrue();
    assertThat(bash.exitValue()).isZero();
  }
}
