package org.meteora.cli;

import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Stream;
import org.meteora.model.Architecture;
import org.meteora.model.LlamaTraining.Part;
import org.meteora.model.LlamaTraining.Watch;
import org.meteora.nn.Projection;

/**
 * Where a whole training step's time goes on a GPU, part by part, beside what each needs at least.
 *
 * @param rows sequences
 * @param seq tokens of each
 * @param rate multiplications and additions a millisecond
 * @param bandwidth bytes a millisecond
 */
record BenchTrainParts(
    BenchModel options,
    Architecture config,
    int rows,
    int seq,
    boolean drops,
    double rate,
    double bandwidth) {
  private double tokens() {
    return (double) rows * seq;
  }

  /** The GPU's time of each part between two marks, and the host's of the whole. */
  static final class Marks implements Watch, AutoCloseable {
    private final Cuda cuda;
    private final List<Part> parts = new ArrayList<>();
    private final List<Event> events = new ArrayList<>();
    private int used;

    Marks(Cuda cuda) {
      this.cuda = cuda;
    }

    @Override
    public void begin(Part part) {
      if (!parts.isEmpty() && parts.getLast() == part) {
        return;
      }
      cuda.makeCurrent();
      if (used == events.size()) {
        events.add(new Event());
      }
      events.get(used++).record(Stream.LIBTORCH);
      parts.add(part);
    }

    /** Milliseconds of each part since the last call. */
    Map<Part, Double> take() {
      var result = new EnumMap<Part, Double>(Part.class);
      for (int i = 0; i + 1 < used; i++) {
        result.merge(parts.get(i), events.get(i + 1).millisSince(events.get(i)), Double::sum);
      }
      parts.clear();
      used = 0;
      return result;
    }

    @Override
    public void close() {
      events.forEach(Event::close);
    }
  }

  static Map<Part, Double> medians(List<Map<Part, Double>> steps) {
    var result = new EnumMap<Part, Double>(Part.class);
    for (var part : Part.values()) {
      var all = steps.stream().mapToDouble(step -> step.getOrDefault(part, 0.0)).toArray();
      result.put(part, BenchModel.Turns.median(all));
    }
    return result;
  }

  void print(Map<Part, Double> parts, int recomputed, double step) {
    double all = 0;
    for (var part : Part.values()) {
      double ms = parts.get(part);
      all += ms;
      if (ms > 0) {
        var name = part.name().toLowerCase(Locale.ROOT).replace('_', ' ');
        options.report("  " + name, ms, step, tokens(), floor(part, recomputed));
      }
    }
    options.report("  the GPU's time of these", all, step, tokens());
  }

  /** Milliseconds that a part needs at least. */
  private double floor(Part part, int recomputed) {
    int layers = config.numHiddenLayers();
    double share = (double) recomputed / layers;
    return switch (part) {
      case FORWARD, BACKWARD -> layers * base(Projection.values()) / rate;
      case FORWARD_ADAPTERS, BACKWARD_ADAPTERS, WEIGHT_GRADIENTS -> layers * adapters() / rate;
      case ATTENTION -> layers * scores() / rate;
      case RECOMPUTATION ->
          share
              * layers
              * ((base(Projection.values()) - base(Projection.DOWN) + adapters() + scores()) / rate
                  + forwardBytes() / bandwidth);
      case LOSS -> 4 * tokens() * config.vocabSize() * config.hiddenSize() / rate;
      case ATTENTION_BACKWARD -> layers * 2.5 * scores() / rate;
      case BETWEEN_PRODUCTS -> layers * (forwardBytes() + backwardBytes()) / bandwidth;
      case RESULTS -> 0;
    };
  }

  private double base(Projection... projections) {
    return 2 * tokens() * BenchModel.Sizes.of(config, projections).weights();
  }

  /** One product each with all A and gates, and with all B. */
  private double adapters() {
    return 2 * tokens() * options.adapterNumbers(config, options.adapters);
  }

  /** Causal attention, forward. */
  private double scores() {
    return 2.0 * seq * tokens() * config.numAttentionHeads() * config.headDim();
  }

  /** What must be read and written between a layer's products, forward. */
  private double forwardBytes() {
    double hidden = config.hiddenSize();
    double inner = config.intermediateSize();
    double heads = (config.numAttentionHeads() + config.numKeyValueHeads()) * config.headDim();
    double dropped = drops ? 3 * hidden + hidden + inner : 0;
    // norm, rotation, sum and norm, activation, sum
    return tokens()
        * options.dtype().bytes()
        * (2 * hidden + 2 * heads + 4 * hidden + 3 * inner + 3 * hidden + dropped);
  }

  private double backwardBytes() {
    double hidden = config.hiddenSize();
    double inner = config.intermediateSize();
    double heads = (config.numAttentionHeads() + 2 * config.numKeyValueHeads()) * config.headDim();
    double dropped = drops ? 2 * (3 * hidden + inner) + 2 * hidden : 0;
    // activation again and its gradients, two norms again and their gradients, rotation
    return tokens()
        * options.dtype().bytes()
        * (3 * inner + 5 * inner + 2 * 2 * hidden + 2 * 4 * hidden + 2 * heads + dropped);
  }
}
