package org.meteora.backend;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import java.util.List;
import java.util.Optional;
import java.util.function.Function;
import org.junit.jupiter.api.Test;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Generator;
import org.meteora.model.Backend;
import org.meteora.model.Llama;
import org.meteora.model.Pass;
import org.meteora.model.RandomLlama;
import org.meteora.model.SmallArchitecture;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** A model by libtorch's operations alone against the same by what the device does best. */
abstract class TensorBackendChecks {
  private static final String REASON = "no CUDA compiler: libnvrtc.so is nowhere";
  private static final List<int[]> PROMPTS =
      List.of(new int[] {3, 17, 5, 60, 2, 9}, new int[] {8, 1}, new int[] {44, 6, 6, 31});

  abstract Device device();

  /** As it is where kernels of our own do not run. */
  private Backend without(NDManager manager) {
    return device().isGpu()
        ? Backends.of(manager, Dtype.F32, Flags.AUTO, index -> Optional.of(REASON))
        : new TensorBackend(device(), REASON);
  }

  private static Llama model(NDManager manager, Backend backend) {
    manager.getEngine().setRandomSeed(5);
    return RandomLlama.create(SmallArchitecture.create(), manager, Dtype.F32, 5, 4, backend, 0);
  }

  private <T> T with(Function<NDManager, Backend> backend, Function<Llama, T> work) {
    try (var manager = Devices.newManager(device())) {
      return work.apply(model(manager, backend.apply(manager)));
    }
  }

  private Backend usual(NDManager manager) {
    return Backends.of(manager, Dtype.F32);
  }

  @Test
  void saysWhy() {
    String said = with(this::without, llama -> llama.backend().toString());
    assertThat(said)
        .contains(Devices.name(device()))
        .contains("tensor operations")
        .contains(REASON);
  }

  @Test
  void answersAsTheUsualBackendDoes() {
    for (int k : new int[] {1, 2, 5}) {
      var asks = ForwardContext.inference(new RoutingSettings(k, 1.5), Flags.AUTO);
      Function<Llama, List<int[]>> answers =
          llama -> {
            try (var decoding = Backends.decoding(llama)) {
              return new Generator(llama, decoding, asks)
                  .generate(PROMPTS, GenerationConfig.greedy(List.of(), 1000).withMaxNewTokens(20));
            }
          };
      var expected = with(this::usual, answers);
      var answered = with(this::without, answers);
      for (int row = 0; row < PROMPTS.size(); row++) {
        assertThat(answered.get(row)).as("k %d, row %d", k, row).isEqualTo(expected.get(row));
      }
    }
  }

  /** A recorded pass, and the gradient that comes back to a gate, an A and a B. */
  @Test
  void trainsAsTheUsualBackendDoes() {
    var asks = ForwardContext.inference(RoutingSettings.DEFAULT, Flags.AUTO).forTraining(false);
    Function<Llama, float[][]> step =
        llama -> {
          try (var scope = llama.manager().newSubManager();
              var recording = Ops.recording()) {
            var bank = llama.layers().getFirst().projections().getFirst().bank();
            var parameters = List.of(bank.gate(), bank.loraA(), bank.loraB());
            parameters.forEach(each -> each.setRequiresGradient(true));
            var ids = scope.create(new long[] {3, 17, 5, 60, 2, 9, 8, 1}, Ops.shape(2, 4));
            var logits = llama.logits(ids, Pass.whole(scope, llama, new int[] {4}, asks));
            Ops.backward(logits, logits.duplicate());
            var result = new float[4][];
            result[0] = logits.toFloatArray();
            for (int i = 0; i < 3; i++) {
              result[i + 1] = parameters.get(i).getGradient().toFloatArray();
            }
            return result;
          }
        };
    var expected = with(this::usual, step);
    var got = with(this::without, step);
    for (int i = 0; i < expected.length; i++) {
      double largest = 1;
      for (float value : expected[i]) {
        largest = Math.max(largest, Math.abs(value));
      }
      assertThat(got[i]).as("array %d", i).contains(expected[i], within((float) (1e-4 * largest)));
    }
  }
}
