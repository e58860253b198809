package org.meteora.backend;

import ai.djl.Device;
import org.junit.jupiter.api.Tag;

@Tag("gpu")
class TensorBackendGpuTest extends TensorBackendChecks {
  @Override
  Device device() {
    return Device.gpu(0);
  }
}
