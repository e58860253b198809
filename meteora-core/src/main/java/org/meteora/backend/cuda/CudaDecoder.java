package org.meteora.backend.cuda;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Optional;
import java.util.function.Predicate;
import org.meteora.UserException;
import org.meteora.cuda.decode.DecodeEngine;
import org.meteora.cuda.decode.DecodeModel;
import org.meteora.cuda.decode.KvMemory;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Sampler;
import org.meteora.lora.AdapterBank;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.RotaryEmbedding;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingListener;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;

/**
 * Decode steps of a {@link Llama} on a GPU through the {@link DecodeEngine}, behind a prefill that
 * the model itself has done into a {@link KvCache}. libtorch works on the default stream, the
 * engine on its own; each waits for the other where they meet, at {@link #begin} and when the cache
 * grows.
 *
 * <p>Not thread-safe.
 */
public final class CudaDecoder implements AutoCloseable {
  /** Sequences at most. */
  public static final int MAX_ROWS = DecodeEngine.MAX_ROWS;

  /** Tokens at most that {@link #step} keeps a row from choosing. */
  public static final int MAX_BANNED = DeviceSampler.MAX_BANNED;

  /** Columns added to the cache at least, when it is full. */
  private static final int GROW = 128;

  private static final Stream LIBTORCH = Stream.of(0);

