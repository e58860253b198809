package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.junit.jupiter.params.provider.EnumSource;
import org.meteora.backend.Backends;
import org.meteora.io.Jsonl;
import org.meteora.lora.AdapterBank;
import org.meteora.model.FrozenWeights;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.RoutingSettings;
import org.meteora.parallel.Collective;
import org.meteora.parallel.Messages;
import org.meteora.parallel.PeerDoor;
import org.meteora.parallel.ShardedWeights;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.train.batch.Batch;
import org.meteora.train.optim.FlatParameters;

/** A base model shared among processes, which are threads here, against the same one whole. */
class ShardedWeightsTest {
  private static final int LAYERS = 5;
  private static final Batch BATCH = new Batch(ResumeTest.samples().subList(0, 4), false);

  static {
    org.meteora.tensor.LibTorch.load();
    ai.djl.pytorch.jni.JniUtils.setNumThreads(1);
  }

  /** One of several threads that are processes to each other. */
  private record InThreads(int rank, int size, CyclicBarrier all, Object[] given)
      implements Collective {
    private Object[] exchange(Object mine) {
      given[rank] = mine;
      await();
      var everything = given.clone();
      await();
      return everything;
    }

    private void await() {
      try {
        all.await(20, TimeUnit.SECONDS);
      } catch (Exception e) {
        throw new IllegalStateException("the processes do not meet", e);
      }
    }

    @Override
    public void sum(NDArray buffer) {
      throw new UnsupportedOperationException();
    }

    @Override
    public void reduceScatter(NDArray buffer, NDArray part) {
      throw new UnsupportedOperationException();
    }

    @Override
    public Queued reduceAside(NDArray buffer, int to) {
      throw new UnsupportedOperationException();
    }

    @Override
    public void allGather(NDArray part, NDArray buffer) {
      long bytes = part.getShape().size() * Ops.dtype(part).bytes();
      var parts = exchange(part);
      for (int i = 0; i < size; i++) {
        if (Ops.isInHostMemory(buffer)) { // as MPI does, unseen by libtorch
          memory(buffer, i * bytes, bytes).copyFrom(memory((NDArray) parts[i], 0, bytes));
        } else {
          long count = part.getShape().size();
          try (var place = Ops.narrow(buffer, 0, i * count, count)) {
            Ops.copy(place, (NDArray) parts[i]);
          }
        }
      }
      await();
    }

    private static MemorySegment memory(NDArray x, long from, long bytes) {
      return MemorySegment.ofAddress(Ops.dataPointer(x) + from).reinterpret(bytes);
    }

    @Override
    public void broadcast(NDArray buffer) {
      throw new UnsupportedOperationException();
    }

    @Override
    public double[] sum(double[] values) {
      var result = new double[values.length];
      for (var each : exchange(values)) {
        Arrays.setAll(result, i -> result[i] + ((double[]) each)[i]);
      }
      return result;
    }

    @Override
    public Constants constants(List<NDArray> parts) {
      return Ops.isInHostMemory(parts.getFirst())
          ? Collective.super.constants(parts)
          : PeerDoor.constants(this, parts).orElseGet(() -> Collective.super.constants(parts));
    }

    @Override
    public List<byte[]> gather(byte[] mine) {
      var everything = exchange(mine);
      return rank > 0 ? List.of() : Arrays.stream(everything).map(each -> (byte[]) each).toList();
    }

    @Override
    public byte[] broadcast(byte[] ofFirst) {
      return (byte[]) exchange(ofFirst)[0];
    }

    @Override
    public Messages messages() {
      throw new UnsupportedOperationException();
    }

    @Override
    public void close() {}
  }

  interface Work<T> {
    T run(Collective collective);
  }

  /** What each of several processes makes of the same work. */
  static <T> List<T> together(int processes, Work<T> work) throws Exception {
    var barrier = new CyclicBarrier(processes);
    var given = new Object[processes];
    try (var threads = Executors.newFixedThreadPool(processes)) {
      var futures = new ArrayList<java.util.concurrent.Future<T>>();
      for (int rank = 0; rank < processes; rank++) {
        var own = new InThreads(rank, processes, barrier, given);
        futures.add(threads.submit(() -> work.run(own)));
      }
      var results = new ArrayList<T>();
      for (var future : futures) {
        try {
          results.add(future.get());
        } catch (ExecutionException e) {
          throw new AssertionError(e.getCause());
        }
      }
      return results;
    }
  }

