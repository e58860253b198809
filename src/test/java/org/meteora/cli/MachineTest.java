package org.meteora.cli;

import static org.assertj.core.api.Assertions.assertThat;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.data.Sample;
import org.meteora.eval.Answer;
import org.meteora.eval.Evaluator;
import org.meteora.eval.TextCodec;
import org.meteora.eval.report.SavedResult;
import org.meteora.generate.AnswerListener;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.generate.Tokenizer;
import org.meteora.io.CacheFolders;

/** Machines that lack something: a home, the right to write there, room on the disk. */
class MachineTest {
  private static final Path TINY =
      Path.of(System.getProperty("meteora.root", ".."), "configs/tiny/base")
          .toAbsolutePath()
          .normalize();

  @TempDir Path folder;

  /** Loads a native library, as every command does, and says where from. */
  static final class Native {
    public static void main(String[] arguments) throws IOException {
      try {
        CacheFolders.prepare();
        try (var tokenizer = Tokenizer.load(Path.of(arguments[0]), Integer.MAX_VALUE)) {
          System.out.println(tokenizer.encode("a", false).length + " token");
        }
        try (Stream<String> mapped = Files.lines(Path.of("/proc/self/maps"))) {
          mapped
              .filter(line -> line.contains("tokenizers") && line.contains(".so"))
              .map(line -> line.substring(line.indexOf('/')))
              .distinct()
              .forEach(System.out::println);
        }
      } catch (UserException e) {
        System.out.println(e.getMessage());
        System.exit(2);
      }
    }
  }

  /** Evaluates until there is no room for more answers. */
  static final class Answers {
    private static final int SAMPLES = 10_000;

    public static void main(String[] arguments) throws IOException {
      var results = Path.of(arguments[0]);
      var other = Files.write(results.resolve("other"), new byte[16 << 10]);
      var kept = new ArrayList<Answer>();
      try (var saved = new SavedResult(results, "base", "winowhy")) {
        saved.begin(Map.of(), Map.of(), SavedResult.Existing.KEEP_OTHERS);
        new Evaluator(Answers::generate, CHARACTERS, GenerationConfig.greedy(List.of(), 99), 1)
            .run(
                "winowhy",
                IntStream.range(0, SAMPLES).mapToObj(Answers::sample).toList(),
                List.of(),
                answers -> {
                  saved.add(answers);
                  kept.addAll(answers);
                });
      } catch (UserException e) {
        System.out.println(e.getMessage());
      }
      Files.delete(other); // room is made
      try (var again = new SavedResult(results, "base", "winowhy")) {
        var there = again.begin(Map.of(), Map.of(), SavedResult.Existing.RESUME);
        System.out.println(
            there.equals(kept) && kept.size() < SAMPLES
                ? "all are there"
                : there.size() + " of " + kept.size());
      }
    }

    private static Sample sample(int index) {
      return new Sample("[INST] " + index + " [/INST]\n", "t");
    }

    private static void generate(List<Request> requests, int atOnce, AnswerListener listener) {
      for (int i = 0; i < requests.size(); i++) {
        listener.onStep(new AnswerListener.Load(0, 1, 1, 0));
        listener.onAnswer(i, new int[] {'a'});
      }
    }

    /** A character is a token. */
    private static final TextCodec CHARACTERS =
        new TextCodec() {
          @Override
          public int[] encode(String prompt) {
            return prompt.chars().toArray();
          }

          @Override
          public String decode(int[] ids) {
            return new String(ids, 0, ids.length);
          }
        };
  }

  private record Ended(int code, String output) {}

