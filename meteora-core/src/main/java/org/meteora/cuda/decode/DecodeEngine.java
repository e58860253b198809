package org.meteora.cuda.decode;

import java.util.ArrayDeque;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.ToLongFunction;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Work;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.nn.KvBlock;
import org.meteora.nn.Scores;

/**
 * Decode steps of a whole Llama with MeteoRA: for up to {@link #MAX_ROWS} sequences, one token each
 * in, one token each out. What a step queues ({@link StepPlan}) is captured once for each of a few
 * numbers of rows as a CUDA graph and replayed ({@link StepGraphs}); lengths, positions and tokens
 * are read from device memory ({@link StepMemory}), and the next tokens are chosen on the device
 * ({@link DeviceSampler}). Which adapters every gate chose is left on the device too, beside the
 * tokens, so that it can be fetched with them.
 *
 * <p>Gates come first in a product: the launch that follows has begun by then, and chooses adapters
 * and reads their B while the rest is multiplied. The residual stream, all sums, logits and z are
 * float32.
 *
 * <p>Use: fill blocks of keys and values by prefill, name the batch by {@link #rows}, then {@link
 * #step} per token, {@link #blocks} where a sequence has got another block. Not thread-safe.
 */
public final class DecodeEngine implements AutoCloseable {
  /** Sequences of a step at most. */
  public static final int MAX_ROWS = DeviceSampler.MAX_ROWS;

  /** Sequences of a step at most that {@link StreamedPlan} serves; beyond, {@link LibraryPlan}. */
  public static final int MAX_STREAMED_ROWS = MatrixVector.MAX_ROWS;

  /** The numbers of rows that steps are run with, by way of rows without a sequence. */
  private static final int[] BUCKETS = {
    1, 2, 4, 8, MAX_STREAMED_ROWS, 24, 32, 48, 64, 96, 128, 160, 192, 224, MAX_ROWS
  };

  private final Cuda cuda;
  private final DecodeModel model;
  private final MatrixVector.Tuning tuning;
  private final Kernels kernels;
  private final Stream stream;
  private final StepMemory memory;
  private final StepGraphs graphs;
  private final int maxRows;
  private final int fewestRows;
  private final Map<Integer, StepPlan> plans = new ConcurrentHashMap<>();
  private volatile boolean plansAhead;
  private CompletableFuture<Void> planning = CompletableFuture.completedFuture(null);
  private final LibraryProducts library;
  private final List<InputGroup> groups; // that differ, of the layers

  private KvMemory cache;
  private int[] lengthOfRow = {};
  private int[] roomOfRow = {};
  private int active;
  private boolean fetchRouting;

  /** Rows of the steps that are queued and not yet {@linkplain #take taken}. */
  private final ArrayDeque<Integer> queued = new ArrayDeque<>();

  private int exchange; // of the step that is queued next

  /**
   * @param maxRows sequences at most, 1…{@link #MAX_ROWS}
   * @param maxBlocks of a sequence
   * @param fewestRows that a step is run with, {@code maxRows} for steps that are all alike
   * @param tuning of products of up to {@link #MAX_STREAMED_ROWS} rows
   * @throws UserException when there is too little device memory or the model has what the kernels
   *     do not know
   */
  public DecodeEngine(
      Cuda cuda,
      DecodeModel model,
      KvMemory cache,
      int maxRows,
      int maxBlocks,
      int fewestRows,
      MatrixVector.Tuning tuning) {
    check(model, maxRows);
    this.cuda = cuda;
    this.model = model;
    this.cache = cache;
    this.tuning = tuning;
    this.maxRows = bucket(maxRows);
    this.fewestRows = fewestRows;
    cuda.makeCurrent();
    this.kernels = Kernels.of(cuda, constants(model));
    this.stream = Stream.create(cuda);
    this.graphs = new StepGraphs(stream);
    LibraryProducts products = null;
    try {
      if (this.maxRows > MAX_STREAMED_ROWS) {
        products = new LibraryProducts(cuda, stream);
      }
      this.library = products;
      this.groups = InputGroup.different(model);
      var ofMany =
          buckets(this.maxRows)
              .filter(rows -> rows > MAX_STREAMED_ROWS)
              .boxed()
              .flatMap(rows -> LibraryPlan.products(kernels, model, groups, rows))
              .toList();
      this.memory =
          new StepMemory(
              kernels,
              model,
              this.maxRows,
              maxBlocks,
              Math.max(
                  StreamedPlan.productFloats(kernels, model, groups, tuning, fewRows()),
                  most(ofMany, LibraryProduct::floats)),
              logitFloats(),
              most(ofMany, LibraryProduct::scratchFloats),
              stream);
    } catch (RuntimeException | Error e) {
      if (products != null) {
        products.close();
      }
      stream.close();
      throw e;
    }
  }