  /** A model whose every tensor follows from its name, and how many numbers were read for it. */
  static final class Model implements AutoCloseable {
    final NDManager manager;
    final Map<String, NDArray> parameters = new LinkedHashMap<>();
    final Map<String, Long> read = new LinkedHashMap<>();
    final Dtype dtype;
    final Llama llama;
    boolean ownPasses;

    Model(Dtype dtype, boolean tied, Collective sharers) {
      this(Devices.newHostManager(), dtype, tied, sharers);
    }

    /** On a GPU of sizes that the kernels take. */
    Model(NDManager manager, Dtype dtype, boolean tied, Collective sharers) {
      this.manager = manager;
      this.dtype = dtype;
      boolean host = Ops.isInHostMemory(Ops.empty(manager, dtype, 1));
      var json =
          Jsonl.JSON
              .createObjectNode()
              .put("vocab_size", 23)
              .put("hidden_size", host ? 12 : 64)
              .put("intermediate_size", host ? 10 : 96)
              .put("num_hidden_layers", LAYERS)
              .put("num_attention_heads", 2)
              .put("num_key_value_heads", 1)
              .put("attention_bias", host)
              .put("tie_word_embeddings", tied)
              .put("head_dim", host ? 6 : 32);
      var config = LlamaConfig.parse(json, "test");
      var source =
          new LlamaFactory.Weights() {
            @Override
            public NDArray get(String name, long... shape) {
              read.merge(name, Ops.shape(shape).size(), Long::sum);
              return random(name, shape);
            }

            @Override
            public void read(NDArray target, String name, long from, long... shape) {
              read.merge(name, target.getShape().size(), Long::sum);
              try (var whole = random(name, shape);
                  var flat = whole.reshape(-1);
                  var part = Ops.narrow(flat, 0, from, target.getShape().size())) {
                Ops.copy(target, part);
              }
            }
          };
      llama =
          LlamaFactory.build(
              config,
              manager,
              dtype,
              sharers.size() == 1
                  ? source
                  : new ShardedWeights(source, config, manager, dtype, sharers),
              (layer, module) -> {
                var shape = config.shape(module);
                var path = module.path(layer);
                var bank =
                    new AdapterBank(
                        random(path + ".gate", 3, shape[1]),
                        random(path + ".a", 6, shape[1]),
                        random(path + ".b", shape[0], 6),
                        Tiny.RANKS,
                        new double[] {1, 0.5, 2});
                parameters.put(path + ".moe_gate", bank.gate());
                parameters.put(path + ".lora_A", bank.loraA());
                parameters.put(path + ".lora_B", bank.loraB());
                return bank;
              },
              Backends.of(manager, dtype),
              0);
    }

    private NDArray random(String name, long... shape) {
      var random = new Random(name.hashCode());
      var values = new float[(int) Ops.shape(shape).size()];
      for (int i = 0; i < values.length; i++) {
        values[i] = (float) (random.nextGaussian() * 0.4 + (name.contains("norm") ? 1 : 0));
      }
      var result = Ops.empty(manager, dtype, shape);
      try (var host = Devices.newHostManager()) {
        Ops.copy(result, host.create(values, Ops.shape(shape)));
      }
      return result;
    }

    /** A prompt of two rows and two steps behind it: all logits. */
    float[] logits() {
      var context = ForwardContext.inference(new RoutingSettings(2, 1), Flags.AUTO);
      try (var scope = manager.newSubManager();
          var off = Ops.notRecording();
          var cache = llama.newCache(scope, new int[] {0, 1}, 6)) {
        float[] all = {};
        for (var ids :
            List.of(new long[] {5, 3, 8, 0, 7, 22}, new long[] {1, 2}, new long[] {9, 4})) {
          var input = scope.create(ids, Ops.shape(2, ids.length / 2));
          var own = llama.next(input, cache, context).toFloatArray();
          int before = all.length;
          all = Arrays.copyOf(all, before + own.length);
          System.arraycopy(own, 0, all, before, own.length);
        }
        return all;
      }
    }

