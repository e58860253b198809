package org.meteora.model;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import java.lang.reflect.Proxy;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.stream.IntStream;
import org.assertj.core.data.Offset;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;
import org.meteora.TooLittleMemory;
import org.meteora.backend.Backends;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.KvBlock;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Steps over keys and values in blocks, beside the same over a row of columns. */
class BlockTablesTest {
  private static final ForwardContext ALL =
      ForwardContext.inference(new RoutingSettings(5, 1), Flags.AUTO);

  @ParameterizedTest
  @EnumSource(names = {"F32", "BF16"})
  void stepsOverBlocksAreThoseOverARow(Dtype dtype) {
    int[] lengths = {1, 31, 32, 63, 40};
    try (var manager = Devices.newManager(Device.cpu())) {
      manager.getEngine().setRandomSeed(3);
      var backend = Backends.of(manager, dtype);
      var llama = RandomLlama.create(SmallArchitecture.create(), manager, dtype, 5, 4, backend, 0);
      var random = new Random(2);
      int blocks = 3 * lengths.length;
      var order = new ArrayList<>(IntStream.range(0, blocks).boxed().toList());
      Collections.shuffle(order, random);
      try (var pool = llama.newPool(manager, blocks)) {
        var caches = new ArrayList<KvCache>();
        var tables = new int[lengths.length][];
        poison(pool);
        for (int row = 0; row < lengths.length; row++) {
          var cache = llama.newCache(manager, new int[1], 80);
          next(llama, cache, random.longs(lengths[row], 1, 70).toArray());
          int needed = KvBlock.of(lengths[row] + 6);
          tables[row] =
              order.subList(3 * row, 3 * row + needed).stream().mapToInt(i -> i).toArray();
          for (int at = 0; at < lengths[row]; at += KvCache.BLOCK) {
            int count = Math.min(KvCache.BLOCK, lengths[row] - at);
            int block = tables[row][at / KvCache.BLOCK];
            var columns = List.of(new KvCache.Columns(0, at, block, 0, count));
            llama.backend().ops().copyColumns(cache, pool, columns);
          }
          caches.add(cache);
        }
        for (int step = 0; step < 6; step++) {
          var ids = random.longs(lengths.length, 1, 70).toArray();
          try (var scope = manager.newSubManager()) {
            var its =
                llama
                    .next(
                        Ops.of(scope, ids, ids.length, 1),
                        pool,
                        new BlockTables(tables, lengths.clone()),
                        ALL)
                    .toFloatArray();
            int vocab = its.length / lengths.length;
            for (int row = 0; row < lengths.length; row++) {
              var expected = next(llama, caches.get(row), ids[row]);
              var own = Arrays.copyOfRange(its, row * vocab, (row + 1) * vocab);
              for (int i = 0; i < vocab; i++) {
                assertThat((double) own[i])
                    .as("row %d, step %d", row, step)
                    .isCloseTo(expected[i], Offset.offset(dtype == Dtype.F32 ? 2e-5 : 0.03));
              }
              lengths[row]++;
            }
          }
        }
      }
    }
  }

