package org.meteora.cuda.kernel;

import java.util.List;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.CStruct.Count;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.tensor.Dtype;

/**
 * What a training step does between its matrix products, forward and backward, on somebody else's
 * memory. Arrays are row-major and one row is one token, except where a method says otherwise; an
 * address of 0 is an array that is not there.
 *
 * <p>Records that begin with {@code Training} are kernels' arguments, and mirror the structs of
 * their names in {@code training.cuh}. Long, because each kernel has its argument and its launch
 * here.
 */
public final class TrainingKernels {
  private static final int THREADS = 256;

  /** Columns of a block of {@code training_chosen_gradients}. */
  private static final int GRADIENT_COLUMNS = 256;

  /** Bytes of its shared memory: four tiles of 16 tokens, and places of 256. */
  private static final int GRADIENT_SHARED = 4 * 16 * (2 * GRADIENT_COLUMNS + 16) + 1024;

  private static final int MAX_LINEARS = 3;

  /** Blocks that keep every multiprocessor at work, sixteen each. */
  private static final int BLOCKS = 132 * 16;

  /** Blocks of a sum of squares: the order of the sum depends on it. */
  public static final int SQUARES_BLOCKS = 1024;

  public interface Launcher {
    /** Queues one behind those before it. */
    void launch(KernelName kernel, Shape shape, Record argument);
  }

  /**
   * Inverted dropout of one array: what it drops follows from seed, row and column alone.
   *
   * @param threshold of 65,536 values of a hash, those for which an element is dropped
   * @param scale what kept elements are multiplied by
   */
  public record Dropout(long seed, int threshold, float scale) {
    public static final Dropout NONE = of(0, 0);

    /** Of a probability in steps of 1 / 65536. */
    public static Dropout of(long seed, double probability) {
      int threshold = (int) Math.round(probability * 65536);
      return new Dropout(seed, threshold, 65536f / (65536 - threshold));
    }
  }

  record TrainingNorm(
      long h,
      long delta,
      long sum,
      long out,
      long dropped,
      long kept,
      Norm norm,
      Dropout dropout) {}

  record TrainingNormBackward(
      long x, long slope, long droppedSlope, long residual, long out, Norm norm, Dropout dropout) {}

  record TrainingAdd(long a, long b, long out, long count, boolean vectors) {}

  record TrainingDrop(
      long x, long y, long kept, Dropout dropout, long rows, int columns, boolean add) {}

  record TrainingBias(long bias, long y, long rows, int columns) {}

  record TrainingSilu(
      long gate,
      long up,
      long out,
      long dropped,
      long kept,
      Dropout dropout,
      long rows,
      int columns) {}

  record TrainingSiluBackward(
      long gate, long up, long slope, long droppedSlope, Dropout dropout, long rows, int columns) {}

  record TrainingHeads(
      @Count(3) long[] flat,
      AttentionRows rows,
      long cosines,
      long sines,
      long slots,
      long tokens,
      int seq,
      int heads,
      int kvHeads,
      int headDim,
      boolean back,
      boolean rotate,
      boolean vectors) {}

  record TrainingRouted(
      long rows,
      long fixed,
      long targets,
      long tokens,
      int stride,
      int ranks,
      int linears,
      boolean gated,
      int used,
      @Count(MAX_LINEARS) List<TrainingLinear> linear) {}

  record TrainingRoute(TrainingRouted of, long c, long votes, long loss, long right, long chosen) {}

  record TrainingRouteBackward(
      TrainingRouted of, long slope, long c, long out, long chosen, float gateWeight) {}

  record TrainingLists(@Count(MAX_LINEARS) List<ChosenTokens> linear, int tokens) {}

  record TrainingChosenGradients(@Count(MAX_LINEARS) List<ChosenGradient> linear, int eights) {}

  record TrainingRows(long from, long to, long index, long rows, int columns, boolean scatter) {}

  record TrainingVocabularyLoss(
      long logits, long labels, long weights, long losses, int vocab, boolean gradient) {}

  record TrainingAddGradients(long parts, long from) {}

  record TrainingPublish(long parts, boolean rounded) {}

  record TrainingSquares(long values, long sums, long count) {}

  private final Launcher launcher;
  private final int sharedMemory;

