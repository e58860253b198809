package org.meteora;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.meteora.backend.Backends;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.generate.GenerationConfig;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.train.LlamaLearner;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/**
 * Native memory on the way through a GPU, the host's and the device's, stays where it is. A large
 * heap would keep a collector from freeing it by the way: to see that nothing waits for it, run
 * this with {@code -Xms16g -Xmn15g -XX:+AlwaysPreTouch -Dmeteora.memory.rounds=10} and read the
 * resident memory that each test prints.
 */
@Tag("gpu")
class NativeMemoryGpuTest {
  /** 1 in the ordinary run; 10 are the numbers that docs/operation.md has. */
  private static final int ROUNDS = Integer.getInteger("meteora.memory.rounds", 1);

  /** As in {@link NativeMemoryTest}. */
  private static final long SLACK = 32L << 20;

  /** libtorch takes memory in pieces of 2 and of 20 MiB. */
  private static final long DEVICE_SLACK = 32L << 20;

  private record Held(long nativeBytes, long resident, long device, long buffers) {
    static Held now() throws Throwable {
      long buffers = NativeMemoryTest.directBuffers(); // before the collector is asked to free any
      long device = Backends.memoryInUse(Device.gpu(0));
      long bytes = ROUNDS > 1 ? NativeMemoryTest.once() : NativeMemoryTest.held();
      return new Held(bytes, Backends.memoryInUse(Device.cpu()), device, buffers);
    }
  }

  /** Work that is done in each round, and how much of it. */
  @FunctionalInterface
  private interface Work {
    int run() throws Throwable;
  }

  /**
   * Measured over a round of work, and once or twice more where it grew: what is taken once, such
   * as memory of the JVM's compilers, is not taken in every round; what each step leaves, is.
   *
   * @param buffers that one of them may leave to the collector: some scalars; arrays were six in a
   *     generation
   */
  private static void check(String of, int buffers, Work work) throws Throwable {
    for (int left = 2; ; left--) {
      var before = Held.now();
      int count = work.run();
      var after = Held.now();
      long bytes = after.nativeBytes - before.nativeBytes;
      long device = after.device - before.device;
      long more = after.buffers - before.buffers;
      var what = count + of;
      System.err.printf(
          "%s: %,d KiB held by native code, %,d KiB resident, %,d KiB on the device more, %d"
              + " buffers%n",
          what, bytes >> 10, after.resident - before.resident >> 10, device >> 10, more);
      if (left > 0 && (bytes >= SLACK || device >= DEVICE_SLACK || more >= count * buffers)) {
        continue;
      }
      assertThat(bytes).as(what).isLessThan(SLACK);
      assertThat(device).as(what).isLessThan(DEVICE_SLACK);
      assertThat(more).as(what).isLessThan(count * buffers);
      return;
    }
  }

  /**
   * Batches of 1 to 20 prompts, so that rows leave, graphs of all sizes come, and some do without.
   */
  private static void generate(LoadedModel model, int calls) {
    var config = model.generationConfig().withGreedy().withMaxNewTokens(6);
    for (int call = 0; call < calls; call++) {
      var prompts = new ArrayList<int[]>();
      for (int row = 0; row <= call * 7 % 20; row++) {
        prompts.add(IntStream.range(0, 3 + (row + call) % 9).map(t -> 65 + t).toArray());
      }
      model.generator().generate(prompts, config);
    }
  }

  @Test
  void generationsOfChangingBatchSizes() throws Throwable {
    try (var model = NativeMemoryTest.tiny("cuda")) {
      generate(model, 40 + 30 * ROUNDS);
      check(
          " generations",
          2,
          () -> {
            generate(model, 100 * ROUNDS);
            return 100 * ROUNDS;
          });
    }
  }

  @Test
  void decodeSteps() throws Throwable {
    try (var model = NativeMemoryTest.tiny("cuda")) {
      int each = model.llama().config().maxPositionEmbeddings() - 10;
      var config = GenerationConfig.greedy(List.of(), each + 5).withMaxNewTokens(each);
      var prompts = List.of(new int[] {65, 66, 67}, new int[] {68, 69});
      steps(model, prompts, config, 500);
      check(" decode steps", 1, () -> steps(model, prompts, config, 1000 * ROUNDS));
    }
  }

  private static int steps(
      LoadedModel model, List<int[]> prompts, GenerationConfig config, int wanted) {
    int steps = 0;
    while (steps < wanted) {
      steps += model.generator().generate(prompts, config).getFirst().length;
    }
    return steps;
  }

  @Test
  void trainingSteps() throws Throwable {
    try (var model = NativeMemoryTest.tiny("cuda");
        var parameters =
            new FlatParameters(
                model.llama().manager(), NativeMemoryTest.parameters(model.llama()));
        var optimizer = new AdamW(parameters, 0.01)) {
      var training = model.generator().context().forTraining(true);
      int adapters = model.adapterNames().size();
      var learners =
          List.of(
              new LlamaLearner(model.llama(), training, Recompute.ALL, adapters),
              new LlamaLearner(model.llama(), training, Recompute.NONE, adapters));
      NativeMemoryTest.train(learners, parameters, optimizer, 40);
      check(
          " training steps",
          50,
          () -> {
            NativeMemoryTest.train(learners, parameters, optimizer, 20 * ROUNDS);
            return 20 * ROUNDS;
          });
    }
  }
}
