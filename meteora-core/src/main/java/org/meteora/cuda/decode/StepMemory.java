package org.meteora.cuda.decode;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.IntStream;
import org.meteora.cuda.decode.DecodeModel.Linear;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.HostMemory;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.DecodeAttentionKernel;
import org.meteora.cuda.kernel.DecodeLayerKernels;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.nn.Projection;
import org.meteora.nn.Scores;

/**
 * The device memory of decode steps of up to {@code maxRows} rows, beside the model and the KV
 * cache, and what of it the host writes and reads.
 *
 * <p>What goes to the device before a step and comes back after it is one piece: the parameters of
 * sampling; the tokens, in and out; the choice of adapters where it is given, int32 indices and
 * float32 weights {@code (maxRows, k)}, or float32 weights {@code (maxRows, N)} where all act; the
 * routing, for each layer's linears in turn int32 indices {@code (rows, k)}, then float32 weights
 * {@code (rows, k)}, or for each layer float32 weights {@code (rows, N)} where all act.
 *
 * <p>Long, because each array's shape, dtype and meaning stand beside it.
 */
final class StepMemory implements AutoCloseable {
  /** Gated linears of a layer. */
  static final int LINEARS = Projection.values().length;

  private final Cuda cuda;
  private final Stream stream;
  final int maxRows;
  private final int layers;
  private final int topK;
  private final int choiceAt;
  private final int routingAt;
  private final List<DeviceMemory> owned = new ArrayList<>();
  private final int mixed;
  private final boolean weighed;
  private final Map<Linear, long[]> adapterArrays = new HashMap<>();
  private final Arena host = Arena.ofShared();
  final int maxBlocks;
  private final MemorySegment tablesOnHost;
  private int[][] present = {};
  private final MemorySegment lengthsOnHost;
  private final MemorySegment temperatureOnHost = host.allocate(4, 16);
  private final List<HostMemory> locked = new ArrayList<>();
  private final MemorySegment onHost;
  private final long exchanged;

  /** Counters of products' gate tiles and of choices, zero between steps. */
  final long gateTilesDone;

  /** The parameters of sampling, written before a step. */
  final DeviceSampler sampler;

  /**
   * What a step that is queued behind another one has on the host: its parameters of sampling, and
   * a place for its tokens.
   */
  final class Exchange {
    final DeviceSampler sampler;
    private final MemorySegment parameters = locked(DeviceSampler.BYTES);
    private final MemorySegment itsTokens = locked(4L * maxRows);
    private final Event fetched = new Event();

    private Exchange() {
      sampler = new DeviceSampler(parameters);
    }

    /** Queues the copy of the parameters; the tokens are those that the step before left. */
    void upload() {
      cuda.toDevice(sampling, parameters, DeviceSampler.BYTES, stream);
    }

    /** Queues the copy of the first tokens of the step that was queued last. */
    void fetch(int count) {
      cuda.toHost(itsTokens, tokens, 4L * count, stream);
      fetched.record(stream);
    }

    /** Waits for the tokens. */
    int[] tokens(int count) {
      fetched.await();
      return itsTokens.asSlice(0, 4L * count).toArray(JAVA_INT);
    }
  }

  /** Two steps are queued at most. */
  final List<Exchange> exchanges = new ArrayList<>();

  /** Where they are on the device. */
  final long sampling;

  /** int32 (rows). */
  final long tokens;

  /** int32 (rows, k), what every linear chooses where that is given; or 0. */
  final long choice;

  /** float32, as {@link #choice}. */
  final long choiceWeights;

  /** int32 (blocks of a sequence, maxRows), each row's blocks of the pool in a column. */
  final long tables;

  /** int32 (rows), tokens before the newest; negative: no sequence. */
  final long lengths;

  /** float32, 1 / T. */
  final long inverseTemperature;

  /** float32 (rows, hidden). */
  final long residual;

  /** (rows, hidden), an RMSNorm's input times its weight; {@code sumsq} are its sums of squares. */
  final long normed;

  final long sumsq;

  /** float32 (rows, heads, headDim). */
  final long query;

  /** (rows, heads, headDim). */
  final long attended;

  /** (rows, intermediate). */
  final long activated;

  /** Scratch of attention. */
  final long partial;

