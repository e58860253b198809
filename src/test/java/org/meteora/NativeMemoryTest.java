package org.meteora;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SegmentAllocator;
import java.lang.foreign.ValueLayout;
import java.lang.management.BufferPoolMXBean;
import java.lang.management.ManagementFactory;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.data.Sample;
import org.meteora.eval.Evaluator;
import org.meteora.eval.TextCodec;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.router.Routers;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Ops;
import org.meteora.train.LlamaLearner;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.optim.AdamW;
import org.meteora.train.optim.FlatParameters;

/** Native memory stays where it is, over a thousand steps and over fifty batches. */
class NativeMemoryTest {
  /**
   * The JVM's compilers hold a dozen megabytes more or less from one moment to the next; over 3,000
   * steps this is ten kilobytes a step, a few tensors of the tiny model.
   */
  private static final long SLACK = 32L << 20;

  static LoadedModel tiny(String device) {
    var root = Path.of(System.getProperty("meteora.root", "..")).resolve("configs/tiny");
    return LoadedModel.load(
        new LoadedModel.Spec(
            root.resolve("base"),
            "meteora",
            Optional.of(root.resolve("meteora")),
            Optional.of(root.resolve("adapters")),
            Optional.empty(),
            Optional.empty(),
            device,
            Optional.empty(),
            Flags.AUTO,
            Routers.GATE));
  }

  /**
   * Bytes that native code holds from the C library's allocator, libtorch's tensors among them, as
   * glibc counts them itself (mallinfo2: in arenas, and mapped for large blocks).
   */
  static long once() throws Throwable {
    var layout = MemoryLayout.structLayout(MemoryLayout.sequenceLayout(10, ValueLayout.JAVA_LONG));
    var linker = Linker.nativeLinker();
    var mallinfo =
        linker.downcallHandle(
            linker.defaultLookup().find("mallinfo2").orElseThrow(), FunctionDescriptor.of(layout));
    try (var arena = Arena.ofConfined()) {
      var info = (MemorySegment) mallinfo.invoke((SegmentAllocator) arena);
      return info.getAtIndex(ValueLayout.JAVA_LONG, 4) + info.getAtIndex(ValueLayout.JAVA_LONG, 7);
    }
  }

  /** Buffers outside the heap that wait for the collector: none is to be made at every step. */
  static final long FEW = 20;

  /** Direct buffers of the JVM; the collector has not been asked to free any. */
  static long directBuffers() {
    return ManagementFactory.getPlatformMXBeans(BufferPoolMXBean.class).stream()
        .filter(pool -> pool.getName().equals("direct"))
        .mapToLong(BufferPoolMXBean::getCount)
        .sum();
  }

  /** The least of several readings: compilations under way hold a dozen megabytes for a moment. */
  static long held() throws Throwable {
    long least = Long.MAX_VALUE;
    for (int i = 0; i < 4; i++) {
      System.gc();
      Thread.sleep(200);
      least = Math.min(least, once());
    }
    return least;
  }

  @ParameterizedTest
  @EnumSource(
      value = ForwardMode.class,
      names = {"AUTO", "GATHER", "MASKED", "ALL"})
  void thousandsOfSteps(ForwardMode mode) throws Throwable {
    try (var model = tiny("cpu");
        var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var llama = model.llama();
      var context = model.generator().context().withMode(mode);
      steps(llama, context, manager);
      long before = held();
      long buffers = directBuffers();
      for (int i = 0; i < 3; i++) {
        steps(llama, context, manager);
      }
      assertThat(directBuffers() - buffers).isLessThan(FEW);
      assertThat(held() - before).isLessThan(SLACK);
    }
  }

  /** A thousand steps with a cache of their own. */
  private static void steps(Llama llama, ForwardContext context, NDManager manager) {
    try (var cache = llama.newCache(manager, new int[] {0, 3}, 1000)) {
      steps(llama, context, manager, cache, 1000);
    }
  }

  private static void steps(
      Llama llama,
      ForwardContext context,
      NDManager manager,
      org.meteora.model.KvCache cache,
      int count) {
    for (int i = 0; i < count; i++) {
      try (var step = manager.newSubManager()) {
        llama
            .next(Ops.of(step, new long[] {65 + i % 26, 97 + i % 26}, 2, 1), cache, context)
            .toFloatArray();
      }
    }
  }

  @Test
  void fiftyBatches() throws Throwable {
    try (var model = tiny("cpu")) {
      var evaluator =
          new Evaluator(
              model.generator(),
              TextCodec.of(model.tokenizer()),
              model.generationConfig().withGreedy().withMaxLength(60),
              4);
      evaluator.run("warm_up", samples(40));
      long before = held();
      long buffers = directBuffers();
      evaluator.run("fifty", samples(200));
      assertThat(directBuffers() - buffers).isLessThan(FEW);
      assertThat(held() - before).isLessThan(SLACK);
    }
  }

  /** Both with layers computed again and with all activations kept. */
  @Test
  void threeHundredTrainingSteps() throws Throwable {
    try (var model = tiny("cpu");
        var parameters = new FlatParameters(model.llama().manager(), parameters(model.llama()));
        var optimizer = new AdamW(parameters, 0.01)) {
      var training = model.generator().context().forTraining(true);
      var learners =
          List.of(
              new LlamaLearner(model.llama(), training, Recompute.ALL, model.adapterNames().size()),
              new LlamaLearner(
                  model.llama(), training, Recompute.NONE, model.adapterNames().size()));
      train(learners, parameters, optimizer, 60);
      long before = held();
      long buffers = directBuffers();
      train(learners, parameters, optimizer, 300);
      assertThat(directBuffers() - buffers).isLessThan(FEW);
      assertThat(held() - before).isLessThan(SLACK);
    }
  }

  static void train(
      List<LlamaLearner> learners, FlatParameters parameters, AdamW optimizer, int steps) {
    for (int i = 0; i < steps; i++) {
      var tokens = IntStream.range(0, 6 + i % 8).map(t -> 65 + t).toArray();
      var batch = new Batch(List.of(new TrainingSample("made", tokens, 0, i % 2)), false);
      parameters.clearGradients();
      learners.get(i % 2).learn(batch, 0.1, 0.1, i, layer -> {});
      parameters.collectGradients();
      optimizer.step(1e-4, AdamW.clipFactor(optimizer.gradientNorm(), 0.3));
      parameters.publish();
    }
  }

  static Map<String, NDArray> parameters(Llama llama) {
    var result = new LinkedHashMap<String, NDArray>();
    for (int layer = 0; layer < llama.layers().size(); layer++) {
      for (var projection : llama.layers().get(layer).projections()) {
        var name = layer + "." + result.size();
        result.put(name + ".gate", projection.bank().gate());
        result.put(name + ".a", projection.bank().loraA());
        result.put(name + ".b", projection.bank().loraB());
      }
    }
    return result;
  }

  private static List<Sample> samples(int count) {
    var result = new ArrayList<Sample>();
    for (int i = 0; i < count; i++) {
      result.add(new Sample("[INST] " + "word ".repeat(1 + i % 6) + "[/INST]\n", "x"));
    }
    return result;
  }
}
