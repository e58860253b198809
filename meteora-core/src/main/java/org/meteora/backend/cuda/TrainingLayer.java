package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.AttentionRows;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.cuda.kernel.TrainingKernels.Dropped;
import org.meteora.cuda.kernel.TrainingKernels.Norm;
import org.meteora.model.Architecture;
import org.meteora.model.Gradients;
import org.meteora.model.Llama;
import org.meteora.model.RmsNorm;
import org.meteora.model.RotaryEmbedding;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * A decoder layer in training, forward and backward, on addresses. What lies between products is
 * made again where it is needed: of the forward pass z and logits, q, k, v, the sum behind
 * attention, gate and up are kept, and attention, which libtorch records.
 *
 * <p>Long, because forward and backward share what the pass keeps, and are read side by side.
 */
final class TrainingLayer {
  private static final int INPUTS = Projection.Input.values().length;

  /**
   * Shorter sequences go through flash attention, but for the lengths that samples are cut to: what
   * libtorch chooses may build a plan for each length, which takes longer than attention does.
   */
  private static final int FLASH_LENGTH = 1024;

  private static final int CUT_LENGTHS = 128;

  private final int index;
  private final Architecture shape;
  private final Dtype dtype;
  private final boolean flash;
  private final List<TrainingGroup> groups = new ArrayList<>();
  private final Norm inputNorm;
  private final Norm postAttentionNorm;

  /**
   * @param flash whether there is {@link Ops#flashAttention}
   */
  TrainingLayer(
      Llama llama,
      int index,
      boolean flash,
      Gradients gradients,
      TrainingDevice device,
      NDManager manager) {
    this.index = index;
    shape = llama.config();
    dtype = llama.dtype();
    this.flash = flash;
    var layer = llama.layers().get(index);
    for (var input : Projection.Input.values()) {
      groups.add(new TrainingGroup(layer.projections(input), gradients, device, manager));
    }
    inputNorm = norm(layer.inputNorm());
    postAttentionNorm = norm(layer.postAttentionNorm());
  }

  static Norm norm(RmsNorm norm) {
    int hidden = (int) norm.weight().getShape().get(0);
    return new Norm(Ops.dataPointer(norm.weight()), hidden, norm.eps());
  }

  List<TrainingGroup> groups() {
    return groups;
  }

  private TrainingGroup group(Projection.Input input) {
    return groups.get(input.ordinal());
  }

  /**
   * What a pass over some tokens is.
   *
   * @param rows of the batch
   * @param seq the longest row
   * @param slots int32: each token's place in padded rows, on the device; 0: there is no padding
   * @param dropout probability, and a seed that each layer and input takes its own from
   */
  record Pass(
      TrainingGroup.Pass group,
      int rows,
      int seq,
      long slots,
      RotaryEmbedding.Angles angles,
      Dropout dropout,
      TrainingKernels.Counts counts,
      TrainingMemory.Scratch scratch,
      NDManager scope) {
    int tokens() {
      return group.tokens();
    }

    TrainingKernels kernels() {
      return group.kernels();
    }

    Watching watch() {
      return group.watch();
    }

    Pass withoutCounts() {
      var none = TrainingKernels.Counts.NONE;
      return new Pass(group, rows, seq, slots, angles, dropout, none, scratch, scope);
    }
  }

  private Dropout dropout(Pass pass, Projection.Input input) {
    if (pass.dropout().threshold() == 0 || !group(input).hasAdapters()) {
      return Dropout.NONE;
    }
    long place = (long) index * INPUTS + input.ordinal();
    long z = pass.dropout().seed() + place * 0xD1342543DE82EF95L;
    z = (z ^ (z >>> 32)) * 0xDABA0B6EB09322E3L;
    return new Dropout(z ^ (z >>> 29), pass.dropout().threshold(), pass.dropout().scale());
  }

  /** What dropout leaves of an input, or the bits of what it keeps: at {@code address}. */
  private Dropped dropped(Pass pass, Projection.Input input, long address) {
    var dropout = dropout(pass, input);
    if (dropout.threshold() == 0) {
      return Dropped.NONE;
    }
    boolean masks = group(input).masks(pass.group());
    return new Dropped(masks ? 0 : address, masks ? address : 0, dropout);
  }

  private Dropped dropped(Pass pass, Projection.Input input) {
    return dropped(pass, input, pass.scratch().dropped(input));
  }

