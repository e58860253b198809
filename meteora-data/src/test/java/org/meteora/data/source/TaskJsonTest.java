package org.meteora.data.source;

import static java.nio.charset.StandardCharsets.UTF_8;
import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.junit.jupiter.api.Assumptions.assumeTrue;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.net.URISyntaxException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.HexFormat;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.TestFactory;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.UserException;
import org.meteora.io.Digests;

/** Records of task.json against those BIG-bench's own code makes: see ALGORITHM.md beside. */
class TaskJsonTest {
  @TempDir Path folder;

  /** One record as the reference writes it: Python's separators, nothing escaped without need. */
  private static void line(JsonNode node, StringBuilder text) {
    if (node.isTextual()) {
      text.append('"');
      for (char c : node.textValue().toCharArray()) {
        int simple = "\"\\\n\r\t\b\f".indexOf(c);
        if (simple >= 0) {
          text.append('\\').append("\"\\nrtbf".charAt(simple));
        } else if (c < 0x20) {
          text.append(String.format("\\u%04x", (int) c));
        } else {
          text.append(c);
        }
      }
      text.append('"');
    } else if (node.isArray()) {
      text.append('[');
      for (int i = 0; i < node.size(); i++) {
        text.append(i == 0 ? "" : ", ");
        line(node.get(i), text);
      }
      text.append(']');
    } else if (node.isObject()) {
      text.append('{');
      for (var field : node.properties()) {
        text.append(text.charAt(text.length() - 1) == '{' ? "" : ", ");
        text.append('"').append(field.getKey()).append("\": ");
        line(field.getValue(), text);
      }
      text.append('}');
    } else {
      text.append(node);
    }
  }

  private static String lines(Records records) {
    var text = new StringBuilder();
    records.forEach(
        (node, where) -> {
          line(node, text);
          text.append('\n');
        });
    return text.toString();
  }

  private static Path fixture(String name) throws URISyntaxException {
    return Path.of(TaskJsonTest.class.getResource("bigbench/" + name).toURI());
  }

  @ParameterizedTest
  @ValueSource(strings = {"flat", "string_false", "not_appended", "subs"})
  void recordsAreThoseOfBigBench(String name) throws Exception {
    var task = new TaskJson(fixture(name));
    var fixture = fixture(name);
    assertThat(lines(task.train()))
        .isEqualTo(Files.readString(fixture.resolve("expected-train.jsonl")));
    assertThat(lines(task.validation()))
        .isEqualTo(Files.readString(fixture.resolve("expected-validation.jsonl")));
  }

  @Test
  void tooFewExamplesAreRefused() throws Exception {
    var task = new TaskJson(fixture("few"));
    assertThatThrownBy(() -> lines(task.train()))
        .isInstanceOf(UserException.class)
        .hasMessageEndingWith(
            "task.json: 16 different examples are too few for a split: more than 16 are needed");
  }

  /** The 22 real tasks: {@code -Dmeteora.bigbench=FOLDER}, as the fetch script leaves them. */
  @TestFactory
  Stream<DynamicTest> publishedTasksAreEqualByTheirSums() throws IOException {
    var real = System.getProperty("meteora.bigbench");
    assumeTrue(real != null, "no BIG-bench folder given by -Dmeteora.bigbench");
    var table = Path.of(System.getProperty("meteora.root", ".."), "../shared/bigbench/TABLE.md");
    assumeTrue(Files.exists(table), "no table of sums at " + table);
    var row = Pattern.compile("\\| (\\w+) \\| (\\d+) \\| (\\d+) \\| `(\\w+)` \\| `(\\w+)` \\|");
    return row.matcher(Files.readString(table))
        .results()
        .map(
            match ->
                DynamicTest.dynamicTest(
                    match.group(1),
                    () -> {
                      var task = new TaskJson(Path.of(real, match.group(1)));
                      assertThat(sum(task.train())).isEqualTo(match.group(2) + match.group(4));
                      assertThat(sum(task.validation())).isEqualTo(match.group(3) + match.group(5));
                    }));
  }

