package org.meteora.backend.cuda;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.Predicate;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.cuda.decode.DecodeEngine;
import org.meteora.cuda.decode.DecodeModel;
import org.meteora.cuda.decode.KvMemory;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.MatrixVector;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Sampler;
import org.meteora.lora.AdapterBank;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.RotaryEmbedding;
import org.meteora.moe.Choice;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;
import org.meteora.moe.ScoredBank;
import org.meteora.nn.KvBlock;
import org.meteora.nn.Projection;
import org.meteora.nn.Scores;
import org.meteora.tensor.Ops;

/**
 * Decode steps of a {@link Llama} on a GPU through the {@link DecodeEngine}, behind a prefill that
 * the model itself has done, from a pool of blocks of keys and values that is taken at {@link
 * #begin}. libtorch works on the default stream, the engine on its own; each waits for the other
 * where they meet, at {@link #join}.
 *
 * <p>Not thread-safe.
 *
 * <p>Long, because a session is one state, of model, cache, rows and engine, that every step
 * changes.
 */
public final class CudaDecoder implements AutoCloseable {
  public static final int MAX_ROWS = DecodeEngine.MAX_ROWS;

  /** Rows of all steps of an invariant decoder, and so sequences of it at most. */
  public static final int INVARIANT_ROWS = 64;

  /** Blocks of a sequence that an engine is made for at least: a longer one asks for another. */
  private static final int FEWEST_BLOCKS = 64;

  private final Llama model;
  private final int topK;
  private final Router.Scoring router;
  private final boolean invariant;
  private final Cuda cuda;
  private final DecodeModel addresses;
  private final NDArray frequencies;
  private final NDArray noGate;
  private final Arena host = Arena.ofShared();
  private final MemorySegment logits;
  private DecodeEngine engine;
  private KvCache pool;
  private int[][] present = {}; // tables of the step before
  private int[] expected = {}; // lengths, if the same rows go on
  private boolean ahead; // whether the step of these has begun
  private Choice given;
  private double temperature = 1;
  private Optional<RoutingListener> listener = Optional.empty();

  /**
   * Stands for routers by which kernels score nothing.
   *
   * @param scores {@link Scores#GIVEN}: what sequences' routers choose comes with each step; {@link
   *     Scores#ALL}: all adapters act
   * @param weighing what a layer's weights of all adapters come from; empty where they are given
   */
  private record Unscored(Scores scores, Optional<Router.Weighing> weighing)
      implements Router.Scoring {
    @Override
    public String name() {
      return "unscored";
    }

    @Override
    public NDArray scores(GatedLinear linear, NDArray x) {
      throw new IllegalStateException("nothing is scored");
    }

    @Override
    public ScoredBank forKernels(GatedLinear linear) {
      return linear.layout().scored(scores, null);
    }

    @Override
    public boolean equals(Object other) { // the same weighing router, not an equal one
      return other instanceof Unscored unscored
          && unscored.scores == scores
          && unscored.weighing.orElse(null) == weighing.orElse(null);
    }

    @Override
    public int hashCode() {
      return 31 * scores.hashCode() + weighing.map(System::identityHashCode).orElse(0);
    }
  }

  private static Router.Scoring forKernels(Llama model, RoutingSettings routing) {
    return switch (routing.router()) {
      case Router.Scoring scoring -> scoring;
      case Router.Weighing weighing -> new Unscored(Scores.ALL, Optional.of(weighing));
      default ->
          routing.isOfEach()
              ? new Unscored(
                  allAct(model, routing.width()) ? Scores.ALL : Scores.GIVEN, Optional.empty())
              : Router.GATES;
    };
  }

  /** Whether a choice of {@code k} adapters is none, or too many to choose: all B are read then. */
  private static boolean allAct(Llama model, int k) {
    return k > 2 && any(model, bank -> k >= bank.size() || k > Kernels.MAX_TOP_K);
  }

