package org.meteora.train;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.util.ArrayList;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.function.IntConsumer;
import java.util.stream.DoubleStream;
import java.util.stream.IntStream;
import org.meteora.model.FrozenWeights;
import org.meteora.model.Gradients;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.MemoryNeed;
import org.meteora.model.Pass;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedTape;
import org.meteora.moe.Router;
import org.meteora.nn.Projection;
import org.meteora.parallel.Launch;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.Batches;
import org.meteora.train.loss.GateLoss;
import org.meteora.train.loss.LanguageModelLoss;

/**
 * Losses and gradients of a Llama with adapters: forward, the chunked language-model loss, and
 * backward.
 *
 * <p>With gradient checkpointing (Chen et al., 2016) the forward pass records nothing and keeps the
 * decoder layers' inputs; the backward pass then runs each layer again, from the last to the first,
 * with recording, and sends the gradient of its output through it. At any moment the activations of
 * one layer exist. Dropout draws from a generator that is seeded for each layer, so that the second
 * run drops what the first did.
 *
 * <p>Without it the layers' recordings are kept until the backward pass comes to them. On the CPU
 * in float32, unless a flag asks for another form, the gated layers are on a {@link GatedTape}.
 *
 * <p>The gates' loss is added where a layer is recorded: for a layer with output y and gradient g
 * the scalar {@code Σ y·g + weight · gateLoss(layer)} has the gradients wanted, in one backward
 * pass. On a tape the logits are leaves, which get the loss's gradients beforehand.
 *
 * <p>Long, because forward and backward share what the pass keeps, and are read side by side.
 *
 * @param llama its adapters' tensors are trained
 * @param context of a training pass: k, dropout, and which implementation
 * @param recompute which layers are computed again in the backward pass; {@code AUTO} is none of
 *     them on a CPU with memory for twice a batch, else all
 * @param own the backend's passes; empty: layers are recorded
 * @param adapters N; 0 for a model without gates
 * @param chunkTokens whose logits are held at once
 */
