package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.types.Shape;
import java.util.List;
import org.meteora.lora.AdapterBank;
import org.meteora.nn.GivenBlock;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;

/**
 * A linear layer with N LoRA adapters and a gate that chooses k of them for every token (MeteoRA,
 * arXiv 2405.13053, section 3):
 *
 * <pre>
 * logits = x Gᵀ                                                    (tokens, N)
 * inference: weight = softmax(top-k(logits) / T);   training: weight = top-k(softmax(logits)), divided by their sum
 * y = x Wᵀ (+ bias) + Σ_{i in top-k} weight_i · s_i · (dropout(x) A_iᵀ) B_iᵀ
 * </pre>
 *
 * <p>{@link #formula} is this in code, and what the others are tested against. Which implementation
 * runs was decided when the model was loaded, by the backend (see {@link GatedForward}); they all
 * give the same.
 *
 * <p>Input {@code (…, in)}, output {@code (…, out)}, float32, float16 or bfloat16 like the weights;
 * routing weights are computed in float32. As a DJL block it takes one array and returns one; in
 * training it returns the gate logits {@code (…, N)} as a second. The frozen weight is never
 * copied. Without adapters it is a plain linear layer; with one adapter and no gate it is a PEFT
 * LoRA layer.
 */
public final class GatedLinear extends GivenBlock {
  private static final Router ONLY = Router.fixed(0);

  private final NDArray weight;
  private final NDArray bias;
  private final AdapterBank bank;
  private final BankLayout layout;
  private final double dropout;
  private final GatedForward.Provider provider;
  private final int layer;
  private final Projection projection;
  private GatedForward alone;

  /**
   * What a pass gives.
   *
   * @param y {@code (…, out)}
   * @param gateLogits {@code (…, N)}; null without a gate, or where they were not asked for
   */
  public record Output(NDArray y, NDArray gateLogits) {}

  /**
   * A layer by itself, in a block that is no Llama, without dropout.
   *
   * @param weight W {@code (out, in)}
   * @param bias {@code (out)} or null
   * @param bank the adapters, or null for a plain linear layer
   * @param provider of implementations, such as {@code Backends.of(manager, dtype)}
   */
  public GatedLinear(
      NDArray weight, NDArray bias, AdapterBank bank, GatedForward.Provider provider) {
    this(weight, bias, bank, 0, provider, 0, Projection.Q);
  }

  /**
   * @param weight W {@code (out, in)}
   * @param bias {@code (out)} or null
   * @param bank the adapters, or null for a plain linear layer
   * @param dropout on the adapters' input, in training
   * @param provider of implementations, such as {@code Backends.of(manager, dtype)}
   * @param layer decoder layer, told to the routing listener
   * @param projection told to the routing listener
   * @throws IllegalArgumentException when the gate or A is of another dtype than W; B is converted
   */
  public GatedLinear(
      NDArray weight,
      NDArray bias,
      AdapterBank bank,
      double dropout,
      GatedForward.Provider provider,
      int layer,
      Projection projection) {
    this.weight = weight;
    this.bias = bias;
    this.bank = bank;
    this.dropout = dropout;
    this.provider = provider;
    this.layer = layer;
    this.projection = projection;
    this.layout =
        bank == null ? null : new BankLayout(bank.loraA().getManager(), bank, Ops.dtype(weight));
    register("weight", weight);
    register("bias", bias);
    if (bank != null) {
      requireDtype("gate", bank.gate());
      requireDtype("A", bank.loraA());
      register("moe_gate", bank.gate());
      register("lora_A", bank.loraA());
      register("lora_B", bank.loraB());
    }
  }

  private void requireDtype(String name, NDArray array) {
    if (array != null && Ops.dtype(array) != Ops.dtype(weight)) {
      throw new IllegalArgumentException(
          "%s is %s and the weight %s: both must be of one dtype"
              .formatted(name, Ops.dtype(array).label(), Ops.dtype(weight).label()));
    }
  }

  /**
   * One pass of this layer by itself.
   *
   * @param x {@code (…, in)}; results belong to its manager
   */
  public Output forward(NDArray x, ForwardContext context) {
    return alone().forward(x, context).getFirst();
  }

  private synchronized GatedForward alone() {
    if (alone == null) {
      alone = provider.of(List.of(this));
    }
    return alone;
  }

  /**
   * The formula in tensor operations, on any device, recorded for backward or not.
   *
   * @param x {@code (…, in)}
   * @param sum computes its sum
   */
  public Output formula(NDArray x, ForwardContext context, ForwardStrategy sum) {
    var y = base(x); // x Wᵀ (+ bias)
    if (bank == null) {
      return new Output(y, null);
    }
    if (context.training()) {
      layout.parametersMayChange();
    }
    var shape = x.getShape();
    var rows = rows(x);
    NDArray logits = null;
    Routing routing;
    switch (router(context)) {
      case Router.Scoring scoring -> {
        logits = scoring.scores(this, rows);
        boolean training =
            scoring instanceof Router.Gates
                && (context.training() || context.mode() == ForwardMode.REFERENCE);
        routing =
            training
                ? Gate.training(logits, topK(context))
                : Gate.inference(logits, topK(context), context.routing().temperature());
      }
      case Router.Choosing choosing ->
          routing = Gate.upload(rows.getManager(), choosing.choose(this, rows, batchRows(shape)));
      case Router.Weighing weighing -> routing = Gate.all(weighing.weights(this, rows, context));
      case Router.Probe probe -> {
        probe.see(this, rows, batchRows(shape));
        return new Output(y, null);
      }
      case Router.Probing probing -> throw unprobed(probing);
      case Router.Reading reading -> throw unprobed(reading);
    }
    if (context.listener().isPresent()) {
      report(context, routing.download(), shape);
    }
    if (bank.totalRank() > 0) { // Σ weight_i · s_i · (dropout(x) A_iᵀ) B_iᵀ
      double p = dropout(context);
      var input = p > 0 ? Ops.dropout(rows, p) : rows;
      y = y.add(like(sum.contribution(input, layout, routing, context.training()), y.getShape()));
    }
    return new Output(y, logits == null ? null : like(logits, withLast(shape, bank.size())));
  }

