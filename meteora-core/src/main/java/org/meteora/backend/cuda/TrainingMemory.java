package org.meteora.backend.cuda;

import static org.meteora.nn.Projection.Input.ATTENTION;
import static org.meteora.nn.Projection.Input.ATTENTION_HEADS;
import static org.meteora.nn.Projection.Input.MLP;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.List;
import org.meteora.model.Architecture;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Device memory of training passes, laid out anew for each pass and kept between passes: it grows
 * with the largest.
 */
final class TrainingMemory {
  /** Of all addresses it gives out, bytes. */
  static final long ALIGNMENT = 256;

  static final class Region {
    private final long start;
    private long next;

    /**
     * @param start 0 to find out how much is taken
     */
    Region(long start) {
      this.start = start;
      this.next = start;
    }

    long take(long bytes) {
      long at = next;
      next += (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
      return at;
    }

    long taken() {
      return next - start;
    }
  }

  /** Sizes in bytes of what lies together. */
  private record Parts(long... sizes) {
    long[] from(long start) {
      var region = new Region(start);
      return Arrays.stream(sizes).map(region::take).toArray();
    }

    long size() {
      var region = new Region(0);
      Arrays.stream(sizes).forEach(region::take);
      return region.taken();
    }
  }

  /**
   * What serves one layer after another. What is never there at once shares memory.
   *
   * @param normed of an {@link Projection.Input}, by its number, what its norm makes {@code
   *     (tokens, hidden)}; there from a layer's forward pass to its backward pass, if that follows
   * @param dropped likewise, what dropout leaves of it, or of heads
   * @param wide {@code (tokens, hidden)}, and of the size of heads; in {@code inner}, like all that
   *     follows up to {@code inner}
   * @param sum {@code (tokens, hidden)}, of attention and what is projected of it
   * @param inner {@code (tokens, intermediate)}; attention comes when the MLP's is not there
   * @param droppedInner as {@code inner}
   * @param padded attention's rows of heads, if rows are padded
   * @param q tokens' heads, if rows are padded; k and v likewise
   */
  record Scratch(
      TrainingDevice device,
      long[] normed,
      long[] dropped,
      long wide,
      long sum,
      long inner,
      long droppedInner,
      long padded,
      long q,
      long k,
      long v,
      TrainingGroup.Scratch group) {
    static Scratch of(
        Region region,
        TrainingDevice device,
        Architecture shape,
        Dtype dtype,
        List<TrainingLayer> layers,
        long tokens,
        long positions,
        boolean drops) {
      int bytes = dtype.bytes();
      long heads = (long) shape.numAttentionHeads() * shape.headDim();
      long keyValueHeads = (long) shape.numKeyValueHeads() * shape.headDim();
      long wide = tokens * Math.max(shape.hiddenSize(), heads) * bytes;
      long inner = tokens * shape.intermediateSize() * bytes;
      long rows = 0;
      long c = 0;
      long gradients = 0;
      long choices = 0;
      for (var layer : layers) {
        for (var group : layer.groups()) {
          rows = Math.max(rows, group.bytesOfRows());
          c = Math.max(c, group.bytesOfC());
          gradients = Math.max(gradients, group.bytesOfGradients());
          choices = Math.max(choices, group.bytesOfChoices(tokens));
        }
      }
      boolean padded = positions != tokens;
      var attention =
          new Parts(
              wide,
              tokens * shape.hiddenSize() * bytes,
              padded ? positions * heads * bytes : 0,
              padded ? tokens * heads * bytes : 0,
              padded ? tokens * keyValueHeads * bytes : 0,
              padded ? tokens * keyValueHeads * bytes : 0);
      long atInner = region.take(Math.max(inner, attention.size()));
      long atDropped = region.take(drops ? inner : 0);
      var of = attention.from(atInner);
      var normed = new long[Projection.Input.values().length];
      var dropped = new long[normed.length];
      for (var input : List.of(ATTENTION, ATTENTION_HEADS, MLP)) {
        normed[input.ordinal()] = input == ATTENTION_HEADS ? 0 : region.take(wide);
        dropped[input.ordinal()] = drops ? region.take(wide) : 0;
      }
      return new Scratch(
          device,
          normed,
          dropped,
          of[0],
          of[1],
          atInner,
          atDropped,
          of[2],
          of[3],
          of[4],
          of[5],
          new TrainingGroup.Scratch(
              region.take(tokens * c),
              region.take(tokens * c),
              region.take(tokens * rows),
              region.take(gradients),
              region.take(choices)));
    }

    long normed(Projection.Input input) {
      return normed[input.ordinal()];
    }

    long dropped(Projection.Input input) {
      return dropped[input.ordinal()];
    }

    /** Where q, k and v go before they are put into rows: without padding those are the rows. */
    long[] flat(boolean isPadded, TrainingLayer.Kept kept) {
      return isPadded ? new long[] {q, k, v} : new long[] {kept.q(), kept.k(), kept.v()};
    }
  }

  private final NDManager manager;
  private NDArray memory;
  private long size;

  /**
   * @param parent gives the device, and the memory back
   */
  TrainingMemory(NDManager parent) {
    this.manager = parent.newSubManager();
  }

  long size() {
    return size;
  }

  /**
   * Makes it at least so large; what was in it is lost if it grows.
   *
   * @throws IllegalStateException when there is not so much
   */
  void reserve(long bytes) {
    if (bytes > size) {
      release();
      memory = Ops.empty(manager, Dtype.U8, bytes);
      size = bytes;
    }
  }

  void release() {
    if (memory != null) {
      memory.close();
      memory = null;
      size = 0;
    }
  }

  Region region() {
    return new Region(memory == null ? 0 : Ops.dataPointer(memory));
  }
}
