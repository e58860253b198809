package org.meteora.llama;

import org.junit.jupiter.api.Tag;

@Tag("gpu")
class TinyLlamaGpuTest extends TinyLlamaChecks {
  @Override
  String device() {
    return "cuda";
  }
}