    float[] gradients(Recompute recompute) {
      try (var flat = new FlatParameters(manager, parameters)) {
        var context = Tiny.context(2, ForwardMode.AUTO);
        var learner = LlamaLearner.of(llama, context, recompute, Tiny.RANKS.length, flat);
        ownPasses = learner.ownPasses().isPresent();
        learner.learn(BATCH, 0.05, 1, 1, layer -> {});
        flat.collectGradients();
        flat.clearGradients();
        learner.learn(
            BATCH, 0.05, 1, 1, layer -> {}); // layers lie as the step before has left them
        flat.collectGradients();
        return flat.gradients().toFloatArray();
      }
    }

    @Override
    public void close() {
      manager.close();
    }
  }

  private static void near(float[] actual, float[] expected) {
    assertThat(actual).hasSameSizeAs(expected);
    for (int i = 0; i < actual.length; i++) {
      assertThat(actual[i]).isCloseTo(expected[i], within(1e-5f + 1e-5f * Math.abs(expected[i])));
    }
  }

  /** Each process makes another number of passes, and one of them a pass that ends early. */
  @ParameterizedTest
  @CsvSource({"2, F32, false", "3, F32, true", "4, BF16, false"})
  void forwardPasses(int processes, Dtype dtype, boolean tied) throws Exception {
    float[] expected;
    try (var whole = new Model(dtype, tied, Collective.single())) {
      expected = whole.logits();
    }
    var found =
        together(
            processes,
            all -> {
              var logits = new ArrayList<float[]>();
              try (var model = new Model(dtype, tied, all)) {
                var meeting = ShardedWeights.meeting(model.llama.frozen(), all);
                for (int round = 0; round < 2; round++) {
                  for (int i = 0; i < all.rank(); i++) {
                    logits.add(model.logits());
                  }
                  if (all.rank() == 1) {
                    try (var pass = model.llama.frozen().begin()) {
                      model.llama.frozen().use(FrozenWeights.EMBEDDING, 0);
                      model.llama.frozen().use(0, 1);
                    }
                    logits.add(model.logits());
                  }
                  var sum = meeting.sum(new double[] {all.rank()});
                  assertThat(sum).containsExactly(processes * (processes - 1) / 2.0);
                }
              }
              return logits;
            });
    assertThat(found.get(0)).isEmpty();
    assertThat(found.get(1)).hasSize(4);
    found.forEach(each -> each.forEach(logits -> near(logits, expected)));
  }

  @ParameterizedTest
  @EnumSource(
      value = Recompute.class,
      names = {"ALL", "NONE"})
  void gradientsOfTrainingSteps(Recompute recompute) throws Exception {
    float[] expected;
    try (var whole = new Model(Dtype.F32, false, Collective.single())) {
      expected = whole.gradients(recompute);
    }
    var found =
        together(
            3,
            all -> {
              try (var model = new Model(Dtype.F32, false, all)) {
                return model.gradients(recompute);
              }
            });
    found.forEach(gradients -> near(gradients, expected));
  }

  @Test
  void everyNumberIsReadInOneProcessAlone() throws Exception {
    Map<String, Long> expected;
    try (var whole = new Model(Dtype.F32, false, Collective.single())) {
      expected = Map.copyOf(whole.read);
    }
    var found =
        together(
            4,
            all -> {
              try (var model = new Model(Dtype.F32, false, all)) {
                return Map.copyOf(model.read);
              }
            });
    var most = new AtomicLong();
    expected.forEach(
        (name, size) -> {
          var each = found.stream().mapToLong(read -> read.getOrDefault(name, 0L)).toArray();
          long times = name.equals("model.norm.weight") ? 4 : 1;
          assertThat(Arrays.stream(each).sum()).as(name).isEqualTo(times * size);
        });
    found.forEach(
        read ->
            most.accumulateAndGet(
                read.values().stream().mapToLong(Long::longValue).sum(), Math::max));
    // parts are whole multiples of 128 numbers, and the last norm is everywhere
    assertThat(most.get()).isLessThan(expected.values().stream().mapToLong(Long::longValue).sum());
  }
}
