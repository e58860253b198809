package org.meteora.backend;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.jni.JniUtils;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.meteora.Fixtures;
import org.meteora.checkpoint.LoadedModel;
import org.meteora.cuda.driver.Cuda;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Request;
import org.meteora.lora.AdapterBank;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.router.Routers;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Two GPUs in one process, by turns on one thread and at the same time on two. */
@Tag("gpu")
class TwoDevicesGpuTest {

  @BeforeEach
  void needsTwo() {
    Assumptions.assumeTrue(Devices.gpus() >= 2, "this machine has no two GPUs");
  }

  private static LoadedModel load(int device) {
    var tiny = Fixtures.tinyLlama();
    return LoadedModel.load(
        new LoadedModel.Spec(
            tiny.resolve("base"),
            "meteora",
            Optional.of(tiny.resolve("meteora")),
            Optional.of(tiny.resolve("adapters")),
            Optional.of(2),
            Optional.of(15.0),
            "cuda:" + device,
            Optional.of("f32"),
            Flags.AUTO,
            Routers.GATE));
  }

  /** Enough tokens that the cache grows while a session runs. */
  private static GenerationConfig config(LoadedModel model) {
    return model
        .generationConfig()
        .withGreedy()
        .withNoRepeatNgramSize(4)
        .withMaxLength(model.llama().config().maxPositionEmbeddings())
        .withMaxNewTokens(200);
  }

  private static void assertSame(List<int[]> actual, List<int[]> expected) {
    assertThat(actual).hasSameSizeAs(expected);
    for (int row = 0; row < actual.size(); row++) {
      assertThat(actual.get(row)).as("row " + row).isEqualTo(expected.get(row));
    }
  }

  /** At every token of one the other generates too, and leaves its device current. */
  @Test
  void generationsByTurnsOnOneThread() {
    var prompts = Fixtures.prompts();
    try (var first = load(0);
        var second = load(1)) {
      var config = config(first);
      var some = config.withMaxNewTokens(3);
      var alone = first.generator().generate(prompts, config);
      assertThat(alone.stream().mapToInt(tokens -> tokens.length).max().orElseThrow())
          .as("tokens of the longest answer")
          .isGreaterThan(128);
      var someAlone = first.generator().generate(prompts, some);
      assertSame(second.generator().generate(prompts, config), alone);
      for (var models : List.of(List.of(first, second), List.of(second, first))) {
        var other = models.getLast().generator();
        var among = new ArrayList<List<int[]>>();
        var calls = new int[1];
        RoutingListener counts =
            (layer, module, rows, tokens, topK, indices, weights) -> calls[0]++;
        var listened =
            IntStream.range(0, prompts.size())
                .mapToObj(i -> new Request(prompts.get(i), config, i).listenedBy(counts))
                .toList();
        assertSame(
            models
                .getFirst()
                .generator()
                .generate(
                    listened,
                    (row, token) -> {
                      if (row == 0) {
                        among.add(other.generate(prompts, some));
                      }
                    }),
            alone);
        assertThat(among).isNotEmpty();
        among.forEach(each -> assertSame(each, someAlone));
        assertThat(calls[0]).isPositive();
      }
    }
  }

  @Test
  void generationsAtTheSameTimeOnTwoThreads() {
    var prompts = Fixtures.prompts();
    try (var first = load(0);
        var second = load(1)) {
      var config = config(first);
      var alone = first.generator().generate(prompts, config);
      for (int round = 0; round < 3; round++) {
        var beside =
            CompletableFuture.supplyAsync(() -> second.generator().generate(prompts, config));
        assertSame(first.generator().generate(prompts, config), alone);
        assertSame(beside.join(), alone);
      }
    }
  }

