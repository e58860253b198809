package org.meteora.train;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.OptionalInt;
import java.util.function.BooleanSupplier;
import java.util.function.IntConsumer;
import java.util.stream.DoubleStream;
import java.util.stream.IntStream;
import org.meteora.foreign.Functions;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.Batches;
import org.meteora.train.batch.TrainingSample;

/**
 * Adapters of one base model in training at the same time. Each has a run of its own on a thread of
 * its own, of which one at a time is awake; when all that have not ended wait for the losses of
 * their next batches, these are computed in one pass over the rows of all, each row through its own
 * adapter. So the base model's products, and what a pass costs whatever its size, are shared, and
 * everything else is as if each were alone.
 *
 * <p>These passes are the work of one thread, the caller's: an allocator that keeps memory for each
 * thread would keep a pass's for each adapter.
 */
final class Together {
  /** Rows of several runs are put into one pass up to so many positions. */
  static final long POSITIONS = 1 << 15;

  private final LlamaLearner learner;
  private final ForwardContext context;
  private final Request[] waiting;
  private int running;
  private Throwable failure;

  private static final class Request {
    final Batch batch;
    final double weight;
    final long seed;
    Learner.Sums sums;

    Request(Batch batch, double weight, long seed) {
      this.batch = batch;
      this.weight = weight;
      this.seed = seed;
    }
  }

  /**
   * @param learner of a model with as many adapters in every bank, and without gates
   */
  Together(LlamaLearner learner, ForwardContext context, int adapters) {
    this.learner = learner;
    this.context = context;
    this.waiting = new Request[adapters];
    this.running = adapters;
  }

  interface Training<T> {
    /**
     * @param failed whether another run has failed, and this one is to stop
     */
    T run(int adapter, Learner learner, BooleanSupplier failed);
  }

  /**
   * Runs all to their ends.
   *
   * @return their results, in order
   * @throws RuntimeException what the first to fail threw
   */
  <T> List<T> run(Training<T> training) {
    var results = new ArrayList<T>(java.util.Collections.nCopies(waiting.length, null));
    var threads = new ArrayList<Thread>();
    for (int i = 0; i < waiting.length; i++) {
      int adapter = i;
      threads.add(
          Thread.ofPlatform()
              .name("adapter-" + i)
              .start(
                  () -> {
                    synchronized (this) {
                      try {
                        var own = new Own(adapter);
                        results.set(adapter, training.run(adapter, own, () -> failure != null));
                      } catch (Throwable e) { // the others are told, and run's caller
                        failure = failure == null ? e : failure;
                      } finally {
                        running--;
                        Together.this.notifyAll();
                      }
                    }
                  }));
    }
    boolean interrupted = passes();
    for (var thread : threads) {
      while (thread.isAlive()) {
        try {
          thread.join();
        } catch (InterruptedException e) {
          interrupted = true; // a step must end
        }
      }
    }
    if (interrupted) {
      Thread.currentThread().interrupt();
    }
    if (failure != null) {
      throw Functions.unchecked(failure);
    }
    return results;
  }

  private final class Own implements Learner {
    private final int adapter;
    private final LlamaLearner alone;

    Own(int adapter) {
      this.adapter = adapter;
      this.alone = learner(List.of(adapter));
    }

    @Override
    public Sums learn(
        Batch batch, double languageModelWeight, double gateWeight, long seed, IntConsumer done) {
      var request = new Request(batch, languageModelWeight, seed);
      synchronized (Together.this) {
        waiting[adapter] = request;
        Together.this.notifyAll();
        while (request.sums == null) {
          if (waiting[adapter] == null) {
            throw new IllegalStateException("the pass over all adapters' rows failed", failure);
          }
          try {
            Together.this.wait();
          } catch (InterruptedException e) {
            throw new IllegalStateException(e);
          }
        }
        return request.sums;
      }
    }

    @Override
    public Sums evaluate(Batch batch) {
      return alone.evaluate(batch);
    }

    @Override
    public Sums reference(Batch batch, OptionalInt which) {
      return alone.reference(batch, which);
    }
  }

  /**
   * @param adapters of the rows of a batch, or one for all
   */
  private LlamaLearner learner(List<Integer> adapters) {
    var routing = context.routing().withRouter(new Router.Fixed(adapters));
    return learner.with(context.withRouting(routing));
  }

  /**
   * Computes what runs wait for, until all have ended.
   *
   * @return whether this thread was interrupted
   */
  private synchronized boolean passes() {
    boolean interrupted = false;
    while (running > 0) {
      var ready =
          IntStream.range(0, waiting.length).filter(i -> waiting[i] != null).boxed().toList();
      if (ready.size() < running) {
        try {
          wait();
        } catch (InterruptedException e) {
          interrupted = true; // a step must end
        }
        continue;
      }
      computeAll(ready);
    }
    return interrupted;
  }

  private void computeAll(List<Integer> all) {
    // rows of like length: less padding, and fewer passes
    var ready =
        all.stream().sorted(Comparator.comparingInt(i -> waiting[i].batch.length())).toList();
    try {
      for (int from = 0; from < ready.size(); ) {
        int to = from + 1;
        while (to < ready.size() && positions(ready.subList(from, to + 1)) <= POSITIONS) {
          to++;
        }
        compute(ready.subList(from, to));
        from = to;
      }
    } catch (RuntimeException | Error e) {
      failure = failure == null ? e : failure;
    } finally {
      Arrays.fill(waiting, null);
      notifyAll();
    }
  }

  private long positions(List<Integer> adapters) {
    long rows = adapters.stream().mapToLong(i -> waiting[i].batch.rows()).sum();
    return rows * adapters.stream().mapToLong(i -> waiting[i].batch.length()).max().orElse(0);
  }

  /** One pass; every run gets the sums over its rows. */
  private void compute(List<Integer> adapters) {
    var samples = new ArrayList<TrainingSample>();
    var adapterOfRow = new ArrayList<Integer>();
    var weights = DoubleStream.builder();
    for (int i : adapters) {
      samples.addAll(waiting[i].batch.samples());
      for (int row = 0; row < waiting[i].batch.rows(); row++) {
        adapterOfRow.add(i);
        weights.add(waiting[i].weight);
      }
    }
    var batch = new Batch(samples, waiting[adapters.getFirst()].batch.responseOnly());
    long seed = Batches.mix(adapters.stream().mapToLong(i -> waiting[i].seed).toArray());
    var sums = learner(adapterOfRow).learn(batch, weights.build().toArray(), 0, seed, layer -> {});
    int from = 0;
    for (int i : adapters) {
      int to = from + waiting[i].batch.rows();
      var prompt = Arrays.copyOfRange(sums.prompt(), from, to);
      var answer = Arrays.copyOfRange(sums.answer(), from, to);
      waiting[i].sums =
          new Learner.Sums(
              Arrays.stream(prompt).sum() + Arrays.stream(answer).sum(),
              prompt,
              answer,
              0,
              0,
              new float[to - from],
              new float[to - from]);
      from = to;
    }
  }
}
