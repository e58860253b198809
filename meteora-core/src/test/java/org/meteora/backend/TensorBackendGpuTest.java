package org.meteora.backend;

import ai.djl.Device;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Tag;
import org.meteora.cuda.kernel.Gpu;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.tensor.Dtype;

@Tag("gpu")
class TensorBackendGpuTest extends TensorBackendChecks {
  @BeforeAll
  static void compile() {
    Gpu.compileAhead(
        IntStream.of(1, 2, 5)
            .boxed()
            .flatMap(
                k ->
                    Stream.of(
                        Kernels.Constants.ofSteps(Dtype.F32, k, 5, 4, 2, 8),
                        Kernels.Constants.ofLayers(Dtype.F32, k, 5))));
  }

  @Override
  Device device() {
    return Device.gpu(0);
  }
}
