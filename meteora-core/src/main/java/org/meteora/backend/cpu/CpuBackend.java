package org.meteora.backend.cpu;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.io.HostMemory;
import org.meteora.model.Backend;
import org.meteora.model.LayerOps;
import org.meteora.model.TensorOps;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.GatedLinear.Output;
import org.meteora.moe.GatedTape;
import org.meteora.moe.Router;
import org.meteora.moe.forward.PortableForward;
import org.meteora.tensor.Blas;
import org.meteora.tensor.Dtype;

/**
 * The CPU. In float32 gated layers and what lies between products run in Java on the tensors'
 * memory, {@link CpuInference} for inference and {@link CpuTape} for training; in other dtypes, and
 * where libtorch's BLAS cannot be called, by tensor operations.
 */
public final class CpuBackend implements Backend {
  /** From this many tokens on, looping over adapters beats gathering their rows (rank 8, k 2). */
  private static final int LOOP_FROM_TOKENS = 16;

  private final boolean inJava;
  private final boolean invariant;
  private final LayerOps ops;

  /**
   * @param dtype of weights and activations
   */
  public CpuBackend(Dtype dtype) {
    this(dtype, false);
  }

  /**
   * @param invariant whether nothing may depend on the number of tokens that are run together: only
   *     in float32
   * @throws UserException where that cannot be had
   */
  public CpuBackend(Dtype dtype, boolean invariant) {
    inJava = dtype == Dtype.F32 && Blas.isAvailable();
    this.invariant = invariant;
    if (invariant && !inJava) {
      throw new UserException(
          "--batch-invariant cannot be had here: the BLAS of this libtorch cannot be called");
    }
    if (invariant) {
      RowProduct.here(); // or it is refused
    }
    ops = dtype == Dtype.F32 ? new CpuLayerOps(invariant) : TensorOps.INSTANCE;
  }

  @Override
  public GatedForward of(List<GatedLinear> linears) {
    return new CpuForward(linears);
  }

  @Override
  public Optional<GatedTape> tape(
      NDManager parent, List<GatedLinear> linears, ForwardContext context) {
    boolean fits =
        context.backendChooses()
            && inJava
            && linears.stream().allMatch(each -> each.bank() != null && onTape(each, context));
    return fits ? Optional.of(new CpuTape(parent)) : Optional.empty();
  }

  /** Chosen by gates, or by what looks at no tensor; nothing else is written in Java. */
  private static boolean onTape(GatedLinear linear, ForwardContext context) {
    var router = linear.router(context);
    return (router instanceof Router.Gates || router instanceof Router.Fixed)
        && linear.layout().isPlainInTraining();
  }

  @Override
  public LayerOps ops() {
    return ops;
  }

  @Override
  public LayerOps ops(GatedTape tape) {
    return new CpuTapeOps((CpuTape) tape);
  }

  @Override
  public boolean keepsRecordings(long bytes) {
    return bytes <= memory(bytes).free() / 2;
  }

  @Override
  public Memory memory(long wanted) {
    return new Memory("this machine", HostMemory.available());
  }

  @Override
  public boolean fillsBlocks() {
    return inJava;
  }

  @Override
  public boolean readsMappedFiles() {
    return true;
  }

  @Override
  public String toString() {
    return inJava
        ? "the CPU: gated layers in Java on the BLAS of libtorch"
        : "the CPU: gated layers by tensor operations";
  }

  private final class CpuForward extends PortableForward {
    private final boolean plain;

    CpuForward(List<GatedLinear> linears) {
      super(linears, LOOP);
      plain =
          inJava
              && linears.stream().allMatch(each -> each.bank() == null || each.layout().isPlain());
    }

    @Override
    protected NDArray base(GatedLinear linear, NDArray x) {
      return invariant
          ? RowProduct.here().linear(x, linear.weight(), linear.bias())
          : super.base(linear, x);
    }

    /** What runs unless a flag names a form. */
    @Override
    protected Output best(GatedLinear linear, NDArray x, ForwardContext context) {
      if (context.tape().isPresent()) {
        return context.tape().get().forward(linear, x, context);
      }
      if (!context.training() && plain) {
        return CpuInference.forward(linear, x, context);
      }
      if (invariant && !context.training()) {
        throw new UserException("--batch-invariant is for adapters in f32");
      }
      long tokens = x.getShape().size() / linear.weight().getShape().get(1);
      return linear.formula(
          x, context, context.training() || tokens >= LOOP_FROM_TOKENS ? LOOP : GATHER);
    }
  }
}