  /**
   * @param launcher of kernels compiled for the arrays' dtype, for the top-k and for at least so
   *     many adapters
   * @param sharedMemory bytes that a block can have
   */
  public TrainingKernels(Launcher launcher, int sharedMemory) {
    this.launcher = launcher;
    this.sharedMemory = sharedMemory;
  }

  /** Kernels for f32, f16 or bf16 on a stream of a GPU. */
  public static TrainingKernels of(Cuda cuda, Dtype dtype, int topK, int adapters, Stream stream) {
    var kernels = Kernels.of(cuda, Kernels.Constants.ofLayers(dtype, topK, adapters));
    return new TrainingKernels(
        (name, shape, argument) -> kernels.run(name, shape, argument, stream), cuda.sharedMemory());
  }

  private void rows(KernelName kernel, long rows, Record argument) {
    if (rows > 0) {
      launcher.launch(kernel, Shape.of(Math.toIntExact(rows), 1, 1, THREADS), argument);
    }
  }

  private void threads(KernelName kernel, long threads, Record argument) {
    rows(kernel, (threads + THREADS - 1) / THREADS, argument);
  }

  private void eights(KernelName kernel, long rows, int columns, Record argument) {
    threads(kernel, rows * ((columns + 7) / 8), argument);
  }

  /** An RMSNorm's weight {@code (hidden)} and eps: a struct in {@code training.cuh}. */
  public record Norm(long weight, int hidden, float eps) {}

  /** {@code out = rmsnorm(h) · weight}; with a delta {@code sum = h + delta}, and of that. */
  public void norm(long rows, Norm norm, long h, long delta, long sum, long out, Dropped dropped) {
    rows(
        KernelName.TRAINING_NORM,
        rows,
        new TrainingNorm(h, delta, sum, out, dropped.x(), dropped.kept(), norm, dropped.dropout()));
  }

  /**
   * {@code out = residual + } the gradient of the norm's input.
   *
   * @param slope gradient of the norm's result
   * @param droppedSlope gradient of its dropped result, or 0
   * @param residual may be {@code out}, or 0
   */
  public void normBackward(
      long rows,
      Norm norm,
      long x,
      long slope,
      long droppedSlope,
      long residual,
      long out,
      Dropout dropout) {
    rows(
        KernelName.TRAINING_NORM_BACKWARD,
        rows,
        new TrainingNormBackward(x, slope, droppedSlope, residual, out, norm, dropout));
  }

  /** {@code out = a + b}. */
  public void add(long count, long a, long b, long out) {
    threads(
        KernelName.TRAINING_ADD,
        (count + 7) / 8,
        new TrainingAdd(a, b, out, count, (a | b | out) % 16 == 0));
  }

  /**
   * What dropout leaves of a result, or which of its elements it keeps.
   *
   * @param x receives {@code dropout(result)}, or 0
   * @param kept receives a bit an element, {@code (columns / 64, rows)} of 64 bits in {@link
   *     MaskedProducts}' order, of whole 256 columns; or 0
   */
  public record Dropped(long x, long kept, Dropout dropout) {
    public static final Dropped NONE = new Dropped(0, 0, Dropout.NONE);

    /** Where either is, or 0. */
    public long address() {
      return x | kept;
    }
  }

  /** {@code y = dropout(x)}, or with {@code add} y += it. */
  public void drop(long rows, int columns, long x, long y, boolean add, Dropout dropout) {
    eights(
        KernelName.TRAINING_DROP,
        rows,
        columns,
        new TrainingDrop(x, y, 0, dropout, rows, columns, add));
  }

  /** {@code dropout(x)}, or what it keeps. */
  public void drop(long rows, int columns, long x, Dropped dropped) {
    eights(
        KernelName.TRAINING_DROP,
        rows,
        columns,
        new TrainingDrop(x, dropped.x(), dropped.kept(), dropped.dropout(), rows, columns, false));
  }

  /** Every row of y becomes the bias. */
  public void bias(long rows, int columns, long bias, long y) {
    eights(KernelName.TRAINING_BIAS, rows, columns, new TrainingBias(bias, y, rows, columns));
  }

  /** {@code out = silu(gate) · up}. */
  public void silu(long rows, int columns, long gate, long up, long out, Dropped dropped) {
    eights(
        KernelName.TRAINING_SILU,
        rows,
        columns,
        new TrainingSilu(
            gate, up, out, dropped.x(), dropped.kept(), dropped.dropout(), rows, columns));
  }

