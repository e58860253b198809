package org.meteora.moe;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Test;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.lora.AdapterBank;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

class RouterTest {
  private static final int IN = 8;
  private static final int OUT = 6;

  private static float[] random(Random random, int size) {
    var result = new float[size];
    for (int i = 0; i < size; i++) {
      result[i] = (float) random.nextGaussian();
    }
    return result;
  }

  /** The rows one after another as sequences of unlike lengths: the first is two. */
  private static Router.Rows packed(int[] adapters, int tokens) {
    var rows = new ArrayList<Router.Rows.Row>();
    var counts = new ArrayList<Integer>();
    for (int adapter : adapters) {
      var router = new Router.Fixed(List.of(adapter));
      var lengths = rows.isEmpty() && tokens > 1 ? List.of(1, tokens - 1) : List.of(tokens);
      for (int length : lengths) {
        rows.add(new Router.Rows.Row(router, 0));
        counts.add(length);
      }
    }
    return new Router.Rows(rows, counts);
  }

  /** In batches of few tokens and of many, by every form, with and without gates. */
  @Test
  void aFixedRouterGivesEachRowItsAdapter() {
    var random = new Random(3);
    int[] ranks = {2, 3, 1};
    double[] scales = {1, 0.5, 2};
    var w = random(random, OUT * IN);
    var g = random(random, 3 * IN);
    var a = random(random, 6 * IN);
    var b = random(random, OUT * 6);
    int[] adapters = {2, 0, 1, 0};
    int[] offsets = {0, 2, 5};
    try (var manager = Devices.newManager(Device.cpu())) {
      for (int tokens : new int[] {1, 9}) {
        var x = random(random, 4 * tokens * IN);
        var expected = new float[4 * tokens * OUT];
        for (int t = 0; t < 4 * tokens; t++) { // y = W x + s B_i A_i x, in double
          int adapter = adapters[t / tokens];
          for (int o = 0; o < OUT; o++) {
            double y = 0;
            for (int c = 0; c < IN; c++) {
              double at = w[o * IN + c];
              for (int r = offsets[adapter]; r < offsets[adapter] + ranks[adapter]; r++) {
                at += scales[adapter] * b[o * 6 + r] * a[r * IN + c];
              }
              y += at * x[t * IN + c];
            }
            expected[t * OUT + o] = (float) y;
          }
        }
        for (boolean gated : new boolean[] {true, false}) {
          var layer =
              new GatedLinear(
                  manager.create(w, Ops.shape(OUT, IN)),
                  null,
                  new AdapterBank(
                      gated ? manager.create(g, Ops.shape(3, IN)) : null,
                      manager.create(a, Ops.shape(6, IN)),
                      manager.create(b, Ops.shape(OUT, 6)),
                      ranks,
                      scales),
                  0,
                  Backends.of(manager, Dtype.F32),
                  0,
                  Projection.Q);
          var router = new Router.Fixed(Arrays.stream(adapters).boxed().toList());
          for (var mode : EnumSet.complementOf(EnumSet.of(ForwardMode.INVARIANT))) {
            var context =
                ForwardContext.inference(
                    RoutingSettings.DEFAULT.withRouter(router), Flags.of(mode));
            var y = layer.forward(manager.create(x, Ops.shape(4, tokens, IN)), context).y();
            assertThat(y.toFloatArray())
                .as("%s, %d tokens, gated %s", mode, tokens, gated)
                .containsExactly(expected, within(1e-4f));
            var its = RoutingSettings.DEFAULT.withRouter(packed(adapters, tokens));
            var row = manager.create(x, Ops.shape(1, 4 * tokens, IN));
            y = layer.forward(row, ForwardContext.inference(its, Flags.of(mode))).y();
            assertThat(y.toFloatArray())
                .as("%s, %d tokens packed, gated %s", mode, tokens, gated)
                .containsExactly(expected, within(1e-4f));
          }
          var none = RoutingSettings.DEFAULT.withRouter(new Router.Fixed(List.of(0, 1, 2, 3)));
          assertThatThrownBy(
                  () ->
                      layer.forward(
                          manager.create(x, Ops.shape(4, tokens, IN)),
                          ForwardContext.inference(none, Flags.AUTO)))
              .isInstanceOf(UserException.class)
              .hasMessageContaining("no adapter 3");
        }
      }
    }
  }
}
