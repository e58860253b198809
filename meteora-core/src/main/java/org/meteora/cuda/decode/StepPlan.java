package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.kernel.DecodeAttentionKernel;
import org.meteora.cuda.kernel.DecodeAttentionKernel.DecodeAttention;
import org.meteora.cuda.kernel.DecodeLayerKernels;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeEmbed;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteAddResidual;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteRopeAppend;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteSiluUp;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.cuda.kernel.DeviceSampler.SampleTokens;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.nn.Projection.Input;

/**
 * The launches of a decode step of so many rows. A layer has nine: [q k v, their gates and A] · x;
 * routing, adapters, rotary embedding and the cache's next column; attention; [o, gate, A];
 * routing, adapters, residual, norm input; [gate up, gates, A]; routing, adapters, SiLU; [down,
 * gate, A]; routing, adapters, residual, norm input. Products leave their results in two buffers in
 * turn; the kernel behind one clears the buffer of the next.
 */
final class StepPlan {
  private final Kernels kernels;
  private final DecodeModel model;
  private final KvMemory cache;
  private final StepMemory memory;
  private final MatrixVector.Tuning tuning;
  private final DecodeLayerKernels layer;
  private final int rows;
  private final List<Kernel.Launch> launches = new ArrayList<>();

  StepPlan(
      Kernels kernels,
      DecodeModel model,
      KvMemory cache,
      StepMemory memory,
      MatrixVector.Tuning tuning,
      int rows) {
    this.kernels = kernels;
    this.model = model;
    this.cache = cache;
    this.memory = memory;
    this.tuning = tuning;
    this.layer = new DecodeLayerKernels(kernels, tuning.overlap());
    this.rows = rows;
    build();
  }

  /** In order. */
  List<Kernel.Launch> launches() {
    return launches;
  }

  /** Floats of the largest product of the layers, for any number of rows up to {@code maxRows}. */
  static long productFloats(
      Kernels kernels, DecodeModel model, MatrixVector.Tuning tuning, int maxRows) {
    var floats = 0L;
    for (var rows = 1; rows <= maxRows; rows *= 2) {
      for (var i = 0; i < model.layers().size(); i++) {
        for (var input : Input.values()) {
          var group = InputGroup.of(model, i, input);
          floats = Math.max(floats, new StepProduct(model, kernels, tuning, group, rows).floats());
        }
      }
    }
    return floats;
  }

  /** Floats of the head's product, likewise. */
  static long logitFloats(
      Kernels kernels, DecodeModel model, MatrixVector.Tuning tuning, int maxRows) {
    var floats = 0L;
    for (var rows = 1; rows <= maxRows; rows *= 2) {
      var head = head(kernels, model, tuning, rows);
      floats = Math.max(floats, (long) head.slots() * rows * model.vocab());
    }
    return floats;
  }

  private static MatrixVector head(
      Kernels kernels, DecodeModel model, MatrixVector.Tuning tuning, int rows) {
    var segment = new MatrixVector.Segment(model.head(), model.vocab());
    return new MatrixVector(kernels, List.of(segment), model.hidden(), rows, tuning);
  }

  private StepProduct product(int layer, Input input) {
    return new StepProduct(model, kernels, tuning, InputGroup.of(model, layer, input), rows);
  }

  private void build() {
    var layers = model.layers();
    var hidden = model.hidden();
    var partials = DecodeLayerKernels.partials(hidden);
    var head = head(kernels, model, tuning, rows);
    var headFloats = (long) head.slots() * rows * model.vocab();
    var next = product(0, Input.ATTENTION);
    launches.add(
        layer.embed(
            rows,
            new DecodeEmbed(
                model.embedding(),
                memory.tokens,
                layers.getFirst().inputNorm(),
                memory.residual,
                memory.normed,
                memory.sumsq,
                memory.yA,
                next.floats(),
                hidden,
                model.vocab())));
    for (var i = 0; i < layers.size(); i++) {
      var qkv = next;
      var o = product(i, Input.ATTENTION_HEADS);
      var gateUp = product(i, Input.MLP);
      var down = product(i, Input.MLP_INNER);
      var inputPartials = i == 0 ? DecodeLayerKernels.partialsOfEmbedding(hidden) : partials;
      launches.addAll(qkv.launches(memory, layer, memory.normed, memory.yA, inputPartials));
      launches.add(ropeAppend(qkv, o.floats(), i));
      launches.add(attention(i));
      launches.addAll(o.launches(memory, layer, memory.attended, memory.yB, 0));
      launches.add(addResidual(o, memory.yA, gateUp.floats(), layers.get(i).postAttentionNorm()));
      launches.addAll(gateUp.launches(memory, layer, memory.normed, memory.yA, partials));
      launches.add(siluUp(gateUp, down.floats()));
      launches.addAll(down.launches(memory, layer, memory.activated, memory.yB, 0));
      if (i + 1 < layers.size()) {
        next = product(i + 1, Input.ATTENTION);
        launches.add(addResidual(down, memory.yA, next.floats(), layers.get(i + 1).inputNorm()));
      } else {
        launches.add(addResidual(down, memory.logits, headFloats, model.finalNorm()));
      }
    }
    launches.add(
        head.launch(
            memory.normed, memory.logits, model.vocab(), 0, memory.sumsq, partials, model.eps()));
    launches.addAll(
        DeviceSampler.launches(
            kernels,
            new SampleTokens(
                memory.logits,
                memory.best,
                memory.bestAt,
                memory.tokens,
                memory.lengths,
                memory.slots,
                memory.sampling,
                memory.gateTilesDone(),
                model.vocab(),
                head.slots(),
                rows,
                DeviceSampler.BLOCKS,
                cache.maxLength(),
                memory.gateCounters()),
            tuning.overlap()));
  }

  private Kernel.Launch ropeAppend(StepProduct qkv, long clearCount, int index) {
    return layer.ropeAppend(
        new DecodeRouteRopeAppend(
            qkv.output(memory, memory.yA, memory.yB, clearCount),
            qkv.linears(memory),
            memory.query,
            cache.keys()[index],
            cache.values()[index],
            memory.slots,
            memory.lengths,
            memory.starts,
            model.invFreq(),
            model.heads(),
            model.kvHeads(),
            model.headDim(),
            cache.maxLength(),
            (float) (1 / Math.sqrt(model.headDim())),
            model.ropeScale()));
  }

  private Kernel.Launch attention(int index) {
    return DecodeAttentionKernel.launch(
        kernels,
        rows,
        tuning.overlap(),
        new DecodeAttention(
            memory.query,
            cache.keys()[index],
            cache.values()[index],
            memory.attended,
            memory.partial,
            memory.counters,
            memory.slots,
            memory.lengths,
            memory.starts,
            model.heads(),
            model.kvHeads(),
            cache.maxLength(),
            1));
  }

  private Kernel.Launch siluUp(StepProduct gateUp, long clearCount) {
    var linears = gateUp.linears(memory);
    return layer.siluUp(
        new DecodeRouteSiluUp(
            gateUp.output(memory, memory.yA, memory.yB, clearCount),
            linears.get(0),
            linears.get(1),
            memory.activated,
            model.intermediate()));
  }

  private Kernel.Launch addResidual(
      StepProduct product, long clear, long clearCount, long normWeight) {
    return layer.addResidual(
        new DecodeRouteAddResidual(
            product.output(memory, memory.yB, clear, clearCount),
            product.linears(memory).getFirst(),
            memory.residual,
            normWeight,
            memory.normed,
            memory.sumsq,
            model.hidden()));
  }
}
