package org.meteora.router;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.Arrays;
import org.meteora.lora.AdapterBank;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * An adapter's update B A {@code (out, in)} without its left factor: with BᵀB = E Λ Eᵀ the matrix M
 * = Λ^½ Eᵀ A {@code (r, in)} has the update's singular values and right singular vectors, and ‖M x‖
 * = ‖B A x‖. Computed in float64 from the adapters as they act; nothing of {@code (out, in)} is
 * ever made.
 */
final class UpdateForm {
  private UpdateForm() {}

  /** M of adapter {@code i}, {@code (r, in)} float64; its rank must not be 0. */
  static NDArray of(NDManager host, AdapterBank bank, int i) {
    int from = bank.offsets()[i];
    int rank = bank.ranks()[i];
    var a = part(host, bank.loraA(), 0, from, rank);
    var b = part(host, bank.loraB(), 1, from, rank);
    var usv = Ops.svd(Ops.transpose(b, 0, 1).matMul(b)); // of a symmetric matrix: U = V = E
    return Ops.transpose(usv[0].mul(usv[1].sqrt()), 0, 1).matMul(a);
  }

  /**
   * The left factor, transposed: {@code (r, out)} with B A = its transpose times M; its rows are
   * orthonormal, but for those of singular values that are 0, which are 0.
   */
  static NDArray left(NDManager host, AdapterBank bank, int i) {
    var b = part(host, bank.loraB(), 1, bank.offsets()[i], bank.ranks()[i]);
    var usv = Ops.svd(Ops.transpose(b, 0, 1).matMul(b)); // BᵀB = E Λ Eᵀ
    var values = usv[1].toDoubleArray();
    double least = 1e-14 * values[0];
    var inverse = // Λ^-½
        Arrays.stream(values).map(each -> each > least ? 1 / Math.sqrt(each) : 0).toArray();
    return Ops.transpose(b.matMul(usv[0].mul(host.create(inverse))), 0, 1);
  }

  /** The update's first right singular vector, {@code (in, 1)} float64; zeros where B A = 0. */
  static NDArray firstRightSingularVector(NDManager host, AdapterBank bank, int i) {
    var m = of(host, bank, i);
    var mTransposed = Ops.transpose(m, 0, 1);
    var left = Ops.svd(m.matMul(mTransposed))[0]; // M Mᵀ = U Σ² Uᵀ, and Mᵀ u_1 = σ_1 v_1
    var v = mTransposed.matMul(Ops.narrow(left, 1, 0, 1));
    double norm = v.norm().getDouble();
    return norm > 0 ? v.div(norm) : v;
  }

  private static NDArray part(NDManager host, NDArray x, int dim, int from, int length) {
    try (var view = Ops.narrow(x, dim, from, length)) {
      return Ops.copyOf(view, host, Dtype.F64);
    }
  }
}
