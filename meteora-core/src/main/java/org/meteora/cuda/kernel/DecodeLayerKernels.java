package org.meteora.cuda.kernel;

import java.util.List;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Shape;
import org.meteora.nn.Scores;

/**
 * What stands before and behind the products of a decode step's layers. Those behind a product of
 * gated linears take the gates' top k of each row themselves, and add the chosen adapters; where
 * the gates come first in the product they do so while it is still at work.
 */
public final class DecodeLayerKernels {
  /** Outputs, or pairs that are rotated, of a warp, which is a block, behind a product. */
  private static final int WARP_OUTPUTS = 64;

  /** The same of the embedding. */
  private static final int EMBEDDED = 32;

  /** Outputs of a block that adds all adapters. */
  private static final int MIXED_OUTPUTS = 64;

  public record DecodeEmbed(
      long table,
      long tokens,
      long normWeight,
      long h,
      long out,
      long sumsq,
      long clear,
      long clearCount,
      int hidden,
      int vocab) {}

  public record DecodeRouteRopeAppend(
      ProductOutput product,
      @Count(AdapterKernels.MAX_LINEARS) List<RoutedLinear> linear,
      long q,
      long kCache,
      long vCache,
      long tables,
      long lengths,
      long invFreq,
      int heads,
      int kvHeads,
      int headDim,
      int tableRows,
      float scale,
      float ropeScale) {}

  public record DecodeRouteAddResidual(
      ProductOutput product,
      RoutedLinear linear,
      long h,
      long normWeight,
      long out,
      long sumsq,
      int hidden) {}

  public record DecodeRouteSiluUp(
      ProductOutput product, RoutedLinear gate, RoutedLinear up, long out, int inter) {}

  public record DecodeRouteZ(
      ProductOutput product,
      @Count(AdapterKernels.MAX_LINEARS) List<RoutedLinear> linear,
      @Count(AdapterKernels.MAX_LINEARS) long[] a,
      long x,
      long sumsq,
      long y,
      int k,
      int partials,
      float eps,
      boolean vectors,
      int each) {}

  public record DecodeEmbedNorm(
      long table,
      long tokens,
      long normWeight,
      long h,
      long out,
      int hidden,
      int vocab,
      float eps) {}

  public record DecodeRouteAddResidualNorm(
      ProductOutput product,
      RoutedLinear linear,
      long h,
      long normWeight,
      long out,
      int hidden,
      float eps) {}

  public record MixedLinear(
      long b, long adapter, long scales, int outAt, int zAt, int ranks, int out, boolean vectors) {}

  public record DecodeAddMixture(
      long y,
      long weights,
      long bias,
      long invTemperature,
      int slots,
      int ld,
      int rows,
      int n,
      int logitsAt,
      boolean given,
      int resident,
      @Count(AdapterKernels.MAX_LINEARS) List<MixedLinear> linear) {}

  private final Kernels kernels;
  private final boolean overlap;

  /**
   * @param overlap programmatic dependent launch
   */
  public DecodeLayerKernels(Kernels kernels, boolean overlap) {
    this.kernels = kernels;
    this.overlap = overlap;
  }

  /** Sums of squares that {@link #embed} leaves for each row. */
  public static int partialsOfEmbedding(int hidden) {
    return Math.ceilDiv(hidden, EMBEDDED);
  }

  /** Sums of squares that {@link #addResidual} leaves for each row. */
  public static int partials(int hidden) {
    return Math.ceilDiv(hidden, WARP_OUTPUTS);
  }

  /**
   * The kernel for who chooses when.
   *
   * @param behind the product, which chooses at its end
   * @param first chooses before the product ends
   * @param chosen takes the choice that {@link #routeZ} has left
   */
  private KernelName choosing(
      ProductOutput product, KernelName behind, KernelName first, KernelName chosen) {
    if (product.choices() > 0) {
      return chosen;
    }
    return product.gateTiles() > 0 || kernels.constants().scores() == Scores.GIVEN ? first : behind;
  }

  private Kernel.Launch warps(KernelName name, int x, int y, int z, Record argument) {
    return kernels.launch(name, Shape.of(x, y, z, 32).withOverlap(overlap), argument);
  }

  /** A step's first launch, which does not overlap what is before it. */
  public Kernel.Launch embed(int rows, DecodeEmbed argument) {
    return kernels.launch(
        KernelName.DECODE_EMBED,
        Shape.of(partialsOfEmbedding(argument.hidden()), rows, 1, 32),
        argument);
  }

