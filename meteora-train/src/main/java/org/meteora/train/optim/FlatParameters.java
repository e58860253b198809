package org.meteora.train.optim;

import static java.util.function.Predicate.not;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import java.util.function.UnaryOperator;
import org.meteora.backend.Backends;
import org.meteora.model.Gradients;
import org.meteora.model.OptimizerKernels;
import org.meteora.parallel.Collective;
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
 *
 * <p>Among several processes each has the whole gradients of its micro-batches, and steps one slice
 * of the buffers, which are padded to as many equal slices: {@link #reduce} sums the slice's
 * gradients, those of layers that are done ({@link #reduceLayer}) while others are still computed;
 * {@link #publish} gathers everybody's slice. On a GPU a process keeps the master values of its
 * slice alone, and what is published is gathered in the model's dtype; whole, the master values
 * exist in the gradient buffer after {@link #gather} and {@link #publishWhole}.
 *
 * <p>Long, because two buffers, their slices and the model's tensors are kept in step here and
 * nowhere else.
 */
public final class FlatParameters implements AutoCloseable, Gradients {
  /**
   * A parameter's place in the buffers.
   *
   * @param name as the model has it
   * @param shape of the part that is trained
   * @param offset of its first number, counted in numbers, as the size is
   */
  public record Slot(String name, List<Long> shape, long offset, long size) {}

  /**
   * What is trained of one of the model's tensors: all of it, or some rows or columns.
   *
   * @param tensor the model's
   * @param dim which dimension is cut; −1: all is trained
   * @param from where the part begins in it
   */
  public record Part(NDArray tensor, int dim, long from, long length) {
    boolean isWhole() {
      return dim < 0;
    }

    /** The part of the tensor, or of its gradient. */
    private NDArray of(NDArray whole) {
      return isWhole() ? whole : Ops.narrow(whole, dim, from, length);
    }
  }

  /**
   * @param target the part of the model's tensor, outside of any graph
   */
  private record Entry(
      Slot slot, Part part, NDArray target, NDArray value, NDArray gradient, boolean shared) {}

  private final NDManager manager;
  private final Map<String, Entry> entries = new LinkedHashMap<>();
  private final Collective collective;
  private final long size;
  private final long part;

  /** {@code (processes · part)}: all master values, perhaps the same buffer as the gradients. */
  private final NDArray whole;

  /**
   * {@code (processes · part)}: all values as the model has them, in the gradients' memory; empty
   * where {@link #whole} is published.
   */
  private final Optional<NDArray> rounded;

  /** {@code (processes · part)}. */
  private final NDArray gradients;

  private final NDArray masters;
  private final NDArray gradientSlice;
  private final Optional<OptimizerKernels> kernels;
  private Runnable copies;

  /** Those whose sums over all processes have been begun since the gradients were cleared. */
  private final Set<Entry> reducing = Collections.newSetFromMap(new IdentityHashMap<>());

  private final List<Collective.Queued> reductions = new ArrayList<>();

  /**
   * @param parent gives the device; closing it closes the buffers
   * @param parameters the model's tensors by name, in the order of the buffer; their values are
   *     taken over, and they are marked to require gradients
   */
  public FlatParameters(NDManager parent, Map<String, NDArray> parameters) {
    this(parent, parameters, Collective.single());
  }

  /** As above, one of several processes that have the same parameters. */
  public FlatParameters(NDManager parent, Map<String, NDArray> parameters, Collective collective) {
    this(parent, collective, whole(parameters));
  }

  private static Map<String, Part> whole(Map<String, NDArray> parameters) {
    var result = new LinkedHashMap<String, Part>();
    parameters.forEach((name, tensor) -> result.put(name, new Part(tensor, -1, 0, 0)));
    return result;
  }

  /** Parts of the model's tensors, of which others may train the other parts. */
  public FlatParameters(NDManager parent, Collective collective, Map<String, Part> parameters) {
    if (parameters.isEmpty()) {
      throw new IllegalArgumentException("nothing to train");
    }
    manager = parent.newSubManager();
    this.collective = collective;
    int processes = collective.size();
    var targets = new LinkedHashMap<String, NDArray>();
    try (var off = Ops.notRecording()) {
      parameters.forEach((name, part) -> targets.put(name, target(part)));
    }
    size = targets.values().stream().mapToLong(a -> a.getShape().size()).sum();
    part = (size + processes - 1) / processes;
    gradients = Ops.zeros(manager, Dtype.F32, part * processes);
    boolean sliced = processes > 1 && !Ops.isInHostMemory(gradients);
    whole = sliced ? gradients : Ops.zeros(manager, Dtype.F32, part * processes);
    long offset = 0;
    for (var name : parameters.keySet()) {
      var entry = entry(name, parameters.get(name), targets.get(name), offset);
      entries.put(name, entry);
      offset = end(entry);
    }
    var dtypes = targets.values().stream().map(Ops::dtype).distinct().toList();
    kernels =
        dtypes.size() == 1
                && targets.values().stream().allMatch(it -> it.getShape().dimension() <= 2)
            ? Backends.optimizer(manager, dtypes.getFirst())
            : Optional.empty();
    gradientSlice = view(gradients, collective.rank() * part, part);
    var slice = view(whole, collective.rank() * part, part);
    masters = sliced ? Ops.empty(manager, Dtype.F32, part) : slice;
    if (sliced) {
      Ops.copy(masters, slice);
    }
    rounded =
        sliced && kernels.isPresent() && dtypes.getFirst() != Dtype.F32
            ? Optional.of(
                Ops.view(
                    manager,
                    Ops.dataPointer(gradients),
                    dtypes.getFirst(),
                    new long[] {part * processes},
                    new long[] {1}))
            : Optional.empty();
  }

  /** Takes a parameter's values into the buffer, and has its tensor's gradients summed. */
  private Entry entry(String name, Part part, NDArray target, long offset) {
    var shape = target.getShape();
    var sizes = Arrays.stream(shape.getShape()).boxed().toList();
    var slot = new Slot(name, sizes, offset, shape.size());
    var value = view(whole, offset, shape.size()).reshape(shape);
    var gradient = view(gradients, offset, shape.size()).reshape(shape);
    Ops.copy(value, target);
    var tensor = part.tensor();
    // on a GPU kernels keep the addresses of the model's tensors
    boolean shared = part.isWhole() && Ops.isInHostMemory(tensor) && Ops.dtype(tensor) == Dtype.F32;
    if (shared) {
      Ops.share(tensor, value);
    }
    tensor.setRequiresGradient(true);
    if (shared) {
      shareGradient((PtNDArray) tensor, gradient);
    }
    return new Entry(slot, part, target, value, gradient, shared);
  }

  private NDArray target(Part part) {
    if (part.isWhole()) {
      return part.tensor();
    }
    var target = part.of(Ops.detach(manager, part.tensor()));
    target.attach(manager);
    return target;
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

  /** All master values {@code (size)}, float32; see the class for when they are whole. */
  public NDArray values() {
    return view(whole, 0, size);
  }

  /** This process's gradients {@code (size)}, float32. */
  public NDArray gradients() {
    return view(gradients, 0, size);
  }

  /** How many numbers are trained, without padding. */
  public long size() {
    return size;
  }

  /** The master values of this process's slice, {@code (slice)} with the padding, float32. */
  public NDArray masters() {
    return masters;
  }

  /** The gradients of this process's slice, after {@link #reduce} those of all processes. */
  public NDArray gradientSlice() {
    return gradientSlice;
  }

  /** Where this process's slice begins in the whole. */
  public long sliceStart() {
    return Math.min(size, collective.rank() * part);
  }

  /** Where this process's slice ends in the whole, without padding. */
  public long sliceEnd() {
    return Math.min(size, (collective.rank() + 1L) * part);
  }

  /** The sum of somethings over all processes' slices. */
  public double sum(double ofSlice) {
    return collective.size() == 1 ? ofSlice : collective.sum(new double[] {ofSlice})[0];
  }

  /** Sums every slice's gradients over all processes; the other slices' are undefined then. */
  public void reduce() {
    if (collective.size() == 1) {
      return;
    }
    if (reducing.isEmpty()) {
      collective.reduceScatter(gradients, gradientSlice);
      return;
    }
    reduce(entries.values().stream().filter(not(reducing::contains)).toList());
    reductions.forEach(Collective.Queued::await);
    reductions.clear();
  }

  /**
   * Begins to sum a decoder layer's gradients over all processes, while other layers' are still
   * computed. Nothing may be added to them before {@link #clearGradients}.
   */
  public void reduceLayer(int layer) {
    if (collective.size() == 1) {
      return;
    }
    var own =
        entries.values().stream()
            .filter(entry -> entry.slot().name().startsWith("model.layers." + layer + "."))
            .toList();
    own.forEach(this::collectGradient);
    reduce(own);
  }

  /** Begins to sum these, in stretches that belong to one process each. */
  private void reduce(List<Entry> some) {
    for (int i = 0; i < some.size(); i++) {
      long from = some.get(i).slot().offset();
      while (i + 1 < some.size() && some.get(i + 1).slot().offset() == end(some.get(i))) {
        i++;
      }
      long to = end(some.get(i));
      for (long next; from < to; from = next) {
        int owner = (int) (from / part);
        next = Math.min(to, (owner + 1) * part);
        try (var stretch = view(gradients, from, next - from)) {
          reductions.add(collective.reduceAside(stretch, owner));
        }
      }
    }
    reducing.addAll(some);
  }

  private static long end(Entry entry) {
    return entry.slot().offset() + entry.slot().size();
  }

  /** Replaces the master values by those of the first process, which are in {@link #values}. */
  public void broadcast() {
    if (collective.size() > 1) {
      collective.broadcast(whole);
      if (masters != whole) {
        Ops.copy(masters, view(whole, collective.rank() * part, part));
      }
    }
    publishWhole();
  }

  /** Takes this process's slice out of a whole {@code (size)} in host memory. */
  public void takeSlice(NDArray slice, NDArray ofWhole) {
    long count = sliceEnd() - sliceStart();
    if (count > 0) {
      Ops.copy(view(slice, 0, count), view(ofWhole, sliceStart(), count));
    }
  }

  /**
   * Gathers everybody's slice; the gradients are undefined then.
   *
   * @return {@code (size)} at the first process, in host memory if there are several; empty at the
   *     others
   */
  public Optional<NDArray> gather(NDManager scope, NDArray slice) {
    if (collective.size() == 1) {
      return Optional.of(slice);
    }
    collective.allGather(slice, gradients);
    if (collective.rank() > 0) {
      return Optional.empty();
    }
    try (var host = scope.newSubManager(ai.djl.Device.cpu())) {
      var copy = Ops.copyOf(gradients(), host, Dtype.F32);
      copy.attach(scope);
      return Optional.of(copy);
    }
  }

  /** Owns the buffers; on the device of the model. */
  public NDManager manager() {
    return manager;
  }

  /** Where each parameter lies, in the order of the buffers. */
  public List<Slot> slots() {
    return entries.values().stream().map(Entry::slot).toList();
  }

  /**
   * The parameters' master values in their own shapes, views of {@link #values}: whole when that
   * is.
   *
   * @param name what a parameter is called in the result
   */
  public Map<String, NDArray> values(UnaryOperator<String> name) {
    var result = new LinkedHashMap<String, NDArray>();
    entries.forEach((own, entry) -> result.put(name.apply(own), entry.value()));
    return result;
  }

  @Override
  public List<Gradients.Part> of(NDArray parameter) {
    return entries.values().stream()
        .filter(entry -> entry.part().tensor() == parameter)
        .map(it -> new Gradients.Part(it.gradient(), it.part.dim, it.part.from, it.part.length))
        .toList();
  }

  /** Adds the gradients that backward passes left in the model's tensors, and clears those. */
  public void collectGradients() {
    entries.values().stream().filter(not(reducing::contains)).forEach(this::collectGradient);
  }

  private void collectGradient(Entry entry) {
    if (entry.shared()) {
      return;
    }
    var tensor = (PtNDArray) entry.part().tensor();
    var gradient = JniUtils.getGradient(tensor);
    if (gradient == null) {
      return; // no token came by this parameter since the start, or its gradient is summed here
    }
    try (NDManager scope = manager.newSubManager()) {
      gradient.attach(scope);
      var part = entry.part().of(gradient);
      entry.gradient().addi(Ops.cast(part, Dtype.F32));
      Ops.clear(part);
    }
  }

  /** Sets the gradient buffer to zero. */
  public void clearGradients() {
    reducing.clear();
    Ops.clear(gradients);
  }

  /**
   * Copies all processes' master values into the model's tensors, rounding to their dtype; the
   * gradients are undefined then.
   */
  public void publish() {
    if (rounded.isPresent()) {
      try (var own = view(rounded.get(), collective.rank() * part, part)) {
        Ops.copy(own, masters);
        collective.allGather(own, rounded.get());
      }
    } else if (collective.size() > 1) {
      collective.allGather(masters, whole);
    }
    if (kernels.isPresent()) {
      if (copies == null) {
        var all = entries.values().stream().map(this::copy).toList();
        copies = kernels.get().prepare(all, manager);
      }
      copies.run();
      return;
    }
    entries.values().stream()
        .filter(not(Entry::shared))
        .forEach(entry -> Ops.copy(entry.target(), entry.value()));
  }

  /** As {@link #publish}; {@link #values} has all master values then. */
  public void publishWhole() {
    publish();
    if (rounded.isPresent()) {
      collective.allGather(masters, whole);
    }
  }

  /** Of the values that {@link #publish} gathers. */
  private OptimizerKernels.Copy copy(Entry entry) {
    var slot = entry.slot();
    var values =
        rounded
            .map(all -> view(all, slot.offset(), slot.size()).reshape(entry.target().getShape()))
            .orElse(entry.value());
    return new OptimizerKernels.Copy(values, entry.target());
  }

  Optional<OptimizerKernels> kernels() {
    return kernels;
  }

  /** Ends training: the model's tensors no longer require gradients; the buffers are freed. */
  @Override
  public void close() {
    entries.values().forEach(entry -> entry.part().tensor().setRequiresGradient(false));
    manager.close();
  }
}
