package org.meteora.moe;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.ndarray.types.Shape;
import ai.djl.nn.AbstractBlock;
import ai.djl.nn.Parameter;
import ai.djl.training.ParameterStore;
import ai.djl.util.PairList;
import java.util.List;
import org.meteora.UserException;
import org.meteora.backend.cpu.HostForward;
import org.meteora.backend.cuda.GpuTraining;
import org.meteora.lora.AdapterBank;
import org.meteora.moe.forward.ForwardMode;
import org.meteora.moe.forward.ForwardStrategy;
import org.meteora.moe.forward.GatherForward;
import org.meteora.moe.forward.LoopForward;
import org.meteora.moe.forward.MaskedForward;
import org.meteora.moe.forward.ReferenceForward;
import org.meteora.tensor.Dtype;
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
 * <p>Input {@code (…, in)}, output {@code (…, out)}, float32, float16 or bfloat16 like the weights;
 * routing weights are computed in float32. As a DJL block it takes one array and returns one; in
 * training it returns the gate logits {@code (…, N)} as a second. The frozen weight is never
 * copied. Without adapters it is a plain linear layer; with one adapter and no gate it is a PEFT
 * LoRA layer.
 */
public final class MoeLinear extends AbstractBlock {
  private static final byte VERSION = 1;

  /**
   * From this many tokens on, looping over adapters beats gathering their rows (CPU, rank 8, k 2;
   * see docs/performance.md).
   */
  public static final int LOOP_FROM_TOKENS = 16;

  private final NDArray weight;
  private final NDArray bias;
  private final AdapterBank bank;
  private final BankLayout layout;
  private final RoutingControl control;
  private final double dropout;
  private final int layer;
  private final int module;
  private LinearGroup alone;

  /**
   * What a pass gives.
   *
   * @param y {@code (…, out)}
   * @param gateLogits {@code (…, N)}; null without a gate
   */
  public record Output(NDArray y, NDArray gateLogits) {}

  /**
   * @param weight W {@code (out, in)}
   * @param bias {@code (out)} or null
   * @param bank the adapters, or null for a plain linear layer
   * @param control what all gated layers of a model share
   * @param dropout on the adapters' input, in training
   * @param layer decoder layer, told to the routing listener
   * @param module 0…6, told to the routing listener
   */
  public MoeLinear(
      NDArray weight,
      NDArray bias,
      AdapterBank bank,
      RoutingControl control,
      double dropout,
      int layer,
      int module) {
    super(VERSION);
    this.weight = weight;
    this.bias = bias;
    this.bank = bank;
    this.control = control;
    this.dropout = dropout;
    this.layer = layer;
    this.module = module;
    this.layout =
        bank == null ? null : new BankLayout(bank.loraA().getManager(), bank, Ops.dtype(weight));
    register("weight", weight);
    register("bias", bias);
    if (bank != null) {
      register("moe_gate", bank.gate());
      register("lora_A", bank.loraA());
      register("lora_B", bank.loraB());
    }
  }

