package org.meteora.cuda.decode;

import java.util.List;
import java.util.Optional;
import java.util.stream.Stream;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeEmbedNorm;
import org.meteora.cuda.kernel.DecodeLayerKernels.DecodeRouteAddResidualNorm;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MaskedAdapters;
import org.meteora.cuda.kernel.MaskedAdapters.DecodeMaskedSiluUp;
import org.meteora.cuda.kernel.WideProduct;
import org.meteora.nn.Projection.Input;

/**
 * A step of many rows, whose products are {@link WideProduct}'s or cuBLAS's. A layer: q, k, v and
 * [gates, A] beside each other; routing, adapters, rotary embedding and the cache's next column;
 * attention; o; routing, adapters, residual, norm; gate and up; routing, adapters, SiLU; down;
 * routing, adapters, residual, norm. Of many rows gate's and up's routing is beside their product
 * ({@link LibraryProduct#isMasked}).
 */
final class LibraryPlan extends StepPlan {
  private final LibraryProducts library;

  LibraryPlan(
      Kernels kernels,
      DecodeModel model,
      KvMemory cache,
      StepMemory memory,
      LibraryProducts library,
      int rows) {
    super(kernels, model, cache, memory, isOwn(kernels, model, rows), rows);
    this.library = library;
    build();
  }

  /**
   * Whether all launches are our own, each of which may begin before the one in front has ended.
   */
  private static boolean isOwn(Kernels kernels, DecodeModel model, int rows) {
    return products(kernels, model, rows).allMatch(LibraryProduct::isOwn)
        && ownHead(kernels, model, rows).isPresent();
  }

  private static Optional<WideProduct> ownHead(Kernels kernels, DecodeModel model, int rows) {
    if (!LibraryProduct.isForOwn(kernels, model, rows)) {
      return Optional.empty();
    }
    return WideProduct.of(
            kernels,
            List.of(new WideProduct.Matrix(model.head(), model.vocab())),
            model.hidden(),
            rows)
        .filter(product -> product.columns() == model.vocab() && product.slots() == 1);
  }

  /** Floats of the largest product of the layers. */
  static long productFloats(Kernels kernels, DecodeModel model, int rows) {
    return products(kernels, model, rows).mapToLong(LibraryProduct::floats).max().orElse(0);
  }

  /** Floats of scratch memory of a product of the layers. */
  static long scratchFloats(Kernels kernels, DecodeModel model, int rows) {
    return products(kernels, model, rows).mapToLong(LibraryProduct::scratchFloats).max().orElse(0);
  }

  private static Stream<LibraryProduct> products(Kernels kernels, DecodeModel model, int rows) {
    return InputGroup.all(model).map(group -> new LibraryProduct(kernels, model, group, rows));
  }

  /** Queues a product, and what adds all adapters to it where all act. */
  private LibraryProduct multiplied(int layer, Input input) {
    var product = new LibraryProduct(kernels, model, InputGroup.of(model, layer, input), rows);
    works.add(product.work(memory, library, overlap));
    mix(product);
    return product;
  }

  private void build() {
    var layers = model.layers();
    works.add(
        layer.embedNorm(
            rows,
            new DecodeEmbedNorm(
                model.embedding(),
                memory.tokens,
                layers.getFirst().inputNorm(),
                memory.residual,
                memory.normed,
                model.hidden(),
                model.vocab(),
                model.eps())));
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
    works.add(head());
    works.addAll(sampling(1));
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