  private static String sum(Records records) {
    var digest = Digests.sha256();
    int[] count = new int[1];
    records.forEach(
        (node, where) -> {
          var text = new StringBuilder();
          line(node, text);
          digest.update(text.append('\n').toString().getBytes(UTF_8));
          count[0]++;
        });
    return count[0] + HexFormat.of().formatHex(digest.digest());
  }

  private Path put(String name, String text) throws IOException {
    var file = folder.resolve(name);
    Files.createDirectories(file.getParent());
    return Files.writeString(file, text);
  }

  /** Twenty good examples and one more. */
  private static String task(String example) {
    var text = new StringBuilder("{\"examples\":[");
    for (int i = 0; i < 20; i++) {
      text.append("{\"input\":\"i").append(i).append("\",\"target\":\"t\"},");
    }
    return text + example + "]}";
  }

  private String records() {
    var task = new TaskJson(folder);
    return lines(task.train()) + lines(task.validation());
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      textBlock =
          """
          {"input":"q","target":7}                             | it holds 7
          {"input":"q","target":true}                          | it holds true
          {"input":"q","target":null}                          | it holds null
          {"input":"q","target":null,"target_scores":{"a":1}}  | it holds null
          {"input":"q","target":[]}                            | empty list
          {"input":"q","target":["a",["b"]]}                   | it holds ["b"]
          {"input":"q"}                                        | neither "target" nor
          {"input":"q","target_scores":{}}                     | "target_scores" is empty
          {"input":"q","target_scores":{"a":0}}                | the only choice has score 0
          {"input":"q","target_scores":{"a":1,"b":1.0}}        | all choices have the same score
          {"input":"q","target_scores":{"a":"1"}}              | must be a number
          {"input":"q","target_scores":["a"]}                  | must be an object
          {"input":5,"target":"t"}                             | "input" must be a string
          {"target":"t"}                                       | "input" is missing
          3                                                    | is not an object
          """)
  void whatBigBenchCannotReadIsRefusedByItsExample(String example, String message)
      throws IOException {
    put("task.json", task(example));
    assertThatThrownBy(this::records)
        .isInstanceOf(UserException.class)
        .hasMessageContaining(folder.resolve("task.json") + ": example 20 ")
        .hasMessageContaining(message);
  }

  @ParameterizedTest
  @CsvSource(
      delimiter = '|',
      textBlock =
          """
          {"examples":[]} {"examples":[]} | something follows
          {"examples":[]}x                | not valid JSON
          [1]                             | object was expected
          {"examples":[{"input":"q"}      | not valid JSON
          {"examples":{"a":1}}            | must be a list
          {"examples":null}               | must be a list
          {"task_prefix":3,"examples":[]} | "task_prefix" must be a string
          {"name":"x"}                    | no "examples"
          """)
  void brokenFilesAreRefusedInOneLine(String text, String message) throws IOException {
    put("task.json", text);
    assertThatThrownBy(this::records)
        .isInstanceOf(UserException.class)
        .hasMessageStartingWith(folder.resolve("task.json").toString())
        .hasMessageContaining(message)
        .satisfies(e -> assertThat(e.getMessage()).doesNotContain("\n"));
  }

  @Test
  void otherEncodingsAndBrokenUtf8AreRefused() throws IOException {
    var text = task("{\"input\":\"é\",\"target\":\"t\"}");
    for (var charset :
        new java.nio.charset.Charset[] {
          java.nio.charset.StandardCharsets.UTF_16LE, java.nio.charset.StandardCharsets.ISO_8859_1
        }) {
      Files.write(folder.resolve("task.json"), text.getBytes(charset));
      assertThatThrownBy(this::records)
          .isInstanceOf(UserException.class)
          .hasMessageContaining("UTF-8");
    }
  }

