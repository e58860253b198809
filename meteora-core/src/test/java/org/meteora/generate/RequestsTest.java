package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.Executors;
import org.junit.jupiter.api.Test;
import org.meteora.backend.Backends;
import org.meteora.model.Llama;
import org.meteora.model.RandomLlama;
import org.meteora.model.SmallArchitecture;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.ForwardMode;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.router.Routers;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;

/** What a request asks for stays with it. */
class RequestsTest {
  private static final List<int[]> PROMPTS =
      List.of(new int[] {3, 17, 5, 60, 2, 9}, new int[] {8, 1}, new int[] {44, 6, 6, 31});
  private static final GenerationConfig CONFIG =
      GenerationConfig.greedy(List.of(), 1000).withMaxNewTokens(6);

  static Llama model(NDManager manager) {
    manager.getEngine().setRandomSeed(5);
    return RandomLlama.create(
        SmallArchitecture.create(), manager, Dtype.F32, 5, 4, Backends.of(manager, Dtype.F32), 0);
  }

  private static List<ForwardContext> requests(Llama llama) {
    var result = new ArrayList<ForwardContext>();
    for (var mode : List.of(ForwardMode.AUTO, ForwardMode.MASKED, ForwardMode.ALL)) {
      for (int k : new int[] {1, 5}) {
        result.add(ForwardContext.inference(new RoutingSettings(k, 0.1 + k), Flags.of(mode)));
      }
    }
    for (int adapter : new int[] {0, 3}) {
      var settings = RoutingSettings.DEFAULT.withRouter(Router.fixed(adapter));
      result.add(ForwardContext.inference(settings, Flags.AUTO));
    }
    for (var name : List.of("arrow", "spectr", "logo", "uniform")) {
      var router = Routers.of(name, llama, List.of("a", "b", "c", "d", "e"));
      result.add(ForwardContext.inference(RoutingSettings.DEFAULT.withRouter(router), Flags.AUTO));
    }
    return result;
  }

  /** Tokens, and every routing that was told, as one text. */
  private static String answer(Llama llama, DecodeSession.Provider decoding, ForwardContext asks) {
    var heard = new StringBuilder();
    var listened = new ArrayList<Request>();
    for (var prompt : PROMPTS) {
      int which = listened.size();
      listened.add(
          new Request(prompt, CONFIG, which)
              .listenedBy(
                  (layer, module, rows, count, k, indices, weights) ->
                      heard
                          .append(which)
                          .append(layer)
                          .append(module)
                          .append(Arrays.toString(indices))));
    }
    var tokens = new Generator(llama, decoding, asks).generate(listened, (row, token) -> {});
    tokens.forEach(row -> heard.append(Arrays.toString(row)));
    return heard.toString();
  }

  @Test
  void twoThreadsGetWhatEachWouldGetAlone() throws Exception {
    try (var manager = Devices.newManager(Device.cpu());
        var threads = Executors.newFixedThreadPool(2)) {
      var llama = model(manager);
      var decoding = Backends.decoding(llama);
      var requests = requests(llama);
      var alone = requests.stream().map(asks -> answer(llama, decoding, asks)).toList();
      assertThat(alone.subList(0, 2)).doesNotHaveDuplicates();
      assertThat(alone.get(6)).isNotEqualTo(alone.get(7));
      assertThat(alone.subList(8, 12)).doesNotHaveDuplicates();
      var together = new CyclicBarrier(2);
      for (int i = 0; i < requests.size(); i++) {
        int first = i;
        int second = (i + 3) % requests.size();
        var answers =
            List.of(first, second).stream()
                .map(
                    which ->
                        threads.submit(
                            () -> {
                              together.await();
                              return answer(llama, decoding, requests.get(which));
                            }))
                .toList();
        assertThat(answers.get(0).get()).isEqualTo(alone.get(first));
        assertThat(answers.get(1).get()).isEqualTo(alone.get(second));
      }
    }
  }
}