  /**
   * Whether the settings that may change between calls leave the engine its work; the reason if
   * not.
   */
  public static Optional<String> refusal(Llama model, int rows, ForwardContext context) {
    if (rows > MAX_ROWS) {
      return Optional.of(rows + " sequences at once, more than " + MAX_ROWS);
    }
    if (rows > DecodeEngine.MAX_STREAMED_ROWS && !Cublas.isAvailable()) {
      return Optional.of(rows + " sequences at once need cuBLAS, which is not found");
    }
    var router = context.routing().router();
    boolean given = context.routing().isOfEach();
    boolean gates = router instanceof Router.Gates;
    boolean weighs = router instanceof Router.Weighing each && each.layerGates().isPresent();
    boolean scores = router instanceof Router.Scoring || given || weighs;
    if (any(model, bank -> bank.gate() == null ? bank.size() > 1 && (gates || !scores) : !scores)) {
      return Optional.of("the router " + router.name() + " runs by tensor operations");
    }
    if (!context.backendChooses() && any(model, bank -> true)) {
      return Optional.of("the MOELINEAR flags ask for another implementation");
    }
    return Optional.empty();
  }

  private static boolean any(Llama model, Predicate<AdapterBank> which) {
    return model.adapted().map(GatedLinear::bank).anyMatch(which);
  }