  /** gate and up become their gradients. */
  public void siluBackward(
      long rows, int columns, long gate, long up, long slope, long droppedSlope, Dropout dropout) {
    eights(
        KernelName.TRAINING_SILU_BACKWARD,
        rows,
        columns,
        new TrainingSiluBackward(gate, up, slope, droppedSlope, dropout, rows, columns));
  }

  /**
   * Tensors {@code (batch, heads, seq, headDim)} with strides in elements, the last 1: attention's
   * side of {@link #heads}. Mirrors the struct of this name in {@code training.cuh}.
   */
  public record AttentionRows(
      @Count(3) long[] addresses,
      @Count(3) long[] rowStrides,
      @Count(3) long[] headStrides,
      @Count(3) long[] tokenStrides) {}

  /**
   * Copies heads between tokens one after another and attention's rows, turning q and k by their
   * positions' angles.
   *
   * @param flat q {@code (tokens, heads · headDim)}, then k and v {@code (tokens, kvHeads ·
   *     headDim)} if there are any
   * @param slots int32: row · seq + position of each token; 0: that is its number
   * @param back from attention's rows to tokens
   * @param cosines {@code (seq, headDim)}; 0: nothing is turned
   */
  public void heads(
      long tokens,
      int seq,
      int heads,
      int kvHeads,
      int headDim,
      long[] flat,
      AttentionRows rows,
      long slots,
      boolean back,
      long cosines,
      long sines) {
    long all = cosines | sines;
    for (int i = 0; i < flat.length; i++) {
      all |= flat[i] | rows.addresses()[i];
      long strides = rows.rowStrides()[i] | rows.headStrides()[i] | rows.tokenStrides()[i];
      all |= strides % 8 == 0 ? 0 : 1;
    }
    boolean vectors = headDim % 16 == 0 && all % 16 == 0;
    int pairs = headDim / (vectors ? 16 : 2);
    threads(
        KernelName.TRAINING_HEADS,
        tokens * (heads + 2L * kvHeads) * pairs,
        new TrainingHeads(
            flat,
            rows,
            cosines,
            sines,
            slots,
            tokens,
            seq,
            heads,
            kvHeads,
            headDim,
            back,
            cosines != 0,
            vectors));
  }

  /**
   * Gated linears with one input: rows are {@code [z of all | logits of all gates | zeros]}.
   *
   * @param stride columns of a row
   * @param gated whether gates choose; else the adapter that {@code fixed} names
   * @param linears up to three
   */
  public record Routed(int stride, boolean gated, List<TrainingLinear> linears) {
    private TrainingRouted struct(long tokens, long rows, Tasks tasks) {
      int ranks = linears.stream().mapToInt(TrainingLinear::ranks).sum();
      int logits = gated ? linears.stream().mapToInt(TrainingLinear::n).sum() : 0;
      int used = ranks + logits;
      int all = linears.size();
      return new TrainingRouted(
          rows, tasks.fixed(), tasks.targets(), tokens, stride, ranks, all, gated, used, linears);
    }
  }

  /**
   * One of them.
   *
   * @param offsets int32 (n + 1): the adapters' first ranks
   * @param scales float32 (n)
   * @param zAt its first column of a row, and of c
   * @param logitsAt its gate's
   */
  public record TrainingLinear(
      long offsets, long scales, int zAt, int logitsAt, int n, int ranks) {}

  /**
   * Who is right, and who acts: int32 (tokens) each.
   *
   * @param targets each token's task, −1 for none; 0: the gates have no loss
   * @param fixed each token's adapter where no gate chooses; 0: the first
   */
  public record Tasks(long targets, long fixed) {}

  /**
   * What is counted of gates, float32, added to.
   *
   * @param votes (tokens, N)
   * @param loss (tokens): the gates' cross-entropies
   * @param right (tokens): gates whose first choice is the target
   */
  public record Counts(long votes, long loss, long right) {
    public static final Counts NONE = new Counts(0, 0, 0);
  }

