package org.meteora.backend.cpu;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
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
  private record Entry(
      GatedLinear layer,
      NDArray x,
      boolean firstOfInput,
      CpuInput input,
      NDArray y,
      NDArray logits,
      CpuTraining work) {}

  private final NDManager manager;
  private final List<Entry> entries = new ArrayList<>();
  private final Map<NDArray, Boolean> inputs = new IdentityHashMap<>();

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
        release();
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
        entries.add(new Entry(layer, x, inputs.put(x, true) == null, latest, y, logits, work));
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

  @Override
  public void backward(boolean toInput) {
    release();
    var start = toInput || entries.isEmpty() ? null : entries.getFirst().x();
    var gradients = new IdentityHashMap<NDArray, NDArray>();
    for (int i = entries.size() - 1; i >= 0; i--) {
      var entry = entries.get(i);
      try (NDManager scope = manager.newSubManager()) {
        var y = gradient(entry.y(), scope);
        var logits = entry.logits() == null ? null : gradient(entry.logits(), scope);
        if (y != null || logits != null) {
          try (var off = Ops.notRecording()) {
            if (y == null) { // the logits alone went on: a loss of the gates by themselves
              y = Ops.zeros(scope, Dtype.F32, entry.y().getShape().getShape());
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
      }
      if (i == 0 || entries.get(i - 1).input() != entry.input()) {
        var shape = entry.work().inputShape();
        var gx = gradients.get(entry.x());
        if (gx != null) {
          entry.input().addTo(Ops.memory(gx), (int) shape[0], (int) shape[1]);
        }
        entry.input().release();
      }
      if (entry.firstOfInput() && gradients.containsKey(entry.x())) {
        try (var gx = gradients.remove(entry.x());
            var shaped = gx.reshape(entry.x().getShape())) {
          Ops.backward(entry.x(), shaped);
        }
      }
    }
    entries.clear();
    inputs.clear();
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