  @Test
  void aByteOrderMarkChangesNothing() throws IOException {
    put("task.json", task("{\"input\":\"é🦉\",\"target\":\"t\"}"));
    var plain = records();
    put("task.json", "\ufeff" + Files.readString(folder.resolve("task.json")));
    assertThat(records()).isEqualTo(plain);
  }

  @Test
  void prefixesMayFollowTheExamplesAndTheLastOfTwoKeysCounts() throws IOException {
    var text = task("{\"input\":\"x\",\"input\":\"last\",\"target\":\"t\"}");
    put(
        "task.json",
        "{\"examples\":[{\"input\":\"x\"}],"
            + text.substring(1, text.length() - 1)
            + ",\"task_prefix\":\"a\",\"task_prefix\":\"b\"}");
    assertThat(records()).contains("\"b\\nQ: last\\nA:\"").hasLineCount(21);
  }

  @Test
  void examplesInTheRootHideThoseInSubFolders() throws IOException {
    put("task.json", task("{\"input\":\"root\",\"target\":\"t\"}"));
    put("sub/task.json", task("{\"input\":\"sub\",\"target\":\"t\"}"));
    assertThat(records()).contains("Q: root").doesNotContain("Q: sub").hasLineCount(21);
  }

  @Test
  void examplesTwoLevelsDownAreNamed() throws IOException {
    put("task.json", "{}");
    var deep = put("a/b/task.json", task("{\"input\":\"q\",\"target\":\"t\"}"));
    assertThat(TaskJson.isPresent(folder)).isTrue();
    assertThatThrownBy(this::records)
        .isInstanceOf(UserException.class)
        .hasMessageContaining(deep + " are two levels down");
    put("a/task.json", "{}");
    assertThatThrownBy(this::records)
        .isInstanceOf(UserException.class)
        .hasMessageContaining(folder.resolve("a/task.json") + ": no \"examples\"")
        .hasMessageContaining(deep + " are two levels down");
  }

  @Test
  void choiceScoresAreCutToIntegersAndChoicesStripped() throws IOException {
    put("task.json", task("{\"input\":\"q\",\"target_scores\":{\" a \":0.5,\"b\":-1.5,\"c\":0}}"));
    assertThat(records())
        .contains(
            "\"targets\": [\"a\"], \"multiple_choice_targets\": [\"a\", \"b\", \"c\"],"
                + " \"multiple_choice_scores\": [0, -1, 0]");
  }

  /** The process of the test below. */
  static final class Child {
    public static void main(String[] args) {
      var task = new TaskJson(Path.of(args[0]));
      int[] count = new int[1];
      task.train().forEach((node, where) -> count[0]++);
      task.validation().forEach((node, where) -> count[0]++);
      System.out.println(count[0]);
    }
  }

  @Test
  void aLargeFileNeedsLittleMemory() throws Exception {
    try (var out = Files.newBufferedWriter(folder.resolve("task.json"))) {
      out.write("{\"examples\":[");
      var text = "word ".repeat(2000);
      for (int i = 0; i < 5000; i++) {
        out.write((i == 0 ? "" : ",") + "{\"input\":\"" + i + text + "\",\"target\":\"t\"}");
      }
      out.write("]}");
    }
    assertThat(folder.resolve("task.json").toFile().length()).isGreaterThan(48_000_000);
    var child =
        new ProcessBuilder(
                ProcessHandle.current().info().command().orElse("java"),
                "-Xmx32m",
                "-XX:+UseSerialGC",
                "-cp",
                System.getProperty("java.class.path"),
                Child.class.getName(),
                folder.toString())
            .redirectErrorStream(true)
            .start();
    var output = new String(child.getInputStream().readAllBytes(), UTF_8);
    assertThat(child.waitFor()).as(output).isZero();
    assertThat(output.strip()).isEqualTo("5000");
  }
}
