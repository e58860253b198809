package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.io.PrintWriter;
import java.io.StringWriter;
import java.lang.reflect.Field;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import picocli.CommandLine;

class MainTest {
  @TempDir Path folder;

  private static String error(String... arguments) {
    var err = new StringWriter();
    var line = Main.commandLine();
    line.setErr(new PrintWriter(err, true));
    line.getSubcommands().values().forEach(sub -> sub.setErr(new PrintWriter(err, true)));
    assertThat(line.execute(arguments)).isEqualTo(2);
    return err.toString();
  }

  @Test
  void bothSpellingsOfOptionsAndPromptsAsTheyAre() {
    var names = Set.of("--batch-size", "--prompt");
    assertThat(Main.kebab("--batch_size", names)).isEqualTo("--batch-size");
    assertThat(Main.kebab("--batch_size=a_b", names)).isEqualTo("--batch-size=a_b");
    assertThat(Main.kebab("--__init__", names)).isEqualTo("--__init__");
    assertThat(Main.kebab("--prompt=--x_y", names)).isEqualTo("--prompt=--x_y");
    assertThat(Main.kebab("a_b", names)).isEqualTo("a_b");
  }

  @Test
  void anAtSignIsNoFileOfArguments() throws IOException {
    var notes = Files.writeString(folder.resolve("notes"), "secret --greedy");
    assertThat(error("generate", "--prompt", "@" + notes)).doesNotContain("secret");
    assertThat(error("@" + notes)).doesNotContain("secret").contains("@");
  }

  @Test
  void messagesHoldNoControlCharacters() {
    assertThat(error("generate", "--no-such\u001b]52;c;x\u0007"))
        .contains("\\u001b")
        .doesNotContain("\u001b");
    assertThat(error("eval", "--task", "x\u001b[2J")).contains("\\u001b").doesNotContain("\u001b");
  }

  @Test
  void outputThatCannotBeWrittenIsAFailure() {
    var full =
        new OutputStream() {
          private int writes;

          @Override
          public void write(int b) throws IOException {
            writes++;
            throw new IOException("No space left on device");
          }
        };
    var out = new PrintStream(StandardStreams.checked(full), true);
    assertThatThrownBy(() -> out.println("x"))
        .isInstanceOf(StandardStreams.OutputLost.class)
        .hasMessageContaining("No space left");
    out.println("y"); // said once
    assertThat(full.writes).isEqualTo(1);
  }

  @Test
  void namesAreNoPaths() throws IOException {
    var data = Files.writeString(folder.resolve("d.jsonl"), "{}").toString();
    var base = "--base-model-path=" + folder;
    var named = "is not a folder's name";
    assertThat(error("train-lora", base, "--data", data, "--name", "../x")).contains("../x", named);
    assertThat(error("train-lora", base, "--task", "../x")).contains("../x", named);
    assertThat(error("create-composite", "--tasks", "../x,y")).contains("../x", named);
    assertThat(error("routes", "--task", "../x", base, "--meteora-ckpt-path=m")).contains(named);
    assertThat(error("eval", "--task", "../x", base)).contains("../x");
    assertThat(error("eval", "--task", "x", "--tasks", "gsm8k,../x", base)).contains("../x");
    var tiny = Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny");
    assertThat(
            error(
                "generate",
                "--prompt=x",
                "--base-model-path=" + tiny.resolve("base"),
                "--adapter-dir=" + tiny.resolve("adapters"),
                "--model=../adapters/reverse_word"))
        .contains("../adapters/reverse_word", named);
  }

  @Test
  void mistakesInTheDataAreFoundBeforeAModelIsLoaded() throws IOException {
    Files.createDirectories(folder.resolve("d/x"));
    Files.createDirectories(folder.resolve("d/y"));
    Files.writeString(folder.resolve("d/x/train.jsonl"), "{\"prompt\":\"p\",\"response\":\"r\"}\n");
    Files.writeString(
        folder.resolve("d/y/train.jsonl"),
        "{\"prompt\":\"p\",\"response\":\"r\"}\n{\"prompt\":\"p\"}\n");
    assertThat(
            error(
                "train-lora",
                "--base-model-path=" + folder.resolve("none"),
                "--target-dir=" + folder.resolve("d"),
                "--output-dir=" + folder.resolve("out"),
                "--task=x,y"))
        .contains("y/train.jsonl:2", "response");
    assertThat(folder.resolve("out")).doesNotExist();
  }

  @Test
  void benchmarksOfNothingAreRefused() {
    for (var mistake :
        List.of(
            List.of("decode", "--batch=1,0"),
            List.of("decode", "--context=0"),
            List.of("linear", "--tokens=0"),
            List.of("prefill", "--batch=0"),
            List.of("prefill", "--tokens=0"),
            List.of("train", "--batch=0"),
            List.of("collective", "--mib=0"))) {
      var option = mistake.get(1).substring(0, mistake.get(1).indexOf('='));
      assertThat(error("bench", mistake.get(0), mistake.get(1)))
          .contains(option)
          .contains("at least 1");
    }
  }

  @Test
  void whatGoesWithAnotherRouterIsSaid() {
    assertThat(error("train", "--samples=3")).contains("--samples go with --router lora-flow");
    assertThat(error("train", "--router=lora-flow")).contains("needs --task NAME");
    assertThat(error("train", "--router=lora-flow", "--task=a,b"))
        .contains("learns one task, and --task names several: a,b");
    assertThat(error("train", "--router=lora-flow", "--task=x", "--with-base"))
        .contains("--with-base");
    assertThat(error("train", "--router=arrow")).contains("gate or lora-flow, not arrow");
  }

  /** What several commands have is defined once, unless it means something else in each. */
  @Test
  void sharedOptionsAreDefinedOnce() {
    var definitions = new TreeMap<String, Set<Object>>();
    collect(Main.commandLine(), definitions);
    assertThat(definitions).hasSizeGreaterThan(80);
    definitions.values().removeIf(all -> all.size() == 1);
    assertThat(definitions.keySet())
        .containsExactly(
            "--batch", // bench: one size, or several in turn
            "--batch-size", // prompts at a time; a micro-batch, which config.yaml may set
            "--config", // settings to read; download writes them
            "--dropout",
            "--out", // a file; a folder
            "--output-dir",
            "--prompt", // or --prompts; or --task
            "--rank", // of a merged adapter; of bench's
            "--resume", // a run; an evaluation
            "--router", // one; bench takes several
            "--samples",
            "--task",
            "--tasks",
            "--tokens");
  }

  private static void collect(CommandLine line, Map<String, Set<Object>> definitions) {
    for (var option : line.getCommandSpec().options()) {
      if (option.userObject() instanceof Field) {
        definitions
            .computeIfAbsent(option.longestName(), name -> new HashSet<>())
            .add(option.userObject());
        assertThat(option.arity().min() == 0 ? "" : option.paramLabel())
            .as(option.longestName())
            .doesNotStartWith("<");
      }
    }
    line.getSubcommands().values().forEach(sub -> collect(sub, definitions));
  }
}
