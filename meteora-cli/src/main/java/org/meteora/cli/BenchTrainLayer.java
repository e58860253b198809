package org.meteora.cli;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.model.Architecture;
import org.meteora.model.Gradients;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.MemoryNeed;
import org.meteora.model.Pass;
import org.meteora.model.RandomLlama;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.GatedTape;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.FlatParameters;

/**
 * One decoder layer, forward and backward, without losses and optimiser, over the frozen layer
 * alone. On a GPU several passes follow one another, as a step's layers do, so that nothing waits
 * for the host.
 *
 * @param batch sequences
 * @param tokens of each sequence
 */
record BenchTrainLayer(BenchModel options, int batch, int tokens, double dropout) {
  private static final int PASSES = 8;

  void run(Architecture whole) {
    var raw = (ObjectNode) whole.raw().deepCopy();
    raw.put("num_hidden_layers", 1).put("vocab_size", 1024);
    var config = LlamaConfig.parse(raw, "one layer");
    try (var manager = options.manager()) {
      double rate = options.multiplicationRate();
      var frozen = options.model(config, manager, 0, MemoryNeed.NONE);
      var model = options.trained(config, manager, dropout);
      try (var parameters = new FlatParameters(manager, TrainableModel.parameters(model, false));
          var base = new Layer(frozen, options.context(ForwardMode.AUTO), false, it -> List.of())) {
        double floor = (flops(config) + adapterFlops(config)) / rate;
        for (var mode : BenchTrainCommand.MODES) {
          if (mode == ForwardMode.GATHER && batch * tokens > 256) {
            continue;
          }
          boolean first = mode == ForwardMode.AUTO;
          var context = options.context(mode);
          try (var plain = new Layer(model, context, false, parameters);
              var drops =
                  first && dropout > 0 ? new Layer(model, context, true, parameters) : null) {
            var times =
                drops == null ? options.medians(base, plain) : options.medians(base, plain, drops);
            if (first) {
              report("frozen layer, gradient to the input", times, 0, flops(config) / rate);
            }
            report("MeteoRA, " + mode.label(), times, 1, floor);
            if (drops != null) {
              report("MeteoRA, " + mode.label() + ", dropout " + dropout, times, 2, floor);
            }
          }
        }
      }
    }
  }

  private void report(String name, double[] times, int which, double floor) {
    int passes = passes();
    options.report(name, times[which] / passes, times[0] / passes, tokenCount(), floor);
  }

  private int passes() {
    return options.onGpu() ? PASSES : 1;
  }

  private double tokenCount() {
    return (double) batch * tokens;
  }

  /** Forward, and the gradient to the input, of a layer without adapters. */
  private double flops(Architecture config) {
    double scores =
        2.0 * tokens * tokenCount() * config.numAttentionHeads() * config.headDim(); // causal
    return 2 * 2 * tokenCount() * BenchModel.Sizes.of(config, Projection.values()).weights()
        + 3.5 * scores;
  }

  /** Forward and both gradients of the gates and of the chosen adapters. */
  private double adapterFlops(Architecture config) {
    return 3 * 2 * tokenCount() * options.adapterNumbers(config, options.acting());
  }

  /** Its passes. */
  private final class Layer implements Runnable, AutoCloseable {
    private final Llama model;
    private final ForwardContext context;
    private final NDManager manager;
    private final LlamaTraining own;
    private final NDArray input;
    private final NDArray gradient;

    Layer(Llama model, ForwardContext context, boolean drops, Gradients gradients) {
      this.model = model;
      this.context = context.forTraining(drops);
      own =
          model
              .backend()
              .training(model, gradients, Recompute.ALL)
              .filter(it -> it.accepts(this.context))
              .orElse(null);
      manager = model.manager().newSubManager();
      long hidden = model.config().hiddenSize();
      input = RandomLlama.normal(manager, model.dtype(), 1, batch, tokens, hidden);
      gradient = RandomLlama.normal(manager, model.dtype(), 1, batch, tokens, hidden);
    }

    @Override
    public void run() {
      for (int left = passes(); left > 0; left--) {
        try (var scope = manager.newSubManager()) {
          var slope = own != null ? pass(scope) : recorded(scope);
          if (left == 1) {
            BenchModel.await(slope);
          }
        }
      }
    }

    private NDArray pass(NDManager scope) {
      try (var off = Ops.notRecording()) {
        return own.layer(0, Ops.alias(scope, input), gradient, context);
      }
    }

    private NDArray recorded(NDManager scope) {
      var layer = model.layers().getFirst();
      var tape = model.backend().tape(scope, layer.projections(), context); // as in training
      try (var recording = Ops.recording()) {
        var x = Ops.alias(scope, input);
        x.setRequiresGradient(true);
        var pass = Pass.whole(scope, model, new int[] {tokens}, context).on(tape, model.backend());
        var y = layer.forward(x, pass);
        Ops.backward(y, gradient);
        tape.ifPresent(it -> it.backward(true));
        var slope = x.getGradient();
        slope.attach(scope);
        return slope;
      } finally {
        tape.ifPresent(GatedTape::close);
      }
    }

    @Override
    public void close() {
      if (own != null) {
        own.close();
      }
      manager.close();
    }
  }
}
