package org.meteora.backend.cuda;

import ai.djl.ndarray.NDManager;
import java.util.List;
import java.util.Optional;
import java.util.UUID;
import java.util.concurrent.ConcurrentLinkedDeque;
import java.util.function.IntConsumer;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.SideStreams;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.lora.AdapterBank;
import org.meteora.model.Architecture;
import org.meteora.model.Backend;
import org.meteora.model.Gradients;
import org.meteora.model.LayerOps;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * A CUDA device: at inference gated layers by kernels of our own ({@link FusedInference}), and what
 * lies between products one launch each; in training whole passes ({@link CudaTraining}), and the
 * masked form ({@link MaskedTraining}) of what it refuses.
 */
public final class CudaBackend implements Backend {
  private final NDManager manager;
  private final Cuda cuda;
  private final Dtype dtype;
  private final boolean invariant;
  private final LayerOps ops;
  private final Products products;
  private final ConcurrentLinkedDeque<RoutingGatherer> gatherers = new ConcurrentLinkedDeque<>();
  private Optional<Boolean> packs = Optional.empty();

  /**
   * @param manager of the model's parameters, on a CUDA device: memory for gathered routings goes
   *     with it
   * @param invariant whether nothing may depend on what else is generated at the same time
   */
  public CudaBackend(NDManager manager, Dtype dtype, boolean invariant) {
    this.manager = manager;
    this.cuda = Cuda.device(manager.getDevice().getDeviceId());
    this.dtype = dtype;
    this.invariant = invariant;
    this.ops = new CudaLayerOps(cuda, dtype);
    this.products = new Products(cuda, manager);
  }

  @Override
  public LayerOps ops() {
    return ops;
  }

  /** Whether nothing may depend on what else is generated at the same time. */
  public boolean isInvariant() {
    return invariant;
  }

  @Override
  public Memory memory(long wanted) {
    return memory(cuda.index(), wanted);
  }

  /** The memory of a GPU, as {@link Backend#memory} says. */
  public static Memory memory(int device, long wanted) {
    var cuda = Cuda.device(device);
    return new Memory("GPU " + device, cuda.free(wanted));
  }

  @Override
  public synchronized boolean runsPacked(Architecture architecture) {
    if (packs.isEmpty()) {
      packs = Optional.of(canRunPacked(architecture));
    }
    return packs.get();
  }

  /** As {@link Ops#attentionByRanges} says, and it does. */
  private boolean canRunPacked(Architecture architecture) {
    int headDim = architecture.headDim();
    if (dtype == Dtype.F32 || cuda.capability() < 80 || headDim % 8 != 0 || headDim > 256) {
      return false;
    }
    try (var scope = manager.newSubManager()) {
      var queries = Ops.zeros(scope, dtype, 3, architecture.numAttentionHeads(), headDim);
      var keys = Ops.zeros(scope, dtype, 4, architecture.numKeyValueHeads(), headDim);
      var queryRanges = Ops.of(scope, new int[] {0, 1, 3}, 3);
      var keyRanges = Ops.of(scope, new int[] {0, 2, 4}, 3);
      Ops.attentionByRanges(queries, keys, keys, queryRanges, keyRanges, 2, 2);
      return true;
    } catch (IllegalStateException e) {
      CudaForward.LOG.info("sequences of unequal length are padded: {}", e.getMessage());
      return false;
    }
  }

  @Override
  public void prepare(Architecture architecture, int topK, int adapters) {
    Kernels.prepare(
        cuda,
        dtype,
        topK,
        adapters,
        architecture.numAttentionHeads(),
        architecture.numKeyValueHeads(),
        architecture.headDim());
    Thread.ofPlatform().daemon().name("first product").start(this::multiplyOnce);
  }

  /** A first product takes cuBLAS a tenth of a second, which passes while the model is loaded. */
  private void multiplyOnce() {
    int rows = 4096;
    int columns = 256;
    long bytes = (long) dtype.bytes() * rows * (rows + 2 * columns);
    try {
      cuda.makeCurrent();
      try (var stream = Stream.create(cuda);
          var memory = cuda.allocateZeroed(bytes, stream);
          var blas = new Cublas(cuda, stream)) {
        var x = Matrix.of(memory.address(), rows, rows, dtype);
        var w = Matrix.of(x.address() + (long) dtype.bytes() * rows * rows, columns, rows, dtype);
        var y =
            Matrix.of(w.address() + (long) dtype.bytes() * rows * columns, rows, columns, dtype);
        blas.multiply(y, x, w.transpose(), false);
        stream.synchronize();
      }
    } catch (UserException e) {
      // whoever multiplies then gets the error
    }
  }

  /** The kernels for few tokens read a rank of B, which they choose, as one row. */
  @Override
  public AdapterBank forInference(AdapterBank bank) {
    return bank.withTransposedB();
  }

  @Override
  public Optional<LlamaTraining> training(
      Llama llama, Gradients gradients, LlamaTraining.Recompute recompute) {
    try {
      return CudaTraining.of(
          llama, gradients, recompute, TrainingDevice.of(cuda, dtype, llama.manager()));
    } catch (UserException e) {
      CudaForward.LOG.info("training by libtorch's operations alone: {}", e.getMessage());
      return Optional.empty();
    }
  }

  @Override
  public GatedForward of(List<GatedLinear> linears) {
    return new CudaForward(linears, products, this::onStreams);
  }

  @Override
  public GatedForward.RoutedPass begin(ForwardContext context) {
    boolean given = GivenChoice.serves(context.routing().router());
    if (!given || context.training() || !context.backendChooses()) {
      return heard(context);
    }
    var router = new GivenChoice((Router.Choosing) context.routing().router(), manager);
    var pass = heard(context.withRouting(context.routing().withRouter(router)));
    return new GatedForward.RoutedPass(
        pass.context(),
        () -> {
          try (router) {
            pass.close();
          }
        });
  }

  private GatedForward.RoutedPass heard(ForwardContext context) {
    if (context.listener().isEmpty()) {
      return new GatedForward.RoutedPass(context, () -> {});
    }
    var gatherer = gatherer();
    gatherer.begin(context.listener().get());
    return new GatedForward.RoutedPass(
        context.withListener(Optional.of(gatherer)),
        () -> {
          try {
            gatherer.deliver();
          } finally {
            gatherers.push(gatherer);
          }
        });
  }

  private RoutingGatherer gatherer() {
    var idle = gatherers.poll();
    if (idle != null && !idle.isClosed()) {
      return idle;
    }
    var made = new RoutingGatherer(cuda);
    manager.attachInternal(UUID.randomUUID().toString(), made);
    return made;
  }

  /**
   * Parts on side streams. What they read was made on libtorch's stream, and what they make is read
   * there: all streams wait for it first and it for them afterwards; no array is freed in between.
   */
  private void onStreams(int count, IntConsumer part) {
    cuda.makeCurrent();
    var side = SideStreams.of(cuda);
    side.fork(Stream.LIBTORCH);
    try {
      for (int i = 0; i < count; i++) {
        var stream = side.streams().get(i % side.streams().size());
        try (var guard = Ops.onStream(stream.handle(), cuda.index())) {
          part.accept(i);
        }
      }
    } finally {
      side.join(Stream.LIBTORCH);
    }
  }

  @Override
  public String toString() {
    return "GPU " + cuda.index() + ": gated layers by CUDA kernels";
  }
}
