package org.meteora.eval.routes;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.function.Function;
import java.util.stream.IntStream;
import java.util.stream.Stream;
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

  /** A gate's choices at a task's tokens; fields are public for Jackson. */
  private static final class Sums {
    public double[] weight;
    public long[] first;
    public long tokens;
  }

  private final List<String> adapters;
  private final List<String> tasks = new ArrayList<>();
  private final List<List<Sums>> gates = new ArrayList<>(); // by gate, then by task

  /** An empty one, of adapters in index order. */
  public RoutingMatrix(List<String> adapters) {
    this.adapters = List.copyOf(adapters);
  }

  /** Counts the routing of a sequence for one task, whose adapter is the one of the same name. */
  public RoutingListener listener(String task) {
    return listener(row(task), new int[0]);
  }

  /**
   * Counts the routing of a composite prompt and its answer: each question counts for the task it
   * asks, what belongs to no task is not counted, and the answers make a row of their own.
   *
   * @param parts its tasks in order; empty for a single task, as {@link #listener(String)}
   * @param decode token ids to text, special tokens kept
   */
  public RoutingListener listener(
      String task, List<String> parts, int[] prompt, Function<int[], String> decode) {
    if (parts.isEmpty()) {
      return listener(task);
    }
    var rows = Part.numbers(parts, prompt, decode, this::row);
    return listener(row(task + " (answers)"), rows);
  }

  private int row(String name) {
    if (!tasks.contains(name)) {
      tasks.add(name);
    }
    return tasks.indexOf(name);
  }

  private Sums sums(int gate, int row) {
    while (gates.size() <= gate) {
      gates.add(new ArrayList<>());
    }
    var rows = gates.get(gate);
    while (rows.size() <= row) {
      var sums = new Sums();
      sums.weight = new double[adapters.size()];
      sums.first = new long[adapters.size()];
      rows.add(sums);
    }
    return rows.get(row);
  }

  /**
   * @param task the row of what comes after the prompt
   * @param promptRows of the prompt's tokens; −1 for one that is not counted
   */
  private RoutingListener listener(int task, int[] promptRows) {
    var seen = new HashMap<Integer, Integer>(); // tokens of the sequence, by gate
    return (layer, module, rows, tokens, topK, indices, weights) -> {
      int gate = layer * MODULES + module;
      int first = seen.merge(gate, tokens, Integer::sum) - tokens;
      for (int t = 0; t < tokens; t++) {
        int row = first + t < promptRows.length ? promptRows[first + t] : task;
        if (row >= 0) {
          var sums = sums(gate, row);
          int at = t * topK;
          sums.first[indices[at]]++;
          for (int k = 0; k < topK; k++) {
            sums.weight[indices[at + k]] += weights[at + k];
          }
          sums.tokens++;
        }
      }
    };
  }

  /** What a process counted. */
  private record Counted(List<String> tasks, List<List<Sums>> gates) {}

  /** Adds, at the first process, what all others counted. */
  public void addOthers(Exchange processes) {
    try {
      var all = processes.gather(Jsonl.JSON.writeValueAsBytes(new Counted(tasks, gates)));
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
    add(new Counted(other.tasks, other.gates));
  }

  private void add(Counted other) {
    var rows = other.tasks().stream().mapToInt(this::row).toArray();
    for (int gate = 0; gate < other.gates().size(); gate++) {
      for (int row = 0; row < other.gates().get(gate).size(); row++) {
        var more = other.gates().get(gate).get(row);
        var sums = sums(gate, rows[row]);
        sums.tokens += more.tokens;
        for (int a = 0; a < adapters.size(); a++) {
          sums.weight[a] += more.weight[a];
          sums.first[a] += more.first[a];
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
    return selected(task, layer, module).mapToLong(sums -> sums.tokens).sum();
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
    var sum = new double[adapters.size()];
    selected(task, layer, module)
        .forEach(
            sums -> Arrays.setAll(sum, a -> sum[a] + (first ? sums.first[a] : sums.weight[a])));
    long count = Math.max(1, count(task, layer, module));
    Arrays.setAll(sum, a -> sum[a] / count);
    return sum;
  }

  private Stream<Sums> selected(String task, int layer, int module) {
    int row = tasks.indexOf(task);
    return IntStream.range(0, gates.size())
        .filter(gate -> layer < 0 || gate / MODULES == layer)
        .filter(gate -> module < 0 || gate % MODULES == module)
        .mapToObj(gates::get)
        .filter(rows -> row >= 0 && row < rows.size())
        .map(rows -> rows.get(row));
  }

  /** Writes {@code routing.json}, {@code routing.png} and {@code routing.html}. */
  public void write(String title, Map<String, Object> settings, Path folder) {
    new RoutingMatrixFiles(this, title, settings).write(folder);
  }
}
