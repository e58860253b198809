package org.meteora.eval.routes;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import org.meteora.io.Jsonl;
import org.meteora.moe.RoutingListener;
import org.meteora.parallel.Exchange;

/**
 * Routing of a whole evaluation: for every task and gate, how much weight each adapter got and how
 * often each was first. Memory is 16 bytes for each layer × 7 modules × tasks × adapters, whatever
 * the number of samples. Fed by a listener for each sample. Not for use from several threads.
 */
public final class RoutingMatrix {
  static final int MODULES = RoutingRecorder.MODULES.size();

  private static final class Gate {
    double[][] weight = new double[0][];
    long[][] first = new long[0][];
    long[] tokens = new long[0];

    void grow(int tasks, int adapters) {
      int had = tokens.length;
      if (had < tasks) {
        weight = Arrays.copyOf(weight, tasks);
        first = Arrays.copyOf(first, tasks);
        tokens = Arrays.copyOf(tokens, tasks);
        for (int i = had; i < tasks; i++) {
          weight[i] = new double[adapters];
          first[i] = new long[adapters];
        }
      }
    }
  }

  private final List<String> adapters;
  private final List<String> tasks = new ArrayList<>();
  private final List<Gate> gates = new ArrayList<>();

  /**
   * @param adapters names in index order
   */
  public RoutingMatrix(List<String> adapters) {
    this.adapters = List.copyOf(adapters);
  }

  /** Counts the routing of a sequence for one task, whose adapter is the one of the same name. */
  public RoutingListener listener(String task) {
    return new SequenceListener(row(task), new int[0]);
  }

  /**
   * Counts the routing of a composite prompt and its answer: each question counts for the task it
   * asks, what belongs to no task is not counted, and the answers make a row of their own.
   *
   * @param task the composite's name
   * @param parts its tasks in order
   * @param decode token ids to text, special tokens kept
   */
  public RoutingListener listener(
      String task, List<String> parts, int[] prompt, Function<int[], String> decode) {
    var rows = rows(parts, prompt, decode);
    return new SequenceListener(row(task + " (answers)"), rows);
  }

  /** The matrix row of every token of a composite prompt, −1 for none. */
  private int[] rows(List<String> parts, int[] prompt, Function<int[], String> decode) {
    var rows = new int[prompt.length];
    Arrays.fill(rows, -1);
    var tokens = RoutedToken.of(decode, id -> "", prompt, prompt.length);
    for (var part : Part.composite(parts, tokens)) {
      Arrays.fill(rows, part.from(), part.to(), row(part.task()));
    }
    return rows;
  }

  private int row(String name) {
    if (!tasks.contains(name)) {
      tasks.add(name);
    }
    return tasks.indexOf(name);
  }

  /** Of one sequence. */
  private final class SequenceListener implements RoutingListener {
    private final int task;
    private final int[] promptRows;
    private int[] tokensOf = new int[0]; // by gate

    SequenceListener(int task, int[] promptRows) {
      this.task = task;
      this.promptRows = promptRows;
    }

    @Override
    public void onRouting(
        int layer, int module, int rows, int tokens, int topK, int[] indices, float[] weights) {
      int number = layer * MODULES + module;
      while (gates.size() <= number) {
        gates.add(new Gate());
      }
      if (tokensOf.length <= number) {
        tokensOf = Arrays.copyOf(tokensOf, 2 * number + 1);
      }
      var gate = gates.get(number);
      gate.grow(tasks.size(), adapters.size());
      for (int t = 0; t < tokens; t++) {
        int place = tokensOf[number]++;
        int to = place < promptRows.length ? promptRows[place] : task;
        if (to < 0) {
          continue;
        }
        int at = t * topK;
        gate.first[to][indices[at]]++;
        for (int k = 0; k < topK; k++) {
          gate.weight[to][indices[at + k]] += weights[at + k];
        }
        gate.tokens[to]++;
      }
    }
  }

  /** What a process counted. */
  private record Counted(List<String> tasks, List<Sums> gates) {}