  private void register(String name, NDArray array) {
    if (array != null) {
      var parameter =
          addParameter(Parameter.builder().setName(name).setType(Parameter.Type.OTHER).build());
      parameter.setArray(array);
    }
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

  /**
   * Bᵀ {@code (Σr, out)}, row-major, in the weight's dtype; owned by this layer. A training pass
   * gives it back.
   */
  public NDArray loraBTransposed() {
    return layout.loraBTransposed(false);
  }

  /**
   * One pass.
   *
   * @param x {@code (…, in)}; results belong to its manager
   * @param training training's routing, dropout, and gradients to gate, A and B
   */
  public Output forward(NDArray x, boolean training) {
    return forward(x, training, true);
  }

  /**
   * As {@link #forward(NDArray, boolean)}.
   *
   * @param wantLogits whether the result must have the gate logits; without them few tokens on a
   *     GPU need fewer launches
   */
  public Output forward(NDArray x, boolean training, boolean wantLogits) {
    if (alone == null) {
      alone = new LinearGroup(List.of(this));
    }
    return alone.forward(x, training, wantLogits).getFirst();
  }

  /** The base product alone: {@code x Wᵀ (+ bias)}. */
  public NDArray base(NDArray x) {
    return Ops.linear(x, weight, bias);
  }

  /** One pass by itself: without what a {@link LinearGroup} does for several. */
  public Output compute(NDArray x, boolean training, boolean wantLogits) {
    var y = base(x);
    if (bank == null) {
      return new Output(y, null);
    }
    if (training) {
      layout.parametersMayChange();
    }
    var shape = x.getShape();
    long in = shape.get(shape.dimension() - 1);
    var flags = control.flags();
    boolean gated = bank.gate() != null && flags.singleAdapter().isEmpty();
    sayFallback(training);
    boolean best = flags.mode() == ForwardMode.AUTO || flags.mode() == ForwardMode.FUSED;
    boolean gpu = weight.getDevice().isGpu();
    if (best && !training && HostForward.fits(x)) {
      return onHost(x, y, gated, wantLogits);
    }
    var rows = shape.dimension() == 2 ? x : x.reshape(-1, in);
    if (gpu && training && gated && trainsMasked(flags.mode())) {
      var result =
          GpuTraining.forward(
              rows,
              layout,
              Math.min(control.settings().topK(), bank.size()),
              control.dropout() ? dropout : 0);
      return new Output(
          y.add(shape.dimension() == 2 ? result.added() : result.added().reshape(y.getShape())),
          shape.dimension() == 2
              ? result.logits()
              : result.logits().reshape(withLast(shape, bank.size())));
    }
    NDArray logits = gated ? Ops.linear(rows, bank.gate(), null) : null;
    boolean reference = flags.mode() == ForwardMode.REFERENCE;
    int topK = topK();
    Routing routing;
    if (!gated) {
      routing = fixed(rows);
    } else if (training || reference) {
      routing = Gate.training(logits, topK);
    } else {
      routing = Gate.inference(logits, topK, control.settings().temperature());
    }
    if (control.listener() != null && gated) {
      tell(routing, shape);
    }
    if (bank.totalRank() > 0) {
      var input = training && dropoutInTraining() > 0 ? Ops.dropout(rows, dropout) : rows;
      var added =
          strategy(flags.mode(), routing.tokens(), training).contribution(input, layout, routing);
      y = y.add(shape.dimension() == 2 ? added : added.reshape(y.getShape()));
    }
    var logitsShaped =
        logits == null || shape.dimension() == 2
            ? logits
            : logits.reshape(withLast(shape, bank.size()));
    return new Output(y, logitsShaped);
  }

  /** Batch rows of an input of this shape. */
  public static int rows(Shape shape) {
    return shape.dimension() == 3 ? (int) shape.get(0) : 1;
  }

  /** Whether training on a GPU takes the masked form that was made for it. */
  private boolean trainsMasked(ForwardMode mode) {
    boolean masked =
        mode == ForwardMode.AUTO || mode == ForwardMode.MASKED || mode == ForwardMode.FUSED;
    if (!masked || control.listener() != null || bank.totalRank() == 0) {
      return false;
    }
    var limits = Math.min(control.settings().topK(), bank.size()) <= 8 && bank.size() <= 256;
    try {
      if (limits) {
        org.meteora.cuda.driver.Nvrtc.get();
        return true;
      }
    } catch (UserException e) {
      Fallback.say("training on the GPU does without kernels of its own: " + e.getMessage());
    }
    return false;
  }

  private Output onHost(NDArray x, NDArray y, boolean gated, boolean wantLogits) {
    var shape = x.getShape();
    int in = (int) shape.get(shape.dimension() - 1);
    int tokens = (int) (shape.size() / in);
    try (var rows = Ops.contiguous(x)) {
      var logits =
          gated
              ? Ops.empty(x.getManager(), Dtype.F32, withLast(shape, bank.size()).getShape())
              : null;
      HostForward.Chosen chosen;
      if (gated) {
        chosen =
            HostForward.route(rows, bank.gate(), logits, topK(), control.settings().temperature());
        tell(chosen, shape);
      } else {
        chosen = HostForward.fixed(tokens, singleAdapter());
      }
      if (bank.totalRank() > 0) {
        HostForward.add(rows, y, layout, chosen);
      }
      if (gated && !wantLogits) {
        logits.close();
        logits = null;
      }
      return new Output(y, logits);
    }
  }

  /** Tells the listener, if there is one, of the routing of an input of this shape. */
  public void tell(HostForward.Chosen chosen, Shape shape) {
    if (control.listener() != null) {
      int rows = rows(shape);
      control
          .listener()
          .onRouting(
              layer,
              module,
              rows,
              chosen.tokens() / rows,
              chosen.topK(),
              chosen.indices(),
              chosen.weights());
    }
  }

  public BankLayout layout() {
    return layout;
  }

  public RoutingControl control() {
    return control;
  }

  public int layer() {
    return layer;
  }

  public int module() {
    return module;
  }

  public int topK() {
    return Math.min(control.settings().topK(), bank.size());
  }

  /** How much of the adapters' input a training pass drops now. */
  public double dropoutInTraining() {
    return control.dropout() ? dropout : 0;
  }

  /** Says so if the fused kernels are asked for where they are not used. */
  public void sayFallback(boolean training) {
    boolean gpu = weight.getDevice().isGpu();
    if (control.flags().mode() == ForwardMode.FUSED && (!gpu || training)) {
      Fallback.say(
          gpu
              ? "the fused kernels are for inference: training uses the masked form"
              : "the fused kernels need a CUDA device: on the CPU the best form for it is used");
    }
  }

  /** Whether the flags leave it to this class how to train on the CPU. */
  public boolean onHostInTraining() {
    var flags = control.flags();
    return flags.singleAdapter().isEmpty()
        && (flags.mode() == ForwardMode.AUTO || flags.mode() == ForwardMode.FUSED);
  }

  private int singleAdapter() {
    if (bank.gate() == null && bank.size() == 1) {
      return 0; // one adapter alone: there is nothing to choose
    }
    int adapter = control.flags().singleAdapter().orElse(0);
    if (adapter >= bank.size()) {
      throw new UserException(
          "MOELINEAR_SINGLE_MOE_LORA="
              + adapter
              + ": there are "
              + bank.size()
              + " adapters, counted from 0");
    }
    return adapter;
  }

  public static Shape withLast(Shape shape, long last) {
    var dimensions = shape.getShape().clone();
    dimensions[dimensions.length - 1] = last;
    return new Shape(dimensions);
  }

  private Routing fixed(NDArray rows) {
    long tokens = rows.getShape().get(0);
    var manager = rows.getManager();
    return new Routing(
        manager.full(new Shape(tokens, 1), singleAdapter(), DataType.INT64),
        manager.ones(new Shape(tokens, 1), DataType.FLOAT32));
  }

  private void tell(Routing routing, Shape shape) {
    int rows = rows(shape);
    if (control.gathering() != null) {
      control.gathering().tell(control.listener()); // those before it, first
    }
    var longs = routing.indices().toLongArray();
    var indices = new int[longs.length];
    for (int i = 0; i < longs.length; i++) {
      indices[i] = (int) longs[i];
    }
    control
        .listener()
        .onRouting(
            layer,
            module,
            rows,
            routing.tokens() / rows,
            routing.topK(),
            indices,
            routing.weights().toFloatArray());
  }

  private ForwardStrategy strategy(ForwardMode mode, int tokens, boolean training) {
    return switch (mode) {
      case REFERENCE -> new ReferenceForward();
      case ALL -> new LoopForward(false);
      case PARALLEL -> new LoopForward(true);
      case GATHER -> new GatherForward(training);
      case MASKED -> new MaskedForward();
      case FUSED, AUTO -> {
        if (weight.getDevice().isGpu()) {
          yield training || tokens > LOOP_FROM_TOKENS
              ? new MaskedForward()
              : new GatherForward(false);
        }
        yield training || tokens >= LOOP_FROM_TOKENS
            ? new LoopForward(false)
            : new GatherForward(false);
      }
    };
  }

  @Override
  protected NDList forwardInternal(
      ParameterStore parameterStore,
      NDList inputs,
      boolean training,
      PairList<String, Object> params) {
    var output = forward(inputs.head(), training);
    return training && output.gateLogits() != null
        ? new NDList(output.y(), output.gateLogits())
        : new NDList(output.y());
  }

  @Override
  public Shape[] getOutputShapes(Shape[] inputShapes) {
    return new Shape[] {withLast(inputShapes[0], weight.getShape().get(0))};
  }

  @Override
  protected void initializeChildBlocks(NDManager manager, DataType dataType, Shape... inputShapes) {
    // all parameters are given
  }

  @Override
  public String toString() {
    return "MoeLinear(in="
        + weight.getShape().get(1)
        + ", out="
        + weight.getShape().get(0)
        + (bank == null ? "" : ", adapters=" + bank.size() + ", ranks=" + bank.totalRank())
        + ")";
  }
}
