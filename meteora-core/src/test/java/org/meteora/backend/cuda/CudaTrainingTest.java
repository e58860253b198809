package org.meteora.backend.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import ai.djl.pytorch.engine.PtNDArray;
import ai.djl.pytorch.jni.JniUtils;
import java.lang.foreign.Arena;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.IntStream;
import org.assertj.core.data.Offset;
import org.assertj.core.data.Percentage;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.backend.Backends;
import org.meteora.cuda.driver.CStruct;
import org.meteora.cuda.kernel.DropoutDraw;
import org.meteora.cuda.kernel.KernelName;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.PublishedPart;
import org.meteora.io.Jsonl;
import org.meteora.lora.AdapterBank;
import org.meteora.model.Gradients;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.LlamaTraining;
import org.meteora.model.LlamaTraining.Input;
import org.meteora.model.LlamaTraining.Recompute;
import org.meteora.model.Pass;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * The GPU's training passes on a CPU, by the kernels' own source, beside libtorch's gradients of
 * the formula: losses, gradients of all parameters, with padding, recomputation and dropout.
 */
class CudaTrainingTest {
  @TempDir static Path folder;
  private static HostDevice device;

  @BeforeAll
  static void compile() throws Exception {
    var compiled = HostDevice.compile(folder, 2);
    Assumptions.assumeTrue(compiled.isPresent(), "no g++ on this machine");
    device = compiled.get();
  }

  /** A model of random numbers, and where its gradients are summed. */
  private static final class Model implements AutoCloseable, Gradients {
    final NDManager manager = Devices.newManager(ai.djl.Device.cpu());
    final Map<String, NDArray> parameters = new LinkedHashMap<>();
    final Map<NDArray, NDArray> sums = new IdentityHashMap<>();
    final Random random;
    final Llama llama;
    final boolean halves;

    Model(
        int hidden, int heads, int headDim, boolean gates, double dropout, boolean halves, int seed)
        throws Exception {
      this(hidden, 22, heads, headDim, gates, new int[0], dropout, halves, seed);
    }

    /** With adapters of these ranks, and all B transposed; none: some, and one B transposed. */
    Model(
        int hidden,
        int inner,
        int heads,
        int headDim,
        boolean gates,
        int[] manyRanks,
        double dropout,
        boolean halves,
        int seed)
        throws Exception {
      this.halves = halves;
      random = new Random(seed);
      var json =
          Jsonl.JSON.readTree(
              """
              {"vocab_size": 37, "hidden_size": %d, "intermediate_size": %d, "num_hidden_layers": 3,
               "num_attention_heads": %d, "num_key_value_heads": 1, "head_dim": %d,
               "attention_bias": true}\
              """
                  .formatted(hidden, inner, heads, headDim));
      var config = LlamaConfig.parse(json, "test");
      boolean many = manyRanks.length > 0;
      int[] ranks = many ? manyRanks : gates ? new int[] {2, 3, 1} : new int[] {2, 2};
      double[] scales =
          many
              ? Arrays.stream(ranks).mapToDouble(rank -> 16.0 / (rank + 8)).toArray()
              : gates ? new double[] {1, 0.5, 2} : new double[] {1.5, 0.5};
      int total = Arrays.stream(ranks).sum();
      llama =
          LlamaFactory.build(
              config,
              manager,
              Dtype.F32,
              (name, shape) ->
                  name.contains("norm")
                      ? random(1, 0.2, shape)
                      : random(0, name.contains("bias") ? 0.5 : 0.4, shape),
              (layer, module) -> {
                if (layer == 0 && gates || module == Projection.K && layer == 1) {
                  return null; // layers before the first adapter, a linear without any
                }
                var shape = config.shape(module);
                var bank =
                    new AdapterBank(
                        gates ? random(0, 0.5, ranks.length, shape[1]) : null,
                        random(0, 0.5, total, shape[1]),
                        random(0, 0.5, shape[0], total),
                        ranks,
                        scales);
                if (many || module == Projection.UP) {
                  bank = bank.withTransposedB();
                }
                var path = module.path(layer);
                if (gates) {
                  parameters.put(path + ".moe_gate", bank.gate());
                }
                parameters.put(path + ".lora_A", bank.loraA());
                parameters.put(path + ".lora_B", bank.loraB());
                return bank;
              },
              Backends.of(manager, Dtype.F32),
              dropout);
      parameters.forEach(
          (name, tensor) -> {
            tensor.setRequiresGradient(true);
            sums.put(tensor, Ops.zeros(manager, Dtype.F32, tensor.getShape().getShape()));
          });
    }

