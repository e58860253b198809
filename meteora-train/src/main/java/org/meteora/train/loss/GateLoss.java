package org.meteora.train.loss;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import java.util.List;
import org.meteora.torch.Dtype;
import org.meteora.torch.Ops;
import org.meteora.train.batch.Batch;

/**
 * The gates' loss (MeteoRA, section 3.2): cross-entropy between every gate's logits at a position
 * and the adapter of the sample's task; differentiable. Also counts how often the gates' first
 * choice is right. Made for one batch and fed the gates of one layer after another.
 */
public final class GateLoss implements AutoCloseable {
  private final NDManager manager;
  private final int rows;
  private final NDArray target;
  private final NDArray labels;
  private final NDArray counted;
  private NDArray sum;
  private NDArray right;
  private long gates;

  /**
   * @param parent gives the device
   * @param batch its gate labels: position t is scored against the label of t + 1
   * @param adapters N, the number of adapters
   */
  public GateLoss(NDManager parent, Batch batch, int adapters) {
    manager = parent.newSubManager();
    rows = batch.rows();
    int length = batch.length();
    var gateLabels = batch.gateLabels();
    var oneHot = new float[rows * length * adapters];
    var label = new long[rows * length];
    var mask = new float[rows * length];
    for (int i = 0; i < gateLabels.length; i++) {
      if (gateLabels[i] != Batch.IGNORED) {
        oneHot[i * adapters + (int) gateLabels[i]] = 1;
        label[i] = gateLabels[i];
        mask[i] = 1;
      }
    }
    target = manager.create(oneHot, Ops.shape(1, rows, length, adapters));
    labels = manager.create(label, Ops.shape(1, rows, length));
    counted = manager.create(mask, Ops.shape(1, rows, length));
    sum = Ops.zeros(manager, Dtype.F32);
    right = Ops.zeros(manager, Dtype.F32, rows);
  }

  /**
   * The loss of some gates, summed over gates and labelled positions, as a differentiable float32
   * scalar that belongs to the logits' manager.
   *
   * @param logits one array a gate, {@code (rows, seq, N)}
   */
  public NDArray add(List<NDArray> logits) {
    var scope = logits.getFirst().getManager();
    var stacked =
        Ops.cast(NDArrays.stack(new NDList(logits.stream().map(this::shaped).toList())), Dtype.F32);
    var loss = stacked.logSoftmax(-1).mul(target).sum().neg();
    try (var off = Ops.notRecording();
        NDManager inner = scope.newSubManager()) {
      var first = Ops.alias(inner, stacked).argMax(-1);
      var hits = first.eq(labels).toType(DataType.FLOAT32, false).mul(counted);
      right.addi(hits.sum(new int[] {0, 2}));
      sum.addi(loss);
    }
    gates += logits.size();
    return loss;
  }

  private NDArray shaped(NDArray gate) {
    var adapters = target.getShape().get(3);
    return gate.reshape(rows, target.getShape().get(2), adapters);
  }

  /** The loss so far, summed over gates and positions. */
  public double sum() {
    return sum.getFloat();
  }

  /** How many gates have been added. */
  public long gates() {
    return gates;
  }

  /** For each row, how many (gate, position) pairs had the right adapter first. */
  public float[] right() {
    return right.toFloatArray();
  }

  @Override
  public void close() {
    manager.close();
  }
}
