package org.meteora.llama;

class TinyLlamaTest extends TinyLlamaChecks {
  @Override
  String device() {
    return "cpu";
  }
}