    private NDArray random(double mean, double deviation, long... shape) {
      var values = new float[(int) Ops.shape(shape).size()];
      for (int i = 0; i < values.length; i++) {
        values[i] = (float) (mean + random.nextGaussian() * deviation);
      }
      return manager.create(values, Ops.shape(shape));
    }

    @Override
    public List<Part> of(NDArray parameter) {
      var sum = sums.get(parameter);
      if (sum == null) {
        return List.of();
      }
      if (!halves) {
        return List.of(new Part(sum, -1, 0, 0));
      }
      // the first half in its place, the second in a tensor of its own, as for adapters by
      // themselves
      boolean isB =
          parameters.entrySet().stream()
              .anyMatch(entry -> entry.getValue() == parameter && entry.getKey().endsWith("B"));
      int dim = isB ? 1 : 0;
      long whole = parameter.getShape().get(dim);
      long half = whole / 2;
      var result = new ArrayList<Part>();
      for (int i = 0; i < 2; i++) {
        var part = parts.computeIfAbsent(parameter, key -> new NDArray[2]);
        if (part[i] == null) {
          var shape = parameter.getShape().getShape().clone();
          shape[dim] = i == 0 ? half : whole - half;
          part[i] = Ops.zeros(manager, Dtype.F32, shape);
        }
        result.add(new Part(part[i], dim, i * half, part[i].getShape().get(dim)));
      }
      return result;
    }

    final Map<NDArray, NDArray[]> parts = new IdentityHashMap<>();

    float[] gradient(NDArray parameter) {
      var part = parts.get(parameter);
      if (part == null) {
        return sums.get(parameter).toFloatArray();
      }
      int dim = part[0].getShape().get(0) == parameter.getShape().get(0) ? 1 : 0;
      return part[0].concat(part[1], dim).toFloatArray();
    }

    @Override
    public void close() {
      manager.close();
    }
  }

  private static Input input(boolean padded, boolean tasks, double... weights) {
    int[] lengths = padded ? new int[] {5, 9, 1} : new int[] {7, 7, 7};
    int length = Arrays.stream(lengths).max().getAsInt();
    var random = new Random(3);
    var ids = new long[3 * length];
    var labels = new long[3 * length];
    var task = new long[3 * length];
    Arrays.fill(labels, LlamaTraining.IGNORED);
    Arrays.fill(task, LlamaTraining.IGNORED);
    for (int row = 0; row < 3; row++) {
      for (int t = 0; t < lengths[row]; t++) {
        ids[row * length + t] = random.nextInt(37);
        if (t + 1 < lengths[row]) {
          labels[row * length + t] = row == 1 && t < 3 ? LlamaTraining.IGNORED : random.nextInt(37);
          task[row * length + t] = row;
        }
      }
    }
    return new Input(ids, lengths, length, labels, tasks ? task : null, weights, 0.3, 11);
  }

  private static ForwardContext context(boolean dropout) {
    return ForwardContext.inference(new RoutingSettings(2, 1), Flags.AUTO).forTraining(dropout);
  }

  /**
   * What {@link LlamaTraining.Result} is to say.
   *
   * @param votes of each position for each adapter
   */
  private record Expected(float[] losses, float[] gateLosses, float[] right, double[][] votes) {}

  /** By libtorch, and the gradients in the tensors. */
  private static Expected reference(Model model, Input input, ForwardContext context) {
    var llama = model.llama;
    int rows = input.lengths().length;
    int length = input.length();
    try (var scope = model.manager.newSubManager();
        var recording = Ops.recording()) {
      var ids = scope.create(input.ids(), Ops.shape(rows, length));
      var pass = Pass.whole(scope, llama, new int[] {length}, context.withMode(ForwardMode.MASKED));
      var logits = llama.logits(ids, pass).reshape(rows * length, -1);
      var label = input.labels().clone();
      var weight = new float[label.length];
      for (int i = 0; i < label.length; i++) {
        boolean none = label[i] == LlamaTraining.IGNORED;
        var each = input.weights();
        weight[i] = none ? 0 : (float) (each.length == 1 ? each[0] : each[i / length]);
        label[i] = none ? 0 : label[i];
      }
      var losses =
          logits.logSoftmax(-1).gather(scope.create(label).reshape(-1, 1), 1).reshape(-1).neg();
      var loss = losses.mul(scope.create(weight)).sum();
      var gateLosses = new float[rows * length];
      var right = new float[rows * length];
      var votes = new double[rows * length][3];
      if (input.tasks() != null) {
        var oneHot = new float[rows * length * 3];
        for (int i = 0; i < rows * length; i++) {
          if (input.tasks()[i] != LlamaTraining.IGNORED) {
            oneHot[i * 3 + (int) input.tasks()[i]] = 1;
          }
        }
        var target = scope.create(oneHot, Ops.shape(rows * length, 3));
        NDArray sum = null;
        for (var each : pass.gateLogits()) {
          count(each.toFloatArray(), input.tasks(), right, votes);
          var one =
              each.reshape(rows * length, 3).logSoftmax(-1).mul(target).sum(new int[] {1}).neg();
          sum = sum == null ? one : sum.add(one);
        }
        loss = loss.add(Ops.scale(sum.sum(), input.gateWeight()));
        gateLosses = sum.toFloatArray();
      }
      Ops.backward(loss, null);
      return new Expected(losses.toFloatArray(), gateLosses, right, votes);
    }
  }