  /** Where all adapters act there is nothing to choose: a base model's kernels serve. */
  private static Kernels.Constants constants(DecodeModel model) {
    var all = model.scores() == Scores.ALL;
    return Kernels.Constants.ofSteps(
            model.dtype(),
            all ? 1 : Math.max(1, model.topK()),
            all ? 1 : model.maxAdapters(),
            model.heads(),
            model.kvHeads(),
            model.headDim())
        .with(all ? Scores.PRODUCT : model.scores());
  }

  private static long most(List<LibraryProduct> products, ToLongFunction<LibraryProduct> floats) {
    return products.stream().mapToLong(floats).max().orElse(0);
  }

  /** Rows at most of steps that {@link StreamedPlan} serves. */
  private int fewRows() {
    return Math.min(maxRows, MAX_STREAMED_ROWS);
  }

  private long logitFloats() {
    return Math.max(
        StreamedPlan.logitFloats(kernels, model, tuning, fewRows()),
        (long) maxRows * model.vocab());
  }

  private static void check(DecodeModel model, int maxRows) {
    if (maxRows < 1 || maxRows > MAX_ROWS) {
      throw new UserException("a decode step takes 1 to %d sequences, not %d", MAX_ROWS, maxRows);
    }
    if (model.headDim() % 2 != 0 || model.headDim() > 256 || model.heads() % model.kvHeads() != 0) {
      throw new UserException(
          "the CUDA decode step does not know %d heads over %d of size %d"
              .formatted(model.heads(), model.kvHeads(), model.headDim()));
    }
    if (model.scores() == Scores.ALL && model.maxAdapters() > Kernels.MAX_ADAPTERS) {
      throw new UserException(
          "the fused CUDA path takes up to %d adapters, not %d"
              .formatted(Kernels.MAX_ADAPTERS, model.maxAdapters()));
    }
    for (var layer : model.layers()) {
      layer.linears().forEach(l -> l.adapters().ifPresent(it -> it.check(model.topK())));
    }
  }

  /** The number of rows that a step of {@code rows} is run with. */
  private static int bucket(int rows) {
    return Arrays.stream(BUCKETS).filter(each -> each >= rows).findFirst().orElseThrow();
  }

  /** The number of rows that the steps to come are run with. */
  private int stepRows() {
    return bucket(Math.max(fewestRows, active));
  }

  /** The numbers of rows of steps of up to {@code maxRows}. */
  static IntStream buckets(int maxRows) {
    return Arrays.stream(BUCKETS).filter(each -> each <= maxRows);
  }

  /** Sequences that it takes at once. */
  public int maxRows() {
    return maxRows;
  }

  /** Blocks of a sequence that it takes. */
  public int maxBlocks() {
    return memory.maxBlocks;
  }

  /** Turns graphs off or on; without them the same kernels are launched one by one. */
  public void useGraphs(boolean use) {
    graphs.enable(use);
  }

  /** Whether the steps to come fetch the routing with the tokens. */
  public void fetchRouting(boolean fetch) {
    fetchRouting = fetch;
  }

  /**
   * Which adapters a gate chose in the last step, which has fetched them ({@link #fetchRouting}).
   *
   * @param module the number of a {@link org.meteora.nn.Projection} that has adapters
   * @param indices {@code (rows, k)}, best first; written
   * @param weights their weights; written
   */
  public void routing(int layer, int module, int[] indices, float[] weights) {
    memory.routing(layer, module, stepRows(), indices, weights);
  }

