package org.meteora.cuda.kernel;

import ai.djl.pytorch.jni.JniUtils;
import java.util.Arrays;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Struct;
import org.meteora.tensor.Dtype;

/** What benchmarks ask of a GPU. */
public final class GpuMeasure {
  private static final long BYTES = 4L << 30;

  private GpuMeasure() {}

  /** Bytes a second of a kernel that only reads, 4 GiB of random numbers; a median of nine. */
  public static double readBandwidth(Cuda cuda) {
    cuda.makeCurrent();
    var kernels = Kernels.of(cuda, Kernels.Constants.ofLayers(Dtype.BF16, 1, 1));
    int blocks = cuda.multiprocessors() * 4;
    try (var stream = Stream.create(cuda);
        var from = cuda.allocate(BYTES);
        var out = cuda.allocateZeroed(16, stream)) {
      var fill = new Struct().add(from.address()).add(BYTES / 2).add(7).add(1f).add(0f).add(0);
      kernels.get("fill_random").launch(blocks, 1, 1, 256, 0, false, fill).on(stream);
      var read =
          kernels
              .get("read_all")
              .launch(
                  blocks,
                  1,
                  1,
                  512,
                  0,
                  false,
                  new Struct().add(from.address()).add(out.address()).add(BYTES / 16));
      var times = new double[9];
      for (int i = -3; i < times.length; i++) {
        try (var begin = new Event();
            var end = new Event()) {
          begin.record(stream);
          read.on(stream);
          end.record(stream);
          double ms = end.millisSince(begin);
          if (i >= 0) {
            times[i] = ms;
          }
        }
      }
      Arrays.sort(times);
      return BYTES / times[times.length / 2] * 1e3;
    }
  }

  /** Bytes in use on the device, after libtorch gave back what it keeps without using it. */
  public static long usedBytes(Cuda cuda) {
    cuda.makeCurrent();
    JniUtils.emptyCudaCache();
    var memory = cuda.memory();
    return memory.total() - memory.free();
  }
}