  /** Of a gate: whether its first choice is the task, and the weights of its first two. */
  private static void count(float[] logits, long[] tasks, float[] right, double[][] votes) {
    for (int i = 0; i < tasks.length; i++) {
      int at = 3 * i;
      var order =
          IntStream.range(0, 3)
              .boxed()
              .sorted(Comparator.comparingDouble(adapter -> -logits[at + adapter]))
              .toList();
      right[i] += order.getFirst() == tasks[i] ? 1 : 0;
      double second = Math.exp(logits[at + order.get(1)] - logits[at + order.get(0)]);
      votes[i][order.get(0)] += 1 / (1 + second);
      votes[i][order.get(1)] += second / (1 + second);
    }
  }

  private static double error(float[] got, float[] expected) {
    double difference = 0;
    double size = 1e-12;
    for (int i = 0; i < got.length; i++) {
      difference += Math.pow(got[i] - expected[i], 2);
      size += Math.pow(expected[i], 2);
    }
    return Math.sqrt(difference / size);
  }

  @ParameterizedTest(name = "hidden {0}, {1} heads of {2}, gates {3}, padded {4}, {5}, halves {6}")
  @CsvSource({
    "16, 2, 16, true, false, NONE, false",
    "12, 2, 6, true, true, ALL, false",
    "16, 2, 16, true, true, AUTO, true",
    "16, 2, 16, false, true, NONE, true",
    "12, 3, 4, false, false, ALL, false"
  })
  void agreesWithLibtorch(
      int hidden,
      int heads,
      int headDim,
      boolean gates,
      boolean padded,
      Recompute recompute,
      boolean halves)
      throws Exception {
    try (var model = new Model(hidden, heads, headDim, gates, 0, halves, 5)) {
      var input = gates ? input(padded, true, 0.7) : input(padded, false, 0.7, 0.2, 1.3);
      var context =
          gates
              ? context(true)
              : context(true)
                  .withRouting(
                      new RoutingSettings(1, 1).withRouter(new Router.Fixed(List.of(1, 0, 1))));
      agrees(model, input, context, recompute, gates, 1e-3);
    }
  }

  /**
   * Ranks so many that z, y and the gradients of c and x are of the chosen adapters alone, or those
   * of A and B, or all.
   */
  @ParameterizedTest(name = "products {0}, gradients {1}, halves {2}")
  @CsvSource({"true, false, false", "true, true, false", "false, true, false", "false, true, true"})
  void manyRanksAreMultipliedByChoice(boolean products, boolean gradients, boolean halves)
      throws Exception {
    int[] ranks = {16, 0, 24};
    device.launched.clear();
    device.manyRanks = products ? 40 : 41;
    device.manyAdapters = gradients ? 1 : 2;
    try (var model = new Model(128, 128, 1, 128, true, ranks, 0, halves, 5)) {
      agrees(model, input(true, true, 0.7), context(true), Recompute.ALL, true, 5e-3);
      var group = Set.of(KernelName.GROUP_TOKENS, KernelName.GROUP_Z, KernelName.GROUP_ADD_BY_ROW);
      var lists = Set.of(KernelName.TRAINING_LISTS, KernelName.TRAINING_CHOSEN_GRADIENTS);
      assertThat(device.launched.containsAll(group)).isEqualTo(products);
      assertThat(device.launched.containsAll(lists)).isEqualTo(gradients);
    } finally {
      device.manyRanks = 1024;
      device.manyAdapters = 128;
    }
  }