  /**
   * Plans steps of up to so many rows beside what the caller does: each takes a young process tens
   * of milliseconds, while the device would wait.
   */
  public void planAhead(int rows) {
    endPlanning();
    var steps = buckets(bucket(Math.max(fewestRows, rows))).filter(each -> each >= fewestRows);
    var largestFirst = steps.boxed().sorted(Comparator.reverseOrder()).toList();
    plansAhead = true;
    planning =
        CompletableFuture.runAsync(
                () -> {
                  cuda.makeCurrent();
                  largestFirst.stream()
                      .takeWhile(each -> plansAhead)
                      .forEach(each -> plans.computeIfAbsent(each, this::plan).works());
                })
            .exceptionally(e -> null); // whoever takes such a step gets the error
  }

  private void endPlanning() {
    plansAhead = false;
    planning.join();
  }

  /** Goes on with another pool; graphs are captured anew. {@link #rows} must follow. */
  public void cache(KvMemory other) {
    endPlanning();
    cuda.makeCurrent();
    stream.synchronize();
    graphs.close();
    plans.clear();
    cache = other;
    active = 0;
  }

  /** Sets the routing temperature T. */
  public void temperature(double value) {
    memory.temperature(value);
  }

  /**
   * Names the sequences of the steps to come.
   *
   * @param blocks each row's blocks of the pool, in order
   * @param length each row's tokens in them; the next goes behind
   */
  public void rows(int[][] blocks, int[] length) {
    if (blocks.length < 1 || blocks.length > maxRows || length.length != blocks.length) {
      throw new IllegalArgumentException(blocks.length + " rows, " + maxRows + " at most");
    }
    check(blocks);
    for (var i = 0; i < length.length; i++) {
      if (length[i] < 0 || length[i] > roomOfRow[i]) {
        throw new IllegalArgumentException(
            "row %d: %d tokens in %d blocks".formatted(i, length[i], blocks[i].length));
      }
    }
    cuda.makeCurrent();
    memory.rows(blocks, length);
    active = blocks.length;
    lengthOfRow = length.clone();
  }

  /**
   * Gives the rows that are there blocks behind those that they have.
   *
   * @param blocks as in {@link #rows}; the same array means no more
   */
  public void blocks(int[][] blocks) {
    if (blocks.length != active) {
      throw new IllegalArgumentException(blocks.length + " tables for " + active + " rows");
    }
    check(blocks);
    cuda.makeCurrent();
    memory.tables(blocks);
  }

  private void check(int[][] blocks) {
    for (var each : blocks) {
      if (each.length > memory.maxBlocks) {
        throw new IllegalArgumentException(
            each.length + " blocks, " + memory.maxBlocks + " at most");
      }
      for (var block : each) {
        Objects.checkIndex(block, cache.blocks());
      }
    }
    roomOfRow = Arrays.stream(blocks).mapToInt(each -> each.length * KvBlock.TOKENS).toArray();
  }

  /**
   * How the next tokens are chosen, the largest logit at first. Parameters of single rows hold
   * until they are set anew.
   */
  public DeviceSampler sampler() {
    return memory.sampler;
  }

  /**
   * What all linears of the steps to come choose, for a model where that is given ({@link
   * DecodeModel#isGiven}); stays until it is set anew.
   *
   * @param indices {@code (rows, k)}
   * @param weights as {@code indices}
   */
  public void choice(int[] indices, float[] weights) {
    if (!model.isGiven()
        || indices.length != active * model.topK()
        || weights.length != indices.length) {
      throw new IllegalArgumentException(
          "%d adapters, %d weights for %d rows".formatted(indices.length, weights.length, active));
    }
    var adapters = model.maxAdapters(); // looks at every linear
    for (var index : indices) {
      Objects.checkIndex(index, adapters);
    }
    memory.choice(indices, weights, active);
  }

  /**
   * One step.
   *
   * @param token the rows' newest tokens
   * @return the rows' next tokens, as {@link #sampler} chooses, {@link DeviceSampler#NOT_FINITE}
   *     where logits are not finite; the logits stay at {@link #logits} until the next step
   */
  public int[] step(int[] token) {
    if (token.length != active) {
      throw new IllegalArgumentException(token.length + " tokens for " + active + " rows");
    }
    cuda.makeCurrent();
    memory.upload(token);
    enqueue();
    return nextTokens();
  }