  private record Sums(double[][] weight, long[][] first, long[] tokens) {}

  /** Adds, at the first process, what all others counted. */
  public void addOthers(Exchange processes) {
    try {
      var all = processes.gather(Jsonl.JSON.writeValueAsBytes(counted()));
      for (int rank = 1; rank < all.size(); rank++) {
        add(Jsonl.JSON.readValue(all.get(rank), Counted.class));
      }
    } catch (IOException e) {
      throw new IllegalStateException(e);
    }
  }

  /**
   * Adds what another matrix counted.
   *
   * @param other of the same adapters
   */
  public void add(RoutingMatrix other) {
    add(other.counted());
  }

  private Counted counted() {
    return new Counted(
        tasks, gates.stream().map(g -> new Sums(g.weight, g.first, g.tokens)).toList());
  }

  private void add(Counted other) {
    var rows = other.tasks().stream().mapToInt(this::row).toArray();
    for (int i = 0; i < other.gates().size(); i++) {
      if (gates.size() <= i) {
        gates.add(new Gate());
      }
      var gate = gates.get(i);
      gate.grow(tasks.size(), adapters.size());
      var sums = other.gates().get(i);
      for (int row = 0; row < sums.tokens().length; row++) {
        int to = rows[row];
        gate.tokens[to] += sums.tokens()[row];
        for (int a = 0; a < adapters.size(); a++) {
          gate.weight[to][a] += sums.weight()[row][a];
          gate.first[to][a] += sums.first()[row][a];
        }
      }
    }
  }

  /** Tasks in the order met. */
  public List<String> tasks() {
    return List.copyOf(tasks);
  }

  public List<String> adapters() {
    return adapters;
  }

  public int layers() {
    return (gates.size() + MODULES - 1) / MODULES;
  }

  /** Token × gate pairs counted for a task. */
  public long count(String task, int layer, int module) {
    int row = tasks.indexOf(task);
    long count = 0;
    for (var gate : selected(layer, module)) {
      count += row >= 0 && row < gate.tokens.length ? gate.tokens[row] : 0;
    }
    return count;
  }

  /**
   * Each adapter's share of the weight at a task's tokens, summing to 1.
   *
   * @param layer a layer, or {@link RoutingTrace#ALL}
   * @param module a module, or {@link RoutingTrace#ALL}
   */
  public double[] shares(String task, int layer, int module) {
    return sum(task, layer, module, false);
  }

  /** How often each adapter was first at a task's tokens, summing to 1. */
  public double[] first(String task, int layer, int module) {
    return sum(task, layer, module, true);
  }

  /** How often the task's own adapter was first; 0 when there is none of that name. */
  public double rightFirst(String task, int layer, int module) {
    int expected = adapters.indexOf(task);
    return expected < 0 ? 0 : first(task, layer, module)[expected];
  }

  /** {@link #first} or {@link #shares}. */
  double[] sum(String task, int layer, int module, boolean first) {
    int row = tasks.indexOf(task);
    var sum = new double[adapters.size()];
    long count = Math.max(1, count(task, layer, module));
    for (var gate : selected(layer, module)) {
      for (int a = 0; a < sum.length && row >= 0 && row < gate.tokens.length; a++) {
        sum[a] += first ? gate.first[row][a] : gate.weight[row][a];
      }
    }
    for (int a = 0; a < sum.length; a++) {
      sum[a] /= count;
    }
    return sum;
  }

  private List<Gate> selected(int layer, int module) {
    var selected = new ArrayList<Gate>();
    for (int g = 0; g < gates.size(); g++) {
      if ((layer < 0 || g / MODULES == layer) && (module < 0 || g % MODULES == module)) {
        selected.add(gates.get(g));
      }
    }
    return selected;
  }

  /** Writes {@code routing.json}, {@code routing.png} and {@code routing.html}. */
  public void write(String title, Map<String, Object> settings, Path folder) {
    new RoutingMatrixFiles(this).write(title, settings, folder);
  }
}
