package org.meteora.backend.cpu;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import org.meteora.model.RmsNorm;
import org.meteora.model.RotaryEmbedding;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;
import org.meteora.moe.GatedTape;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Training passes through layers whose adapters are computed in Java, forward and backward: on the
 * CPU in float32, where libtorch's operations for the few ranks that act on a token cost more than
 * the arithmetic they do.
 *
 * <p>Such a layer is a gap in libtorch's graph: its result and its gate's logits are leaves. After
 * the backward pass from what was computed of them, {@link #backward} takes the layers from the
 * last to the first, computes the gradients of their parameters and of their input from that of
 * their result, and sends the input's on into libtorch's graph, up to the results of the layers
 * before. All gated layers between the input and the result of a pass must be on one tape.
 */
final class CpuTape implements GatedTape {
  private sealed interface Entry {}

  /**
   * @param scales of its rows
   */
  private record Norm(RmsNorm norm, NDArray x, NDArray y, float[] scales) implements Entry {}

  private record Linear(
      NDArray x, boolean firstOfInput, CpuInput input, NDArray y, NDArray logits, CpuTraining work)
      implements Entry {}

  private final NDManager manager;
  private final List<Entry> entries = new ArrayList<>();
  private final Set<NDArray> inputs = Collections.newSetFromMap(new IdentityHashMap<>());

  /** Results of norms, and of layers that were rotated. */
  private final Set<NDArray> normed = Collections.newSetFromMap(new IdentityHashMap<>());

  private final Map<NDArray, RotaryEmbedding.Angles> rotated = new IdentityHashMap<>();

  /** Of the layer before; null at first. */
  private CpuInput latest;

  /**
   * @param parent gives the device; what the tape keeps is freed when the tape is closed
   */
  CpuTape(NDManager parent) {
    manager = parent.newSubManager();
  }

  @Override
  public Output forward(GatedLinear layer, NDArray x, ForwardContext context) {
    boolean keep = Ops.isRecording();
    var owner = x.getManager();
    try (var off = Ops.notRecording();
        NDManager scope = keep ? null : manager.newSubManager()) {
      double p = layer.dropout(context);
      if (latest == null || !latest.isOf(x, p)) {
        if (!keep) { // else x̃ is kept for backward
          release();
        }
        latest = new CpuInput(manager, x, p);
      }
      var work = new CpuTraining(layer, keep ? manager : scope, x, latest, context);
      var y = work.result();
      var logits = work.logits();
      y.attach(owner);
      if (logits != null) {
        logits.attach(owner);
      }
      if (keep) {
        y.setRequiresGradient(true);
        if (logits != null) {
          logits.setRequiresGradient(true);
        }
        entries.add(new Linear(x, inputs.add(x), latest, y, logits, work));
      }
      return new Output(y, logits);
    }
  }

  /** What the layers before shared; the next begin anew. */
  private void release() {
    if (latest != null) {
      latest.release();
      latest = null;
    }
  }

  /** A norm, as {@link CpuLayerOps}. */
  NDArray norm(NDArray x, RmsNorm norm) {
    boolean keep = Ops.isRecording();
    try (var off = Ops.notRecording()) {
      var shape = x.getShape();
      int rows = (int) (shape.size() / shape.get(shape.dimension() - 1));
      var scales = new float[rows];
      var y = CpuLayerOps.norm(x, norm, scales);
      if (keep) {
        y.setRequiresGradient(true);
        entries.add(new Norm(norm, x, y, scales));
        normed.add(y);
      }
      return y;
    }
  }

  /** Rotates the result of a layer on this tape in place: backward needs nothing of it. */
  void rotate(NDArray y, RotaryEmbedding.Angles angles) {
    CpuLayerOps.rotate(y, angles);
    if (Ops.isRecording()) {
      rotated.put(y, angles);
    }
  }

  @Override
  public void backward(boolean toInput) {
    latest = null;
    var start = toInput ? null : firstInput();
    var gradients = new IdentityHashMap<NDArray, NDArray>();
    for (int i = entries.size() - 1; i >= 0; i--) {
      try (NDManager scope = manager.newSubManager()) {
        switch (entries.get(i)) {
          case Norm norm -> backward(norm, gradients.remove(norm.y()), scope);
          case Linear linear -> {
            backward(linear, start, gradients, scope);
            if (i == 0
                || !(entries.get(i - 1) instanceof Linear before)
                || before.input() != linear.input()) {
              endOfInput(linear, gradients.get(linear.x()));
            }
            if (linear.firstOfInput() && !normed.contains(linear.x())) {
              toGraph(linear.x(), gradients.remove(linear.x()));
            }
          }
        }
      }
    }
    entries.clear();
    inputs.clear();
    normed.clear();
    rotated.clear();
  }

  private NDArray firstInput() {
    for (var entry : entries) {
      if (entry instanceof Linear linear) {
        return linear.x();
      }
    }
    return null;
  }

  /**
   * @param start what needs no gradient, or null
   * @param gradients of inputs, added to
   */
  private void backward(
      Linear entry, NDArray start, Map<NDArray, NDArray> gradients, NDManager scope) {
    var y = gradient(entry.y(), scope);
    var logits = entry.logits() == null ? null : gradient(entry.logits(), scope);
    if (y == null && logits == null) {
      return;
    }
    try (var off = Ops.notRecording()) {
      if (y == null) { // the logits alone went on: a loss of the gates by themselves
        y = Ops.zeros(scope, Dtype.F32, entry.y().getShape().getShape());
      } else if (rotated.containsKey(entry.y())) {
        CpuLayerOps.rotateBackward(y, rotated.get(entry.y()));
      }
      var gx = gradients.get(entry.x());
      boolean firstToIt = gx == null && entry.x() != start;
      if (firstToIt) {
        gx = Ops.empty(manager, Dtype.F32, entry.work().inputShape());
        gradients.put(entry.x(), gx);
      }
      entry.work().backward(scope, y, logits, gx, firstToIt);
    }
  }

  /** All layers of an input have added to its gradient. */
  private static void endOfInput(Linear entry, NDArray gx) {
    if (gx != null) {
      var shape = entry.work().inputShape();
      entry.input().addTo(Ops.memory(gx), (int) shape[0], (int) shape[1]);
    }
    entry.input().release();
  }

  /**
   * @param ofLayers the result's gradient from layers on this tape, given away; or null
   */
  private static void backward(Norm entry, NDArray ofLayers, NDManager scope) {
    var gradient = gradient(entry.y(), scope);
    if (ofLayers != null) {
      ofLayers.attach(scope);
    }
    var all = gradient == null ? ofLayers : gradient;
    if (all == null) {
      return;
    }
    try (var off = Ops.notRecording()) {
      if (all != ofLayers && ofLayers != null) {
        all.addi(ofLayers.reshape(all.getShape()));
      }
      CpuLayerOps.normBackward(entry.x(), entry.norm(), entry.scales(), all);
    }
    toGraph(entry.x(), Ops.alias(scope, all));
  }

  /** Sends a gradient on from here, and frees it. */
  private static void toGraph(NDArray x, NDArray gradient) {
    if (gradient != null) {
      try (var gx = gradient;
          var shaped = gx.reshape(x.getShape())) {
        Ops.backward(x, shaped);
      }
    }
  }

  /** Of a leaf; libtorch's binding says no for everything else. */
  static boolean requiresGradient(NDArray array) {
    return JniUtils.requiresGrad((PtNDArray) array);
  }

  /**
   * Where gradients of a leaf are added up: libtorch's own tensor for them, made of zeros where
   * there is none yet.
   *
   * @param scope holds the tensor as long as the memory is used
   */
  static MemorySegment gradientMemory(NDArray leaf, NDManager scope) {
    NDArray gradient = JniUtils.getGradient((PtNDArray) leaf);
    if (gradient == null) {
      Ops.backward(leaf, Ops.zeros(scope, Dtype.F32, leaf.getShape().getShape()));
      gradient = JniUtils.getGradient((PtNDArray) leaf);
    }
    gradient.attach(scope);
    return Ops.memory(gradient);
  }

  private static NDArray gradient(NDArray leaf, NDManager owner) {
    NDArray gradient = JniUtils.getGradient((PtNDArray) leaf);
    if (gradient == null) {
      return null;
    }
    gradient.attach(owner);
    var rowMajor = Ops.contiguous(gradient);
    rowMajor.attach(owner);
    return rowMajor;
  }

  @Override
  public void close() {
    manager.close();
  }
}