  /** Queues one step; {@link #take} waits for it, and {@link #queueNext} may go on before that. */
  public void queue(int[] token) {
    if (token.length != active || !queued.isEmpty()) {
      throw new IllegalArgumentException(
          "%d tokens for %d rows, %d steps queued".formatted(token.length, active, queued.size()));
    }
    cuda.makeCurrent();
    memory.upload(token);
    queueStep();
  }

  /** As {@link #sampler}, of the step that {@link #queueNext} queues. */
  public DeviceSampler samplerOfNext() {
    return memory.exchanges.get(exchange).sampler;
  }

  /**
   * Queues one step on the tokens of the one that is queued, of which there is one; its parameters
   * are those of {@link #samplerOfNext}.
   */
  public void queueNext() {
    if (queued.size() != 1) {
      throw new IllegalStateException(queued.size() + " steps queued");
    }
    memory.exchanges.get(exchange).upload();
    queueStep();
  }

  private void queueStep() {
    enqueue();
    memory.exchanges.get(exchange).fetch(active);
    queued.add(active);
    exchange ^= 1;
  }

  /** Waits for the first step that is queued, and returns its tokens as {@link #step} does. */
  public int[] take() {
    var rows = queued.remove();
    return memory.exchanges.get(exchange ^ (queued.isEmpty() ? 1 : 0)).tokens(rows);
  }

  /**
   * Queues one step on the tokens the step before left on the device; {@link #nextTokens} waits for
   * it.
   */
  public void enqueue() {
    takeRoom();
    graphs.launch(stepRows(), launches());
  }

  /** Counts a token more of each row, if all have room for it. */
  private void takeRoom() {
    for (var i = 0; i < active; i++) {
      if (lengthOfRow[i] >= roomOfRow[i]) {
        throw new IllegalStateException("row " + i + " has filled its blocks");
      }
    }
    for (var i = 0; i < active; i++) {
      lengthOfRow[i]++;
    }
  }

  /**
   * Queues the end of a step whose layers have been run elsewhere: the head, and the choice of the
   * next tokens; {@link #nextTokens} waits for it.
   *
   * @param hidden (rows, hidden) in the model's dtype, what the last layer gave, before the norm;
   *     complete, and not changed until {@link #nextTokens} has returned
   */
  public void choose(long hidden) {
    takeRoom();
    memory.upload(IntStream.range(0, active).toArray());
    plan().finalNorm(hidden).on(stream);
    plan().behindLayers.forEach(work -> work.on(stream));
  }

  /** Waits for the last step and returns its tokens. */
  public int[] nextTokens() {
    return memory.download(active, stepRows(), fetchRouting);
  }

  /**
   * Address of the last step's logits, float32 (rows, vocab), complete once {@link #nextTokens} has
   * returned.
   */
  public long logits() {
    return memory.logits;
  }

  /** The stream the steps run on. */
  public Stream stream() {
    return stream;
  }

  /** What a step queues, in order. */
  public List<Work> launches() {
    return plan().works();
  }

  private StepPlan plan() {
    return plans.computeIfAbsent(stepRows(), this::plan);
  }

  /**
   * Where 17 rows part from 16: up to {@link #MAX_STREAMED_ROWS} the products are our own, which
   * read each weight once for all rows; more rows, rounded up to one of {@link #BUCKETS}, are
   * {@link LibraryPlan}'s. {@link StepGraphs} captures the steps of both.
   */
  private StepPlan plan(int rows) {
    return rows > MAX_STREAMED_ROWS
        ? new LibraryPlan(kernels, model, groups, cache, memory, library, rows)
        : new StreamedPlan(kernels, model, cache, memory, tuning, rows);
  }

  @Override
  public void close() {
    endPlanning();
    cuda.makeCurrent();
    stream.synchronize();
    graphs.close();
    memory.close();
    if (library != null) {
      library.close();
    }
    stream.close();
  }
}