  /**
   * @param model on a CUDA device; stays the caller's
   * @param routing k, cut to the number of adapters there is, and who chooses
   * @param invariant whether what comes of a row may depend on nothing but what is in its blocks
   * @throws UserException when the kernels do not know its shapes or there is too little memory
   */
  public CudaDecoder(Llama model, RoutingSettings routing, boolean invariant) {
    this.model = model;
    this.invariant = invariant;
    this.topK = routing.width();
    this.router = forKernels(model, routing);
    this.cuda = Cuda.device(model.manager().getDevice().getDeviceId());
    cuda.makeCurrent();
    var config = model.config();
    var rotary = RotaryEmbedding.frequencies(config);
    var single = new float[rotary.length];
    for (int i = 0; i < single.length; i++) {
      single[i] = (float) rotary[i];
    }
    frequencies = Ops.of(model.manager(), single, single.length);
    long widest =
        model.linears().mapToLong(each -> each.weight().getShape().get(1)).max().orElse(0);
    noGate = Ops.zeros(model.manager(), model.dtype(), 1, widest);
    logits = host.allocate(4L * config.vocabSize(), 16);
    try {
      this.addresses = addresses();
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  private DecodeModel addresses() {
    var config = model.config();
    int adapters =
        model.adapted().mapToInt(linear -> linear.bank().size()).reduce(1, (first, last) -> last);
    var layers = new ArrayList<DecodeModel.Layer>();
    for (var layer : model.layers()) {
      layers.add(
          new DecodeModel.Layer(
              Ops.dataPointer(layer.inputNorm().weight()),
              Ops.dataPointer(layer.postAttentionNorm().weight()),
              layer.projections().stream().map(this::linear).toList(),
              weigher(layers.size())));
    }
    return new DecodeModel(
        model.dtype(),
        config.hiddenSize(),
        config.numAttentionHeads(),
        config.numKeyValueHeads(),
        config.headDim(),
        config.intermediateSize(),
        config.vocabSize(),
        (float) config.rmsNormEps(),
        Ops.dataPointer(frequencies),
        1,
        Ops.dataPointer(model.embedding()),
        Ops.dataPointer(model.norm().weight()),
        Ops.dataPointer(model.head()),
        weighing().isPresent() ? adapters : Math.min(topK, adapters),
        scores(),
        layers);
  }

  private Optional<Router.Weighing> weighing() {
    return router instanceof Unscored unscored ? unscored.weighing() : Optional.empty();
  }

  private Optional<DecodeModel.Weigher> weigher(int layer) {
    return weighing()
        .flatMap(Router.Weighing::layerGates)
        .map(gates -> gates.get(layer))
        .map(
            gate ->
                new DecodeModel.Weigher(
                    Ops.dataPointer(gate.weight()),
                    Ops.dataPointer(gate.bias()),
                    (int) gate.weight().getShape().get(0)));
  }

  /** What the router goes by; all linears alike. */
  private Scores scores() {
    return model
        .adapted()
        .filter(linear -> linear.bank().totalRank() > 0 && chooses(linear))
        .findFirst()
        .map(linear -> router.forKernels(linear).scores())
        .orElse(Scores.PRODUCT);
  }

  /** Whether the router chooses there: one adapter without a gate acts always, or as is given. */
  private boolean chooses(GatedLinear linear) {
    return linear.bank().gate() != null || linear.bank().size() > 1 || router instanceof Unscored;
  }

  private DecodeModel.Linear linear(GatedLinear linear) {
    var shape = linear.weight().getShape();
    var bank = linear.bank();
    Optional<AdapterMemory> adapters = Optional.empty();
    // a gate without any adapter behind it changes nothing, but the listener hears of it
    if (bank != null
        && (bank.totalRank() > 0 || router instanceof Router.Gates && bank.gate() != null)) {
      // one adapter without a gate: the choice of one among one has the weight 1
      var scored =
          chooses(linear)
              ? router.forKernels(linear)
              : linear.layout().scored(Scores.PRODUCT, noGate);
      adapters =
          Optional.of(
              new AdapterMemory(
                  scored.gate() == null ? 0 : Ops.dataPointer(scored.gate()),
                  Ops.dataPointer(scored.loraA()),
                  Ops.dataPointer(scored.loraBTransposed()),
                  bank.ranks(),
                  scored.scales()));
    }
    return new DecodeModel.Linear(
        Ops.dataPointer(linear.weight()),
        linear.bias() == null ? 0 : Ops.dataPointer(linear.bias()),
        (int) shape.get(0),
        (int) shape.get(1),
        adapters);
  }

  /** Whether it was made for this k and for the adapters as they are now. */
  public boolean isFor(ForwardContext context) {
    if (topK != context.routing().width() || !router.equals(forKernels(model, context.routing()))) {
      return false;
    }
    for (int i = 0; i < addresses.layers().size(); i++) {
      var linears = addresses.layers().get(i).linears();
      var projections = model.layers().get(i).projections();
      for (int j = 0; j < linears.size(); j++) {
        var adapters = linears.get(j).adapters();
        if (adapters.isPresent() && adapters.get().b() != addressOfB(projections.get(j))) {
          return false;
        }
      }
    }
    return true;
  }

  private long addressOfB(GatedLinear linear) {
    return Ops.dataPointer(
        chooses(linear)
            ? router.forKernels(linear).loraBTransposed()
            : linear.layout().loraBTransposed(false));
  }

  /**
   * Begins anew, without sequences.
   *
   * @param sequences at once, at most
   * @param tokens that a sequence may come to
   * @param context T and the listener
   * @throws UserException as the constructor
   */
  public void begin(int sequences, int tokens, ForwardContext context) {
    closePool();
    listener = context.listener();
    temperature = context.routing().temperature();
    present = new int[0][];
    expected = new int[0]; // no rows go on
    int maxBlocks = Math.max(FEWEST_BLOCKS, Integer.highestOneBit(2 * KvBlock.of(tokens) - 1));
    int rows = invariant ? INVARIANT_ROWS : Math.max(sequences, DecodeEngine.MAX_STREAMED_ROWS);
    if (engine != null && (engine.maxRows() < sequences || engine.maxBlocks() < maxBlocks)) {
      engine.close();
      engine = null;
    }
    cuda.makeCurrent();
    int blocks = model.blocks(sequences, tokens, cuda.free(Long.MAX_VALUE));
    pool = model.newPool(model.manager(), blocks);
    var layers = IntStream.range(0, pool.layers()).mapToObj(pool::layer).toList();
    var keys = layers.stream().mapToLong(each -> Ops.dataPointer(each.keys())).toArray();
    var values = layers.stream().mapToLong(each -> Ops.dataPointer(each.values())).toArray();
    // attention is cut by how long a sequence may be
    int longest = invariant ? model.config().maxPositionEmbeddings() : tokens;
    var memory = new KvMemory(keys, values, blocks, longest);
    Stream.LIBTORCH.synchronize();
    if (engine == null) {
      engine =
          new DecodeEngine(
              cuda,
              addresses,
              memory,
              rows,
              maxBlocks,
              invariant ? rows : 1,
              MatrixVector.Tuning.standard());
      if (invariant) {
        requireRowsAlike();
      }
    } else {
      engine.cache(memory);
    }
    engine.temperature(temperature);
    engine.planAhead(sequences);
  }

  /**
   * Whether a library's products add up every row in the same order, wherever it lies: the first
   * step of a sequence, in all rows at once, must have the same logits in each.
   */
  private void requireRowsAlike() {
    int rows = engine.maxRows();
    var tables = new int[rows][1];
    engine.rows(tables, new int[rows]);
    engine.temperature(temperature);
    if (addresses.isGiven()) {
      var weights = new float[rows * addresses.topK()];
      Arrays.fill(weights, 1f / addresses.topK());
      engine.choice(new int[weights.length], weights);
    }
    var tokens = new int[rows];
    Arrays.fill(tokens, model.config().vocabSize() / 2);
    engine.step(tokens);
    var first = new float[model.config().vocabSize()];
    var other = new float[first.length];
    logits(0, first);
    for (int row = 1; row < rows; row++) {
      logits(row, other);
      if (!Arrays.equals(first, other)) {
        throw new UserException(
            "the products of a step of %d rows are not summed alike in all of them", rows);
      }
    }
  }

  /** Keys and values, a row a block; no step is under way. */
  public KvCache pool() {
    settle();
    return pool;
  }

  /**
   * Copies keys and values of prompts into blocks.
   *
   * @throws UserException for too little memory
   */
  public void join(KvCache filled, List<KvCache.Columns> columns) {
    settle();
    cuda.makeCurrent();
    model.backend().ops().copyColumns(filled, pool, columns);
    Stream.LIBTORCH.synchronize();
  }

  /**
   * One step. The routing listener, if there is one, is told of every gate.
   *
   * @param rows all sequences
   * @param goesOn whether the next step may begin before this returns: the device then does not
   *     wait for the host between them
   * @return the rows' next tokens; {@link DeviceSampler#NOT_FINITE} where logits are not finite
   */
  public int[] step(List<DecodeSession.Next> rows, boolean goesOn) {
    cuda.makeCurrent();
    var places = ahead ? placesAhead(rows) : Optional.<int[]>empty();
    if (places.isPresent()) {
      return begun(rows, places.get(), goesOn);
    }
    settle();
    name(rows);
    boolean given = addresses.isGiven();
    if (given) {
      takeChoice(rows);
    }
    engine.fetchRouting(listener.isPresent() && !given);
    var tokens = rows.stream().mapToInt(DecodeSession.Next::token).toArray();
    if (goesOn && canGoAhead(rows)) {
      engine.queue(tokens);
      goAhead(rows);
      return engine.take();
    }
    var chosen = engine.step(tokens);
    listener.ifPresent(this::report);
    return withManyBans(rows, chosen);
  }

  /**
   * As {@link DecodeSession#first}.
   *
   * @param hidden {@code (rows, hidden)}, made on libtorch's stream
   */
  public int[] first(List<DecodeSession.Next> rows, NDArray hidden) {
    cuda.makeCurrent();
    settle();
    name(rows);
    engine.fetchRouting(false);
    Stream.LIBTORCH.synchronize();
    engine.choose(Ops.dataPointer(hidden));
    return withManyBans(rows, engine.nextTokens());
  }

  /** Names the rows of the next step, and how their tokens are chosen. */
  private void name(List<DecodeSession.Next> rows) {
    var tables = rows.stream().map(DecodeSession.Next::blocks).toArray(int[][]::new);
    var lengths = rows.stream().mapToInt(DecodeSession.Next::length).toArray();
    if (!Arrays.equals(lengths, expected) || !goOn(tables)) {
      engine.rows(tables, lengths);
    } else {
      engine.blocks(tables);
    }
    present = tables;
    expected = behind(lengths);
    for (int row = 0; row < lengths.length; row++) {
      var next = rows.get(row);
      var banned = bansTooMany(next) ? new int[0] : next.banned();
      choose(engine.sampler(), row, next.config(), next.uniform(), banned);
    }
  }

  /** The same with those tokens that are chosen on the host. */
  private int[] withManyBans(List<DecodeSession.Next> rows, int[] chosen) {
    for (int row = 0; row < chosen.length; row++) {
      if (bansTooMany(rows.get(row))) {
        chosen[row] = onHost(row, chosen[row], rows.get(row));
      }
    }
    return chosen;
  }

  /** The step of these, at these places of a step that has begun without their bans. */
  private int[] begun(List<DecodeSession.Next> rows, int[] places, boolean goesOn) {
    ahead = false;
    if (places.length < present.length) {
      expected = new int[0]; // others stay
    } else {
      present = rows.stream().map(DecodeSession.Next::blocks).toArray(int[][]::new);
      engine.blocks(present);
      expected = behind(expected);
      if (goesOn && canGoAhead(rows)) {
        goAhead(rows);
      }
    }
    var all = engine.take();
    var chosen = new int[places.length];
    for (int row = 0; row < chosen.length; row++) {
      var next = rows.get(row);
      chosen[row] = all[places[row]];
      if (next.banned().length > 0) {
        chosen[row] = onHost(places[row], chosen[row], next);
      }
    }
    return chosen;
  }

  /** Where these are among the rows of the step that has begun; empty if one is not. */
  private Optional<int[]> placesAhead(List<DecodeSession.Next> rows) {
    var places = new int[rows.size()];
    int at = 0;
    for (int row = 0; row < places.length; row++) {
      while (at < present.length && !isAhead(rows.get(row), at)) {
        at++;
      }
      if (at == present.length) {
        return Optional.empty();
      }
      places[row] = at++;
    }
    return Optional.of(places);
  }

  /** Nobody else has the block that a sequence's newest token goes to. */
  private boolean isAhead(DecodeSession.Next next, int at) {
    int block = next.length() / KvBlock.TOKENS;
    return next.length() == expected[at] && next.blocks()[block] == present[at][block];
  }

  /**
   * Whether the step behind that of these may begin before their tokens are known: nobody listens
   * or chooses from outside, no logits are wanted, and there are blocks for it.
   */
  private boolean canGoAhead(List<DecodeSession.Next> rows) {
    return listener.isEmpty()
        && !addresses.isGiven()
        && rows.stream()
            .allMatch(
                next ->
                    next.banned().length == 0
                        && next.length() + 1 < next.blocks().length * KvBlock.TOKENS);
  }

  private void goAhead(List<DecodeSession.Next> rows) {
    for (int row = 0; row < rows.size(); row++) {
      var next = rows.get(row);
      choose(engine.samplerOfNext(), row, next.config(), next.nextUniform(), new int[0]);
    }
    engine.queueNext();
    ahead = true;
  }

  /** Whether a step has begun that nobody has asked for yet. */
  public boolean isAhead() {
    return ahead;
  }

  /** Waits for a step that has begun, in vain. */
  private void settle() {
    if (ahead) {
      cuda.makeCurrent();
      engine.take();
      ahead = false;
      expected = new int[0];
    }
  }

  private static int[] behind(int[] lengths) {
    return Arrays.stream(lengths).map(length -> length + 1).toArray();
  }

  /** A row's token, chosen on the host where it bans what the device did not. */
  private int onHost(int row, int chosen, DecodeSession.Next next) {
    if (chosen == DeviceSampler.NOT_FINITE) {
      return chosen;
    }
    var its = new float[model.config().vocabSize()];
    logits(row, its);
    return new Sampler(next.config(), 0).choose(its, 0, its.length, next.banned(), next.uniform());
  }

  /** Whether these are the tables of the step before, some with more blocks. */
  private boolean goOn(int[][] tables) {
    for (int row = 0; row < tables.length; row++) {
      int[] now = tables[row];
      int[] before = present[row];
      if (now != before && Arrays.mismatch(now, before) != before.length) {
        return false;
      }
    }
    return true;
  }

  /** What the rows' own routers choose. */
  private void takeChoice(List<DecodeSession.Next> rows) {
    int k = addresses.topK();
    given = new Choice(rows.size(), k); // adapter 0 with the weight 0 where a row has fewer
    for (int row = 0; row < rows.size(); row++) {
      var own = rows.get(row).router().orElseThrow();
      var choice = own.router().choose(own.first(), 1);
      System.arraycopy(choice.indices(), 0, given.indices(), row * k, choice.topK());
      System.arraycopy(choice.weights(), 0, given.weights(), row * k, choice.topK());
    }
    for (var projection : model.layers().getFirst().projections()) {
      if (projection.bank() != null) {
        Router.requireBelow(projection.bank().size(), given.indices());
      }
    }
    engine.choice(given.indices(), given.weights());
  }

  private static void choose(
      DeviceSampler sampler, int row, GenerationConfig config, long uniform, int[] banned) {
    if (config.sample()) {
      sampler.sampling(
          row, Sampler.scale(config.temperature()), config.topK(), Sampler.fixed(config.topP()));
    } else {
      sampler.greedy(row);
    }
    sampler.row(row, uniform, banned);
  }

  /** Whether its token is chosen on the host: the device keeps a row from so many at most. */
  private static boolean bansTooMany(DecodeSession.Next next) {
    return next.banned().length > DeviceSampler.MAX_BANNED;
  }

  private void report(RoutingListener to) {
    int layers = model.layers().size();
    for (int layer = 0; layer < layers; layer++) {
      var projections = model.layers().get(layer).projections();
      for (var module : Projection.values()) {
        var linear = projections.get(module.ordinal());
        if (linear.bank() != null && chooses(linear)) {
          var indices = new int[present.length * addresses.topK()];
          var weights = new float[indices.length];
          if (addresses.isGiven()) {
            indices = given.indices();
            weights = given.weights();
          } else if (isWeighed(layer, module)) {
            engine.routing(layer, module.ordinal(), indices, weights);
          } else { // no adapter acts there: all are alike
            for (int i = 0; i < indices.length; i++) {
              indices[i] = i % addresses.topK();
              weights[i] = weighing().isPresent() ? 0 : 1f / addresses.topK();
            }
          }
          to.onRouting(
              layer, module.ordinal(), present.length, 1, addresses.topK(), indices, weights);
        }
      }
    }
  }

  private boolean isWeighed(int layer, Projection module) {
    var its = addresses.layers().get(layer);
    return its.weigher().isPresent()
        || weighing().isEmpty() && its.linears().get(module.ordinal()).adapters().isPresent();
  }

  /**
   * Fetches a row's logits of the last step.
   *
   * @param into {@code (vocab)}
   */
  public void logits(int row, float[] into) {
    long bytes = 4L * into.length;
    cuda.makeCurrent();
    cuda.toHost(logits, engine.logits() + row * bytes, bytes, engine.stream());
    engine.stream().synchronize();
    MemorySegment.copy(logits, JAVA_FLOAT, 0, into, 0, into.length);
  }

  /** Gives back the memory of all sequences. */
  public void end() {
    cuda.makeCurrent();
    closePool();
  }

  private void closePool() {
    settle();
    if (pool != null) {
      pool.close();
      pool = null;
    }
  }

  @Override
  public void close() {
    closePool();
    if (engine != null) {
      engine.close();
    }
    frequencies.close();
    noGate.close();
    host.close();
  }
}
