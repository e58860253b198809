package org.meteora.model;

class TinyLlamaTest extends TinyLlamaChecks {
  @Override
  String device() {
    return "cpu";
  }
}