  private final Llama model;
  private final int topK;
  private final Cuda cuda;
  private final DecodeModel addresses;
  private final NDArray frequencies;
  private final NDArray noGate;
  private final Arena host = Arena.ofShared();
  private final MemorySegment logits;
  private DecodeEngine engine;
  private KvCache cache;
  private int maxLength;
  private int[] slots;
  private Optional<RoutingListener> listener = Optional.empty();

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
    boolean gates = router instanceof Router.Gates;
    if (any(model, bank -> bank.gate() == null ? bank.size() > 1 : !gates)) {
      return Optional.of("the router " + router.name() + " runs by tensor operations");
    }
    if (!context.backendChooses() && any(model, bank -> true)) {
      return Optional.of("the MOELINEAR flags ask for another implementation");
    }
    return Optional.empty();
  }

  private static boolean any(Llama model, Predicate<AdapterBank> which) {
    for (var layer : model.layers()) {
      for (var linear : layer.projections()) {
        if (linear.bank() != null && which.test(linear.bank())) {
          return true;
        }
      }
    }
    return false;
  }

  /**
   * @param model on a CUDA device; stays the caller's
   * @param topK adapters a token; cut to the number there is
   * @throws UserException when the kernels do not know its shapes or there is too little memory
   */
  public CudaDecoder(Llama model, int topK) {
    this.model = model;
    this.topK = topK;
    this.cuda = Cuda.device(model.manager().getDevice().getDeviceId());
    cuda.makeCurrent();
    var config = model.config();
    var rotary = RotaryEmbedding.frequencies(config);
    var single = new float[rotary.length];
    for (int i = 0; i < single.length; i++) {
      single[i] = (float) rotary[i];
    }
    frequencies = Ops.of(model.manager(), single, single.length);
    noGate =
        Ops.zeros(
            model.manager(),
            model.dtype(),
            1,
            Math.max(
                config.intermediateSize(),
                Math.max(config.hiddenSize(), config.numAttentionHeads() * config.headDim())));
    logits = host.allocate(4L * config.vocabSize(), 16);
    int k = 1;
    var layers = new ArrayList<DecodeModel.Layer>();
    for (var layer : model.layers()) {
      for (var projection : layer.projections()) {
        if (projection.bank() != null) {
          k = Math.min(topK, projection.bank().size());
        }
      }
      layers.add(
          new DecodeModel.Layer(
              Ops.dataPointer(layer.inputNorm().weight()),
              Ops.dataPointer(layer.postAttentionNorm().weight()),
              linear(layer.projection(Projection.Q)),
              linear(layer.projection(Projection.K)),
              linear(layer.projection(Projection.V)),
              linear(layer.projection(Projection.O)),
              linear(layer.projection(Projection.GATE)),
              linear(layer.projection(Projection.UP)),
              linear(layer.projection(Projection.DOWN))));
    }
    this.addresses =
        new DecodeModel(
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
            k,
            layers);
  }

  private DecodeModel.Linear linear(GatedLinear linear) {
    var shape = linear.weight().getShape();
    var bank = linear.bank();
    Optional<AdapterMemory> adapters = Optional.empty();
    // a gate without any adapter behind it changes nothing, but the listener hears of it
    if (bank != null && (bank.totalRank() > 0 || bank.gate() != null)) {
      var scales = new float[bank.size()];
      for (int i = 0; i < scales.length; i++) {
        scales[i] = (float) bank.scales()[i];
      }
      adapters =
          Optional.of(
              new AdapterMemory(
                  // one adapter without a gate: the choice of one among one has the weight 1
                  Ops.dataPointer(bank.gate() == null ? noGate : bank.gate()),
                  Ops.dataPointer(bank.loraA()),
                  Ops.dataPointer(linear.layout().loraBTransposed(false)),
                  bank.ranks(),
                  scales));
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
    if (topK != context.routing().topK()) {
      return false;
    }
    for (int i = 0; i < addresses.layers().size(); i++) {
      var linears = addresses.layers().get(i).linears();
      var projections = model.layers().get(i).projections();
      for (int j = 0; j < linears.size(); j++) {
        var adapters = linears.get(j).adapters();
        if (adapters.isPresent()
            && adapters.get().b()
                != Ops.dataPointer(projections.get(j).layout().loraBTransposed(false))) {
          return false;
        }
      }
    }
    return true;
  }

  /**
   * Takes over from a prefill.
   *
   * @param filled the cache after the prefill
   * @param rows the cache's rows that go on, in order
   * @param maxLength columns that the cache can need at most
   * @param config how the next tokens are chosen
   * @param context T and the listener
   * @throws UserException as the constructor
   */
  public void begin(
      KvCache filled, int[] rows, int maxLength, GenerationConfig config, ForwardContext context) {
    this.listener = context.listener();
    this.cache = filled;
    this.slots = rows.clone();
    this.maxLength = maxLength;
    cuda.makeCurrent();
    bind(Math.min(maxLength, filled.length() + GROW));
    engine.temperature(context.routing().temperature());
    if (config.sample()) {
      engine
          .sampler()
          .sampling(
              Sampler.scale(config.temperature()), config.topK(), Sampler.fixed(config.topP()));
    } else {
      engine.sampler().greedy();
    }
    announce();
  }

  private void bind(int columns) {
    cache.reserve(columns);
    var keys = new long[model.layers().size()];
    var values = new long[keys.length];
    for (int layer = 0; layer < keys.length; layer++) {
      keys[layer] = Ops.dataPointer(cache.layer(layer).keys());
      values[layer] = Ops.dataPointer(cache.layer(layer).values());
    }
    var memory = new KvMemory(keys, values, cache.rows(), cache.capacity());
    LIBTORCH.synchronize();
    if (engine != null && engine.maxRows() < slots.length) {
      engine.close();
      engine = null;
    }
    if (engine == null) {
      int rows = Math.max(slots.length, DecodeEngine.MAX_STREAMED_ROWS);
      engine = new DecodeEngine(cuda, addresses, memory, rows);
    } else {
      engine.cache(memory);
    }
  }

  private void announce() {
    var padding = cache.padding();
    var lengths = new int[slots.length];
    var starts = new int[slots.length];
    for (int i = 0; i < slots.length; i++) {
      lengths[i] = cache.length();
      starts[i] = padding[slots[i]];
    }
    engine.rows(slots, lengths, starts);
  }

  /** Keeps these of the present rows alone, in this order. */
  public void keepRows(int[] rows) {
    cuda.makeCurrent();
    slots = Arrays.stream(rows).map(row -> slots[row]).toArray();
    announce();
  }

  /**
   * One step. The routing listener, if there is one, is told of every gate.
   *
   * @param tokens the rows' newest tokens
   * @param banned tokens that each row must not choose; of more than {@link #MAX_BANNED} none is
   *     banned, and the caller must choose from {@link #logits}
   * @param uniform each row's random number in [0, 1), in units of 2^−64; unused without sampling
   * @return the rows' next tokens; {@link DeviceSampler#NOT_FINITE} where logits are not finite
   */
  public int[] step(int[] tokens, int[][] banned, long[] uniform) {
    cuda.makeCurrent();
    if (cache.length() == cache.capacity()) {
      bind(Math.min(maxLength, cache.length() + GROW));
      announce();
    }
    engine.fetchRouting(listener.isPresent());
    for (int row = 0; row < tokens.length; row++) {
      engine
          .sampler()
          .row(row, uniform[row], banned[row].length > MAX_BANNED ? new int[0] : banned[row]);
    }
    var next = engine.step(tokens);
    cache.advance(1);
    listener.ifPresent(this::report);
    return next;
  }

  private void report(RoutingListener to) {
    int layers = model.layers().size();
    for (int layer = 0; layer < layers; layer++) {
      var projections = model.layers().get(layer).projections();
      for (var module : Projection.values()) {
        var bank = projections.get(module.ordinal()).bank();
        if (bank != null && bank.gate() != null) {
          var indices = new int[slots.length * addresses.topK()];
          var weights = new float[indices.length];
          engine.routing(layer, module.ordinal(), indices, weights);
          to.onRouting(
              layer, module.ordinal(), slots.length, 1, addresses.topK(), indices, weights);
        }
      }
    }
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

  @Override
  public void close() {
    if (engine != null) {
      engine.close();
    }
    frequencies.close();
    noGate.close();
    host.close();
  }
}
