package org.meteora.router;

import ai.djl.ndarray.NDArray;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.List;
import java.util.stream.IntStream;
import org.meteora.model.Llama;
import org.meteora.moe.Choice;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.SequenceRouter;
import org.meteora.nn.Projection;
import org.meteora.tensor.Ops;

/**
 * LoGo (arXiv 2511.07129): one choice for a whole sequence. The prompt runs through the base model
 * once; h is the input of the last layer's q projection at the prompt's last token, and an
 * adapter's score ‖s_i B_i A_i h‖. The best k act on all tokens of prompt and answer, with their
 * scores divided by their sum as weights. Not trained. Where no adapter acts on that q projection,
 * the first projection of the last layer that has adapters takes its place.
 */
public final class Logo implements Router.Probing {
  private final Spectr norms;
  private final GatedLinear probed;

  /**
   * @param model whose adapters it chooses among; what is kept belongs to its manager
   */
  public Logo(Llama model) {
    var last = model.layers().getLast();
    probed =
        Arrays.stream(Projection.values())
            .map(last::projection)
            .filter(linear -> linear.bank() != null && linear.bank().totalRank() > 0)
            .findFirst()
            .orElse(null);
    norms = probed == null ? null : new Spectr(model, probed);
  }

  @Override
  public String name() {
    return "logo";
  }

  @Override
  public Probe probe() {
    return new LastToken();
  }

  /** No adapter acts while it runs along. */
  private final class LastToken implements Probe {
    private List<float[]> scores;

    @Override
    public String name() {
      return Logo.this.name();
    }

    @Override
    public Choice choose(GatedLinear linear, NDArray x, int rows) {
      int tokens = (int) x.getShape().get(0);
      if (linear == probed) {
        int n = linear.bank().size();
        var lasts = new long[rows]; // prompts are padded on their left
        for (int row = 0; row < rows; row++) {
          lasts[row] = (long) (row + 1) * (tokens / rows) - 1;
        }
        try (var index = Ops.of(x.getManager(), lasts, rows);
            var h = Ops.indexSelect(x, 0, index);
            var all = norms.norms(linear, h)) {
          var values = all.toFloatArray();
          scores = new ArrayList<>();
          for (int row = 0; row < rows; row++) {
            scores.add(Arrays.copyOfRange(values, row * n, (row + 1) * n));
          }
        }
      }
      return new Choice(tokens, 1); // adapter 0 with the weight 0: nothing
    }

    @Override
    public List<SequenceRouter> chosen(int topK) {
      if (scores == null) { // no adapter acts in the last layer
        throw new org.meteora.UserException(
            "--router logo looks at the last layer, and no adapter acts there");
      }
      int k = Math.min(topK, scores.getFirst().length);
      var routers = new ArrayList<SequenceRouter>();
      for (var row : scores) {
        var best =
            IntStream.range(0, row.length)
                .boxed()
                .sorted(Comparator.comparingDouble(i -> -row[i]))
                .limit(k)
                .toList();
        double sum = best.stream().mapToDouble(i -> row[i]).sum();
        var weights = best.stream().map(i -> sum > 0 ? (float) (row[i] / sum) : 1f / k).toList();
        routers.add(new Fixed(name(), k, best, weights));
      }
      return routers;
    }
  }
}