  private static void agrees(
      Model model,
      Input input,
      ForwardContext context,
      Recompute recompute,
      boolean gates,
      double tolerance)
      throws Exception {
    var training = CudaTraining.of(model.llama, model, recompute, device).orElseThrow();
    assertThat(training.accepts(context)).isTrue();
    var result = training.run(input, context, true, layer -> {});
    var expected = reference(model, input, context);
    for (int i = 0; i < result.losses().length; i++) {
      if (input.labels()[i] != LlamaTraining.IGNORED) {
        assertThat(result.losses()[i]).isCloseTo(expected.losses()[i], Offset.offset(2e-4f));
      }
    }
    if (gates) {
      assertThat(error(result.gateLosses(), expected.gateLosses())).isLessThan(1e-4);
      for (int i = 0; i < input.tasks().length; i++) {
        boolean asked = input.tasks()[i] != LlamaTraining.IGNORED;
        var votes = expected.votes()[i];
        int most = votes[0] >= Math.max(votes[1], votes[2]) ? 0 : votes[1] >= votes[2] ? 1 : 2;
        assertThat(result.right()[i]).isEqualTo(asked ? expected.right()[i] : 0);
        assertThat(result.dominating()[i]).isEqualTo(asked ? most : -1);
      }
    }
    var wrong = new ArrayList<String>();
    model.parameters.forEach(
        (name, parameter) -> {
          NDArray gradient = JniUtils.getGradient((PtNDArray) parameter);
          double error = error(model.gradient(parameter), gradient.toFloatArray());
          if (!(error < tolerance)) {
            wrong.add(name + " " + error);
          }
        });
    assertThat(wrong).isEmpty();
    // once more: gradients are added, and nothing else is left of a pass
    training.run(input, context, true, layer -> {});
    var name = "model.layers.2.mlp.up_proj.lora_B";
    NDArray once = JniUtils.getGradient((PtNDArray) model.parameters.get(name));
    assertThat(error(model.gradient(model.parameters.get(name)), once.mul(2).toFloatArray()))
        .isLessThan(tolerance);
    var evaluated = training.run(input, context.forTraining(false), false, layer -> {});
    assertThat(error(evaluated.losses(), result.losses())).isLessThan(1e-6);
  }

  private static double loss(LlamaTraining.Result result, Input input) {
    double sum = 0;
    for (int i = 0; i < result.losses().length; i++) {
      sum += input.weights()[0] * result.losses()[i];
      sum += input.gateWeight() * result.gateLosses()[i];
    }
    return sum;
  }

  /** Along random directions; what is dropped is the same in all passes of a seed. */
  @Test
  void gradientsWithDropoutAgreeWithFiniteDifferences() throws Exception {
    try (var model = new Model(16, 2, 16, true, 0.3, false, 5)) {
      var input = input(true, true, 0.7);
      var context = context(true);
      var training = CudaTraining.of(model.llama, model, Recompute.ALL, device).orElseThrow();
      training.run(input, context, true, layer -> {});
      var dropped = training.run(input, context, false, layer -> {});
      var whole = training.run(input, context.forTraining(false), false, layer -> {});
      assertThat(error(dropped.losses(), whole.losses())).isGreaterThan(1e-2);
      for (var name :
          List.of(
              "model.layers.1.self_attn.q_proj.lora_A",
              "model.layers.1.self_attn.o_proj.lora_A",
              "model.layers.1.mlp.down_proj.lora_A",
              "model.layers.1.mlp.gate_proj.moe_gate",
              "model.layers.1.self_attn.v_proj.lora_B")) {
        var parameter = model.parameters.get(name);
        var gradient = model.gradient(parameter);
        // along the gradient itself: the loss's slope is its length
        double length = 0;
        for (float each : gradient) {
          length += each * each;
        }
        length = Math.sqrt(length);
        double step = 2e-3;
        var way = new float[gradient.length];
        for (int i = 0; i < way.length; i++) {
          way[i] = (float) (step * gradient[i] / length);
        }
        try (var off = Ops.notRecording();
            var scope = model.manager.newSubManager()) {
          var move = scope.create(way, parameter.getShape());
          parameter.addi(move);
          double up = loss(training.run(input, context, false, layer -> {}), input);
          parameter.subi(move.mul(2));
          double down = loss(training.run(input, context, false, layer -> {}), input);
          parameter.addi(move);
          assertThat((up - down) / (2 * step) / length).as(name).isCloseTo(1, Offset.offset(0.03));
        }
      }
    }
  }