  /**
   * Of a prefill's last layer nobody sees more than a few tokens, unless somebody hears of all
   * gates: the logits are the same, by rows and over blocks, and so are the steps behind it.
   */
  @Test
  void theLastLayerIsRunForWhatIsWanted() {
    try (var manager = Devices.newManager(Device.cpu())) {
      manager.getEngine().setRandomSeed(4);
      var inMlp = new ArrayList<Long>(); // tokens of each layer
      var backend = watched(Backends.of(manager, Dtype.F32), inMlp);
      var llama =
          RandomLlama.create(SmallArchitecture.create(), manager, Dtype.F32, 5, 4, backend, 0);
      var gated = ForwardContext.inference(new RoutingSettings(2, 1), Flags.of(ForwardMode.AUTO));
      var heard = new int[2]; // tokens by layer
      var listened =
          gated.withListener(
              Optional.of(
                  (layer, module, rows, tokens, k, indices, weights) -> {
                    heard[layer] += module == 6 ? rows * tokens : 0;
                  }));
      var random = new Random(4);
      var ids = random.longs(40, 1, 70).toArray();
      var following = random.longs(2, 1, 70).toArray();
      var all = new ArrayList<float[]>();
      for (var context : List.of(listened, gated)) {
        try (var scope = manager.newSubManager();
            var cache = llama.newCache(manager, new int[] {0, 7}, 30);
            var pool = llama.newPool(manager, 3)) {
          all.add(llama.next(Ops.of(scope, ids, 2, 20), cache, context).toFloatArray());
          all.add(llama.next(Ops.of(scope, following, 2, 1), cache, context).toFloatArray());
          var tables = new int[40][];
          Arrays.fill(tables, 0, 25, new int[] {2});
          Arrays.fill(tables, 25, 40, new int[] {0});
          var lengths = IntStream.range(0, 40).map(i -> i < 25 ? i : i - 25).toArray();
          var row = Ops.of(scope, ids, 1, 40);
          var places = new BlockTables(tables, lengths);
          all.add(llama.next(row, pool, places, new int[] {24, 39}, true, context).toFloatArray());
          assertThat(
                  llama
                      .next(row, pool, places, new int[] {24, 39}, false, context)
                      .getShape()
                      .getShape())
              .containsExactly(2, 32);
        }
      }
      assertThat(heard).containsExactly(2 * 40 + 40 + 2, 2 * 40 + 40 + 2);
      // two layers of a prefill, a step, two prefills; all tokens heard, and then the wanted alone
      assertThat(inMlp)
          .containsExactly(40L, 40L, 2L, 2L, 40L, 40L, 40L, 40L, 40L, 2L, 2L, 2L, 40L, 2L, 40L, 2L);
      for (int i = 0; i < 3; i++) {
        assertThat(all.get(i)).hasSize(2 * 70);
        assertThat(all.get(3 + i)).containsExactly(all.get(i), Offset.offset(1e-5f));
      }
    }
  }

  /** A backend that tells how many tokens go through each MLP. */
  private static Backend watched(Backend backend, List<Long> inMlp) {
    var ops =
        (LayerOps)
            Proxy.newProxyInstance(
                LayerOps.class.getClassLoader(),
                new Class<?>[] {LayerOps.class},
                (self, method, arguments) -> {
                  if (method.getName().equals("siluUp")) {
                    var gate = ((NDArray) arguments[0]).getShape();
                    inMlp.add(gate.size() / gate.get(gate.dimension() - 1));
                  }
                  return method.invoke(backend.ops(), arguments);
                });
    return (Backend)
        Proxy.newProxyInstance(
            Backend.class.getClassLoader(),
            new Class<?>[] {Backend.class},
            (self, method, arguments) ->
                method.getName().equals("ops") && arguments == null
                    ? ops
                    : method.invoke(backend, arguments));
  }

  /** On a device that the weights almost fill, one sequence may still grow. */
  @Test
  void littleFreeMemoryIsShared() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var llama =
          RandomLlama.create(
              SmallArchitecture.create(),
              manager,
              Dtype.F32,
              0,
              0,
              Backends.of(manager, Dtype.F32),
              0);
      long block = MemoryNeed.cacheBytes(llama.config(), Dtype.F32, 1, KvCache.BLOCK);
      long gib = 1L << 30;
      assertThat(llama.blocks(3, 100, 60 * gib)).isEqualTo(3 * 5);
      assertThat(llama.blocks(300_000, 1000, 60 * gib))
          .isEqualTo((int) (57 * gib / 10 * 9 / block));
      assertThat(llama.blocks(300_000, 1000, 2 * gib)).isEqualTo((int) (gib / 10 * 9 / block));
      assertThatThrownBy(() -> llama.blocks(3, 100, block))
          .isInstanceOf(TooLittleMemory.class)
          .hasMessageContaining("0 MiB are free, and not even those of 32 tokens fit");
    }
  }

  /** What is in no sequence's blocks is no number. */
  private static void poison(KvCache pool) {
    for (int layer = 0; layer < pool.layers(); layer++) {
      for (var each : List.of(pool.layer(layer).keys(), pool.layer(layer).values())) {
        each.addi(Float.NaN);
      }
    }
  }

  private static float[] next(Llama llama, KvCache cache, long... ids) {
    try (var scope = llama.manager().newSubManager()) {
      return llama.next(Ops.of(scope, ids, 1, ids.length), cache, ALL).toFloatArray();
    }
  }
}
