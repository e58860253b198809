package org.meteora.eval.routes;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.io.Jsonl;

class RoutingMatrixTest {
  @TempDir Path folder;

  /** Two prompts, of which one has an answer; then another task. */
  private static RoutingMatrix matrix() {
    var matrix = new RoutingMatrix(List.of("a", "b", "c"));
    var first = matrix.listener("b");
    var second = matrix.listener("b");
    for (int module = 0; module < 7; module++) {
      first.onRouting(0, module, 1, 2, 2, new int[] {1, 0, 1, 2}, new float[] {0.75f, 0.25f, 1, 0});
      second.onRouting(0, module, 1, 1, 2, new int[] {0, 1}, new float[] {0.5f, 0.5f});
      first.onRouting(0, module, 1, 1, 2, new int[] {1, 2}, new float[] {0.75f, 0.25f});
    }
    var other = matrix.listener("unknown");
    other.onRouting(0, 3, 1, 1, 2, new int[] {2, 0}, new float[] {0.5f, 0.5f});
    return matrix;
  }

  @Test
  void weightsAndFirstsAreCounted() {
    var matrix = matrix();
    assertThat(matrix.count("b", 0, 0)).isEqualTo(4);
    assertThat(matrix.count("b", RoutingTrace.ALL, RoutingTrace.ALL)).isEqualTo(28);
    assertThat(matrix.shares("b", 0, 2))
        .containsExactly(new double[] {0.1875, 0.75, 0.0625}, within(1e-12));
    assertThat(matrix.first("b", RoutingTrace.ALL, 5)).containsExactly(0.25, 0.75, 0);
    assertThat(matrix.rightFirst("b", RoutingTrace.ALL, RoutingTrace.ALL)).isEqualTo(0.75);
    assertThat(matrix.shares("unknown", RoutingTrace.ALL, 3)).containsExactly(0.5, 0, 0.5);
    assertThat(matrix.shares("unknown", RoutingTrace.ALL, 4)).containsOnly(0);
  }

  @Test
  void theMatrixOfSeveralTasksIsTheSumOfTheirs() {
    var sum = new RoutingMatrix(List.of("a", "b", "c"));
    sum.add(matrix());
    var other = new RoutingMatrix(List.of("a", "b", "c"));
    other.listener("c").onRouting(0, 0, 1, 1, 2, new int[] {2, 0}, new float[] {0.75f, 0.25f});
    other.listener("b").onRouting(0, 0, 1, 1, 2, new int[] {2, 0}, new float[] {1, 0});
    sum.add(other);
    assertThat(sum.tasks()).containsExactly("b", "unknown", "c");
    assertThat(sum.count("b", 0, 0)).isEqualTo(5);
    assertThat(sum.first("b", 0, 0)).containsExactly(new double[] {0.2, 0.6, 0.2}, within(1e-12));
    assertThat(sum.shares("c", 0, 0)).containsExactly(0.25, 0, 0.75);
    assertThat(sum.shares("unknown", 0, 3)).containsExactly(0.5, 0, 0.5);
  }

  @Test
  void questionsOfACompositeCountForTheirTasks() {
    var matrix = new RoutingMatrix(List.of("a", "b"));
    var parts = List.of("a", "b");
    var two = Traces.bytes("[INST] x [/INST]\n[INST] y [/INST]\n");
    var one = Traces.bytes("[INST] x [/INST]\n");
    var first = matrix.listener("composite", parts, two, Traces::decodeBytes);
    var second = matrix.listener("composite", parts, one, Traces::decodeBytes);
    // every token is routed to adapter 0, but those of the first prompt's second question
    var indices = new int[two.length];
    java.util.Arrays.fill(indices, two.length / 2, two.length, 1);
    var weights = new float[two.length];
    java.util.Arrays.fill(weights, 1);
    int some = 5; // the prompt in two passes
    first.onRouting(0, 0, 1, some, 1, indices, weights);
    second.onRouting(0, 0, 1, one.length, 1, new int[one.length], weights);
    var rest = java.util.Arrays.copyOfRange(indices, some, two.length);
    first.onRouting(0, 0, 1, rest.length, 1, rest, weights);
    first.onRouting(0, 0, 1, 1, 1, new int[] {1}, new float[] {1});
    int question = "[INST] x [/INST]".length();
    assertThat(matrix.count("a", 0, 0)).isEqualTo(2 * question);
    assertThat(matrix.count("b", 0, 0)).isEqualTo(question);
    assertThat(matrix.rightFirst("a", 0, 0)).isEqualTo(1);
    assertThat(matrix.rightFirst("b", 0, 0)).isEqualTo(1);
    assertThat(matrix.count("composite (answers)", 0, 0)).isEqualTo(1);
    assertThat(matrix.first("composite (answers)", 0, 0)).containsExactly(0, 1);
  }

  @Test
  void reportsHoldTheSameNumbers() throws Exception {
    matrix().write("Matrix </script>", Map.of("task", "b"), folder);
    var json = Jsonl.readFile(folder.resolve("routing.json"));
    assertThat(json.at("/all/share/0/1").doubleValue()).isEqualTo(0.75);
    assertThat(json.at("/by_module/3/first/1/2").doubleValue()).isEqualTo(1);
    assertThat(json.at("/by_gate/0/0/right_first/0").doubleValue()).isEqualTo(0.75);
    assertThat(json.at("/all/right_first/1").isNull()).isTrue();
    assertThat(Files.size(folder.resolve("routing.png"))).isPositive();
    assertThat(Files.readString(folder.resolve("routing.html"))).contains("Matrix &lt;/script&gt;");
  }
}
