package org.meteora.router;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;
import java.util.stream.LongStream;
import org.meteora.UserException;
import org.meteora.model.Llama;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.SequenceRouter;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * LoGo (arXiv 2511.07129): one choice for a whole sequence. The prompt runs through the base model
 * once; h is the input of the last layer's q projection at the prompt's last token, and an
 * adapter's score comes from s_i B_i A_i h, by a {@link Signal}. The best k act on all tokens of
 * prompt and answer, with their scores divided by their sum as weights. Not trained. Where no
 * adapter acts on that q projection, the first projection of the last layer that has adapters takes
 * its place.
 */
public final class Logo implements Router.Probing {
  /** What makes a score of o = s_i B_i A_i h. */
  public enum Signal {
    /** ‖o‖. */
    NORM("logo"),
    /** 1 / H(softmax(o)), H the entropy in nats. */
    INVERSE_ENTROPY("logo-entropy");

    /** What {@code --router} calls LoGo with this signal. */
    private final String router;

    Signal(String router) {
      this.router = router;
    }
  }

  /** Added to an entropy, so that one of 0 has a score too. */
  private static final double EPSILON = 1e-6;

  private final Signal signal;
  private final GatedLinear probed;
  private final Spectr norms;

  /**
   * @param model whose adapters it chooses among; what is kept belongs to its manager
   */
  public Logo(Llama model, Signal signal) {
    this.signal = signal;
    var last = model.layers().getLast();
    probed =
        Arrays.stream(Projection.values())
            .map(last::projection)
            .filter(linear -> linear.bank() != null && linear.bank().totalRank() > 0)
            .findFirst()
            .orElse(null);
    norms =
        probed == null || signal != Signal.NORM
            ? null
            : new Spectr(model, linear -> linear == probed);
  }

  @Override
  public String name() {
    return signal.router;
  }

  /**
   * @param h {@code (rows, in)}
   * @return {@code (rows, N)}
   */
  private float[] scores(NDArray h) {
    if (signal == Signal.NORM) {
      try (var all = norms.norms(probed, h)) {
        return all.toFloatArray();
      }
    }
    var bank = probed.bank();
    int rows = (int) h.getShape().get(0);
    int out = (int) probed.weight().getShape().get(0);
    var scores = new float[rows * bank.size()];
    for (int i = 0; i < bank.size(); i++) {
      var o = new float[rows * out]; // 0 where the adapter does not act
      if (bank.ranks()[i] > 0) {
        int from = bank.offsets()[i];
        try (var a = Ops.narrow(bank.loraA(), 0, from, bank.ranks()[i]);
            var b = Ops.narrow(bank.loraB(), 1, from, bank.ranks()[i]);
            var z = Ops.linear(h, a, null);
            var y = Ops.linear(z, b, null);
            var values = Ops.convert(y, Dtype.F32)) {
          o = values.toFloatArray();
        }
      }
      for (int row = 0; row < rows; row++) {
        double entropy = entropyOfSoftmax(o, row * out, out, bank.scales()[i]);
        scores[row * bank.size() + i] = (float) (1 / (entropy + EPSILON));
      }
    }
    return scores;
  }

  /** Of {@code length} values from {@code from} on, each times {@code scale}. */
  private static double entropyOfSoftmax(float[] values, int from, int length, double scale) {
    double max = Double.NEGATIVE_INFINITY;
    for (int i = from; i < from + length; i++) {
      max = Math.max(max, scale * values[i]);
    }
    double sum = 0;
    double weighted = 0;
    for (int i = from; i < from + length; i++) {
      double above = scale * values[i] - max;
      sum += Math.exp(above);
      weighted += Math.exp(above) * above;
    }
    return Math.log(sum) - weighted / sum; // −Σ p log p with p = exp(above) / sum
  }

  @Override
  public Router.Probe probe() {
    return new LastToken();
  }

  private final class LastToken implements Router.Probe {
    private float[] scores; // (rows, N)

    @Override
    public String name() {
      return Logo.this.name();
    }

    @Override
    public void see(GatedLinear linear, NDArray x, int rows) {
      if (linear != probed) {
        return;
      }
      long width = x.getShape().get(0) / rows;
      // prompts are padded on their left
      var lasts = LongStream.rangeClosed(1, rows).map(row -> row * width - 1).toArray();
      try (var index = Ops.of(x.getManager(), lasts, rows);
          var h = Ops.indexSelect(x, 0, index)) {
        scores = Logo.this.scores(h);
      }
    }

    @Override
    public List<SequenceRouter> chosen(int topK) {
      if (scores == null) { // no adapter acts in the last layer
        throw new UserException(
            "--router " + name() + " looks at the last layer, and no adapter acts there");
      }
      int n = probed.bank().size();
      int k = Math.min(topK, n);
      var routers = new ArrayList<SequenceRouter>();
      for (int first = 0; first < scores.length; first += n) {
        var row = Arrays.copyOfRange(scores, first, first + n);
        var best =
            IntStream.range(0, n)
                .boxed()
                .sorted(Comparator.comparingDouble(i -> -row[i]))
                .limit(k)
                .toList();
        double sum = best.stream().mapToDouble(i -> row[i]).sum();
        var weights = best.stream().map(i -> sum > 0 ? (float) (row[i] / sum) : 1f / k).toList();
        routers.add(new Router.Fixed(name(), k, best, weights));
      }
      return routers;
    }
  }
}
