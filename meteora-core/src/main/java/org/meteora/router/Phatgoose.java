package org.meteora.router;

import ai.djl.ndarray.NDArray;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.ScoredBank;
import org.meteora.nn.Scores;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * PHATGOOSE (arXiv 2402.05859): each adapter has a vector v for each linear, learnt with that
 * adapter alone and everything else frozen, from {@code x Wᵀ + σ(vᵀx) · update} ({@link #ALONE}).
 * Among several an adapter's score is {@code LN(v) · LN(x) / √in}, where LN subtracts the mean and
 * divides by the standard deviation. An adapter that does not act on a linear cannot be chosen
 * there.
 */
public final class Phatgoose implements Router.Scoring {
  /** What a vector's training runs with: the bank's gate is the vectors, {@code (N, in)}. */
  public static final Router ALONE = new Alone();

  /** Of the variance of x, so that zeros have the score 0. */
  static final double EPSILON = 1e-12;

  private record Alone() implements Weighing {
    @Override
    public String name() {
      return "phatgoose";
    }

    @Override
    public NDArray weights(GatedLinear linear, NDArray x, ForwardContext context) {
      var logits = Ops.cast(Ops.linear(x, linear.bank().gate(), null), Dtype.F32); // vᵀx
      return logits.getNDArrayInternal().sigmoid();
    }
  }

  /**
   * @param directions {@code (N, in)} in the model's dtype: LN(v) / √in, 0 where the adapter does
   *     not act
   * @param absent {@code (1, N)} float32: 0, or −∞ where the adapter does not act
   */
  private record Table(NDArray directions, NDArray absent) {}

  /** Where vectors come from. */
  public interface Vectors {
    /** v {@code (in)} of an adapter that acts on this linear. */
    float[] of(int adapter, GatedLinear linear);
  }

  private final Tables<Table> tables;

  /**
   * @param model whose adapters it chooses among; what is kept belongs to its manager
   */
  public Phatgoose(Llama model, Vectors vectors) {
    tables =
        Tables.of(
            model,
            linear -> {
              var bank = linear.bank();
              int in = (int) linear.weight().getShape().get(1);
              var directions = new double[bank.size() * in];
              for (int i = 0; i < bank.size(); i++) {
                if (bank.ranks()[i] > 0) {
                  standardize(vectors.of(i, linear), directions, i * in);
                }
              }
              try (var host = Devices.newHostManager()) {
                return new Table(
                    Ops.copyOf(
                        host.create(directions, Ops.shape(bank.size(), in)),
                        model.manager(),
                        model.dtype()),
                    Spectr.absent(model.manager(), bank));
              }
            });
  }

  /** LN(v) / √in. */
  private static void standardize(float[] v, double[] target, int at) {
    double mean = 0;
    for (float each : v) {
      mean += each / (double) v.length;
    }
    double squares = 0;
    for (float each : v) {
      squares += (each - mean) * (each - mean);
    }
    for (int i = 0; i < v.length; i++) { // squares / in is the variance
      target[at + i] = squares > 0 ? (v[i] - mean) / Math.sqrt(squares) : 0;
    }
  }

  @Override
  public String name() {
    return "phatgoose";
  }

  @Override
  public ScoredBank forKernels(GatedLinear linear) {
    return linear.layout().scored(Scores.STANDARDIZED, tables.of(linear).directions());
  }

  @Override
  public NDArray scores(GatedLinear linear, NDArray x) {
    var table = tables.of(linear);
    var values = Ops.cast(x, Dtype.F32);
    var centred = values.sub(values.mean(new int[] {-1}, true));
    var deviation = centred.mul(centred).mean(new int[] {-1}, true).add(EPSILON).sqrt();
    // LN(v) sums to 0: its product with x is that with x less its mean
    return Ops.cast(Ops.linear(x, table.directions(), null), Dtype.F32)
        .div(deviation)
        .add(table.absent());
  }
}
