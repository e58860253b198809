package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.DecodeAttentionKernel;
import org.meteora.cuda.kernel.DecodeAttentionKernel.DecodeAttention;
import org.meteora.cuda.kernel.DecodeLayerKernels;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteRopeAppend;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteSiluUp;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.cuda.kernel.DeviceSampler.SampleTokens;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.nn.Scores;

/** What a decode step of so many rows queues, in order. */
abstract sealed class StepPlan permits StreamedPlan, LibraryPlan {
  final Kernels kernels;
  final DecodeModel model;
  final KvMemory cache;
  final StepMemory memory;
  final DecodeLayerKernels layer;
  final boolean overlap;
  final int rows;
  final List<Work> works = new ArrayList<>();
  private boolean isBuilt;

  /** Of those, what follows the layers: the head, and the choice of tokens. */
  final List<Work> behindLayers = new ArrayList<>();

  /**
   * @param overlap programmatic dependent launch
   */
  StepPlan(
      Kernels kernels,
      DecodeModel model,
      KvMemory cache,
      StepMemory memory,
      boolean overlap,
      int rows) {
    this.kernels = kernels;
    this.model = model;
    this.cache = cache;
    this.memory = memory;
    this.layer = new DecodeLayerKernels(kernels, overlap);
    this.overlap = overlap;
    this.rows = rows;
  }

  /**
   * All that it queues, in order; made when it is first asked for, by any thread, and once more
   * where that failed.
   */
  final synchronized List<Work> works() {
    if (!isBuilt) {
      works.clear();
      build();
      isBuilt = true;
    }
    return works;
  }

  /** Fills {@link #works}. */
  abstract void build();

  /** Choosing the next tokens, from copies of the logits that are to be summed. */
  final List<Kernel.Launch> sampling(int logitSlots) {
    return DeviceSampler.launches(
        kernels,
        new SampleTokens(
            memory.logits,
            memory.best,
            memory.bestAt,
            memory.tokens,
            memory.lengths,
            memory.sampling,
            memory.gateTilesDone,
            model.vocab(),
            logitSlots,
            rows,
            DeviceSampler.BLOCKS,
            memory.gateCounters()),
        overlap);
  }

  /** What adds all adapters to a product, where all act; queued behind it. */
  final void mix(StepProduct product) {
    if (model.scores() == Scores.ALL && product.group.mixes()) {
      works.add(layer.addMixture(product.mixture(memory)));
    }
  }

  final Kernel.Launch ropeAppend(StepProduct qkv, long clearCount, int index) {
    return layer.ropeAppend(
        new DecodeRouteRopeAppend(
            qkv.output(memory, memory.yB, clearCount),
            qkv.linears(memory),
            memory.query,
            cache.keys()[index],
            cache.values()[index],
            memory.tables,
            memory.lengths,
            model.invFreq(),
            model.heads(),
            model.kvHeads(),
            model.headDim(),
            memory.maxRows,
            (float) (1 / Math.sqrt(model.headDim())),
            model.ropeScale()));
  }

  /**
   * What comes before {@link #behindLayers} where the layers have been run elsewhere.
   *
   * @param hidden (rows, hidden), what they gave; row i is what {@link StepMemory#tokens} names i
   */
  abstract Work finalNorm(long hidden);

  /** What is behind gate and up. */
  final DecodeRouteSiluUp routeSiluUp(StepProduct gateUp, long clearCount) {
    var linears = gateUp.linears(memory);
    return new DecodeRouteSiluUp(
        gateUp.output(memory, clearCount > 0 ? memory.yB : 0, clearCount),
        linears.get(0),
        linears.get(1),
        memory.activated,
        model.intermediate());
  }

  /**
   * @param behindOwn whether a launch is in front that lets this one begin early
   */
  final Kernel.Launch attention(int index, boolean behindOwn) {
    return DecodeAttentionKernel.launch(
        kernels,
        rows,
        cache.maxLength(),
        behindOwn,
        new DecodeAttention(
            memory.query,
            cache.keys()[index],
            cache.values()[index],
            memory.attended,
            memory.partial,
            memory.counters,
            memory.tables,
            memory.lengths,
            model.heads(),
            model.kvHeads(),
            memory.maxRows,
            1));
  }
}