public record LlamaLearner(
    Llama llama,
    ForwardContext context,
    Recompute recompute,
    Optional<LlamaTraining> own,
    int adapters,
    int chunkTokens)
    implements Learner {
  /** Of this run, on whichever machine. */
  private static final int PROCESSES = Launch.of(System.getenv()).size();

  /** A learner that records layers, and leaves their gradients in the tensors. */
  public LlamaLearner(Llama llama, ForwardContext context, Recompute recompute, int adapters) {
    this(llama, context, recompute, Optional.empty(), adapters, chunkTokens(llama));
  }

  /**
   * By the backend's own code for whole passes where it has such; elsewhere layers are recorded.
   *
   * @param gradients where the gradients go, unless they are left in the tensors
   */
  public static LlamaLearner of(
      Llama llama, ForwardContext context, Recompute recompute, int adapters, Gradients gradients) {
    var own = llama.backend().training(llama, gradients, recompute);
    return new LlamaLearner(llama, context, recompute, own, adapters, chunkTokens(llama));
  }

  private static int chunkTokens(Llama llama) {
    return LanguageModelLoss.chunkTokens(llama.config().vocabSize());
  }

  /** The same for another request of the gated layers. */
  LlamaLearner with(ForwardContext other) {
    return new LlamaLearner(llama, other, recompute, own, adapters, chunkTokens);
  }

  /** The backend's own passes, if it makes them. */
  public Optional<LlamaTraining> ownPasses() {
    return own.filter(passes -> passes.accepts(context));
  }

  /** Whether the layers of this batch are computed again, rather than their recordings kept. */
  private boolean recomputes(Batch batch) {
    if (recompute != Recompute.AUTO) {
      return recompute == Recompute.ALL;
    }
    long tokens = packs() ? batch.tokens() : (long) batch.rows() * batch.length();
    long bytes = MemoryNeed.recordedBytes(llama.config(), llama.dtype(), tokens);
    // all processes of a machine ask at the same moment; those of others are counted too
    return !llama.frozen().isResident() || !llama.backend().keepsRecordings(PROCESSES * bytes);
  }

  /**
   * Whether recorded passes have the tokens of a batch one after another in one row, without
   * padding; on a GPU, where they are what is left when {@link LlamaTraining} refuses, they have
   * padded rows.
   */
  private boolean packs() {
    return Ops.isInHostMemory(llama.embedding());
  }

  /** The first layer with an adapter, before which no gradient is needed; 0 when there is none. */
  private int first() {
    return llama.adapted().findFirst().map(GatedLinear::layer).orElse(0);
  }

  @Override
  public Sums learn(
      Batch batch, double languageModelWeight, double gateWeight, long seed, IntConsumer done) {
    return learn(batch, new double[] {languageModelWeight}, gateWeight, seed, done);
  }

  /**
   * As {@link Learner#learn}.
   *
   * @param languageModelWeights of each row, or one for all
   */
  Sums learn(
      Batch batch, double[] languageModelWeights, double gateWeight, long seed, IntConsumer done) {
    double gateWeightEach = gateWeight / Math.max(1, gateCount());
    if (ownPasses().isPresent()) {
      var input = input(batch, languageModelWeights, gateWeightEach, seed);
      return sums(own.get().run(input, context, true, done), batch);
    }
    try (var scope = llama.manager().newSubManager();
        var gates = gateLoss(scope, batch)) {
      var weights = packs() ? ofTokens(languageModelWeights, batch) : languageModelWeights;
      var loss = learn(scope, batch, gates, weights, gateWeightEach, seed, done);
      return sums(loss, gates, batch);
    }
  }

  /** Null without gates. */
  private GateLoss gateLoss(NDManager scope, Batch batch) {
    int topK = context.routing().topK();
    return adapters > 0
        ? new GateLoss(scope, placed(batch, batch.gateLabels()), adapters, topK)
        : null;
  }

  /** Numbers {@code (rows, seq)} as recorded passes have them. */
  private long[] placed(Batch batch, long[] padded) {
    return packs() ? batch.packed(padded) : padded;
  }

  /** Weights of rows, or one for all, as those of each token. */
  private static double[] ofTokens(double[] weights, Batch batch) {
    return weights.length == 1
        ? weights
        : IntStream.range(0, batch.rows())
            .boxed()
            .flatMapToDouble(
                row -> DoubleStream.generate(() -> weights[row]).limit(batch.lengths()[row]))
            .toArray();
  }

  private Pass pass(NDManager scope, Batch batch, ForwardContext asks) {
    if (!packs()) {
      return Pass.whole(scope, llama, new int[] {batch.length()}, asks);
    }
    var settings = asks.routing();
    var each =
        settings.router() instanceof Router.Fixed fixed
            ? asks.withRouting(settings.withRouter(fixed.ofTokens(batch.lengths())))
            : asks;
    return Pass.whole(scope, llama, batch.lengths(), each);
  }

  private int gateCount() {
    return Projection.values().length * llama.layers().size();
  }

  private Sums sums(LanguageModelLoss.Result loss, GateLoss gates, Batch batch) {
    boolean gated = gates != null && gates.gates() > 0;
    return sums(
        batch,
        packs() ? 0 : batch.length(),
        loss.losses(),
        gated ? gates.sum() : 0,
        gated ? gates.gates() : 0,
        gated ? gates.right() : null,
        gated ? gates.dominated() : null);
  }

  /**
   * By row from arrays by position.
   *
   * @param stride from one row's first position to the next one's; 0: rows have no padding
   */
  private static Sums sums(
      Batch batch,
      int stride,
      float[] losses,
      double gate,
      long gates,
      float[] right,
      float[] dominated) {
    int rows = batch.rows();
    var prompt = new double[rows];
    var answer = new double[rows];
    var rightOfRow = new float[rows];
    var dominatedOfRow = new float[rows];
    double languageModel = 0;
    int start = 0;
    for (int row = 0; row < rows; row++) {
      int promptLabels = batch.promptLabels(row);
      int length = batch.samples().get(row).length();
      for (int t = 0; t < length; t++) {
        (t < promptLabels ? prompt : answer)[row] += losses[start + t];
        languageModel += losses[start + t];
        if (gates > 0) {
          rightOfRow[row] += right[start + t];
          dominatedOfRow[row] += dominated[start + t];
        }
      }
      start += stride > 0 ? stride : length;
    }
    return new Sums(languageModel, prompt, answer, gate, gates, rightOfRow, dominatedOfRow);
  }

  private LlamaTraining.Input input(Batch batch, double[] weights, double gateWeight, long seed) {
    return new LlamaTraining.Input(
        batch.ids(),
        batch.lengths(),
        batch.length(),
        batch.labels(),
        adapters > 0 ? batch.gateLabels() : null,
        weights,
        gateWeight,
        seed);
  }

  private static Sums sums(LlamaTraining.Result result, Batch batch) {
    int length = batch.length();
    double gate = 0;
    for (float loss : result.gateLosses()) {
      gate += loss;
    }
    var dominated = new float[result.dominating().length];
    for (int i = 0; i < dominated.length; i++) {
      dominated[i] = result.dominating()[i] == batch.samples().get(i / length).task() ? 1 : 0;
    }
    return sums(batch, length, result.losses(), gate, result.gates(), result.right(), dominated);
  }

  private NDArray ids(NDManager manager, Batch batch) {
    return packs()
        ? Ops.of(manager, batch.packed(batch.ids()), 1, batch.tokens())
        : Ops.of(manager, batch.ids(), batch.rows(), batch.length());
  }

  /** A decoder layer's recorded pass: from a leaf to its output, with the gates' logits. */
  private record Recorded(
      NDManager scope,
      NDArray input,
      NDArray output,
      List<NDArray> logits,
      Optional<GatedTape> tape)
      implements AutoCloseable {
    @Override
    public void close() {
      tape.ifPresent(GatedTape::close);
      scope.close();
    }
  }

  private LanguageModelLoss.Result learn(
      NDManager scope,
      Batch batch,
      GateLoss gates,
      double[] weights,
      double gateWeight,
      long seed,
      IntConsumer done) {
    var pass = pass(scope, batch, context);
    var layers = llama.layers();
    var inputs = new ArrayList<NDArray>();
    var recorded = new ArrayList<Recorded>();
    int first = first();
    boolean again = recomputes(batch);
    try (var off = Ops.notRecording()) {
      var hidden = llama.embed(ids(scope, batch));
      for (int i = 0; i < layers.size(); i++) {
        var input = hidden;
        llama.frozen().use(i, after(i));
        if (i < first || again) {
          hidden = forward(scope, input, i, pass, context, seed, null);
        } else {
          recorded.add(record(scope, input, i, pass, seed));
          hidden = Ops.detach(scope, recorded.getLast().output());
        }
        if (i < first) {
          input.close();
        } else {
          inputs.add(input);
        }
      }
      inputs.add(hidden);
    }
    LanguageModelLoss.Result loss;
    NDArray gradient;
    llama.frozen().use(FrozenWeights.HEAD, layers.size() - 1);
    try (var on = Ops.recording();
        var inner = scope.newSubManager()) {
      var hidden = leaf(inner, inputs.removeLast());
      var normed = llama.norm().forward(hidden);
      loss =
          LanguageModelLoss.compute(
              normed, llama.head(), placed(batch, batch.labels()), weights, true, chunkTokens);
      Ops.backward(normed, loss.gradient());
      gradient = gradientOf(hidden, scope);
    }
    for (int i = layers.size() - 1; i >= first; i--) {
      llama.frozen().use(i, i > first ? i - 1 : FrozenWeights.EMBEDDING); // of the next step
      try (var input = inputs.removeLast();
          var each = again ? record(scope, input, i, pass, seed) : recorded.removeLast();
          var recording = Ops.recording()) {
        boolean gated = gates != null && !each.logits().isEmpty();
        if (each.tape().isPresent()) { // the gates' logits are leaves in host memory
          if (gated) {
            gates.addWithGradients(each.logits(), gateWeight);
          }
          Ops.backward(each.output(), gradient);
        } else {
          var scalar = each.output().mul(gradient).sum();
          if (gated) {
            var ofGates = Ops.scale(gates.add(each.logits()), gateWeight);
            scalar = Ops.cast(scalar, Dtype.F32).add(ofGates);
          }
          Ops.backward(scalar, null);
        }
        boolean on = i > first;
        each.tape().ifPresent(tape -> tape.backward(on));
        gradient.close();
        if (on) {
          gradient = gradientOf(each.input(), scope);
        }
      }
      done.accept(i);
    }
    // nothing is still being fetched when the pass has ended
    llama.frozen().use(FrozenWeights.EMBEDDING, FrozenWeights.NONE);
    return loss;
  }

  /** What a forward pass comes to behind a layer. */
  private int after(int layer) {
    return layer + 1 < llama.layers().size() ? layer + 1 : FrozenWeights.HEAD;
  }

  /** One layer from a leaf on; nobody asks for the gradient of the first one's input. */
  private Recorded record(NDManager scope, NDArray input, int layer, Pass pass, long seed) {
    var inner = scope.newSubManager();
    var tape = tape(inner, layer, context);
    try (var on = Ops.recording()) {
      var own = pass.on(tape, llama.backend());
      var hidden = layer > first() ? leaf(inner, input) : Ops.alias(inner, input);
      var output = run(hidden, layer, own, seed);
      return new Recorded(inner, hidden, output, own.gateLogits(), tape);
    }
  }

  /** A tape for a decoder layer's gated layers, if the backend runs them on one. */
  private Optional<GatedTape> tape(NDManager scope, int layer, ForwardContext asks) {
    return llama.backend().tape(scope, llama.layers().get(layer).projections(), asks);
  }

  /**
   * One layer without recording; its intermediates are freed at once.
   *
   * @param gates gets the gates' logits; null: nobody does
   */
  private NDArray forward(
      NDManager scope,
      NDArray input,
      int layer,
      Pass pass,
      ForwardContext asks,
      long seed,
      GateLoss gates) {
    try (var off = Ops.notRecording();
        var inner = scope.newSubManager()) {
      var own = pass.on(tape(inner, layer, asks), llama.backend());
      var output = run(Ops.alias(inner, input), layer, own, seed);
      if (gates != null && !own.gateLogits().isEmpty()) {
        gates.add(own.gateLogits());
      }
      output.attach(scope);
      return output;
    }
  }

  private NDArray run(NDArray hidden, int layer, Pass pass, long seed) {
    JniUtils.setSeed(Batches.mix(seed, layer));
    return llama.layers().get(layer).forward(hidden, pass);
  }

  private static NDArray leaf(NDManager manager, NDArray array) {
    var leaf = Ops.detach(manager, array);
    leaf.setRequiresGradient(true);
    return leaf;
  }

  private static NDArray gradientOf(NDArray leaf, NDManager owner) {
    NDArray gradient = JniUtils.getGradient((PtNDArray) leaf);
    gradient.attach(owner);
    return gradient;
  }

  @Override
  public Sums reference(Batch batch, OptionalInt adapter) {
    var fixed = context.routing().withRouter(Router.fixed(adapter.orElse(0)));
    try (var kept = adapter.isEmpty() ? new WithoutB() : null) {
      return evaluate(batch, context.withRouting(fixed));
    }
  }

  /** While it is open every adapter's B is zero, so that adapters add nothing. */
  private final class WithoutB implements AutoCloseable {
    private final NDManager scope = llama.manager().newSubManager();
    private final Map<NDArray, NDArray> values = new IdentityHashMap<>();

    WithoutB() {
      try (var off = Ops.notRecording()) {
        llama
            .adapted()
            .map(linear -> linear.bank().loraB())
            .filter(b -> b.getShape().size() > 0)
            .forEach(
                b -> {
                  values.put(b, Ops.copyOf(b, scope, Ops.dtype(b)));
                  Ops.clear(b);
                });
      }
    }

    @Override
    public void close() {
      try (var off = Ops.notRecording()) {
        values.forEach(Ops::copy);
      }
      scope.close();
    }
  }

  @Override
  public Sums evaluate(Batch batch) {
    return evaluate(batch, context);
  }

  private Sums evaluate(Batch batch, ForwardContext asks) {
    var without = asks.forTraining(false);
    if (own.isPresent() && own.get().accepts(without)) {
      try (var whole = llama.frozen().begin()) {
        var input = input(batch, new double[] {0}, 0, 0);
        return sums(own.get().run(input, without, false, layer -> {}), batch);
      }
    }
    try (var scope = llama.manager().newSubManager();
        var gates = gateLoss(scope, batch);
        var whole = llama.frozen().begin();
        var off = Ops.notRecording()) {
      var pass = pass(scope, batch, without);
      var hidden = llama.embed(ids(scope, batch));
      for (int i = 0; i < llama.layers().size(); i++) {
        llama.frozen().use(i, after(i));
        var output = forward(scope, hidden, i, pass, asks, 0, gates);
        hidden.close();
        hidden = output;
      }
      var normed = llama.norm().forward(hidden);
      llama.frozen().use(FrozenWeights.HEAD, FrozenWeights.NONE);
      var loss =
          LanguageModelLoss.compute(
              normed,
              llama.head(),
              placed(batch, batch.labels()),
              new double[1],
              false,
              chunkTokens);
      return sums(loss, gates, batch);
    }
  }
}
