package org.meteora.cli;

import ai.djl.pytorch.jni.JniUtils;
import java.util.List;
import java.util.Map;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Module;
import org.meteora.cuda.driver.Nvrtc;
import org.meteora.cuda.driver.Shape;
import org.meteora.cuda.driver.Stream;
import org.meteora.io.CacheFolders;
import org.meteora.io.Texts;

/** What benchmarks ask of a GPU; {@code measure.cu} has its kernels. */
final class GpuMeasure {
  private static final long BYTES = 4L << 30;

  /** Mirrors the struct of this name. */
  private record Fill(long out, long count, int seed, float scale, float shift) {}

  /** Mirrors the struct of this name. */
  private record Read(long from, long out, long count) {}

  private final Cuda cuda;
  private final Module module;

  GpuMeasure(Cuda cuda) {
    this.cuda = cuda;
    var source = new Nvrtc.Source(Texts.resource(GpuMeasure.class, "measure.cu"), Map.of());
    var code = Nvrtc.get().compile(source, List.of(), cuda.capability(), CacheFolders.kernels());
    this.module = Module.load(cuda, code);
  }

  /** Queues writing {@code count} bfloat16 numbers, uniform in {@code shift} ± {@code scale}. */
  void fillRandom(long address, long count, int seed, float scale, float shift, Stream stream) {
    module
        .kernel("fill_random")
        .launch(
            Shape.of(cuda.multiprocessors() * 8, 1, 1, 256),
            new Fill(address, count, seed, scale, shift))
        .on(stream);
  }

  /** Bytes a second of a kernel that only reads, 4 GiB of random numbers; a median of nine. */
  double readBandwidth() {
    cuda.makeCurrent();
    try (var stream = Stream.create(cuda);
        var from = cuda.allocate(BYTES);
        var out = cuda.allocateZeroed(16, stream)) {
      fillRandom(from.address(), BYTES / 2, 7, 1, 0, stream);
      var read =
          module
              .kernel("read_all")
              .launch(
                  Shape.of(cuda.multiprocessors() * 4, 1, 1, 512),
                  new Read(from.address(), out.address(), BYTES / 16));
      var times = new double[9];
      for (int i = -3; i < times.length; i++) {
        try (var begin = new Event();
            var end = new Event()) {
          begin.record(stream);
          read.on(stream);
          end.record(stream);
          times[Math.max(i, 0)] = end.millisSince(begin); // that of a warm-up is written over
        }
      }
      return BYTES / BenchModel.Turns.median(times) * 1e3;
    }
  }

  /** Bytes in use on the device, after libtorch gave back what it keeps without using it. */
  static long usedBytes(Cuda cuda) {
    cuda.makeCurrent();
    JniUtils.emptyCudaCache();
    var memory = cuda.memory();
    return memory.total() - memory.free();
  }
}
