package org.meteora.tensor;

import java.lang.foreign.Arena;
import java.lang.foreign.Linker;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.IntConsumer;
import java.util.stream.IntStream;
import org.meteora.foreign.Functions;

/**
 * Runs Java code on the threads that libtorch computes with. Those go on spinning for milliseconds
 * after each of its operations, waiting for the next: other threads would fight them for the
 * processors, and these are ready at once.
 */
public final class Workers {
  private static final MethodHandle PARALLEL = StableAbi.optional("GOMP_parallel", "(AAII)V");
  private static final MethodHandle MAX_THREADS = StableAbi.optional("omp_get_max_threads", "()I");
  private static final MemorySegment ENTRY = entry();
  private static final Map<Long, Job> JOBS = new ConcurrentHashMap<>();
  private static final AtomicLong NAMES = new AtomicLong();

  private record Job(
      int tasks, IntConsumer task, AtomicInteger next, AtomicReference<Throwable> failure) {
    void work() {
      int before = Blas.threads(1);
      try {
        for (int i = next.getAndIncrement(); i < tasks; i = next.getAndIncrement()) {
          task.accept(i);
        }
      } catch (Throwable e) { // must not pass through native frames
        failure.compareAndSet(null, e);
      } finally {
        Blas.threads(before);
      }
    }
  }

  private Workers() {}

  private static MemorySegment entry() {
    try {
      var type = Functions.descriptor("(A)V");
      var enter = MethodHandles.lookup().findStatic(Workers.class, "enter", type.toMethodType());
      return Linker.nativeLinker().upcallStub(enter, type, Arena.global());
    } catch (ReflectiveOperationException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Where every thread of a team begins; {@code name} is a job's, in the place of an address. */
  private static void enter(MemorySegment name) {
    JOBS.get(name.address()).work();
  }

  /** How many threads libtorch uses for an operation of the calling thread. */
  public static int count() {
    return MAX_THREADS == null
        ? Runtime.getRuntime().availableProcessors()
        : (int) Functions.call(() -> (int) MAX_THREADS.invokeExact());
  }

  /** What is done to numbers {@code from} to {@code to}. */
  public interface Range {
    void run(int from, int to);
  }

  /** Runs {@code range} on equal parts of 0 … {@code count − 1}, one a thread, as {@link #run}. */
  public static void share(int count, Range range) {
    share(count, count, range);
  }

  /**
   * As {@link #share(int, Range)}.
   *
   * @param most parts at most
   */
  public static void share(int count, int most, Range range) {
    int parts = Math.min(count(), Math.min(count, most));
    run(
        parts,
        i -> range.run((int) ((long) count * i / parts), (int) ((long) count * (i + 1) / parts)));
  }

  /**
   * Runs {@code task} for 0 … {@code tasks − 1}, spread over the threads, and returns when all have
   * ended. Each thread has a BLAS to itself.
   *
   * @throws RuntimeException what a task threw first
   */
  public static void run(int tasks, IntConsumer task) {
    var job = new Job(tasks, task, new AtomicInteger(), new AtomicReference<>());
    if (tasks == 1) {
      job.work();
    } else if (PARALLEL == null) {
      IntStream.range(0, count()).parallel().forEach(i -> job.work());
    } else {
      long name = NAMES.incrementAndGet();
      JOBS.put(name, job);
      try {
        PARALLEL.invokeExact(ENTRY, MemorySegment.ofAddress(name), Math.min(tasks, count()), 0);
      } catch (Throwable e) {
        throw Functions.unchecked(e);
      } finally {
        JOBS.remove(name);
      }
    }
    if (job.failure().get() != null) {
      throw Functions.unchecked(job.failure().get());
    }
  }
}
