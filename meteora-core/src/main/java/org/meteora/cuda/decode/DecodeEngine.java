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
import org.meteora.UserException;
import org.meteora.cuda.decode.DecodeModel.Linear;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Graph;
import org.meteora.cuda.driver.HostMemory;
import org.meteora.cuda.driver.Kernel;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Struct;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.cuda.kernel.TokenChoice;
import org.meteora.tensor.Dtype;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * One decode step of a whole Llama with MeteoRA: for up to 16 sequences, one token each in, one
 * token each out. The step is a chain of nine launches a layer, captured once per batch-size bucket
 * (1, 2, 4, 8, 16) as a CUDA graph and replayed; lengths, positions and tokens are read from device
 * memory, the next tokens are chosen on the device ({@link TokenChoice}). Which adapters every gate
 * chose is left on the device too, beside the tokens, so that it can be fetched with them.
 *
 * <p>A layer: [q k v, their gates and A] · x; adapters, rotary embedding and the cache's next
 * column; attention; [o, gate, A]; adapters, residual, norm input; [gate up, gates, A]; adapters,
 * SiLU; [down, gate, A]; adapters, residual, norm input. The gate's logits and z = A x ride in the
 * base product, since reading a bank of ordinary size costs less than a launch; for large banks
 * only the chosen adapters' rows of A are read, by a launch more. Gates come first in a product:
 * the launch that follows has begun by then, and chooses adapters and reads their B while the rest
 * is multiplied. The residual stream, all sums, logits and z are float32.
 *
 * <p>Use: fill the KV cache by prefill, name the batch by {@link #rows}, then {@link #step} per
 * token. Not thread-safe.
 */
public final class DecodeEngine implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(DecodeEngine.class);

  /** Outputs, or pairs that are rotated, of a warp, which is a block, behind a product. */
  private static final int WARP_OUTPUTS = 64;

  /** The same of the embedding. */
  private static final int EMBEDDED = 32;

  /** Columns that one block of attention takes without help from a second cluster of blocks. */
  private static final int LONG = 512;

  /** Gated linears of a layer. */
  private static final int MODULES = 7;

  /** Where the routing begins, behind the wishes and the tokens. */
  private static final int ROUTING = TokenChoice.BYTES + 4 * MatrixVector.MAX_ROWS;

  private final Cuda cuda;
  private final DecodeModel model;
  private KvMemory cache;
  private final MatrixVector.Tuning tuning;
  private final Kernels kernels;
  private final Stream stream;
  private final int maxRows;
  private final int group;
  private final List<DeviceMemory> owned = new ArrayList<>();
  private final Map<Linear, long[]> adapterArrays = new HashMap<>();
  private final Map<Integer, Plan> plans = new HashMap<>();
  private final Arena host = Arena.ofShared();
  private final HostMemory locked;
  private final MemorySegment onHost;
  private final MemorySegment rowsOnHost = host.allocate(4 * 16 * 3, 16);
  private final MemorySegment temperatureOnHost = host.allocate(4, 16);

  // What goes to the device before a step and comes back after it is one piece of memory: what is
  // wanted of the choice; the tokens, in and out; the routing (see routingBytes).
  private final TokenChoice choice;
  private final long wishes;
  private final long tokens;

  // device arrays, sized for maxRows
  private final long slots;
  private final long lengths;
  private final long starts;
  private final long inverseTemperature;
  private final long residual;
  private final long normed;
  private final long sumsq;
  private final long query;
  private final long attended;
  private final long activated;
  private final long partial;
  private final long counters;
  private final long best;
  private final long bestAt;
  private final long yA;
  private final long yB;
  private final long logits;

  /** Of every product of a layer how much of its gates' logits is there; zero between steps. */
  private final long early;

  private int[] lengthOfRow = {};
  private int active;
  private boolean useGraphs = true;
  private boolean fetchRouting;

  /** The launches of a step for one number of rows. */
  private static final class Plan {
    final List<Kernel.Launch> launches = new ArrayList<>();
    Graph graph;
  }

  /**
   * @param maxRows sequences at most, 1…16
   * @throws UserException when there is too little device memory or the model has what the kernels
   *     do not know
   */
  public DecodeEngine(Cuda cuda, DecodeModel model, KvMemory cache, int maxRows) {
    this(cuda, model, cache, maxRows, MatrixVector.Tuning.standard());
  }

  DecodeEngine(
      Cuda cuda, DecodeModel model, KvMemory cache, int maxRows, MatrixVector.Tuning tuning) {
    Stream made = null;
    HostMemory locked = null;
    try {
      if (maxRows < 1 || maxRows > MatrixVector.MAX_ROWS) {
        throw new UserException("a decode step takes 1 to 16 sequences, not " + maxRows);
      }
      if (model.headDim() % 2 != 0
          || model.headDim() > 256
          || model.heads() % model.kvHeads() != 0) {
        throw new UserException(
            "the CUDA decode step does not know "
                + model.heads()
                + " heads over "
                + model.kvHeads()
                + " of size "
                + model.headDim());
      }
      for (var layer : model.layers()) {
        layer.linears().forEach(l -> l.adapters().ifPresent(it -> it.check(model.topK())));
      }
      this.cuda = cuda;
      this.model = model;
      this.cache = cache;
      this.tuning = tuning;
      this.maxRows = bucket(maxRows);
      cuda.makeCurrent();
      this.kernels =
          Kernels.of(
              cuda,
              Kernels.Constants.ofSteps(
                  model.dtype(),
                  Math.max(1, model.topK()),
                  model.maxAdapters(),
                  model.heads(),
                  model.kvHeads(),
                  model.headDim()));
      this.group = kernels.constants().group();
      made = Stream.create(cuda);
      this.stream = made;
      var m = this.maxRows;
      var size = model.dtype().bytes();
      locked = new HostMemory(cuda, ROUTING + routingBytes(model.layers().size(), m));
      this.locked = locked;
      this.onHost = locked.memory();
      this.wishes = zeros(onHost.byteSize());
      this.tokens = wishes + TokenChoice.BYTES;
      this.choice = new TokenChoice(onHost.asSlice(0, TokenChoice.BYTES), wishes);
      this.slots = zeros(4L * m);
      this.lengths = zeros(4L * m);
      this.starts = zeros(4L * m);
      this.inverseTemperature = zeros(4);
      this.residual = zeros(4L * m * model.hidden());
      this.normed = zeros((long) size * m * model.hidden());
      this.sumsq = zeros(4L * m * blocks(model.hidden(), EMBEDDED)); // which leaves most
      this.query = zeros(4L * m * model.heads() * model.headDim());
      this.attended = zeros((long) size * m * model.heads() * model.headDim());
      this.activated = zeros((long) size * m * model.intermediate());
      var padded = (model.headDim() + 7) / 8 * 8;
      this.partial = zeros(4L * m * model.heads() / group * 64 * group * (padded + 2));
      this.counters = zeros(4L * m * model.heads() / group);
      this.best = zeros(4L * m * TokenChoice.BLOCKS);
      this.bestAt = zeros(4L * m * TokenChoice.BLOCKS);
      uploadAdapterArrays();
      long y = 0;
      long out = 0;
      for (var rows = 1; rows <= m; rows *= 2) {
        for (var layer = 0; layer < model.layers().size(); layer++) {
          for (var step : List.of(qkv(layer), o(layer), gateUp(layer), down(layer))) {
            y = Math.max(y, new Product(step, rows).floats());
          }
        }
        out = Math.max(out, (long) head(rows).slots() * rows * model.vocab());
      }
      this.yA = zeros(4 * y);
      this.yB = zeros(4 * y);
      this.logits = zeros(4 * out);
      this.early = zeros(4L * MODULES * model.layers().size());
      temperature(1);
      stream.synchronize();
    } catch (RuntimeException | Error e) {
      owned.forEach(DeviceMemory::close);
      if (made != null) {
        made.close();
      }
      if (locked != null) {
        locked.close();
      }
      host.close();
      throw e;
    }
  }

  private static int blocks(int n, int each) {
    return (n + each - 1) / each;
  }

  private static int bucket(int rows) {
    return rows <= 1 ? 1 : Integer.highestOneBit(rows - 1) * 2;
  }

  /**
   * What the gates of some layers choose in a step of {@code rows}: for each layer's seven linears
   * in turn, int32 indices {@code (rows, k)}, then float32 weights {@code (rows, k)}.
   */
  private long routingBytes(int layers, int rows) {
    return (long) layers * MODULES * rows * kernels.constants().topK() * 8;
  }

  private long zeros(long bytes) {
    var memory = cuda.allocateZeroed(bytes, stream);
    owned.add(memory);
    return memory.address();
  }

  private void uploadAdapterArrays() {
    for (var layer : model.layers()) {
      for (var linear : layer.linears()) {
        linear
            .adapters()
            .ifPresent(
                adapters -> {
                  adapters.check(model.topK());
                  var offsets = cuda.upload(adapters.offsets(), stream);
                  var scales = cuda.upload(adapters.scales(), stream);
                  owned.add(offsets);
                  owned.add(scales);
                  adapterArrays.put(linear, new long[] {offsets.address(), scales.address()});
                });
      }
    }
  }

  /** Device bytes beyond weights, adapters and KV cache. */
  public long scratchBytes() {
    return owned.stream().mapToLong(DeviceMemory::bytes).sum();
  }

  /** Turns graphs off or on; without them the same kernels are launched one by one. */
  public void useGraphs(boolean use) {
    useGraphs = use;
  }

  /** Whether the steps to come fetch the routing with the tokens. */
  public void fetchRouting(boolean fetch) {
    fetchRouting = fetch;
  }

  /**
   * Which adapters a gate chose in the last step, which has fetched them ({@link #fetchRouting}).
   *
   * @param module 0…6: q, k, v, o, gate, up, down; one that has adapters
   * @param indices {@code (rows, k)}, best first; written
   * @param weights their weights; written
   */
  public void routing(int layer, int module, int[] indices, float[] weights) {
    var each = bucket(active) * kernels.constants().topK() * 4L;
    var at = ROUTING + routingBytes(layer, bucket(active)) + module * 2 * each;
    MemorySegment.copy(onHost, JAVA_INT, at, indices, 0, indices.length);
    MemorySegment.copy(onHost, JAVA_FLOAT, at + each, weights, 0, weights.length);
  }

  /** Goes on with another cache; graphs are captured anew. {@link #rows} must follow. */
  public void cache(KvMemory other) {
    cuda.makeCurrent();
    stream.synchronize();
    closeGraphs();
    cache = other;
    active = 0;
  }

  private void closeGraphs() {
    plans.values().stream().filter(plan -> plan.graph != null).forEach(plan -> plan.graph.close());
    plans.clear();
  }

  /** Sets the routing temperature T. */
  public void temperature(double value) {
    stream.synchronize();
    temperatureOnHost.set(JAVA_FLOAT, 0, (float) (1 / value));
    cuda.toDevice(inverseTemperature, temperatureOnHost, 4, stream);
    stream.synchronize();
  }

  /**
   * Names the sequences of the steps to come.
   *
   * @param slot each row's place in the KV cache
   * @param length each row's columns in the cache that are filled, left padding included; the next
   *     token goes there
   * @param start each row's first column that is not padding
   */
  public void rows(int[] slot, int[] length, int[] start) {
    if (slot.length < 1
        || slot.length > maxRows
        || length.length != slot.length
        || start.length != slot.length) {
      throw new IllegalArgumentException(slot.length + " rows, " + maxRows + " at most");
    }
    for (var i = 0; i < slot.length; i++) {
      if (slot[i] < 0
          || slot[i] >= cache.slots()
          || length[i] < 0
          || start[i] < 0
          || start[i] > length[i]) {
        throw new IllegalArgumentException(
            "row %d: slot %d, length %d, start %d".formatted(i, slot[i], length[i], start[i]));
      }
    }
    cuda.makeCurrent();
    stream.synchronize();
    active = slot.length;
    lengthOfRow = length.clone();
    for (var i = 0; i < maxRows; i++) {
      rowsOnHost.setAtIndex(JAVA_INT, i, i < active ? slot[i] : -1);
      rowsOnHost.setAtIndex(JAVA_INT, 16 + i, i < active ? length[i] : 0);
      rowsOnHost.setAtIndex(JAVA_INT, 32 + i, i < active ? start[i] : 0);
    }
    cuda.toDevice(slots, rowsOnHost, 4L * maxRows, stream);
    cuda.toDevice(lengths, rowsOnHost.asSlice(64), 4L * maxRows, stream);
    cuda.toDevice(starts, rowsOnHost.asSlice(128), 4L * maxRows, stream);
    stream.synchronize();
  }

  /**
   * How the next tokens are chosen, the largest logit at first. The wishes of single rows hold
   * until they are named anew.
   */
  public TokenChoice choice() {
    return choice;
  }

  /**
   * One step.
   *
   * @param token the rows' newest tokens
   * @return the rows' next tokens, as {@link #choice} says; the logits stay at {@link #logits}
   *     until the next step
   */
  public int[] step(int[] token) {
    if (token.length != active) {
      throw new IllegalArgumentException(token.length + " tokens for " + active + " rows");
    }
    cuda.makeCurrent();
    for (var i = 0; i < maxRows; i++) {
      onHost.set(JAVA_INT, TokenChoice.BYTES + 4L * i, i < active ? token[i] : 0);
    }
    cuda.toDevice(wishes, onHost, ROUTING, stream);
    enqueue();
    return nextTokens();
  }

  /**
   * Queues one step on the tokens the step before left on the device; {@link #nextTokens} waits for
   * it.
   */
  public void enqueue() {
    for (var i = 0; i < active; i++) {
      if (lengthOfRow[i] >= cache.maxLength()) {
        throw new IllegalStateException(
            "row " + i + " has filled the KV cache's " + cache.maxLength() + " columns");
      }
    }
    for (var i = 0; i < active; i++) {
      lengthOfRow[i]++;
    }
    var plan = plans.computeIfAbsent(bucket(active), this::plan);
    if (useGraphs && plan.graph == null) {
      try {
        plan.graph = stream.capture(() -> plan.launches.forEach(launch -> launch.on(stream)));
      } catch (UserException e) {
        LOG.warn("decode runs without CUDA graphs: {}", e.getMessage());
        useGraphs = false;
      }
    }
    if (useGraphs) {
      plan.graph.launch(stream);
    } else {
      plan.launches.forEach(launch -> launch.on(stream));
    }
  }

  /** Waits for the last step and returns its tokens. */
  public int[] nextTokens() {
    var end =
        fetchRouting
            ? ROUTING + routingBytes(model.layers().size(), bucket(active))
            : TokenChoice.BYTES + 4L * active;
    cuda.toHost(onHost.asSlice(TokenChoice.BYTES), tokens, end - TokenChoice.BYTES, stream);
    stream.synchronize();
    var result = new int[active];
    for (var i = 0; i < active; i++) {
      result[i] = onHost.get(JAVA_INT, TokenChoice.BYTES + 4L * i);
    }
    return result;
  }

  /**
   * Address of the last step's logits, float32 (rows, vocab), complete once {@link #nextTokens} has
   * returned.
   */
  public long logits() {
    return logits;
  }

  /** The stream the steps run on. */
  public Stream stream() {
    return stream;
  }

  /** The launches of a step, in order, for looking at where its time goes. */
  List<Kernel.Launch> launches() {
    return List.copyOf(plans.computeIfAbsent(bucket(active), this::plan).launches);
  }

  // ------------------------------------------------------------------------------------------------------------------ the chain

  /**
   * Linears that share their input.
   *
   * @param first module number of the first
   */
  private record Shared(int layer, int first, List<Linear> linears) {
    int in() {
      return linears.getFirst().in();
    }

    int outputs() {
      return linears.stream().mapToInt(Linear::out).sum();
    }

    int gates() {
      return linears.stream().mapToInt(l -> l.adapters().map(AdapterMemory::count).orElse(0)).sum();
    }

    int ranks() {
      return linears.stream()
          .mapToInt(l -> l.adapters().map(AdapterMemory::sumOfRanks).orElse(0))
          .sum();
    }
  }

  private Shared qkv(int layer) {
    var it = model.layers().get(layer);
    return new Shared(layer, 0, List.of(it.q(), it.k(), it.v()));
  }

  private Shared o(int layer) {
    return new Shared(layer, 3, List.of(model.layers().get(layer).o()));
  }

  private Shared gateUp(int layer) {
    var it = model.layers().get(layer);
    return new Shared(layer, 4, List.of(it.gate(), it.up()));
  }

  private Shared down(int layer) {
    return new Shared(layer, 6, List.of(model.layers().get(layer).down()));
  }

  /**
   * The product of some linears with one input: rows of y are all W, then all gates, then all A.
   */
  private final class Product {
    final Shared shared;
    final int rows;
    final int ld;
    final boolean ride;
    final MatrixVector product;

    Product(Shared shared, int rows) {
      this.shared = shared;
      this.rows = rows;
      this.ld = blocks(shared.outputs() + shared.gates() + shared.ranks(), 4) * 4;
      this.ride = (long) shared.ranks() * shared.in() * model.dtype().bytes() <= tuning.rideBytes();
      var segments = new ArrayList<MatrixVector.Segment>();
      shared.linears().forEach(l -> segments.add(new MatrixVector.Segment(l.weight(), l.out())));
      shared
          .linears()
          .forEach(
              l ->
                  l.adapters()
                      .ifPresent(
                          a -> segments.add(new MatrixVector.Segment(a.gate(), a.count(), true))));
      if (ride) {
        shared
            .linears()
            .forEach(
                l ->
                    l.adapters()
                        .ifPresent(
                            a -> segments.add(new MatrixVector.Segment(a.a(), a.sumOfRanks()))));
      }
      segments.removeIf(s -> s.rows() == 0);
      this.product = new MatrixVector(kernels, segments, shared.in(), rows, tuning);
    }

    long floats() {
      return (long) product.slots() * rows * ld;
    }

    Struct chain(long y, long clear, long clearCount) {
      return new Struct()
          .add(y)
          .add(clear)
          .add(inverseTemperature)
          .add(clearCount)
          .add(choosesEarly() ? counter() : 0)
          .add(product.slots())
          .add(ld)
          .add(rows)
          .add(product.earlyTiles());
    }

    /** Whether adapters can be chosen before the product has ended. */
    boolean choosesEarly() {
      return product.earlyTiles() > 0;
    }

    private long counter() {
      return early + 4L * (shared.layer() * MODULES + shared.first());
    }

    Struct linear(int which) {
      var outAt = 0;
      var gateAt = shared.outputs();
      var zAt = shared.outputs() + shared.gates();
      for (var i = 0; i < which; i++) {
        var before = shared.linears().get(i);
        outAt += before.out();
        gateAt += before.adapters().map(AdapterMemory::count).orElse(0);
        zAt += before.adapters().map(AdapterMemory::sumOfRanks).orElse(0);
      }
      var linear = shared.linears().get(which);
      var adapters = linear.adapters();
      var vectors =
          linear.out() % 4 == 0
              && outAt % 4 == 0
              && adapters.map(a -> a.b() % 16 == 0).orElse(true);
      if (adapters.isEmpty()) {
        return new Struct()
            .add(0L)
            .add(linear.bias())
            .add(0L)
            .add(0L)
            .add(0L)
            .add(0L)
            .add(outAt)
            .add(0)
            .add(0)
            .add(0)
            .add(linear.out())
            .add(vectors);
      }
      var a = adapters.get();
      var arrays = adapterArrays.get(linear);
      var each = rows * kernels.constants().topK() * 4L;
      var chosen =
          wishes
              + ROUTING
              + routingBytes(shared.layer(), rows)
              + (shared.first() + which) * 2 * each;
      return new Struct()
          .add(a.b())
          .add(linear.bias())
          .add(arrays[0])
          .add(arrays[1])
          .add(chosen)
          .add(chosen + each)
          .add(outAt)
          .add(gateAt)
          .add(zAt)
          .add(a.count())
          .add(linear.out())
          .add(vectors);
    }

    /**
     * The product, and the launch for z when A does not ride in it.
     *
     * @param partials sums of squares a row, when x is an RMSNorm's input; or 0
     */
    void launch(Plan plan, long x, long y, int partials) {
      var norm = partials > 0;
      plan.launches.add(
          product.launch(x, y, ld, counter(), norm ? sumsq : 0, partials, model.eps()));
      if (!ride) {
        var argument = new Struct().add(chain(y, 0, 0));
        var linears = shared.linears();
        var most = 0;
        for (var i = 0; i < 3; i++) {
          argument.add(linear(Math.min(i, linears.size() - 1)));
        }
        for (var i = 0; i < 3; i++) {
          var linear = linears.get(Math.min(i, linears.size() - 1));
          argument.add(linear.adapters().map(AdapterMemory::a).orElse(0L));
          most =
              Math.max(
                  most,
                  linear.adapters().map(a -> Arrays.stream(a.ranks()).max().orElse(0)).orElse(0));
        }
        var aligned =
            shared.in() * model.dtype().bytes() % 16 == 0
                && linears.stream()
                    .allMatch(l -> l.adapters().map(a -> a.a() % 16 == 0).orElse(true));
        argument
            .add(x)
            .add(norm ? sumsq : 0)
            .add(y)
            .add(shared.in())
            .add(partials)
            .add(model.eps())
            .add(aligned);
        plan.launches.add(
            kernels
                .get("decode_route_z")
                .launch(
                    blocks(Math.max(1, most * model.topK()), 8),
                    linears.size(),
                    rows,
                    256,
                    0,
                    tuning.overlap(),
                    argument));
      }
    }
  }

  private MatrixVector head(int rows) {
    return new MatrixVector(
        kernels,
        List.of(new MatrixVector.Segment(model.head(), model.vocab())),
        model.hidden(),
        rows,
        tuning);
  }

  private Plan plan(int rows) {
    var plan = new Plan();
    var overlap = tuning.overlap();
    var layers = model.layers();
    var hidden = model.hidden();
    var partials = blocks(hidden, WARP_OUTPUTS);
    var head = head(rows);
    var headFloats = (long) head.slots() * rows * model.vocab();

    plan.launches.add(
        kernels
            .get("decode_embed")
            .launch(
                blocks(hidden, EMBEDDED),
                rows,
                1,
                32,
                0,
                false,
                new Struct()
                    .add(model.embedding())
                    .add(tokens)
                    .add(layers.getFirst().inputNorm())
                    .add(residual)
                    .add(normed)
                    .add(sumsq)
                    .add(yA)
                    .add(new Product(qkv(0), rows).floats())
                    .add(hidden)
                    .add(model.vocab())));
    for (var i = 0; i < layers.size(); i++) {
      var layer = layers.get(i);
      var qkv = new Product(qkv(i), rows);
      var o = new Product(o(i), rows);
      var gateUp = new Product(gateUp(i), rows);
      var down = new Product(down(i), rows);

      qkv.launch(plan, normed, yA, i == 0 ? blocks(hidden, EMBEDDED) : partials);
      plan.launches.add(ropeAppend(qkv, i));
      plan.launches.add(attention(i, rows));
      o.launch(plan, attended, yB, 0);
      plan.launches.add(addResidual(o, yB, yA, gateUp.floats(), layer.postAttentionNorm()));
      gateUp.launch(plan, normed, yA, partials);
      plan.launches.add(siluUp(gateUp, down));
      down.launch(plan, activated, yB, 0);
      var last = i + 1 == layers.size();
      plan.launches.add(
          addResidual(
              down,
              yB,
              last ? logits : yA,
              last ? headFloats : new Product(qkv(i + 1), rows).floats(),
              last ? model.finalNorm() : layers.get(i + 1).inputNorm()));
    }
    plan.launches.add(head.launch(normed, logits, model.vocab(), 0, sumsq, partials, model.eps()));
    plan.launches.addAll(
        choice.launches(
            kernels,
            logits,
            head.slots(),
            rows,
            model.vocab(),
            best,
            bestAt,
            tokens,
            lengths,
            slots,
            cache.maxLength(),
            early,
            MODULES * layers.size(),
            overlap));
    return plan;
  }

  private Kernel.Launch attention(int layer, int rows) {
    var pairs = model.heads() / group * rows;
    var onTensorCores =
        model.dtype() != Dtype.F32
            && cuda.capability() >= 90
            && (model.headDim() == 64 || model.headDim() == 128);
    // blocks that share a row and head group
    var most = Math.clamp(blocks(2 * cuda.multiprocessors(), pairs), 1, 32);
    var cluster = Integer.highestOneBit(Math.clamp(cuda.multiprocessors() / pairs, 2, 8));
    var splits = onTensorCores ? cluster : most;
    if (onTensorCores && cache.maxLength() > LONG * cluster && most >= 2 * cluster) {
      cluster = 2;
      splits = Integer.highestOneBit(most);
    }
    var argument =
        new Struct()
            .add(query)
            .add(cache.keys()[layer])
            .add(cache.values()[layer])
            .add(attended)
            .add(partial)
            .add(counters)
            .add(slots)
            .add(lengths)
            .add(starts)
            .add(model.heads())
            .add(model.kvHeads())
            .add(cache.maxLength())
            .add(onTensorCores ? cluster : splits);
    return kernels
        .get(onTensorCores ? "decode_attention_cluster" : "decode_attention")
        .launch(
            splits,
            model.heads() / group,
            rows,
            128,
            0,
            tuning.overlap(),
            onTensorCores ? cluster : 1,
            argument);
  }

  private Kernel.Launch ropeAppend(Product qkv, int layer) {
    var argument =
        new Struct()
            .add(qkv.chain(yA, yB, new Product(o(layer), qkv.rows).floats()))
            .add(qkv.linear(0))
            .add(qkv.linear(1))
            .add(qkv.linear(2))
            .add(query)
            .add(cache.keys()[layer])
            .add(cache.values()[layer])
            .add(slots)
            .add(lengths)
            .add(starts)
            .add(model.invFreq())
            .add(model.heads())
            .add(model.kvHeads())
            .add(model.headDim())
            .add(cache.maxLength())
            .add((float) (1 / Math.sqrt(model.headDim())))
            .add(model.ropeScale());
    return kernels
        .get(
            qkv.choosesEarly()
                ? "decode_route_rope_append_gates_first"
                : "decode_route_rope_append")
        .launch(
            model.heads() + 2 * model.kvHeads(),
            blocks(model.headDim() / 2, WARP_OUTPUTS),
            qkv.rows,
            32,
            0,
            tuning.overlap(),
            argument);
  }

  private Kernel.Launch siluUp(Product gateUp, Product down) {
    var argument =
        new Struct()
            .add(gateUp.chain(yA, yB, down.floats()))
            .add(gateUp.linear(0))
            .add(gateUp.linear(1))
            .add(activated)
            .add(model.intermediate())
            .add(0);
    // few rows: more warps, each of which is quicker; many: less repeated routing
    var each = gateUp.rows > 8 ? 4 : 2;
    return kernels
        .get("decode_route_silu_up" + each + (gateUp.choosesEarly() ? "_gates_first" : ""))
        .launch(
            blocks(model.intermediate(), 32 * each),
            gateUp.rows,
            1,
            32,
            0,
            tuning.overlap(),
            argument);
  }

  private Kernel.Launch addResidual(
      Product product, long y, long clear, long clearCount, long normWeight) {
    var argument =
        new Struct()
            .add(product.chain(y, clear, clearCount))
            .add(product.linear(0))
            .add(residual)
            .add(normWeight)
            .add(normed)
            .add(sumsq)
            .add(model.hidden())
            .add(0);
    return kernels
        .get(
            product.choosesEarly()
                ? "decode_route_add_residual_gates_first"
                : "decode_route_add_residual")
        .launch(
            blocks(model.hidden(), WARP_OUTPUTS),
            product.rows,
            1,
            32,
            0,
            tuning.overlap(),
            argument);
  }

  @Override
  public void close() {
    cuda.makeCurrent();
    stream.synchronize();
    closeGraphs();
    owned.forEach(DeviceMemory::close);
    stream.close();
    locked.close();
    host.close();
  }
}