  /** A share of elements that dropout drops, and the kernels' own draw. */
  @Test
  void dropsTheShareItIsAskedFor() {
    var dropout = TrainingKernels.Dropout.of(7, 0.1);
    int dropped = 0;
    for (int row = 0; row < 100; row++) {
      for (int column = 0; column < 100; column++) {
        dropped += DropoutDraw.factor(dropout, row, column, 100) == 0 ? 1 : 0;
      }
    }
    assertThat(dropped).isBetween(900, 1100);
    var x = new float[3 * 12];
    Arrays.fill(x, 1);
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var in = manager.create(x);
      var out = manager.create(x);
      device.kernels(2, 3).drop(3, 12, Ops.dataPointer(in), Ops.dataPointer(out), false, dropout);
      var got = out.toFloatArray();
      for (int i = 0; i < got.length; i++) {
        assertThat(got[i]).isEqualTo(DropoutDraw.factor(dropout, i / 12, i % 12, 12));
      }
    }
  }

  /** What is free is no more than what libtorch is left: no layer is kept. */
  @Test
  void keepsNoMoreLayersThanThereIsRoomFor() throws Exception {
    try (var model = new Model(16, 2, 16, true, 0, false, 5)) {
      var auto = CudaTraining.of(model.llama, model, Recompute.AUTO, device).orElseThrow();
      long before = device.free;
      try {
        device.free = 1L << 30;
        auto.run(input(false, true, 0.7), context(true), true, layer -> {});
      } finally {
        device.free = before;
      }
      assertThat(auto.recomputedLayers()).isEqualTo(2);
    }
  }

  /** The optimiser's kernels beside float64. */
  @Test
  void theOptimisersKernelsAgreeWithFloat64() {
    int count = 1000;
    var random = new Random(9);
    var all = new float[4][count];
    for (int i = 0; i < count; i++) {
      for (int j = 0; j < 4; j++) {
        all[j][i] = (float) random.nextGaussian();
      }
      all[3][i] *= all[3][i]; // variances
    }
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var arrays = Arrays.stream(all).map(manager::create).toList();
      var at = arrays.stream().mapToLong(Ops::dataPointer).toArray();
      var kernels = device.kernels(1, 1);
      var sums = Ops.zeros(manager, Dtype.F64, TrainingKernels.SQUARES_BLOCKS);
      kernels.squares(at[0], Ops.dataPointer(sums), count);
      double squares = 0;
      for (float each : all[0]) {
        squares += (double) each * each;
      }
      assertThat(Arrays.stream(sums.toDoubleArray()).sum())
          .isCloseTo(squares, Percentage.withPercentage(1e-9));

      kernels.adamW(
          new TrainingKernels.TrainingAdamW(
              at[0], at[1], at[2], at[3], count, 0.5f, 0.99f, 1e-2f, 0.7f, 0.9f, 0.999f, 1e-8f));
      var expected = new float[3][count];
      for (int i = 0; i < count; i++) {
        double gradient = 0.5 * all[1][i];
        double mean = 0.9 * all[2][i] + 0.1 * gradient;
        double variance = 0.999 * all[3][i] + 0.001 * gradient * gradient;
        expected[0][i] =
            (float) (0.99 * all[0][i] - 1e-2 * mean / (Math.sqrt(variance) / 0.7 + 1e-8));
        expected[1][i] = (float) mean;
        expected[2][i] = (float) variance;
      }
      assertThat(error(arrays.get(0).toFloatArray(), expected[0])).isLessThan(1e-6);
      assertThat(error(arrays.get(2).toFloatArray(), expected[1])).isLessThan(1e-6);
      assertThat(error(arrays.get(3).toFloatArray(), expected[2])).isLessThan(1e-6);
      assertThat(arrays.get(1).toFloatArray()).isEqualTo(all[1]);

      // (4, 5), row-major, into the columns 2 to 6 of (4, 8), and into the transpose of (5, 4)
      var wide = Ops.zeros(manager, Dtype.F32, 4, 8);
      var transposed = Ops.zeros(manager, Dtype.F32, 5, 4);
      var parts =
          List.of(
              new PublishedPart(at[1], Ops.dataPointer(wide) + 4 * 2, 4, 5, 8, 1),
              new PublishedPart(at[1], Ops.dataPointer(transposed), 4, 5, 1, 4));
      try (var arena = Arena.ofConfined()) {
        kernels.publish(CStruct.array(arena, parts).address(), 2, 20, false);
      }
      var published = manager.create(Arrays.copyOf(all[1], 20), Ops.shape(4, 5));
      assertThat(Ops.contiguous(Ops.narrow(wide, 1, 2, 5)).toFloatArray())
          .isEqualTo(published.toFloatArray());
      assertThat(wide.sum().getFloat())
          .isCloseTo(published.sum().getFloat(), Percentage.withPercentage(1e-3));
      assertThat(transposed.transpose().toFloatArray()).isEqualTo(published.toFloatArray());
    }
  }

  /** Memory runs out in the forward part with two layers kept: one is, with the same gradients. */
  @Test
  void recomputesMoreWhereMemoryRunsOut() throws Exception {
    try (var model = new Model(16, 2, 16, true, 0, false, 5)) {
      var input = input(false, true, 0.7);
      var context = context(true);
      var all = CudaTraining.of(model.llama, model, Recompute.ALL, device).orElseThrow();
      all.run(input, context, true, layer -> {});
      assertThat(all.recomputedLayers()).isEqualTo(2); // of three, the first has no adapters
      var name = "model.layers.1.self_attn.q_proj.lora_A";
      var parameter = model.parameters.get(name);
      var expected = model.gradient(parameter);
      var auto = CudaTraining.of(model.llama, model, Recompute.AUTO, device).orElseThrow();
      try {
        device.launchesLeft = 20; // in the forward part
        auto.run(input, context, true, layer -> {});
        assertThat(auto.recomputedLayers()).isEqualTo(1);
        assertThat(device.launchesLeft).isEqualTo(-1);
      } finally {
        device.launchesLeft = -1;
      }
      var twice = model.gradient(parameter);
      for (int i = 0; i < twice.length; i++) {
        twice[i] /= 2;
      }
      assertThat(error(twice, expected)).isLessThan(1e-6);
    }
  }

  /** Inference behind a training pass sees the parameters as they are then. */
  @Test
  void whatInferenceKeptIsMadeAnew() throws Exception {
    try (var model = new Model(16, 2, 16, true, 0, false, 5)) {
      var layout = model.llama.layers().get(1).projection(Projection.Q).layout();
      var before = layout.loraBTransposed(false).toFloatArray();
      var training = CudaTraining.of(model.llama, model, Recompute.ALL, device).orElseThrow();
      training.run(input(false, true, 0.7), context(true), true, layer -> {});
      try (var off = Ops.notRecording();
          var detached = Ops.detach(model.manager, layout.bank().loraB())) {
        detached.addi(1); // the optimiser's step
      }
      var after = layout.loraBTransposed(false).toFloatArray();
      for (int i = 0; i < before.length; i++) {
        assertThat(after[i]).isEqualTo(before[i] + 1);
      }
    }
  }

  /** Samples of unequal lengths that lie behind each other, and each of them by itself. */
  @Test
  void samplesDoNotSeeTheirNeighbours() throws Exception {
    try (var together = new Model(16, 2, 16, true, 0, false, 5);
        var apart = new Model(16, 2, 16, true, 0, false, 5)) {
      var context = context(true);
      var input = input(true, true, 0.7);
      int length = input.length();
      var all =
          CudaTraining.of(together.llama, together, Recompute.ALL, device)
              .orElseThrow()
              .run(input, context, true, layer -> {});
      var alone = CudaTraining.of(apart.llama, apart, Recompute.ALL, device).orElseThrow();
      for (int row = 0; row < 3; row++) {
        int from = row * length;
        int own = input.lengths()[row];
        var result =
            alone.run(
                new Input(
                    Arrays.copyOfRange(input.ids(), from, from + own),
                    new int[] {own},
                    own,
                    Arrays.copyOfRange(input.labels(), from, from + own),
                    Arrays.copyOfRange(input.tasks(), from, from + own),
                    input.weights(),
                    input.gateWeight(),
                    input.seed()),
                context,
                true,
                layer -> {});
        assertThat(error(result.losses(), Arrays.copyOfRange(all.losses(), from, from + own)))
            .isLessThan(1e-5);
        assertThat(
                error(result.gateLosses(), Arrays.copyOfRange(all.gateLosses(), from, from + own)))
            .isLessThan(1e-5);
        assertThat(result.dominating())
            .containsExactly(Arrays.copyOfRange(all.dominating(), from, from + own));
      }
      together.parameters.forEach(
          (name, parameter) ->
              assertThat(
                      error(
                          together.gradient(parameter), apart.gradient(apart.parameters.get(name))))
                  .as(name)
                  .isLessThan(1e-4));
    }
  }
}
