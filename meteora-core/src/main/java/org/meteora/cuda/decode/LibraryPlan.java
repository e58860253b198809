package org.meteora.cuda.decode;

import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeEmbedNorm;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteAddResidualNorm;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.ManyRowsProduct;
import org.meteora.cuda.kernel.MaskedAdapters;
import org.meteora.cuda.kernel.MaskedAdapters.DecodeMaskedSiluUp;
import org.meteora.cuda.kernel.WideProduct;
import org.meteora.nn.Projection.Input;

/**
 * A step of many rows, whose products are {@link ManyRowsProduct}'s or cuBLAS's. A layer: q, k, v
 * and [gates, A] beside each other; routing, adapters, rotary embedding and the cache's next
 * column; attention; o; routing, adapters, residual, norm; gate and up; routing, adapters, SiLU;
 * down; routing, adapters, residual, norm. Of many rows gate's and up's routing is beside their
 * product ({@link LibraryProduct#isMasked}), or in front of it, which is one launch with what
 * follows then ({@link LibraryProduct#isFused}).
 */
final class LibraryPlan extends StepPlan {
  private final LibraryProducts library;

  /**
   * @param groups that differ, of the layers
   */
  LibraryPlan(
      Kernels kernels,
      DecodeModel model,
      List<InputGroup> groups,
      KvMemory cache,
      StepMemory memory,
      LibraryProducts library,
      int rows) {
    super(kernels, model, cache, memory, isOwn(kernels, model, groups, rows), rows);
    this.library = library;
    behindLayers.add(head());
    behindLayers.addAll(sampling(1));
  }

  /** Whether all products are our own, which may begin before the launch in front has ended. */
  private static boolean isOwn(
      Kernels kernels, DecodeModel model, List<InputGroup> groups, int rows) {
    return products(kernels, model, groups, rows).allMatch(LibraryProduct::isOwn);
  }

  /** Of few rows; of more cuBLAS is quicker: 0.41 ms beside 0.45 at 128 rows, 0.47 both at 256. */
  private static Optional<ManyRowsProduct> ownHead(Kernels kernels, DecodeModel model, int rows) {
    if (!LibraryProduct.isForOwn(kernels, model, rows)) {
      return Optional.empty();
    }
    return ManyRowsProduct.of(
            kernels,
            List.of(new ManyRowsProduct.Matrix(model.head(), model.vocab())),
            model.hidden(),
            rows)
        .filter(WideProduct.class::isInstance)
        .filter(product -> product.slots() == 1 && model.vocab() % 8 == 0);
  }

  /**
   * The products of layers' groups.
   *
   * @param groups that differ, of the layers
   */
  static Stream<LibraryProduct> products(
      Kernels kernels, DecodeModel model, List<InputGroup> groups, int rows) {
    return groups.stream().map(each -> new LibraryProduct(kernels, model, each, rows));
  }

  /** Queues a product, and what adds all adapters to it where all act. */
  private LibraryProduct multiplied(int layer, Input input) {
    var product = new LibraryProduct(kernels, model, InputGroup.of(model, layer, input), rows);
    works.add(product.work(memory, library, overlap));
    mix(product);
    return product;
  }

  @Override
  void build() {
    var layers = model.layers();
    works.add(embedNorm(model.embedding(), model.vocab(), layers.getFirst().inputNorm()));
    for (var i = 0; i < layers.size(); i++) {
      var qkv = multiplied(i, Input.ATTENTION);
      works.add(ropeAppend(qkv, 0, i));
      works.add(attention(i, true));
      var o = multiplied(i, Input.ATTENTION_HEADS);
      works.add(addResidualNorm(o, layers.get(i).postAttentionNorm()));
      works.add(siluUp(multiplied(i, Input.MLP)));
      var down = multiplied(i, Input.MLP_INNER);
      works.add(
          addResidualNorm(
              down, i + 1 < layers.size() ? layers.get(i + 1).inputNorm() : model.finalNorm()));
    }
    works.addAll(behindLayers);
  }

  private Work embedNorm(long table, int entries, long norm) {
    return layer.embedNorm(
        rows,
        new DecodeEmbedNorm(
            table,
            memory.tokens,
            norm,
            memory.residual,
            memory.normed,
            model.hidden(),
            entries,
            model.eps()));
  }

  @Override
  Work finalNorm(long hidden) {
    return embedNorm(hidden, rows, model.finalNorm());
  }

  private Work head() {
    var own = ownHead(kernels, model, rows);
    if (own.isPresent()) {
      return own.get().launch(memory.normed, memory.logits, model.vocab(), overlap);
    }
    return library.together(
        List.of(
            new LibraryProducts.Product(
                model.dtype(),
                memory.normed,
                model.head(),
                memory.logits,
                rows,
                model.hidden(),
                model.vocab(),
                model.vocab())),
        List.of());
  }

  private Work siluUp(LibraryProduct gateUp) {
    if (gateUp.isFused()) {
      return gateUp.siluUp(memory, overlap);
    }
    if (gateUp.isMasked()) {
      var masked = gateUp.masked(memory);
      return MaskedAdapters.siluUp(
          kernels,
          new DecodeMaskedSiluUp(
              masked.get(0), masked.get(1), memory.yA, memory.activated, rows, gateUp.layout.ld()),
          overlap);
    }
    return layer.siluUpWide(routeSiluUp(gateUp, 0));
  }

  private Work addResidualNorm(LibraryProduct product, long normWeight) {
    return layer.addResidualNorm(
        new DecodeRouteAddResidualNorm(
            product.output(memory, 0, 0),
            product.linears(memory).getFirst(),
            memory.residual,
            normWeight,
            memory.normed,
            model.hidden(),
            model.eps()));
  }
}
