package org.meteora.router;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import java.util.IdentityHashMap;
import java.util.Map;
import java.util.function.Predicate;
import org.meteora.lora.AdapterBank;
import org.meteora.model.Llama;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.moe.ScoredBank;
import org.meteora.nn.Scores;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * SpectR (arXiv 2504.03454): an adapter's score is how much it would change this token, ‖s_i B_i
 * A_i x‖, from the update's singular value decomposition kept in rank r. Not trained. An adapter
 * that does not act on a linear cannot be chosen there.
 */
public final class Spectr implements Router.Scoring {
  /**
   * @param forms s_i M_i (see {@link UpdateForm}) of all adapters, {@code (Σr, in)} in the model's
   *     dtype
   * @param owners {@code (Σr, N)} float32: 1 where the row is the adapter's
   * @param absent {@code (1, N)} float32: 0, or −∞ where the adapter does not act
   */
  private record Table(NDArray forms, NDArray owners, NDArray absent) {}

  private final Tables<Table> tables;
  private final Llama model;
  private final Map<GatedLinear, ScoredBank> ofKernels = new IdentityHashMap<>();

  /**
   * @param model whose adapters it chooses among; what is kept belongs to its manager
   */
  public Spectr(Llama model) {
    this(model, linear -> true);
  }

  /** Of some linears alone. */
  Spectr(Llama model, Predicate<GatedLinear> which) {
    this.model = model;
    tables = Tables.of(model, linear -> which.test(linear) ? table(model, linear) : null);
  }

  private static Table table(Llama model, GatedLinear linear) {
    var bank = linear.bank();
    long in = linear.weight().getShape().get(1);
    var owners = new float[bank.totalRank() * bank.size()];
    try (var host = Devices.newHostManager()) {
      var forms = Ops.zeros(host, Dtype.F64, bank.totalRank(), in);
      for (int i = 0; i < bank.size(); i++) {
        int rank = bank.ranks()[i];
        int from = bank.offsets()[i];
        if (rank > 0) {
          var form = UpdateForm.of(host, bank, i).mul(bank.scales()[i]);
          Ops.copy(Ops.narrow(forms, 0, from, rank), form);
        }
        for (int row = from; row < from + rank; row++) {
          owners[row * bank.size() + i] = 1;
        }
      }
      return new Table(
          Ops.copyOf(forms, model.manager(), model.dtype()),
          bank.totalRank() == 0
              ? null
              : Ops.of(model.manager(), owners, bank.totalRank(), bank.size()),
          absent(model.manager(), bank));
    }
  }

  /** {@code (1, N)} float32: −∞ for adapters that do not act where others do, else 0. */
  static NDArray absent(NDManager owner, AdapterBank bank) {
    var values = new float[bank.size()];
    for (int i = 0; i < values.length; i++) {
      values[i] = bank.ranks()[i] == 0 && bank.totalRank() > 0 ? Float.NEGATIVE_INFINITY : 0;
    }
    return Ops.of(owner, values, 1, values.length);
  }

  @Override
  public String name() {
    return "spectr";
  }

  /** A with rows s_i M_i, and B with its columns orthonormal: s_i B_i A_i is their product. */
  @Override
  public ScoredBank forKernels(GatedLinear linear) {
    synchronized (ofKernels) {
      return ofKernels.computeIfAbsent(linear, this::makeForKernels);
    }
  }

  private ScoredBank makeForKernels(GatedLinear linear) {
    var left = left(linear);
    var scales = new float[linear.bank().size()];
    Arrays.fill(scales, 1);
    return new ScoredBank(
        Scores.NORM, null, tables.of(linear).forms(), Ops.transpose(left, 0, 1), left, scales);
  }

  /** {@code (Σr, out)}. */
  private NDArray left(GatedLinear linear) {
    var bank = linear.bank();
    long out = linear.weight().getShape().get(0);
    try (var off = Ops.notRecording();
        var host = Devices.newHostManager()) {
      var left = Ops.zeros(host, Dtype.F64, bank.totalRank(), out);
      for (int i = 0; i < bank.size(); i++) {
        if (bank.ranks()[i] > 0) {
          Ops.copy(
              Ops.narrow(left, 0, bank.offsets()[i], bank.ranks()[i]),
              UpdateForm.left(host, bank, i));
        }
      }
      return Ops.copyOf(left, model.manager(), model.dtype());
    }
  }

  @Override
  public NDArray scores(GatedLinear linear, NDArray x) {
    return norms(linear, x).add(tables.of(linear).absent());
  }

  /** ‖s_i B_i A_i x‖ {@code (tokens, N)} float32; 0 for adapters that do not act there. */
  NDArray norms(GatedLinear linear, NDArray x) {
    var table = tables.of(linear);
    if (table.owners() == null) {
      return Ops.zeros(x.getManager(), Dtype.F32, x.getShape().get(0), linear.bank().size());
    }
    var z = Ops.cast(Ops.linear(x, table.forms(), null), Dtype.F32);
    return z.mul(z).matMul(table.owners()).sqrt();
  }
}
