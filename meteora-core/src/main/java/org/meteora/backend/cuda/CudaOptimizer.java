package org.meteora.backend.cuda;

import static java.lang.foreign.ValueLayout.JAVA_DOUBLE;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.cuda.driver.CStruct;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.PublishedPart;
import org.meteora.cuda.kernel.TrainingKernels.TrainingAdamW;
import org.meteora.model.OptimizerKernels;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** The optimiser's work on a GPU, one launch each. */
public final class CudaOptimizer implements OptimizerKernels {
  private static final Logger LOG = LoggerFactory.getLogger(CudaOptimizer.class);
  private final Cuda cuda;
  private final TrainingKernels kernels;
  private final NDArray sums;

  private CudaOptimizer(Cuda cuda, Dtype dtype, NDManager manager) {
    this.cuda = cuda;
    cuda.makeCurrent();
    kernels = TrainingKernels.of(cuda, dtype, 1, 1, Stream.LIBTORCH);
    sums = Ops.empty(manager, Dtype.F64, TrainingKernels.SQUARES_BLOCKS);
  }

  /**
   * Empty on a CPU, and where kernels cannot be compiled.
   *
   * @param manager gives the device, and owns scratch
   */
  public static Optional<OptimizerKernels> of(Dtype dtype, NDManager manager) {
    if (!manager.getDevice().isGpu() || dtype == Dtype.F64) {
      return Optional.empty();
    }
    try {
      var cuda = Cuda.device(manager.getDevice().getDeviceId());
      return Optional.of(new CudaOptimizer(cuda, dtype, manager));
    } catch (UserException e) {
      LOG.info("the optimiser by libtorch's operations alone: {}", e.getMessage());
      return Optional.empty();
    }
  }

  @Override
  public Runnable prepare(List<Copy> copies, NDManager owner) {
    if (copies.isEmpty()) {
      return () -> {};
    }
    cuda.makeCurrent();
    var parts = copies.stream().map(CudaOptimizer::part).toList();
    boolean rounded = Ops.dtype(copies.getFirst().from()) != Dtype.F32;
    try (var arena = Arena.ofConfined()) {
      var host = CStruct.array(arena, parts);
      var table = Ops.empty(owner, Dtype.U8, host.byteSize());
      cuda.toDevice(Ops.dataPointer(table), host, host.byteSize(), Stream.LIBTORCH);
      long largest =
          parts.stream().mapToLong(part -> (long) part.rows() * part.columns()).max().orElseThrow();
      return () -> {
        cuda.makeCurrent();
        kernels.publish(Ops.dataPointer(table), parts.size(), largest, rounded);
      };
    }
  }

  private static PublishedPart part(Copy copy) {
    var shape = copy.to().getShape();
    var strides = Ops.strides(copy.to());
    boolean flat = shape.dimension() == 1;
    return new PublishedPart(
        Ops.dataPointer(copy.from()),
        Ops.dataPointer(copy.to()),
        flat ? 1 : (int) shape.get(0),
        (int) shape.get(flat ? 0 : 1),
        flat ? 0 : (int) strides[0],
        (int) strides[flat ? 0 : 1]);
  }

  @Override
  public double norm(NDArray values, long from, long to) {
    cuda.makeCurrent();
    long address = Ops.dataPointer(sums);
    kernels.squares(Ops.dataPointer(values) + from * Float.BYTES, address, to - from);
    try (var arena = Arena.ofConfined()) {
      var host = arena.allocate(8L * TrainingKernels.SQUARES_BLOCKS, 16);
      cuda.toHost(host, address, host.byteSize(), Stream.LIBTORCH);
      Stream.LIBTORCH.synchronize();
      double sum = 0;
      for (int i = 0; i < TrainingKernels.SQUARES_BLOCKS; i++) {
        sum += host.getAtIndex(JAVA_DOUBLE, i);
      }
      return Math.sqrt(sum);
    }
  }

  @Override
  public void adamW(
      NDArray values,
      NDArray gradients,
      NDArray means,
      NDArray variances,
      long from,
      long to,
      Step step) {
    cuda.makeCurrent();
    long at = from * Float.BYTES;
    kernels.adamW(
        new TrainingAdamW(
            Ops.dataPointer(values) + at,
            Ops.dataPointer(gradients) + at,
            Ops.dataPointer(means) + at,
            Ops.dataPointer(variances) + at,
            to - from,
            (float) step.gradientScale(),
            (float) step.decay(),
            (float) step.rate(),
            (float) step.bias(),
            (float) step.beta1(),
            (float) step.beta2(),
            (float) step.epsilon()));
  }
}
