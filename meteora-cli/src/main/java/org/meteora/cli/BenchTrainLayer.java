package org.meteora.cli;

import com.fasterxml.jackson.databind.node.ObjectNode;
import java.util.List;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.model.Architecture;
import org.meteora.model.Gradients;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.MemoryNeed;
import org.meteora.model.Pass;
import org.meteora.model.RandomLlama;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;
import org.meteora.train.optim.FlatParameters;

/**
 * One decoder layer, forward and backward, without losses and optimiser, over the frozen layer
 * alone.
 *
 * @param batch sequences
 * @param tokens of each sequence
 */
record BenchTrainLayer(BenchModel options, int batch, int tokens, double dropout) {
  void run(Architecture whole) {
    var raw = (ObjectNode) whole.raw().deepCopy();
    raw.put("num_hidden_layers", 1).put("vocab_size", 1024);
    var config = LlamaConfig.parse(raw, "one layer");
    try (var manager = options.manager()) {
      double rate = options.multiplicationRate();
      double base;
      try (var own = manager.newSubManager()) {
        var model = options.model(config, own, 0, MemoryNeed.NONE);
        var context = options.context(ForwardMode.AUTO).forTraining(false);
        base = layerTime(model, context, parameter -> List.of());
        var name = "frozen layer, gradient to the input";
        options.report(name, base, base, tokenCount(), flops(config) / rate);
      }
      try (var own = manager.newSubManager()) {
        double floor = (flops(config) + adapterFlops(config)) / rate;
        var model = options.trained(config, own, dropout);
        try (var parameters = new FlatParameters(own, TrainableModel.parameters(model, false))) {
          for (var mode : BenchTrainCommand.MODES) {
            if (mode == ForwardMode.GATHER && batch * tokens > 256) {
              continue;
            }
            boolean drops = dropout > 0 && mode == ForwardMode.AUTO;
            for (boolean drop : drops ? List.of(false, true) : List.of(false)) {
              var name = "MeteoRA, " + mode.label() + (drop ? ", dropout " + dropout : "");
              var context = options.context(mode).forTraining(drop);
              double ms = layerTime(model, context, parameters);
              options.report(name, ms, base, tokenCount(), floor);
            }
          }
        }
      }
    }
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

  private double layerTime(Llama model, ForwardContext context, Gradients gradients) {
    var own = model.backend().training(model, gradients, Recompute.ALL);
    try (var passes = own.filter(it -> it.accepts(context)).orElse(null);
        var manager = model.manager().newSubManager()) {
      long hidden = model.config().hiddenSize();
      var input = RandomLlama.normal(manager, model.dtype(), 1, batch, tokens, hidden);
      var gradient = RandomLlama.normal(manager, model.dtype(), 1, batch, tokens, hidden);
      return options.median(
          () -> {
            if (passes != null) {
              try (var scope = manager.newSubManager();
                  var off = Ops.notRecording()) {
                BenchModel.await(passes.layer(0, Ops.alias(scope, input), gradient, context));
              }
              return;
            }
            try (var scope = manager.newSubManager();
                var recording = Ops.recording()) {
              var x = Ops.alias(scope, input);
              x.setRequiresGradient(true);
              var pass = Pass.whole(scope, model, new int[] {tokens}, context);
              var y = model.layers().getFirst().forward(x, pass);
              Ops.backward(y, gradient);
              var slope = x.getGradient();
              slope.attach(scope);
              BenchModel.await(slope);
            }
          });
    }
  }
}