  /**
   * {@code c (tokens, Σr) = weight · scale · z} of the chosen adapters, 0 of the others.
   *
   * @param c 0: not wanted
   * @param chosen receives int32 (linears, topK, tokens), who acts, or 0
   */
  public void route(
      long tokens, Routed linears, long rows, long c, Tasks tasks, Counts counts, long chosen) {
    var tasksOfLoss = counts.loss() == 0 ? new Tasks(0, tasks.fixed()) : tasks;
    rows(
        KernelName.TRAINING_ROUTE,
        (tokens + 7) / 8,
        new TrainingRoute(
            linears.struct(tokens, rows, tasksOfLoss),
            c,
            counts.votes(),
            counts.loss(),
            counts.right(),
            chosen));
  }

  /**
   * The gradients of {@code rows}, from {@code slope}, that of c, and from the gates' loss.
   *
   * @param c made again
   * @param out as {@code rows}
   * @param chosen as {@link #route}'s
   * @param gateWeight of each gate's cross-entropy at a token
   */
  public void routeBackward(
      long tokens,
      Routed linears,
      long rows,
      long slope,
      long c,
      long out,
      Tasks tasks,
      long chosen,
      double gateWeight) {
    rows(
        KernelName.TRAINING_ROUTE_BACKWARD,
        (tokens + 7) / 8,
        new TrainingRouteBackward(
            linears.struct(tokens, rows, tasks), slope, c, out, chosen, (float) gateWeight));
  }

  /**
   * Which tokens of a pass chose each adapter, in device memory.
   *
   * @param at of {@link #bytes}; first as they chose, int32 (linears, topK, tokens)
   * @param maxRank of any adapter of these linears
   * @param linears up to three, with as many adapters each
   */
  public record Choices(long at, int tokens, int topK, int maxRank, List<TrainingLinear> linears) {
    /** Bytes at {@code at} of so many tokens, whatever k is, of up to three linears. */
    public static long bytes(long tokens) {
      long lists = Kernels.MAX_TOP_K * (8 * tokens + TokenTiles.bytes(tokens));
      return MAX_LINEARS * (lists + 4 * (Kernels.MAX_ADAPTERS + 1)) + 8;
    }

    /** int32 (topK, tokens): its adapters. */
    private long chosen(int linear) {
      return at + 4L * tokens * topK * linear;
    }

    private ChosenTokens lists(int linear) {
      long order = 4L * tokens * topK;
      long lists = chosen(linears.size()) + (order + 4 * (adapters() + 1)) * linear;
      return new ChosenTokens(chosen(linear), lists, lists + order);
    }

    private int adapters() {
      return linears.getFirst().n();
    }

    /** As many a chunk as all linears' leave memory for. */
    private TokenTiles tiles(int sharedMemory) {
      return TokenTiles.of(tokens, linears.size(), topK, adapters(), sharedMemory);
    }

    private GroupedPrefill.TokenGroups groups(int linear, TokenTiles tiles) {
      long first = (lists(linears.size()).order() + 7) / 8 * 8;
      return new GroupedPrefill.TokenGroups(
          chosen(linear),
          linears.get(linear).offsets(),
          first + (long) TokenTiles.TILE_BYTES * tiles.all() * linear);
    }

    private GroupedPrefill.GroupedZ product(ChosenTerm of, TokenTiles tiles) {
      return new GroupedPrefill.GroupedZ(
          groups(of.linear(), tiles), of.wide(), of.matrix(), 0, of.narrow(), of.columns());
    }

    private GroupedPrefill.GroupedRows sum(ChosenTerm of, TokenTiles tiles) {
      return new GroupedPrefill.GroupedRows(
          groups(of.linear(), tiles), of.matrix(), of.narrow(), of.wide(), of.columns());
    }

    private ChosenGradient gradient(GradientTerm of) {
      var linear = linears.get(of.linear());
      return new ChosenGradient(
          lists(of.linear()),
          linear.offsets(),
          of.wide(),
          of.narrow(),
          of.to(),
          of.byColumn() ? linear.ranks() : 1,
          of.byColumn() ? 1 : of.columns(),
          of.columns(),
          of.stride(),
          of.add());
    }
  }

  /** Writes them; of {@code rows} the logits alone are read. */
  public Choices choices(Choices choices, Routed linears, long rows, Tasks tasks) {
    route(choices.tokens(), linears, rows, 0, tasks, Counts.NONE, choices.at());
    var tiles = choices.tiles(sharedMemory);
    int all = choices.linears().size();
    launcher.launch(
        KernelName.GROUP_TOKENS,
        tiles.sorting(all),
        new GroupedPrefill.GroupTokens(
            IntStream.range(0, all).mapToObj(i -> choices.groups(i, tiles)).toList(),
            choices.tokens(),
            tiles.chunk(),
            tiles.ofChunk()));
    return choices;
  }

