package org.meteora.generate;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.meteora.backend.Backends;
import org.meteora.tensor.Devices;

/** As {@link BatchingTest}, on a GPU: products of our own and cuBLAS, joins, leaves, prefixes. */
@Tag("gpu")
class BatchingGpuTest {
  @Test
  void everyBatchSizeGivesTheSameAnswers() {
    var requests = BatchingTest.requests(1, 60);
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = RequestsTest.model(manager);
      // operation by operation, one after the other
      var expected = BatchingTest.answers(llama, ModelSession.of(llama), requests, 1);
      try (var decoding = Backends.decoding(llama)) {
        for (int atOnce : new int[] {1, 3, 16, 20, 60}) {
          assertThat(BatchingTest.answers(llama, decoding, requests, atOnce))
              .as("%d at once", atOnce)
              .isEqualTo(expected);
        }
        var order = new ArrayList<>(expected.keySet());
        java.util.Collections.shuffle(order, new Random(2));
        var shuffled =
            BatchingTest.answers(llama, decoding, order.stream().map(requests::get).toList(), 40);
        for (int i = 0; i < order.size(); i++) {
          assertThat(shuffled.get(i)).isEqualTo(expected.get(order.get(i)));
        }
        assertThat(List.copyOf(expected.values())).hasSize(60);
      }
    }
  }

  /**
   * Every kind of router in one run, prompts in pieces, some heard: as each alone by operations.
   */
  @Test
  void eachIsAnsweredByItsOwnSettingsWhoeverRunsBesideIt() {
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = RequestsTest.model(manager);
      var alone = new ArrayList<String>();
      var expected = new ArrayList<String>();
      for (var each : BatchingTest.mixed(llama, BatchingTest.requests(4, 12), alone)) {
        expected.add(BatchingTest.answers(llama, ModelSession.of(llama), List.of(each), 1).get(0));
      }
      try (var decoding = BatchingTest.inPieces(Backends.decoding(llama), 30)) {
        var heard = new ArrayList<String>();
        var requests = BatchingTest.mixed(llama, BatchingTest.requests(4, 12), heard);
        assertThat(BatchingTest.answers(llama, decoding, requests, 5).values())
            .containsExactlyElementsOf(expected);
        assertThat(heard).isEqualTo(alone);
      }
    }
  }

  /** A session's rows are not those of the session before, though their lengths would follow. */
  @Test
  void aPromptAsLongAsWhatWasAnsweredBefore() {
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = RequestsTest.model(manager);
      var config = GenerationConfig.greedy(List.of(), 90).withMaxNewTokens(3);
      var first = List.of(new Request(new int[] {3, 4, 5, 6, 7}, config, 0));
      var second = List.of(new Request(new int[] {9, 8, 7, 6, 5, 4, 3}, config, 0));
      var expected = BatchingTest.answers(llama, ModelSession.of(llama), second, 1);
      try (var decoding = Backends.decoding(llama)) {
        BatchingTest.answers(llama, decoding, first, 1);
        assertThat(BatchingTest.answers(llama, decoding, second, 1)).isEqualTo(expected);
      }
    }
  }

  /**
   * Prompts behind what they share, put back and gone on with: blocks copied to prefills and back.
   */
  @Test
  void whoFindsNoBlockIsPutBackAndGoesOn() {
    try (var manager = Devices.newManager(Device.gpu())) {
      var llama = RequestsTest.model(manager);
      var requests = BatchingTest.requests(6, 16);
      var expected = BatchingTest.answers(llama, ModelSession.of(llama), requests, 1);
      try (var decoding = Backends.decoding(llama)) {
        for (int blocks : new int[] {3, 5, 9}) {
          assertThat(
                  BatchingTest.answers(
                      llama, BatchingTest.withBlocks(decoding, blocks), requests, 6))
              .as("%d blocks", blocks)
              .isEqualTo(expected);
        }
      }
    }
  }
}