  /** What is kept of a layer's forward pass for its backward pass. */
  record Kept(long[] rows, long q, long k, long v, long h, long gate, long up) {
    long rows(Projection.Input input) {
      return rows[input.ordinal()];
    }
  }

  Kept kept(TrainingMemory.Region region, long tokens, long positions) {
    var rows = new long[INPUTS];
    for (int i = 0; i < INPUTS; i++) {
      rows[i] = region.take(tokens * groups.get(i).bytesOfRows());
    }
    long many = Math.max(tokens, positions);
    int bytes = dtype.bytes();
    return new Kept(
        rows,
        region.take(many * heads() * bytes),
        region.take(many * keyValueHeads() * bytes),
        region.take(many * keyValueHeads() * bytes),
        region.take(tokens * shape.hiddenSize() * bytes),
        region.take(tokens * shape.intermediateSize() * bytes),
        region.take(tokens * shape.intermediateSize() * bytes));
  }

  private long heads() {
    return (long) shape.numAttentionHeads() * shape.headDim();
  }

  private long keyValueHeads() {
    return (long) shape.numKeyValueHeads() * shape.headDim();
  }

  /** Attention as libtorch recorded it. */
  record Attended(NDManager scope, NDArray[] inputs, NDArray output) implements AutoCloseable {
    @Override
    public void close() {
      scope.close();
    }
  }

  /**
   * Forward.
   *
   * @param x {@code (tokens, hidden)}
   * @param output as x, and may be x; written; 0: not wanted, and only what the backward pass needs
   *     is computed
   * @param record whether attention is to be recorded
   */
  Attended forward(Pass pass, long x, Kept kept, long output, boolean record) {
    int tokens = pass.tokens();
    var s = pass.scratch();
    var kernels = pass.kernels();
    var watch = pass.watch();
    watch.between();
    var dropped = dropped(pass, Projection.Input.ATTENTION);
    long normed = s.normed(Projection.Input.ATTENTION);
    kernels.norm(tokens, inputNorm, x, 0, 0, normed, dropped);
    var flat = s.flat(pass.slots() != 0, kept);
    project(pass, Projection.Input.ATTENTION, normed, dropped, kept, flat);

    watch.between();
    intoRows(pass, kept, flat);
    watch.attention();
    var attended = attend(pass, kept, record);
    watch.between();
    long heads = heads(pass, attended.output(), s.wide());

    dropped = dropped(pass, Projection.Input.ATTENTION_HEADS);
    if (dropped.address() != 0) {
      kernels.drop(tokens, (int) heads(), heads, dropped);
    }
    project(pass, Projection.Input.ATTENTION_HEADS, heads, dropped, kept, s.sum());

    watch.between();
    dropped = dropped(pass, Projection.Input.MLP);
    normed = s.normed(Projection.Input.MLP);
    kernels.norm(tokens, postAttentionNorm, x, s.sum(), kept.h(), normed, dropped);
    project(pass, Projection.Input.MLP, normed, dropped, kept, kept.gate(), kept.up());

    watch.between();
    dropped = dropped(pass, Projection.Input.MLP_INNER, s.droppedInner());
    kernels.silu(tokens, shape.intermediateSize(), kept.gate(), kept.up(), s.inner(), dropped);
    if (output != 0) {
      // not into scratch, where what the backward pass can use again would be lost
      project(pass, Projection.Input.MLP_INNER, s.inner(), dropped, kept, output);
      watch.between();
      kernels.add((long) tokens * shape.hiddenSize(), kept.h(), output, output);
    } else {
      rows(pass, Projection.Input.MLP_INNER, s.inner(), dropped, kept);
    }
    return attended;
  }

  private void project(
      Pass pass, Projection.Input input, long x, Dropped dropped, Kept kept, long... outputs) {
    rows(pass, input, x, dropped, kept);
    group(input).forward(pass.group(), x, kept.rows(input), outputs, pass.counts());
  }

  private void rows(Pass pass, Projection.Input input, long x, Dropped dropped, Kept kept) {
    pass.watch().adapters(true);
    group(input).rows(pass.group(), x, dropped, kept.rows(input));
  }

  /** q, k and v into rows for attention, rotated. */
  private void intoRows(Pass pass, Kept kept, long[] flat) {
    if (pass.slots() != 0) {
      var device = pass.scratch().device();
      long positions = (long) pass.rows() * pass.seq();
      int bytes = dtype.bytes();
      device.clear(kept.q(), positions * heads() * bytes);
      device.clear(kept.k(), positions * keyValueHeads() * bytes);
      device.clear(kept.v(), positions * keyValueHeads() * bytes);
    }
    moveHeads(pass, flat, rowsOf(pass, kept.q(), kept.k(), kept.v()), false, true);
  }