  /**
   * A factor of a product with the ranks of the adapters that a token chose; their ranks are whole
   * eights.
   *
   * @param linear which of the choices'
   * @param wide {@code (tokens, columns)}, columns whole 32
   * @param matrix {@code (Σr, columns)}
   * @param narrow {@code (tokens, stride)}, the linear's first rank
   */
  public record ChosenTerm(int linear, long wide, int columns, long matrix, long narrow) {}

  /** {@code narrow = wide · Mᵀ} of each; the other adapters' ranks are not written. */
  public void chosenProducts(Choices choices, List<ChosenTerm> terms, int stride) {
    var tiles = choices.tiles(sharedMemory);
    launcher.launch(
        KernelName.GROUP_Z,
        Shape.of(tiles.all(), (choices.maxRank() + 7) / 8, terms.size(), THREADS),
        new GroupedPrefill.GroupZ(
            terms.stream().map(term -> choices.product(term, tiles)).toList(),
            new GroupedPrefill.GroupedColumns(stride, true),
            choices.tokens(),
            tiles.chunk(),
            tiles.ofChunk(),
            tiles.chunks()));
  }

  /**
   * The first one's {@code wide} becomes {@code Σ narrow · M} of all, by the chosen ranks alone.
   */
  public void chosenSum(Choices choices, List<ChosenTerm> terms, int stride) {
    var tiles = choices.tiles(sharedMemory);
    launcher.launch(
        KernelName.GROUP_ADD_BY_ROW,
        tiles.adding(BLOCKS / 16, terms.size(), IntStream.of(terms.getFirst().columns())),
        new GroupedPrefill.GroupAdd(
            terms.stream().map(term -> choices.sum(term, tiles)).toList(),
            new GroupedPrefill.GroupedColumns(stride, true),
            terms.size(),
            terms.size(),
            tiles.chunk(),
            tiles.ofChunk()));
  }

  /**
   * A linear's tokens by their adapters, in one list, always in the same order; mirrors the struct
   * of this name in {@code training.cuh}.
   *
   * @param chosen int32 (topK, tokens)
   * @param order int32 (topK · tokens), is written
   * @param begins int32 (n + 1), likewise
   */
  record ChosenTokens(long chosen, long order, long begins) {}

  /** Lists each adapter's tokens, behind a {@link #route} that wrote at {@code choices.at()}. */
  public void lists(Choices choices) {
    int all = choices.linears().size();
    launcher.launch(
        KernelName.TRAINING_LISTS,
        Shape.of(choices.adapters(), all, 1, THREADS),
        new TrainingLists(
            IntStream.range(0, all).mapToObj(choices::lists).toList(), choices.tokens()));
  }

  /**
   * The gradient of A or B of one linear's adapters, whose ranks are whole eights: {@code wideᵀ ·
   * narrow}.
   *
   * @param linear which of the choices'
   * @param wide {@code (tokens, columns)}, columns whole eights
   * @param narrow {@code (tokens, stride)}, the linear's first rank; stride in whole eights. Of
   *     adapters that a token did not choose it is not read
   * @param to float32, B's {@code (columns, ranks)} {@code byColumn}, else A's {@code (ranks,
   *     columns)}
   * @param add to what is there; else it is written, zeros for adapters that nobody chose
   */
  public record GradientTerm(
      int linear,
      long wide,
      int columns,
      long narrow,
      int stride,
      long to,
      boolean byColumn,
      boolean add) {}

  /** One in the kernel; mirrors the struct of this name in {@code training.cuh}. */
  record ChosenGradient(
      ChosenTokens tokens,
      long offsets,
      long wide,
      long narrow,
      long to,
      long columnStep,
      long rankStep,
      int columns,
      int stride,
      boolean add) {}

  /** Each adapter's gradients over the tokens that chose it, behind {@link #lists}. */
  public void chosenGradients(Choices choices, List<GradientTerm> terms) {
    if (terms.isEmpty()) {
      return;
    }
    int eights = (choices.maxRank() + 7) / 8;
    int widest = terms.stream().mapToInt(GradientTerm::columns).max().orElseThrow();
    launcher.launch(
        KernelName.TRAINING_CHOSEN_GRADIENTS,
        Shape.of(
                choices.adapters(),
                terms.size() * eights,
                Math.ceilDiv(widest, GRADIENT_COLUMNS),
                THREADS / 2)
            .withShared(GRADIENT_SHARED),
        new TrainingChosenGradients(terms.stream().map(choices::gradient).toList(), eights));
  }

