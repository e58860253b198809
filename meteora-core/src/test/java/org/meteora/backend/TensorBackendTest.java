package org.meteora.backend;

import ai.djl.Device;

class TensorBackendTest extends TensorBackendChecks {
  @Override
  Device device() {
    return Device.cpu();
  }
}
