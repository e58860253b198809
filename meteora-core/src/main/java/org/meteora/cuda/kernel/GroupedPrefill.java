package org.meteora.cuda.kernel;

import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterKernels.ScaledLinear;
import org.meteora.cuda.kernel.AdapterKernels.Target;

/**
 * The adapters of one to three gated linears with one input in a prefill with many adapters: behind
 * a product with the gates alone, {@code y = Σ weight · scale · (x Aᵀ) Bᵀ} of the top-k adapters of
 * each token (paper, section 3.1), and nothing is multiplied for the others. For 16 bits.
 *
 * <p>Stateless: what a pass needs lies in the scratch that it brings.
 */
public final class GroupedPrefill {
  /** See {@link #isQuicker}. */
  private static final int TOKENS_AN_ADAPTER = 4;

  private static final int RANKS_A_CHOSEN_ONE = 48;

  /** Mirrors the struct of this name in {@code grouped.cuh}. */
  record GroupedRoute(ScaledLinear linear, long chosen, long factors) {}

  /** Mirrors the struct of this name in {@code grouped.cuh}. */
  record PrefillRoute(
      long rows,
      long tokens,
      long stride,
      long x,
      int k,
      float invTemperature,
      @Count(AdapterKernels.MAX_LINEARS) List<GroupedRoute> linear) {}

  /**
   * A pass.
   *
   * @param logits (tokens, stride): those of each linear
   * @param x (tokens, in), contiguous, what they were made from
   * @param choices as for {@link AdapterKernels#routeAndAdd}
   * @param temperature routing temperature T
   * @param scratch {@link #scratchBytes}
   */
  public record Pass(
      long logits,
      int stride,
      long x,
      int tokens,
      long[] choices,
      double temperature,
      long scratch) {}

  /** Where one linear's things lie in a scratch. */
  record Scratch(GroupedAdapters.TokenGroups groups, long factors, long z) {}

  private final Kernels kernels;
  private final List<Target> targets;
  private final List<long[]> arrays;
  private final int in;
  private final int maxRank;
  private final boolean isAvailable;

  /**
   * @param arrays per linear, where offsets and scales of its adapters are
   */
  GroupedPrefill(Kernels kernels, List<Target> targets, List<long[]> arrays, int in) {
    this.kernels = kernels;
    this.targets = targets;
    this.arrays = arrays;
    this.in = in;
    this.maxRank = targets.stream().mapToInt(t -> t.adapters().maxRank()).max().orElseThrow();
    this.isAvailable =
        GroupedAdapters.isAvailable(kernels.cuda(), kernels.constants().dtype())
            && in % 32 == 0
            && targets.stream().allMatch(GroupedPrefill::takes);
  }

  private static boolean takes(Target target) {
    var adapters = target.adapters();
    return adapters.gateRows() > 0
        && target.out() % 8 == 0
        && adapters.isAligned()
        // places in B are counted in 32 bits, in bytes
        && (long) adapters.sumOfRanks() * target.out() < 1L << 31;
  }

  /** Whether the kernels take these linears. */
  boolean isAvailable() {
    return isAvailable;
  }

  /**
   * Whether this is the way for so many tokens. What it costs goes with the ranks that a token
   * chooses, and with the tiles of 16 tokens, of which there are nearly as many as adapters where
   * tokens are few; what {@link AdapterKernels#scaleForPrefill}'s way costs goes with all ranks. On
   * an H100 (Llama-3-8B's linears, 2048 tokens, rank 8, top 2) this is quicker with 256 adapters
   * and slower with 28; between these the limit is by reckoning.
   */
  public boolean isQuicker(int tokens) {
    int chosen = kernels.constants().topK() * GroupedAdapters.ranks(maxRank);
    int ranks = targets.stream().mapToInt(t -> t.adapters().sumOfRanks()).sum();
    return isAvailable
        && tokens >= TOKENS_AN_ADAPTER * targets.getFirst().adapters().count()
        && ranks >= targets.size() * RANKS_A_CHOSEN_ONE * chosen;
  }

  GroupedAdapters adapters(int tokens) {
    return new GroupedAdapters(kernels, tokens, kernels.constants().maxAdapters(), maxRank);
  }

  private static long whole(long bytes) {
    return (bytes + 255) / 256 * 256;
  }

  private long perToken(int tokens) {
    return whole(4L * kernels.constants().topK() * tokens);
  }

  private long ofLinear(GroupedAdapters grouped, int tokens) {
    return 2 * perToken(tokens)
        + whole(grouped.orderBytes())
        + whole(grouped.tileBytes())
        + whole(grouped.zBytes());
  }

  /** Bytes of a pass's scratch. */
  public long scratchBytes(int tokens) {
    return targets.size() * ofLinear(adapters(tokens), tokens);
  }

  Scratch scratch(GroupedAdapters grouped, Pass pass, int target) {
    long at = pass.scratch() + target * ofLinear(grouped, pass.tokens());
    long factors = at + perToken(pass.tokens());
    long order = factors + perToken(pass.tokens());
    long tile = order + whole(grouped.orderBytes());
    return new Scratch(
        new GroupedAdapters.TokenGroups(at, arrays.get(target)[0], order, tile),
        factors,
        tile + whole(grouped.tileBytes()));
  }

  /** Chooses, sorts the tokens by their choices, and leaves their z in the scratch. */
  public void group(Pass pass, Stream stream) {
    var grouped = adapters(pass.tokens());
    var routes = new ArrayList<GroupedRoute>();
    var groups = new ArrayList<GroupedAdapters.TokenGroups>();
    var products = new ArrayList<GroupedAdapters.GroupedZ>();
    int topK = kernels.constants().topK();
    var linears =
        AdapterKernels.scaledLinears(targets, arrays, topK, pass.tokens(), pass.choices(), 0);
    for (int i = 0; i < targets.size(); i++) {
      var its = scratch(grouped, pass, i);
      routes.add(new GroupedRoute(linears.get(i), its.groups().chosen(), its.factors()));
      groups.add(its.groups());
      long a = targets.get(i).adapters().a();
      products.add(
          new GroupedAdapters.GroupedZ(its.groups(), pass.x(), a, its.factors(), its.z(), in));
    }
    kernels.run(
        KernelName.PREFILL_ROUTE,
        Shape.of((pass.tokens() + 7) / 8, targets.size(), 1, 256),
        new PrefillRoute(
            pass.logits(),
            pass.tokens(),
            pass.stride(),
            pass.x(),
            in,
            (float) (1 / pass.temperature()),
            routes),
        stream);
    grouped.group(groups, stream);
    grouped.z(products, stream);
  }

  /**
   * Behind {@link #group}: what the adapters of each linear add.
   *
   * @param y per linear, (tokens, out), contiguous; is written
   */
  public void add(Pass pass, long[] y, Stream stream) {
    var grouped = adapters(pass.tokens());
    var linears = new ArrayList<GroupedAdapters.GroupedRows>();
    for (int i = 0; i < y.length; i++) {
      var its = scratch(grouped, pass, i);
      var linear = targets.get(i);
      linears.add(
          new GroupedAdapters.GroupedRows(
              its.groups(), linear.adapters().b(), its.z(), y[i], linear.out()));
    }
    grouped.add(linears, stream);
  }
}
