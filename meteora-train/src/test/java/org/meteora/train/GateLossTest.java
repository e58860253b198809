package org.meteora.train;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Ops;
import org.meteora.train.batch.Batch;
import org.meteora.train.batch.TrainingSample;
import org.meteora.train.loss.GateLoss;

/** The loss and both counts of hits against a loop over gates, positions and adapters. */
class GateLossTest {
  private static final int ADAPTERS = 4;
  private static final int GATES = 6;
  private static final int LENGTH = 40;

  private static Batch batch() {
    return new Batch(
        List.of(
            new TrainingSample("a", new int[LENGTH], 1, 2),
            new TrainingSample("b", new int[LENGTH - 9], 1, 0),
            new TrainingSample("c", new int[LENGTH - 20], 1, 3)),
        false);
  }

  /** The k heaviest of a softmax, divided by their sum; zero elsewhere. */
  private static double[] weights(float[] logits, int topK) {
    var result = new double[ADAPTERS];
    double sum = 0;
    for (int choice = 0; choice < topK; choice++) {
      int best = -1;
      for (int i = 0; i < ADAPTERS; i++) {
        if (result[i] == 0 && (best < 0 || logits[i] > logits[best])) {
          best = i;
        }
      }
      result[best] = Math.exp(logits[best]);
      sum += result[best];
    }
    for (int i = 0; i < ADAPTERS; i++) {
      result[i] /= sum;
    }
    return result;
  }

  @ParameterizedTest
  @ValueSource(ints = {1, 2, 4})
  void agreesWithALoop(int topK) {
    var batch = batch();
    var random = new Random(11);
    var logits = new float[GATES][batch.rows()][LENGTH][ADAPTERS];
    double loss = 0;
    var right = new float[batch.rows()];
    var dominated = new float[batch.rows()];
    for (int row = 0; row < batch.rows(); row++) {
      int task = batch.samples().get(row).task();
      for (int t = 0; t < LENGTH; t++) {
        var shares = new double[ADAPTERS];
        boolean counts = t + 1 < batch.samples().get(row).length();
        for (int gate = 0; gate < GATES; gate++) {
          var own = logits[gate][row][t];
          double sum = 0;
          int best = 0;
          for (int i = 0; i < ADAPTERS; i++) {
            own[i] = (float) (random.nextGaussian() + (i == task ? 0.5 : 0));
            sum += Math.exp(own[i]);
            best = own[i] > own[best] ? i : best;
          }
          var weights = weights(own, topK);
          for (int i = 0; i < ADAPTERS; i++) {
            shares[i] += weights[i];
          }
          loss += counts ? Math.log(sum) - own[task] : 0;
          right[row] += counts && best == task ? 1 : 0;
        }
        int dominant = 0; // the first of equals, as in the routing reports
        for (int i = 1; i < ADAPTERS; i++) {
          dominant = shares[i] > shares[dominant] ? i : dominant;
        }
        dominated[row] += counts && dominant == task ? 1 : 0;
      }
      assertThat(dominated[row]).isBetween(1f, LENGTH - 1f);
    }
    try (var manager = Devices.newManager(Device.cpu());
        var recording = Ops.recording();
        var gates = new GateLoss(manager, batch.gateLabels(), ADAPTERS, topK);
        var inJava = new GateLoss(manager, batch.gateLabels(), ADAPTERS, topK)) {
      // two layers, one after the other
      for (int layer = 0; layer < 2; layer++) {
        var own = leaves(manager, logits, layer, batch.rows());
        Ops.backward(Ops.scale(gates.add(own), 0.3), null);
        var others = leaves(manager, logits, layer, batch.rows());
        inJava.addWithGradients(others, 0.3);
        for (int gate = 0; gate < own.size(); gate++) {
          assertThat(others.get(gate).getGradient().toFloatArray())
              .containsExactly(own.get(gate).getGradient().toFloatArray(), within(1e-6f));
        }
      }
      assertThat(inJava.sum()).isCloseTo(loss, within(1e-4 * loss));
      assertThat(inJava.gates()).isEqualTo(gates.gates());
      assertThat(byRow(inJava.right())).containsExactly(right);
      assertThat(byRow(inJava.dominated())).containsExactly(dominated);
      assertThat(gates.sum()).isCloseTo(loss, within(1e-4 * loss));
      assertThat(byRow(gates.right())).containsExactly(right);
      assertThat(byRow(gates.dominated())).containsExactly(dominated);
    }
  }

  private static List<NDArray> leaves(
      NDManager manager, float[][][][] logits, int layer, int rows) {
    var own = new ArrayList<NDArray>();
    for (int gate = layer * GATES / 2; gate < (layer + 1) * GATES / 2; gate++) {
      var leaf = manager.create(flat(logits[gate]), Ops.shape(rows, LENGTH, ADAPTERS));
      leaf.setRequiresGradient(true);
      own.add(leaf);
    }
    return own;
  }

  private static float[] byRow(float[] positions) {
    var result = new float[positions.length / LENGTH];
    for (int i = 0; i < positions.length; i++) {
      result[i / LENGTH] += positions[i];
    }
    return result;
  }

  private static float[] flat(float[][][] values) {
    var result = new float[values.length * LENGTH * ADAPTERS];
    int at = 0;
    for (var row : values) {
      for (var position : row) {
        for (float value : position) {
          result[at++] = value;
        }
      }
    }
    return result;
  }
}
