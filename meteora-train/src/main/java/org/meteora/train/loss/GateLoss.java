package org.meteora.train.loss;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import java.lang.foreign.MemorySegment;
import java.util.Arrays;
import java.util.List;
import org.meteora.moe.Choice;
import org.meteora.moe.Gate;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.meteora.tensor.Workers;
import org.meteora.train.batch.Batch;

/**
 * The gates' loss (MeteoRA, section 3.2): cross-entropy between every gate's logits at a position
 * and the adapter of the sample's task; differentiable. Also counts how often the gates' first
 * choice is right, and how often their joint vote is: the adapter that dominates the token, having
 * the largest sum of routing weights over all gates. Made for one batch and fed the gates of one
 * layer after another.
 */
public final class GateLoss implements AutoCloseable {
  private final NDManager manager;
  private final int topK;
  private final int[] labelOf;
  private final NDArray target;
  private final NDArray labels;
  private final NDArray losses;
  private final NDArray right;
  private final NDArray weights;
  private long gates;

  /**
   * @param parent gives the device
   * @param gateLabels of each position the adapter that is right, or {@link Batch#IGNORED}
   * @param adapters N, the number of adapters
   * @param topK k, how many of them act on a token
   */
  public GateLoss(NDManager parent, long[] gateLabels, int adapters, int topK) {
    manager = parent.newSubManager();
    this.topK = Math.min(topK, adapters);
    int positions = gateLabels.length;
    labelOf = Arrays.stream(gateLabels).mapToInt(Math::toIntExact).toArray();
    var oneHot = new float[positions * adapters];
    for (int i = 0; i < positions; i++) {
      if (labelOf[i] != Batch.IGNORED) {
        oneHot[i * adapters + labelOf[i]] = 1;
      }
    }
    target = Ops.of(manager, oneHot, 1, positions, adapters);
    labels = Ops.of(manager, gateLabels, 1, positions);
    losses = Ops.zeros(manager, Dtype.F32, positions);
    right = Ops.zeros(manager, Dtype.F32, positions);
    weights = Ops.zeros(manager, Dtype.F32, positions, adapters);
  }

  /**
   * The loss of some gates, summed over gates and labelled positions, as a differentiable float32
   * scalar that belongs to the logits' manager.
   *
   * @param logits one array a gate, {@code (…, N)} of all positions
   */
  public NDArray add(List<NDArray> logits) {
    var scope = logits.getFirst().getManager();
    var stacked =
        Ops.cast(NDArrays.stack(new NDList(logits.stream().map(this::shaped).toList())), Dtype.F32);
    var each = stacked.logSoftmax(-1).mul(target).sum(new int[] {-1}).neg();
    var loss = each.sum();
    try (var off = Ops.notRecording();
        NDManager inner = scope.newSubManager()) {
      var all = Ops.alias(inner, stacked);
      right.addi(hits(all.argMax(-1)).sum(new int[] {0}));
      var chosen = Gate.training(all, topK);
      var none = Ops.zeros(inner, Dtype.F32, stacked.getShape().getShape());
      var dense = Ops.scatterAdd(none, 2, chosen.indices(), chosen.weights());
      weights.addi(dense.sum(new int[] {0}));
      losses.addi(Ops.alias(inner, each).sum(new int[] {0}));
    }
    gates += logits.size();
    return loss;
  }

  /**
   * The same where all is float32 in host memory: a fifth of the time that tensor operations take.
   *
   * @param logits as for {@link #add}, leaves of their own
   * @param weight what the loss is multiplied by; its gradients are added to the leaves
   */
  public void addWithGradients(List<NDArray> logits, double weight) {
    int positions = labelOf.length;
    int adapters = (int) target.getShape().get(2);
    var sumOfLosses = Ops.memory(losses);
    var hits = Ops.memory(right);
    var votes = Ops.memory(weights);
    for (var gate : logits) {
      try (var scope = gate.getManager().newSubManager()) {
        var gradient = Ops.empty(scope, Dtype.F32, gate.getShape().getShape());
        var values = Ops.memory(gate);
        var slopes = Ops.memory(gradient);
        var chosen = new Choice(positions, topK);
        Workers.share(
            positions,
            (from, to) -> {
              Gate.choose(values, adapters, chosen, from, to, 1);
              var row = new float[adapters];
              for (int at = from; at < to; at++) {
                long offset = (long) at * adapters;
                MemorySegment.copy(values, JAVA_FLOAT, offset * Float.BYTES, row, 0, adapters);
                add(sumOfLosses, at, loss(row, labelOf[at], weight));
                MemorySegment.copy(row, 0, slopes, JAVA_FLOAT, offset * Float.BYTES, adapters);
                add(hits, at, chosen.indices()[at * topK] == labelOf[at] ? 1 : 0);
                for (int pair = at * topK; pair < (at + 1) * topK; pair++) {
                  add(votes, offset + chosen.indices()[pair], chosen.weights()[pair]);
                }
              }
            });
        Ops.backward(gate, gradient);
      }
    }
    gates += logits.size();
  }

  private static void add(MemorySegment sums, long index, float value) {
    sums.setAtIndex(JAVA_FLOAT, index, sums.getAtIndex(JAVA_FLOAT, index) + value);
  }

  /**
   * A position's loss; its gradient takes the logits' place.
   *
   * @param label negative where there is none
   */
  private static float loss(float[] logits, int label, double weight) {
    if (label < 0) {
      Arrays.fill(logits, 0);
      return 0;
    }
    float highest = Float.NEGATIVE_INFINITY;
    for (float each : logits) {
      highest = Math.max(highest, each);
    }
    double own = logits[label] - highest;
    double sum = 0;
    for (int i = 0; i < logits.length; i++) {
      logits[i] = (float) Math.exp(logits[i] - highest);
      sum += logits[i];
    }
    float scale = (float) (weight / sum);
    for (int i = 0; i < logits.length; i++) {
      logits[i] *= scale;
    }
    logits[label] -= (float) weight;
    return (float) (Math.log(sum) - own);
  }

  /** 1 where a choice {@code (…, positions)} is the label; no choice is that of one ignored. */
  private NDArray hits(NDArray choice) {
    return choice.eq(labels).toType(DataType.FLOAT32, false);
  }

  private NDArray shaped(NDArray gate) {
    return gate.reshape(target.getShape().get(1), target.getShape().get(2));
  }

  /** The loss so far, summed over gates and positions. */
  public double sum() {
    double sum = 0;
    for (float loss : losses.toFloatArray()) {
      sum += loss;
    }
    return sum;
  }

  /** How many gates have been added. */
  public long gates() {
    return gates;
  }

  /** For each position, how many gates had the right adapter first. */
  public float[] right() {
    return right.toFloatArray();
  }

  /** For each position 1 if the right adapter dominates it, else 0. */
  public float[] dominated() {
    try (NDManager inner = manager.newSubManager()) {
      var choice = Ops.alias(inner, weights).argMax(-1).expandDims(0);
      return hits(choice).toFloatArray();
    }
  }

  @Override
  public void close() {
    manager.close();
  }
}