  /** A training pass of a layer on each device, backward after the other's forward. */
  @Test
  void trainingByTurns() {
    try (var host = Devices.newHostManager();
        var first = Devices.newManager(Device.gpu(0));
        var second = Devices.newManager(Device.gpu(1));
        var recording = Ops.recording()) {
      var weight = host.randomNormal(Ops.shape(96, 64));
      var gate = host.randomNormal(Ops.shape(5, 64));
      var a = host.randomNormal(Ops.shape(40, 64));
      var b = host.randomNormal(Ops.shape(96, 40));
      var x = host.randomNormal(Ops.shape(30, 64));
      var results = new ArrayList<List<float[]>>();
      var layers = new ArrayList<GatedLinear>();
      var inputs = new ArrayList<NDArray>();
      var outputs = new ArrayList<NDArray>();
      var context =
          ForwardContext.inference(new RoutingSettings(2, 1), Flags.AUTO).forTraining(true);
      for (var manager : List.of(first, second)) {
        var ranks = new int[5];
        Arrays.fill(ranks, 8);
        var scales = new double[5];
        Arrays.fill(scales, 2);
        var bank =
            new AdapterBank(on(manager, gate), on(manager, a), on(manager, b), ranks, scales);
        List.of(bank.gate(), bank.loraA(), bank.loraB())
            .forEach(each -> each.setRequiresGradient(true));
        layers.add(
            new GatedLinear(
                on(manager, weight),
                null,
                bank,
                0,
                Backends.of(manager, Dtype.F32),
                0,
                Projection.Q));
        inputs.add(on(manager, x));
      }
      for (int i = 0; i < 2; i++) {
        outputs.add(layers.get(i).forward(inputs.get(i), context).y());
      }
      for (int i = 0; i < 2; i++) {
        var bank = layers.get(i).bank();
        Ops.backward(outputs.get(i), on(inputs.get(i).getManager(), host.ones(Ops.shape(30, 96))));
        results.add(
            List.of(
                outputs.get(i).toFloatArray(),
                bank.gate().getGradient().toFloatArray(),
                bank.loraA().getGradient().toFloatArray(),
                bank.loraB().getGradient().toFloatArray()));
      }
      for (int i = 0; i < results.getFirst().size(); i++) {
        var one = results.get(0).get(i);
        var other = results.get(1).get(i);
        double largest = 0;
        double worst = 0;
        for (int j = 0; j < one.length; j++) {
          largest = Math.max(largest, Math.abs(one[j]));
          worst = Math.max(worst, Math.abs(one[j] - other[j]));
        }
        assertThat(largest).isPositive();
        assertThat(worst).as("result %d", i).isLessThan(1e-5 * largest);
      }
    }
  }

  private static NDArray on(NDManager manager, NDArray x) {
    var copy = Ops.empty(manager, Dtype.F32, x.getShape().getShape());
    Ops.copy(copy, x);
    return copy;
  }

  /** What is asked of a device is answered for it, whichever was current. */
  @Test
  void memoryIsThatOfTheDevice() {
    var first = Cuda.device(0);
    var second = Cuda.device(1);
    long bytes = 512L << 20;
    second.makeCurrent();
    JniUtils.emptyCudaCache();
    long free = second.memory().free();
    first.makeCurrent();
    try (var memory = second.allocate(bytes)) {
      first.makeCurrent();
      assertThat(free - second.memory().free()).isBetween(bytes, bytes + (32 << 20));
      first.makeCurrent(); // as freed by whoever works on the other device
    }
    assertThat(second.memory().free()).isGreaterThan(free - (32 << 20));
    // what libtorch keeps of the second device's memory is given back there
    try (var manager = Devices.newManager(Device.gpu(1))) {
      Ops.zeros(manager, Dtype.F32, bytes / 4);
    }
    assertThat(free - second.memory().free()).isGreaterThan(bytes - 1);
    JniUtils.emptyCudaCache();
    assertThat(free - second.memory().free()).isLessThan(32 << 20);
    long here = first.memory().free();
    assertThat(Backends.memoryInUse(Device.gpu(0)))
        .isCloseTo(first.memory().total() - here, org.assertj.core.data.Offset.offset(64L << 20));
  }
}