  final long counters;

  /** Scratch of sampling. */
  final long best;

  final long bestAt;

  /** What products leave, in turn, for the kernels behind them; zero before each. */
  final long yA;

  final long yB;

  /** Scratch of products in slices. */
  final long sliced;

  /** float32 (slots, rows, vocab). */
  final long logits;

  /**
   * @param maxBlocks blocks of a sequence at most
   * @param yFloats floats of the largest product
   * @param logitFloats floats of the head's product
   * @param slicedFloats floats of scratch of products in slices
   * @throws org.meteora.UserException when there is too little device memory
   */
  StepMemory(
      Kernels kernels,
      DecodeModel model,
      int maxRows,
      int maxBlocks,
      long yFloats,
      long logitFloats,
      long slicedFloats,
      Stream stream) {
    this.cuda = kernels.cuda();
    this.stream = stream;
    this.maxRows = maxRows;
    this.maxBlocks = maxBlocks;
    this.layers = model.layers().size();
    this.topK = kernels.constants().topK();
    this.choiceAt = DeviceSampler.BYTES + 4 * maxRows;
    boolean all = model.scores() == Scores.ALL;
    boolean given = model.isGiven() && !all;
    this.mixed = all ? model.maxAdapters() : 0;
    this.weighed = all && !model.isGiven();
    this.routingAt =
        choiceAt + (given ? 2 * 4 * maxRows * topK : weighed ? 0 : 4 * maxRows * mixed);
    this.lengthsOnHost = host.allocate(4L * maxRows, 16);
    try {
      this.onHost = locked(routingAt + routingBytes(layers, maxRows));
      this.tablesOnHost = locked(4L * maxBlocks * maxRows);
      this.exchanged = zeros(onHost.byteSize());
      this.sampling = exchanged;
      this.tokens = exchanged + DeviceSampler.BYTES;
      this.choice = given ? exchanged + choiceAt : 0;
      this.choiceWeights = given ? choice + 4L * maxRows * topK : 0;
      this.sampler = new DeviceSampler(onHost.asSlice(0, DeviceSampler.BYTES));
      var size = model.dtype().bytes();
      var group = kernels.constants().group();
      var heads = (long) maxRows * model.heads() * model.headDim();
      this.tables = zeros(4L * maxBlocks * maxRows);
      this.lengths = zeros(4L * maxRows);
      this.inverseTemperature = zeros(4);
      this.residual = zeros(4L * maxRows * model.hidden());
      this.normed = zeros((long) size * maxRows * model.hidden());
      // the embedding's are more than the others
      this.sumsq = zeros(4L * maxRows * DecodeLayerKernels.partialsOfEmbedding(model.hidden()));
      this.query = zeros(4 * heads);
      this.attended = zeros(size * heads);
      this.activated = zeros((long) size * maxRows * model.intermediate());
      this.partial =
          zeros(
              4
                  * DecodeEngine.buckets(maxRows)
                      .mapToLong(
                          rows -> DecodeAttentionKernel.partialFloats(kernels, rows, model.heads()))
                      .max()
                      .orElseThrow());
      this.counters = zeros(4L * maxRows * model.heads() / group);
      this.best = zeros(4L * maxRows * DeviceSampler.BLOCKS);
      this.bestAt = zeros(4L * maxRows * DeviceSampler.BLOCKS);
      uploadAdapters(model);
      this.yA = zeros(4 * yFloats);
      this.yB = zeros(4 * yFloats);
      this.logits = zeros(4 * logitFloats);
      this.sliced = zeros(4 * slicedFloats);
      this.gateTilesDone = zeros(4L * gateCounters());
      exchanges.add(new Exchange());
      exchanges.add(new Exchange());
      temperature(1);
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  private long zeros(long bytes) {
    return owned(cuda.allocateZeroed(bytes, stream));
  }

  /** Zeros on the host that copies need not wait for. */
  private MemorySegment locked(long bytes) {
    locked.add(new HostMemory(cuda, bytes));
    return locked.getLast().memory().fill((byte) 0);
  }

  /** All linears' arrays beside each other, which are many and small: a copy each takes longer. */
  private void uploadAdapters(DecodeModel model) {
    var ints = new ArrayList<int[]>();
    var floats = new ArrayList<float[]>();
    for (var layer : model.layers()) {
      for (var linear : layer.linears()) {
        linear
            .adapters()
            .ifPresent(
                adapters -> {
                  ints.add(adapters.offsets());
                  ints.add(mixed == 0 ? new int[0] : adaptersOfRanks(adapters));
                  floats.add(adapters.scales());
                });
      }
    }
    var at = owned(cuda.upload(ints.stream().flatMapToInt(Arrays::stream).toArray(), stream));
    var all = new float[floats.stream().mapToInt(each -> each.length).sum()];
    var end = 0;
    for (var each : floats) {
      System.arraycopy(each, 0, all, end, each.length);
      end += each.length;
    }
    var scalesAt = owned(cuda.upload(all, stream));
    var arrays = ints.iterator();
    var scales = floats.iterator();
    for (var layer : model.layers()) {
      for (var linear : layer.linears()) {
        if (linear.adapters().isPresent()) {
          var behindOffsets = at + 4L * arrays.next().length;
          adapterArrays.put(linear, new long[] {at, scalesAt, behindOffsets});
          at = behindOffsets + 4L * arrays.next().length;
          scalesAt += 4L * scales.next().length;
        }
      }
    }
  }

  private static int[] adaptersOfRanks(AdapterMemory adapters) {
    var ofRanks = new int[adapters.sumOfRanks()];
    for (var i = 0; i < adapters.count(); i++) {
      Arrays.fill(ofRanks, adapters.offsets()[i], adapters.offsets()[i + 1], i);
    }
    return ofRanks;
  }

  private long owned(DeviceMemory memory) {
    owned.add(memory);
    return memory.address();
  }

  /** int32 (N + 1), where the adapters' rows begin in A and Bᵀ. */
  long offsets(Linear linear) {
    return adapterArrays.get(linear)[0];
  }

  /** float32 (N). */
  long scales(Linear linear) {
    return adapterArrays.get(linear)[1];
  }

  /** int32 (Σr), the adapter of each rank; where all act. */
  long adapterOfRank(Linear linear) {
    return adapterArrays.get(linear)[2];
  }

  /** float32 (rows, N), where all act: how much each does in a layer of a step of {@code rows}. */
  long mixture(int layer, int rows) {
    return exchanged + (weighed ? routingAt + mixtureOffset(layer, rows) : choiceAt);
  }

  private long mixtureOffset(int layer, int rows) {
    return 4L * layer * rows * mixed;
  }

  int multiprocessors() {
    return cuda.multiprocessors();
  }

  /** How many there are, and as many of choices behind them. */
  int gateCounters() {
    return 2 * LINEARS * layers;
  }

  /** The counter of a product's choices that are there before it ends. */
  long choicesDone(InputGroup group) {
    return gateTilesDone(group) + 4L * LINEARS * layers;
  }

  /** The counter of a product: of how many of its gates' tiles y has the logits. */
  long gateTilesDone(InputGroup group) {
    return gateTilesDone + 4L * (group.layer() * LINEARS + group.first());
  }

  /** Bytes of one linear's indices, and of its weights. */
  long routingPart(int rows) {
    return 4L * rows * topK;
  }

  private long routingBytes(int layers, int rows) {
    return mixed == 0
        ? 2 * LINEARS * layers * routingPart(rows)
        : weighed ? mixtureOffset(layers, rows) : 0;
  }

  private long routingOffset(int layer, int linear, int rows) {
    return routingAt + routingBytes(layer, rows) + 2 * linear * routingPart(rows);
  }

  /** Where a linear's indices go in a step of {@code rows}, its weights behind them. */
  long routing(int layer, int linear, int rows) {
    return exchanged + routingOffset(layer, linear, rows);
  }

  /** Reads a linear's routing in a step of {@code rows} that {@link #download} has fetched. */
  void routing(int layer, int linear, int rows, int[] indices, float[] weights) {
    if (weighed) {
      heaviestFirst(layer, rows, indices, weights);
      return;
    }
    var at = routingOffset(layer, linear, rows);
    MemorySegment.copy(onHost, JAVA_INT, at, indices, 0, indices.length);
    MemorySegment.copy(onHost, JAVA_FLOAT, at + routingPart(rows), weights, 0, weights.length);
  }

  private void heaviestFirst(int layer, int rows, int[] indices, float[] weights) {
    var all = new float[mixed];
    for (var row = 0; row < weights.length / mixed; row++) {
      var at = routingAt + mixtureOffset(layer, rows) + 4L * row * mixed;
      MemorySegment.copy(onHost, JAVA_FLOAT, at, all, 0, mixed);
      var order =
          IntStream.range(0, mixed)
              .boxed()
              .sorted((i, j) -> Float.compare(all[j], all[i]))
              .mapToInt(Integer::intValue)
              .toArray();
      for (var i = 0; i < mixed; i++) {
        indices[row * mixed + i] = order[i];
        weights[row * mixed + i] = all[order[i]];
      }
    }
  }

  /** Sets the routing temperature T; waits for the copy. */
  void temperature(double value) {
    stream.synchronize();
    temperatureOnHost.set(JAVA_FLOAT, 0, (float) (1 / value));
    cuda.toDevice(inverseTemperature, temperatureOnHost, 4, stream);
    stream.synchronize();
  }

  /** Names the rows' sequences, none in rows beyond; waits for the copy. */
  void rows(int[][] blocks, int[] length) {
    stream.synchronize();
    present = new int[maxRows][];
    tables(blocks);
    for (var i = 0; i < maxRows; i++) {
      lengthsOnHost.setAtIndex(JAVA_INT, i, i < length.length ? length[i] : -1);
    }
    cuda.toDevice(lengths, lengthsOnHost, 4L * maxRows, stream);
    stream.synchronize();
  }

  /** Queues the copy of the rows' blocks, where they are not the same arrays as before. */
  void tables(int[][] blocks) {
    var depth = 0;
    var changed = false;
    for (var row = 0; row < blocks.length; row++) {
      var its = blocks[row];
      depth = Math.max(depth, its.length);
      if (its != present[row]) {
        present[row] = its;
        changed = true;
        for (var i = 0; i < its.length; i++) {
          tablesOnHost.setAtIndex(JAVA_INT, (long) i * maxRows + row, its[i]);
        }
      }
    }
    if (changed) {
      cuda.toDevice(tables, tablesOnHost, 4L * depth * maxRows, stream);
    }
  }

  /** Sets what the next {@link #upload} gives the first rows to choose, {@code (rows, k)}. */
  void choice(int[] indices, float[] weights, int rows) {
    if (mixed > 0) {
      var all = new float[rows * mixed];
      for (var i = 0; i < indices.length; i++) {
        all[i / (indices.length / rows) * mixed + indices[i]] += weights[i];
      }
      MemorySegment.copy(all, 0, onHost, JAVA_FLOAT, choiceAt, all.length);
      return;
    }
    MemorySegment.copy(indices, 0, onHost, JAVA_INT, choiceAt, indices.length);
    var weightsAt = choiceAt + 4L * maxRows * topK;
    MemorySegment.copy(weights, 0, onHost, JAVA_FLOAT, weightsAt, weights.length);
  }

  /** Queues the copy of the parameters of sampling, of a given choice and of the newest tokens. */
  void upload(int[] token) {
    for (var i = 0; i < maxRows; i++) {
      onHost.set(JAVA_INT, DeviceSampler.BYTES + 4L * i, i < token.length ? token[i] : 0);
    }
    cuda.toDevice(exchanged, onHost, routingAt, stream);
  }

  /**
   * Waits for the step of {@code rows} and returns the tokens of the first {@code count}.
   *
   * @param withRouting fetches the routing too
   */
  int[] download(int count, int rows, boolean withRouting) {
    var begin = DeviceSampler.BYTES;
    var end = withRouting ? routingAt + routingBytes(layers, rows) : begin + 4L * count;
    cuda.toHost(onHost.asSlice(begin), tokens, end - begin, stream);
    stream.synchronize();
    var result = new int[count];
    MemorySegment.copy(onHost, JAVA_INT, begin, result, 0, count);
    return result;
  }

  @Override
  public void close() {
    exchanges.forEach(each -> each.fetched.close());
    owned.forEach(DeviceMemory::close);
    locked.forEach(HostMemory::close);
    host.close();
  }
}
