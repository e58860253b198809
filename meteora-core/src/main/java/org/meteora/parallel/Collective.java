package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import java.util.List;

/**
 * What crosses processes, tensors among it. Every process calls the same methods in the same order,
 * from one thread, unless a method says otherwise. With one process ({@link #single}) nothing
 * happens.
 *
 * <p>Tensors are row-major and whole; on a GPU a call queues its work on libtorch's current stream
 * and returns, on the CPU it returns when the work is done.
 */
public interface Collective extends Exchange, AutoCloseable {
  /** Replaces a float32 or bfloat16 buffer by its sum over all processes, in place. */
  void sum(NDArray buffer);

  /**
   * Every process gets the sum of its part of a buffer: {@code part} is {@code buffer}'s {@code
   * rank}-th of {@code size} equal parts.
   *
   * @param buffer {@code (size · n)}, float32 or bfloat16; its contents are undefined afterwards
   * @param part {@code (n)}, of the same dtype; may be that part of {@code buffer}
   */
  void reduceScatter(NDArray buffer, NDArray part);

  /**
   * Every process gets all parts.
   *
   * @param part {@code (n)}, any dtype; may be the {@code rank}-th part of {@code buffer}
   * @param buffer {@code (size · n)}, of the same dtype
   */
  void allGather(NDArray part, NDArray buffer);

  /**
   * As {@link #allGather}, beside what is queued from now on, on a stream of its own where there
   * are streams; it begins when what was queued before has ended.
   */
  default Queued allGatherAside(NDArray part, NDArray buffer) {
    allGather(part, buffer);
    return () -> {};
  }

  /**
   * One process gets the sum of a buffer over all processes, beside what is queued from now on, as
   * {@link #allGatherAside} does its work.
   *
   * @param buffer float32; replaced by the sum in process {@code to}, undefined afterwards in
   *     others
   */
  Queued reduceAside(NDArray buffer, int to);

  /**
   * Parts that do not change any more, to be gathered again and again. All processes call this
   * together, with as many parts of the same sizes; and gather them in the same order, though none
   * need be waited for.
   *
   * @param parts of this process, which must stay until all have gathered for the last time
   */
  default Constants constants(List<NDArray> parts) {
    return (which, buffer) -> allGatherAside(parts.get(which), buffer);
  }

  /** Parts that all processes have given. */
  @FunctionalInterface
  interface Constants extends AutoCloseable {
    /** As {@link #allGatherAside}, of the part {@code which}. */
    Queued gather(int which, NDArray buffer);

    @Override
    default void close() {}
  }

  /** Work beside libtorch's stream. */
  @FunctionalInterface
  interface Queued {
    /** Lets what is queued from now on wait for it. */
    void await();
  }

  /** Replaces a buffer of any dtype by the first process's, in place. */
  void broadcast(NDArray buffer);

  @Override
  void close();

  /** One process: nothing to do. */
  static Collective single() {
    return new SingleProcess();
  }
}
