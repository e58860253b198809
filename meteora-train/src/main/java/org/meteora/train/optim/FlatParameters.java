package org.meteora.train.optim;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * All trainable parameters as one flat float32 buffer, and their gradients as another of the same
 * layout: what the optimiser steps on, what processes sum, what a checkpoint holds.
 *
 * <p>The model computes with tensors of its own, in its dtype; the buffer holds the master values.
 * {@link #collectGradients} moves what a backward pass left in the model's tensors into the
 * gradient buffer, {@link #publish} copies the master values into the model's tensors. On the CPU
 * in float32 there is nothing to move: the model's tensors and their gradients are made views of
 * the buffers, and backward passes add straight into them.
 */
public final class FlatParameters implements AutoCloseable {
  /** A parameter's place in the buffers. */
  public record Slot(String name, List<Long> shape, long offset, long size) {}

  private record Entry(
      Slot slot, NDArray tensor, NDArray value, NDArray gradient, boolean shared) {}

  private final NDManager manager;
  private final Map<String, Entry> entries = new LinkedHashMap<>();
  private final NDArray values;
  private final NDArray gradients;

  /**
   * @param parent gives the device; closing it closes the buffers
   * @param parameters the model's tensors by name, in the order of the buffer; their values are
   *     taken over, and they are marked to require gradients
   */
  public FlatParameters(NDManager parent, Map<String, NDArray> parameters) {
    if (parameters.isEmpty()) {
      throw new IllegalArgumentException("nothing to train");
    }
    manager = parent.newSubManager();
    long total = parameters.values().stream().mapToLong(a -> a.getShape().size()).sum();
    values = Ops.zeros(manager, Dtype.F32, total);
    gradients = Ops.zeros(manager, Dtype.F32, total);
    long offset = 0;
    for (var parameter : parameters.entrySet()) {
      var tensor = parameter.getValue();
      var shape = tensor.getShape();
      long size = shape.size();
      var slot =
          new Slot(
              parameter.getKey(),
              java.util.Arrays.stream(shape.getShape()).boxed().toList(),
              offset,
              size);
      var value = view(values, offset, size).reshape(shape);
      Ops.copy(value, tensor);
      var gradient = view(gradients, offset, size).reshape(shape);
      // on a GPU kernels keep the addresses of the model's tensors
      boolean shared = !tensor.getDevice().isGpu() && Ops.dtype(tensor) == Dtype.F32;
      if (shared) {
        Ops.share(tensor, value);
      }
      tensor.setRequiresGradient(true);
      if (shared) {
        shareGradient((PtNDArray) tensor, gradient);
      }
      entries.put(slot.name(), new Entry(slot, tensor, value, gradient, shared));
      offset += size;
    }
  }

  /** libtorch adds to the tensor it has for a leaf's gradient; from now on that is {@code view}. */
  private void shareGradient(PtNDArray leaf, NDArray view) {
    try (NDManager scope = manager.newSubManager()) {
      Ops.backward(leaf, Ops.zeros(scope, Dtype.F32, leaf.getShape().getShape()));
      var gradient = JniUtils.getGradient(leaf);
      gradient.attach(scope);
      Ops.share(gradient, view);
    }
  }

  private static NDArray view(NDArray flat, long offset, long size) {
    return Ops.narrow(flat, 0, offset, size);
  }

  /** The master values {@code (size)}, float32. */
  public NDArray values() {
    return values;
  }

  /** The summed gradients {@code (size)}, float32. */
  public NDArray gradients() {
    return gradients;
  }

  public long size() {
    return values.getShape().size();
  }

  public NDManager manager() {
    return manager;
  }

  public List<Slot> slots() {
    return entries.values().stream().map(Entry::slot).toList();
  }

  /** A parameter's master value in its own shape, a view of {@link #values}. */
  public NDArray value(String name) {
    return entries.get(name).value();
  }

  /** A parameter's gradient in its own shape, a view of {@link #gradients}. */
  public NDArray gradient(String name) {
    return entries.get(name).gradient();
  }

  /** Adds the gradients that backward passes left in the model's tensors, and clears those. */
  public void collectGradients() {
    for (var entry : entries.values()) {
      if (entry.shared()) {
        continue;
      }
      var tensor = (PtNDArray) entry.tensor();
      try (NDManager scope = manager.newSubManager()) {
        var gradient = JniUtils.getGradient(tensor);
        if (gradient == null) {
          continue; // no token came by this parameter since the start
        }
        gradient.attach(scope);
        entry.gradient().addi(Ops.cast(gradient, Dtype.F32));
        JniUtils.zeroGrad(tensor);
      }
    }
  }

  /** Sets the gradient buffer to zero. */
  public void clearGradients() {
    Ops.clear(gradients);
  }

  /** Copies the master values into the model's tensors, rounding to their dtype. */
  public void publish() {
    for (var entry : entries.values()) {
      if (!entry.shared()) {
        Ops.copy(entry.tensor(), entry.value());
      }
    }
  }

  /** Ends training: the model's tensors no longer require gradients; the buffers are freed. */
  @Override
  public void close() {
    entries.values().forEach(entry -> entry.tensor().setRequiresGradient(false));
    manager.close();
  }
}
