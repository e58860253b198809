package org.meteora.train.optim;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import org.meteora.torch.Dtype;
import org.meteora.torch.Ops;

/**
 * AdamW (Loshchilov and Hutter, 2019) on one flat buffer, as PyTorch computes it:
 *
 * <pre>
 * p ← p · (1 − lr · decay)
 * m ← β1 m + (1 − β1) g          v ← β2 v + (1 − β2) g²
 * p ← p − lr / (1 − β1ᵗ) · m / (√v / √(1 − β2ᵗ) + ε)
 * </pre>
 *
 * with β1 = 0.9, β2 = 0.999, ε = 1e-8. Works through the buffer in pieces, so that its temporaries
 * stay small.
 */
public final class AdamW implements AutoCloseable {
  private static final double BETA1 = 0.9;
  private static final double BETA2 = 0.999;
  private static final double EPSILON = 1e-8;
  private static final long PIECE = 1L << 24;

  private final FlatParameters parameters;
  private final double weightDecay;
  private final NDManager manager;
  private final NDArray mean;
  private final NDArray variance;
  private long steps;

  public AdamW(FlatParameters parameters, double weightDecay) {
    this.parameters = parameters;
    this.weightDecay = weightDecay;
    manager = parameters.manager().newSubManager();
    mean = Ops.zeros(manager, Dtype.F32, parameters.size());
    variance = Ops.zeros(manager, Dtype.F32, parameters.size());
  }

  /** Running means of the gradients {@code (size)}: a part of the state. */
  public NDArray mean() {
    return mean;
  }

  /** Running means of the squared gradients {@code (size)}: a part of the state. */
  public NDArray variance() {
    return variance;
  }

  /** Steps made so far: a part of the state. */
  public long steps() {
    return steps;
  }

  /** Sets the number of steps, after {@link #mean} and {@link #variance} have been restored. */
  public void restore(long stepsMade) {
    steps = stepsMade;
  }

  /** The gradients' global L2 norm. */
  public double gradientNorm() {
    double sum = 0;
    long size = parameters.size();
    for (long at = 0; at < size; at += PIECE) {
      try (NDManager scope = manager.newSubManager()) {
        var g = piece(scope, parameters.gradients(), at);
        double norm = g.norm().getFloat();
        sum += norm * norm;
      }
    }
    return Math.sqrt(sum);
  }

  /**
   * One step.
   *
   * @param rate the learning rate
   * @param gradientScale multiplies the gradients: the factor of clipping, 1 for none
   */
  public void step(double rate, double gradientScale) {
    steps++;
    double bias1 = 1 - Math.pow(BETA1, steps);
    double bias2 = 1 - Math.pow(BETA2, steps);
    long size = parameters.size();
    for (long at = 0; at < size; at += PIECE) {
      try (NDManager scope = manager.newSubManager()) {
        var p = piece(scope, parameters.values(), at);
        var m = piece(scope, mean, at);
        var v = piece(scope, variance, at);
        var g = piece(scope, parameters.gradients(), at);
        if (gradientScale != 1) {
          g = g.mul(gradientScale);
        }
        m.muli(BETA1).addi(g.mul(1 - BETA1));
        v.muli(BETA2).addi(g.square().muli(1 - BETA2));
        var denominator = v.sqrt().divi(Math.sqrt(bias2)).addi(EPSILON);
        p.muli(1 - rate * weightDecay).subi(m.div(denominator).muli(rate / bias1));
      }
    }
  }

  private static NDArray piece(NDManager scope, NDArray flat, long at) {
    var piece = Ops.narrow(flat, 0, at, Math.min(PIECE, flat.getShape().size() - at));
    piece.attach(scope);
    return piece;
  }

  /** PyTorch's factor for clipping a global norm; 1 when {@code maxNorm} is 0 or not exceeded. */
  public static double clipFactor(double norm, double maxNorm) {
    return maxNorm <= 0 ? 1 : Math.min(1, maxNorm / (norm + 1e-6));
  }

  @Override
  public void close() {
    manager.close();
  }
}