  /** Rows {@code (batch, seq, heads, headDim)}, one after another. */
  private AttentionRows rowsOf(Pass pass, long... addresses) {
    var rowStrides = new long[addresses.length];
    var headStrides = new long[addresses.length];
    var tokenStrides = new long[addresses.length];
    for (int i = 0; i < addresses.length; i++) {
      long width = i == 0 ? heads() : keyValueHeads();
      rowStrides[i] = pass.seq() * width;
      headStrides[i] = shape.headDim();
      tokenStrides[i] = width;
    }
    return new AttentionRows(addresses, rowStrides, headStrides, tokenStrides);
  }

  /** Over an address: {@code (batch, heads, seq, headDim)}. */
  private NDArray view(NDManager scope, Pass pass, long address, int heads) {
    long d = shape.headDim();
    long width = heads * d;
    return Ops.view(
        scope,
        address,
        dtype,
        new long[] {pass.rows(), heads, pass.seq(), d},
        new long[] {pass.seq() * width, d, width, 1});
  }

  private Attended attend(Pass pass, Kept kept, boolean record) {
    var scope = pass.scope().newSubManager();
    try (var recording = record ? Ops.recording() : Ops.notRecording()) {
      var inputs =
          new NDArray[] {
            view(scope, pass, kept.q(), shape.numAttentionHeads()),
            view(scope, pass, kept.k(), shape.numKeyValueHeads()),
            view(scope, pass, kept.v(), shape.numKeyValueHeads())
          };
      if (record) {
        for (var input : inputs) {
          input.setRequiresGradient(true);
        }
      }
      var output =
          flash && pass.seq() < FLASH_LENGTH && pass.seq() % CUT_LENGTHS != 0
              ? Ops.flashAttention(inputs[0], inputs[1], inputs[2])
              : Ops.attention(inputs[0], inputs[1], inputs[2], null, true);
      return new Attended(scope, inputs, output);
    } catch (RuntimeException e) {
      scope.close();
      throw e;
    }
  }

  /** Attention's result, token after token: its own memory, or a copy at {@code copy}. */
  private long heads(Pass pass, NDArray output, long copy) {
    long d = shape.headDim();
    var strides = Ops.strides(output);
    boolean plain =
        pass.slots() == 0
            && strides[3] == 1
            && strides[1] == d
            && strides[2] == heads()
            && (pass.rows() == 1 || strides[0] == pass.seq() * heads());
    if (plain) {
      return Ops.dataPointer(output);
    }
    fromRows(pass, List.of(output), new long[] {copy}, false);
    return copy;
  }

  /** Heads of attention's tensors to tokens; {@code turned}: q and k are turned back. */
  private void fromRows(Pass pass, List<NDArray> tensors, long[] flat, boolean turned) {
    int count = tensors.size();
    var rows =
        new AttentionRows(new long[count], new long[count], new long[count], new long[count]);
    for (int i = 0; i < count; i++) {
      var strides = Ops.strides(tensors.get(i));
      if (strides[3] != 1) {
        throw new IllegalStateException("attention gave heads that do not lie together");
      }
      rows.addresses()[i] = Ops.dataPointer(tensors.get(i));
      rows.rowStrides()[i] = strides[0];
      rows.headStrides()[i] = strides[1];
      rows.tokenStrides()[i] = strides[2];
    }
    moveHeads(pass, flat, rows, true, turned);
  }

  /**
   * Heads between tokens and attention's rows.
   *
   * @param flat of q, k and v, or of q alone
   * @param back from attention's rows to tokens
   * @param turned whether q and k are turned by their positions' angles on the way, or back
   */
  private void moveHeads(Pass pass, long[] flat, AttentionRows rows, boolean back, boolean turned) {
    pass.kernels()
        .heads(
            pass.tokens(),
            pass.seq(),
            shape.numAttentionHeads(),
            flat.length == 1 ? 0 : shape.numKeyValueHeads(),
            shape.headDim(),
            flat,
            rows,
            pass.slots(),
            back,
            turned ? Ops.dataPointer(pass.angles().cos()) : 0,
            turned ? Ops.dataPointer(pass.angles().sin()) : 0);
  }