  /** {@code to[i] = from[index[i]]}; with {@code scatter} {@code to[index[i]] = from[i]}. */
  public void rows(long rows, int columns, long from, long to, long index, boolean scatter) {
    eights(
        KernelName.TRAINING_ROWS,
        rows,
        columns,
        new TrainingRows(from, to, index, rows, columns, scatter));
  }

  /**
   * Cross-entropies of rows of logits {@code (rows, vocab)}.
   *
   * @param labels int32 (rows)
   * @param weights float32 (rows): the logits become {@code weight · (softmax − label)}; 0: they
   *     stay
   * @param losses float32 (rows); written
   */
  public void vocabularyLoss(
      long rows, int vocab, long logits, long labels, long weights, long losses) {
    rows(
        KernelName.TRAINING_VOCABULARY_LOSS,
        rows,
        new TrainingVocabularyLoss(logits, labels, weights, losses, vocab, weights != 0));
  }

  /**
   * A float32 matrix that is added to another. Mirrors the struct of this name in {@code
   * training.cuh}.
   *
   * @param to the first element of the sum
   * @param from the first of what is added, in elements behind the launch's {@code from}
   * @param fromStride elements from one row to the next
   * @param toStride likewise
   */
  public record GradientPart(
      long to, long from, int rows, int columns, int fromStride, int toStride) {}

  /**
   * A row-major float32 matrix that is rounded into another. Mirrors the struct of this name in
   * {@code training.cuh}.
   *
   * @param to the first element, in the kernels' dtype
   * @param toStride elements from one row to the next
   * @param toColumn elements from one column to the next
   */
  public record PublishedPart(
      long from, long to, int rows, int columns, int toStride, int toColumn) {}

  /**
   * Adds float32 matrices to others.
   *
   * @param parts {@code count} {@link GradientPart}, in device memory
   * @param largest elements of the largest
   */
  public void addGradients(long parts, int count, long largest, long from) {
    each(KernelName.TRAINING_ADD_GRADIENTS, count, largest, new TrainingAddGradients(parts, from));
  }

  /**
   * Copies values into the model's tensors.
   *
   * @param parts {@code count} {@link PublishedPart}, in device memory
   * @param largest elements of the largest
   * @param rounded whether the values are in the model's dtype already; float32 otherwise
   */
  public void publish(long parts, int count, long largest, boolean rounded) {
    each(KernelName.TRAINING_PUBLISH, count, largest, new TrainingPublish(parts, rounded));
  }

  private void each(KernelName kernel, int parts, long largest, Record argument) {
    if (parts > 0 && largest > 0) {
      int most = Math.max(64, BLOCKS / parts);
      int blocks = (int) Math.min(most, (largest + 4L * THREADS - 1) / (4 * THREADS));
      launcher.launch(kernel, Shape.of(blocks, parts, 1, THREADS), argument);
    }
  }

  /**
   * AdamW's step on {@code count} numbers, float32; see {@code org.meteora.train.optim.AdamW}.
   *
   * @param scale multiplies gradients
   * @param decay multiplies values
   * @param rate with the means' correction
   * @param bias divides the variances' roots
   */
  public record TrainingAdamW(
      long values,
      long gradients,
      long means,
      long variances,
      long count,
      float scale,
      float decay,
      float rate,
      float bias,
      float beta1,
      float beta2,
      float epsilon) {}

  public void adamW(TrainingAdamW step) {
    if (step.count() > 0) {
      int blocks = (int) Math.min(BLOCKS, (step.count() + THREADS - 1) / THREADS);
      launcher.launch(KernelName.TRAINING_ADAM_W, Shape.of(blocks, 1, 1, THREADS), step);
    }
  }

  /** Sums of squares, of {@link #SQUARES_BLOCKS} parts: float64. */
  public void squares(long values, long sums, long count) {
    launcher.launch(
        KernelName.TRAINING_SQUARES,
        Shape.of(SQUARES_BLOCKS, 1, 1, THREADS),
        new TrainingSquares(values, sums, count));
  }
}
