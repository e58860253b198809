package org.meteora.cuda.decode;

import java.util.List;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.DecodeLayerKernels;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeEmbed;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteAddResidual;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.nn.Projection.Input;

/**
 * A step of few rows, whose products are our own. A layer has nine launches: [q k v, their gates
 * and A] · x (of large A the chosen rows alone, by a launch more: {@link StreamedProduct});
 * routing, adapters, rotary embedding and the cache's next column; attention; [o, gate, A];
 * routing, adapters, residual, norm input; [gate up, gates, A]; routing, adapters, SiLU; [down,
 * gate, A]; routing, adapters, residual, norm input. Products leave their results in two buffers in
 * turn; the kernel behind one clears the buffer of the next. Where all adapters act on every token,
 * a launch more adds them to each product.
 */
final class StreamedPlan extends StepPlan {
  private final MatrixVector.Tuning tuning;

  StreamedPlan(
      Kernels kernels,
      DecodeModel model,
      KvMemory cache,
      StepMemory memory,
      MatrixVector.Tuning tuning,
      int rows) {
    super(kernels, model, cache, memory, tuning.overlap(), rows);
    this.tuning = tuning;
    var head = head(kernels, model, tuning, rows);
    behindLayers.add(head(head, DecodeLayerKernels.partialsOfEmbedding(model.hidden())));
    behindLayers.addAll(sampling(head.slots()));
  }

  /**
   * Floats of the largest product of the layers, for any number of rows up to {@code maxRows}.
   *
   * @param groups that differ, of the layers
   */
  static long productFloats(
      Kernels kernels,
      DecodeModel model,
      List<InputGroup> groups,
      MatrixVector.Tuning tuning,
      int maxRows) {
    return groups.stream()
        .flatMapToLong(
            group ->
                rows(maxRows)
                    .mapToLong(n -> new StreamedProduct(model, kernels, tuning, group, n).floats()))
        .max()
        .orElse(0);
  }

  /** Floats of the head's product, likewise. */
  static long logitFloats(
      Kernels kernels, DecodeModel model, MatrixVector.Tuning tuning, int maxRows) {
    return rows(maxRows)
        .mapToLong(n -> (long) head(kernels, model, tuning, n).slots() * n * model.vocab())
        .max()
        .orElse(0);
  }

  private static IntStream rows(int maxRows) {
    return IntStream.iterate(1, rows -> rows <= maxRows, rows -> 2 * rows);
  }

  private static MatrixVector head(
      Kernels kernels, DecodeModel model, MatrixVector.Tuning tuning, int rows) {
    var segment = new MatrixVector.Segment(model.head(), model.vocab());
    return new MatrixVector(kernels, List.of(segment), model.hidden(), rows, tuning);
  }

  private StreamedProduct product(int layer, Input input) {
    return new StreamedProduct(model, kernels, tuning, InputGroup.of(model, layer, input), rows);
  }

  @Override
  void build() {
    var layers = model.layers();
    var hidden = model.hidden();
    var head = head(kernels, model, tuning, rows);
    var headFloats = headFloats(head);
    var next = product(0, Input.ATTENTION);
    works.add(
        embed(
            model.embedding(),
            model.vocab(),
            layers.getFirst().inputNorm(),
            memory.yA,
            next.floats()));
    for (var i = 0; i < layers.size(); i++) {
      var qkv = next;
      var o = product(i, Input.ATTENTION_HEADS);
      var gateUp = product(i, Input.MLP);
      var down = product(i, Input.MLP_INNER);
      multiply(qkv);
      works.add(ropeAppend(qkv, o.floats(), i));
      works.add(attention(i, overlap));
      multiply(o);
      works.add(addResidual(o, memory.yA, gateUp.floats(), layers.get(i).postAttentionNorm()));
      multiply(gateUp);
      works.add(layer.siluUp(routeSiluUp(gateUp, down.floats())));
      multiply(down);
      if (i + 1 < layers.size()) {
        next = product(i + 1, Input.ATTENTION);
        works.add(addResidual(down, memory.yA, next.floats(), layers.get(i + 1).inputNorm()));
      } else {
        works.add(addResidual(down, memory.logits, headFloats, model.finalNorm()));
      }
    }
    works.add(head(head, DecodeLayerKernels.partials(hidden)));
    works.addAll(sampling(head.slots()));
  }

  private long headFloats(MatrixVector head) {
    return (long) head.slots() * rows * model.vocab();
  }

  /**
   * @param partials sums of squares of each row
   */
  private Work head(MatrixVector head, int partials) {
    return head.launch(
        memory.normed, memory.logits, model.vocab(), 0, memory.sumsq, partials, model.eps());
  }

  /**
   * @param clear set to zero
   */
  private Work embed(long table, int entries, long norm, long clear, long clearCount) {
    return layer.embed(
        rows,
        new DecodeEmbed(
            table,
            memory.tokens,
            norm,
            memory.residual,
            memory.normed,
            memory.sumsq,
            clear,
            clearCount,
            model.hidden(),
            entries));
  }

  @Override
  Work finalNorm(long hidden) {
    var floats = headFloats(head(kernels, model, tuning, rows));
    return embed(hidden, rows, model.finalNorm(), memory.logits, floats);
  }

  private void multiply(StreamedProduct product) {
    works.addAll(product.launches(memory, layer));
    mix(product);
  }

  private Kernel.Launch addResidual(
      StepProduct product, long clear, long clearCount, long normWeight) {
    return layer.addResidual(
        new DecodeRouteAddResidual(
            product.output(memory, clear, clearCount),
            product.linears(memory).getFirst(),
            memory.residual,
            normWeight,
            memory.normed,
            memory.sumsq,
            model.hidden()));
  }
}