  /** Runs a class in a process of its own, with another home, in a folder of its own. */
  private Ended run(List<String> before, String home, Class<?> main, String... arguments)
      throws Exception {
    var command = new ArrayList<>(before);
    command.addAll(
        List.of(
            Path.of(System.getProperty("java.home"), "bin", "java").toString(),
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "--enable-native-access=ALL-UNNAMED",
            "--sun-misc-unsafe-memory-access=allow",
            "-Duser.home=" + home,
            "-Djava.io.tmpdir=" + Files.createDirectories(folder.resolve("tmp")),
            "-cp",
            System.getProperty("java.class.path"),
            main.getName()));
    command.addAll(List.of(arguments));
    var builder = new ProcessBuilder(command).redirectErrorStream(true);
    var variables = builder.environment();
    variables
        .keySet()
        .removeAll(List.of("HOME", "ENGINE_CACHE_DIR", "DJL_CACHE_DIR", "XDG_CACHE_HOME"));
    variables.putAll(Map.of("RUST_FLAVOR", "cpu", "DJL_OFFLINE", "true"));
    builder.directory(Files.createDirectories(folder.resolve("work")).toFile());
    var process = builder.start();
    var output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    return new Ended(process.waitFor(), output);
  }

  private void requireNothingLeft() throws IOException {
    try (Stream<Path> left = Files.list(folder.resolve("tmp"))) {
      assertThat(left).isEmpty();
    }
  }

  /** What Java says of the home of a user without a name, where HOME is not set: "?". */
  @Test
  void withoutAHomeNativeCodeComesFromAPrivateFolder() throws Exception {
    var first = run(List.of(), "?", Native.class, TINY.toString());
    assertThat(first.output).contains("for this run alone (there is no home folder)");
    var library = first.output.lines().filter(line -> line.startsWith("/")).toList();
    assertThat(library).hasSize(1).allMatch(path -> path.startsWith(folder + "/tmp/meteora-"));
    assertThat(first.code).as(first.output).isZero();
    requireNothingLeft();
    // what somebody planted in the working folder is passed over
    var inside = library.getFirst().replaceFirst(".*/tmp/meteora-[^/]*/", "");
    for (var planted : List.of("?/.djl.ai", ".djl.ai", "?/.cache/meteora/native")) {
      var file = folder.resolve("work").resolve(planted).resolve(inside);
      Files.createDirectories(file.getParent());
      Files.writeString(file, "no library");
    }
    var second = run(List.of(), "?", Native.class, TINY.toString());
    assertThat(second.code).as(second.output).isZero();
    assertThat(second.output).doesNotContain("/work/");
  }

  /** Nobody can make a folder in /proc, root included. */
  @Test
  void aHomeThatCannotBeWrittenToIsNamed() throws Exception {
    var ended = run(List.of(), "/proc", Native.class, TINY.toString());
    assertThat(ended.code).as(ended.output).isZero();
    assertThat(ended.output)
        .contains("for this run alone (/proc/.djl.ai: it cannot be written to)")
        .contains(folder + "/tmp/meteora-");
    requireNothingLeft();
  }

  /** A disk of its own for one process, where the machine lets a test make one. */
  private List<String> withDisk(Path at, String size) throws Exception {
    Files.createDirectories(at);
    var script = "mount -t tmpfs -o size=" + size + " small '" + at + "' && exec \"$@\"";
    var disk = List.of("unshare", "-rm", "sh", "-c", script, "sh");
    var trial = new ArrayList<>(disk);
    trial.add("true");
    boolean possible;
    try {
      possible = new ProcessBuilder(trial).redirectErrorStream(true).start().waitFor() == 0;
    } catch (IOException e) {
      possible = false;
    }
    assumeTrue(possible, "no small disk can be mounted here (unshare -rm, tmpfs): not tested");
    return disk;
  }

  @Test
  void aFullHomeIsNamed() throws Exception {
    var home = folder.resolve("home");
    var ended = run(withDisk(home, "256k"), home.toString(), Native.class, TINY.toString());
    assertThat(ended.code).as(ended.output).isEqualTo(2);
    assertThat(ended.output.strip())
        .contains("cannot unpack native libraries into " + home + "/.djl.ai: ")
        .contains("No space left on device")
        .contains("ENGINE_CACHE_DIR")
        .doesNotContain("\n");
  }

  @Test
  void aDiskThatFillsKeepsTheAnswersSoFar() throws Exception {
    var results = folder.resolve("results");
    var ended = run(withDisk(results, "64k"), "?", Answers.class, results.toString());
    assertThat(ended.output)
        .contains("winowhy.partial.answers.jsonl: No space left on device; the answers so far are")
        .contains("all are there");
  }
}