  /** Behind q, k and v. */
  public Kernel.Launch ropeAppend(DecodeRouteRopeAppend argument) {
    return warps(
        choosing(
            argument.product(),
            KernelName.DECODE_ROUTE_ROPE_APPEND,
            KernelName.DECODE_ROUTE_ROPE_APPEND_GATES_FIRST,
            KernelName.DECODE_ROUTE_ROPE_APPEND_CHOSEN),
        argument.heads() + 2 * argument.kvHeads(),
        Math.ceilDiv(argument.headDim() / 2, WARP_OUTPUTS),
        argument.product().rows(),
        argument);
  }

  /** Behind o and down. */
  public Kernel.Launch addResidual(DecodeRouteAddResidual argument) {
    return warps(
        choosing(
            argument.product(),
            KernelName.DECODE_ROUTE_ADD_RESIDUAL,
            KernelName.DECODE_ROUTE_ADD_RESIDUAL_GATES_FIRST,
            KernelName.DECODE_ROUTE_ADD_RESIDUAL_CHOSEN),
        partials(argument.hidden()),
        argument.product().rows(),
        1,
        argument);
  }

  /** Behind gate and up. */
  public Kernel.Launch siluUp(DecodeRouteSiluUp argument) {
    // to 8 rows: more warps, each of which is quicker; beyond: less repeated routing
    var four = argument.product().rows() > 8;
    var name =
        four
            ? choosing(
                argument.product(),
                KernelName.DECODE_ROUTE_SILU_UP4,
                KernelName.DECODE_ROUTE_SILU_UP4_GATES_FIRST,
                KernelName.DECODE_ROUTE_SILU_UP4_CHOSEN)
            : choosing(
                argument.product(),
                KernelName.DECODE_ROUTE_SILU_UP2,
                KernelName.DECODE_ROUTE_SILU_UP2_GATES_FIRST,
                KernelName.DECODE_ROUTE_SILU_UP2_CHOSEN);
    return warps(
        name,
        Math.ceilDiv(argument.inter(), four ? 128 : 64),
        argument.product().rows(),
        1,
        argument);
  }

  /** Behind a product of linears all of whose adapters act. */
  public Kernel.Launch addMixture(DecodeAddMixture argument) {
    var out = argument.linear().stream().mapToInt(MixedLinear::out).max().orElse(1);
    var together = Math.min(argument.rows(), MatrixVector.MAX_ROWS);
    // coefficients, and then sums of four pairs of warps; the weights
    var shared = 4 * together * (4 * (MIXED_OUTPUTS + 8) + argument.n());
    return kernels.launch(
        KernelName.DECODE_ADD_MIXTURE,
        Shape.of(
                Math.ceilDiv(out, MIXED_OUTPUTS),
                Math.ceilDiv(argument.rows(), MatrixVector.MAX_ROWS),
                Math.max(1, argument.linear().size()),
                256)
            .withShared(shared)
            .withOverlap(overlap),
        argument);
  }

  /** A step's first launch where many rows are normalised before products. */
  public Kernel.Launch embedNorm(int rows, DecodeEmbedNorm argument) {
    return kernels.launch(KernelName.DECODE_EMBED_NORM, Shape.of(rows, 1, 1, 256), argument);
  }

  /** Behind o and down of many rows. */
  public Kernel.Launch addResidualNorm(DecodeRouteAddResidualNorm argument) {
    return kernels.launch(
        KernelName.DECODE_ROUTE_ADD_RESIDUAL_NORM,
        Shape.of(argument.product().rows(), 1, 1, 512).withOverlap(overlap),
        argument);
  }

  /** Behind gate and up of many rows. */
  public Kernel.Launch siluUpWide(DecodeRouteSiluUp argument) {
    var rows = argument.product().rows();
    var warps = Math.ceilDiv(argument.inter(), 128);
    // the more rows there are, the more of its outputs a warp that has chosen adapters takes
    var each = Math.clamp(rows / 16, 1, 4);
    return kernels.launch(
        KernelName.DECODE_ROUTE_SILU_UP_WIDE,
        Shape.of(Math.ceilDiv(warps, 4 * each), rows, 1, 128).withOverlap(overlap),
        argument);
  }

  /**
   * Behind a product without A. The choice is left for the kernel behind where {@link
   * ProductOutput#choices} says so.
   *
   * @param linears whose A there are
   */
  public Kernel.Launch routeZ(int linears, int maxRank, DecodeRouteZ argument) {
    return kernels.launch(
        KernelName.DECODE_ROUTE_Z,
        Shape.of(
                Math.ceilDiv(Math.max(1, maxRank * kernels.constants().topK()), argument.each()),
                linears,
                argument.product().rows(),
                256)
            .withOverlap(overlap),
        argument);
  }
}
