package org.meteora.router;

import ai.djl.ndarray.NDArray;
import org.meteora.model.Llama;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.ScoredBank;
import org.meteora.nn.Scores;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Arrow (arXiv 2405.11157): an adapter's prototype v_i is the first right singular vector of its
 * update B_i A_i, the input direction that it changes most; its score is |xᵀ v_i|. Not trained. An
 * adapter that does not act on a linear cannot be chosen there.
 */
public final class Arrow implements Router.Scoring {
  /**
   * @param prototypes {@code (N, in)} in the model's dtype
   * @param absent {@code (1, N)} float32: 0, or −∞ where the adapter does not act
   */
  private record Table(NDArray prototypes, NDArray absent) {}

  private final Tables<Table> tables;

  /**
   * @param model whose adapters it chooses among; what is kept belongs to its manager
   */
  public Arrow(Llama model) {
    tables =
        Tables.of(
            model,
            linear -> {
              var bank = linear.bank();
              long in = linear.weight().getShape().get(1);
              try (var host = Devices.newHostManager()) {
                var prototypes = Ops.zeros(host, Dtype.F64, bank.size(), in);
                for (int i = 0; i < bank.size(); i++) {
                  if (bank.ranks()[i] > 0) {
                    Ops.copy(
                        Ops.narrow(prototypes, 0, i, 1),
                        Ops.transpose(UpdateForm.firstRightSingularVector(host, bank, i), 0, 1));
                  }
                }
                return new Table(
                    Ops.copyOf(prototypes, model.manager(), model.dtype()),
                    Spectr.absent(model.manager(), bank));
              }
            });
  }

  @Override
  public String name() {
    return "arrow";
  }

  @Override
  public ScoredBank forKernels(GatedLinear linear) {
    return linear.layout().scored(Scores.MAGNITUDE, tables.of(linear).prototypes());
  }

  @Override
  public NDArray scores(GatedLinear linear, NDArray x) {
    var table = tables.of(linear);
    return Ops.cast(Ops.linear(x, table.prototypes(), null), Dtype.F32).abs().add(table.absent());
  }
}