  /**
   * Backward.
   *
   * @param kept of its forward pass; changed
   * @param attended of its forward pass; closed
   * @param slope the gradient of its output; becomes that of its input, if {@code toInput}
   * @param fresh whether its forward pass has just ended, and its products' inputs are still there
   */
  void backward(
      Pass pass, long x, Kept kept, Attended attended, long slope, boolean toInput, boolean fresh) {
    int tokens = pass.tokens();
    var s = pass.scratch();
    int inner = shape.intermediateSize();
    var kernels = pass.kernels();
    var watch = pass.watch();

    watch.between();
    var its = dropped(pass, Projection.Input.MLP_INNER, s.droppedInner());
    if (makesAgain(Projection.Input.MLP_INNER, fresh)) {
      kernels.silu(tokens, inner, kept.gate(), kept.up(), s.inner(), its);
    }
    long left = backward(pass, Projection.Input.MLP_INNER, s.inner(), its, kept, s.inner(), slope);
    watch.between();
    kernels.siluBackward(tokens, inner, kept.gate(), kept.up(), s.inner(), left, its.dropout());

    its = dropped(pass, Projection.Input.MLP);
    long n = s.normed(Projection.Input.MLP);
    if (makesAgain(Projection.Input.MLP, fresh)) {
      kernels.norm(tokens, postAttentionNorm, kept.h(), 0, 0, n, its);
    }
    left = backward(pass, Projection.Input.MLP, n, its, kept, n, kept.gate(), kept.up());
    watch.between();
    kernels.normBackward(tokens, postAttentionNorm, kept.h(), n, left, slope, slope, its.dropout());

    its = dropped(pass, Projection.Input.ATTENTION_HEADS);
    long heads = heads(pass, attended.output(), s.wide());
    if (!fresh && its.address() != 0) {
      kernels.drop(tokens, (int) heads(), heads, its);
    }
    left = backward(pass, Projection.Input.ATTENTION_HEADS, heads, its, kept, s.wide(), slope);
    watch.between();
    if (left != 0) {
      kernels.drop(tokens, (int) heads(), left, s.wide(), true, its.dropout());
    }
    attentionBackward(pass, kept, attended);

    its = dropped(pass, Projection.Input.ATTENTION);
    n = s.normed(Projection.Input.ATTENTION);
    if (makesAgain(Projection.Input.ATTENTION, fresh)) {
      kernels.norm(tokens, inputNorm, x, 0, 0, n, its);
    }
    long to = toInput ? n : 0;
    left =
        backward(pass, Projection.Input.ATTENTION, n, its, kept, to, kept.q(), kept.k(), kept.v());
    if (toInput) {
      watch.between();
      kernels.normBackward(tokens, inputNorm, x, n, left, slope, slope, its.dropout());
    }
  }

  /**
   * Whether an input of products, which gradients of adapters are made of, has to be made again.
   */
  private boolean makesAgain(Projection.Input input, boolean fresh) {
    return !fresh && group(input).hasAdapters();
  }

  /** As {@link TrainingGroup#backward}. */
  private long backward(
      Pass pass,
      Projection.Input input,
      long x,
      Dropped dropped,
      Kept kept,
      long slopeOfX,
      long... slopes) {
    pass.watch().adapters(false);
    long rows = kept.rows(input);
    return group(input).backward(pass.group(), x, dropped, rows, slopes, slopeOfX);
  }

  /** From the gradient of attention's result in {@code s.wide} to those of q, k and v. */
  private void attentionBackward(Pass pass, Kept kept, Attended attended) {
    try (attended) {
      var s = pass.scratch();
      long from = s.wide();
      if (pass.slots() != 0) {
        long positions = (long) pass.rows() * pass.seq();
        from = s.padded();
        s.device().clear(from, positions * heads() * dtype.bytes());
        moveHeads(pass, new long[] {s.wide()}, rowsOf(pass, from), false, false);
      }
      pass.watch().attention();
      var gradient = view(attended.scope(), pass, from, shape.numAttentionHeads());
      Ops.backward(attended.output(), gradient);
      pass.watch().between();
      var slopes = new ArrayList<NDArray>();
      for (var input : attended.inputs()) {
        NDArray slope = JniUtils.getGradient((PtNDArray) input);
        slope.attach(attended.scope());
        slopes.add(slope);
      }
      fromRows(pass, slopes, new long[] {kept.q(), kept.k(), kept.v()}, true);
    }
  }
}