  /** The base product alone: {@code x Wᵀ (+ bias)}. */
  public NDArray base(NDArray x) {
    return Ops.linear(x, weight, bias);
  }

  /** {@code x} as {@code (tokens, in)}. */
  public static NDArray rows(NDArray x) {
    var shape = x.getShape();
    return shape.dimension() == 2 ? x : x.reshape(-1, shape.get(shape.dimension() - 1));
  }

  /** The same rows, a token each, in this shape. */
  public static NDArray like(NDArray rows, Shape shape) {
    return shape.dimension() == 2 ? rows : rows.reshape(shape);
  }

  /** W {@code (out, in)}. */
  public NDArray weight() {
    return weight;
  }

  /** {@code (out)} or null. */
  public NDArray bias() {
    return bias;
  }

  /** The adapters; null for a plain linear layer. */
  public AdapterBank bank() {
    return bank;
  }

  /** The adapters with what was derived from them; null for a plain linear layer. */
  public BankLayout layout() {
    return layout;
  }

  /** Decoder layer. */
  public int layer() {
    return layer;
  }

  /** Which linear of a decoder layer it is. */
  public Projection projection() {
    return projection;
  }

  /** Its path in the model, such as {@code model.layers.0.self_attn.q_proj}. */
  public String path() {
    return projection.path(layer);
  }

  /** Whether the gate chooses. */
  public boolean gated(ForwardContext context) {
    return router(context) instanceof Router.Gates;
  }

  /** Who chooses here: the context's router, unless there is nothing to choose. */
  public Router router(ForwardContext context) {
    var router = context.routing().router();
    boolean chooses = !(router instanceof Router.Weighing || router instanceof Router.Probe);
    if (bank.gate() == null && bank.size() == 1 && chooses) {
      return ONLY;
    }
    if (router instanceof Router.Gates && bank.gate() == null) {
      throw new IllegalStateException(bank.size() + " adapters, no gate, and no other router");
    }
    return router;
  }

  /** What a router that must see the prompts first is without having seen them. */
  public static IllegalStateException unprobed(Router router) {
    return new IllegalStateException(
        router.name() + " must see the prompts first: use a Generator");
  }

  /** Whether there is one adapter, and nothing chooses. */
  public boolean isOnly(ForwardContext context) {
    return router(context) == ONLY;
  }

  /** k, cut to the adapters there are. */
  public int topK(ForwardContext context) {
    return Math.min(context.routing().topK(), bank.size());
  }

  /** How much of the adapters' input training drops. */
  public double dropout() {
    return dropout;
  }

  /** How much of the adapters' input this pass drops. */
  public double dropout(ForwardContext context) {
    return context.training() && context.dropout() ? dropout : 0;
  }

  /**
   * Tells the listener, if there is one, of the routing of an input of this shape; not of the only
   * adapter there is.
   */
  public void report(ForwardContext context, Choice choice, Shape shape) {
    if (context.listener().isPresent() && !isOnly(context)) {
      int rows = batchRows(shape);
      context
          .listener()
          .get()
          .onRouting(
              layer,
              projection.ordinal(),
              rows,
              choice.tokens() / rows,
              choice.topK(),
              choice.indices(),
              choice.weights());
    }
  }

  /** Batch rows of an input of this shape. */
  public static int batchRows(Shape shape) {
    return shape.dimension() == 3 ? (int) shape.get(0) : 1;
  }

  /** A shape with another last dimension. */
  public static Shape withLast(Shape shape, long last) {
    var dimensions = shape.getShape().clone();
    dimensions[dimensions.length - 1] = last;
    return new Shape(dimensions);
  }

  @Override
  protected NDList run(NDList inputs, boolean training) {
    var context = ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO);
    var output = forward(inputs.head(), training ? context.forTraining(true) : context);
    return training && output.gateLogits() != null
        ? new NDList(output.y(), output.gateLogits())
        : new NDList(output.y());
  }

  @Override
  public Shape[] getOutputShapes(Shape[] inputShapes) {
    return new Shape[] {withLast(inputShapes[0], weight.getShape().get(0))};
  }

  @Override
  public String toString() {
    return "GatedLinear(in=%s, out=%s%s)"
        .formatted(
            weight.getShape().get(1),
            weight.getShape().get(0),
            bank == null ? "" : ", adapters=" + bank.size() + ", ranks=" + bank.totalRank());
  }
}
