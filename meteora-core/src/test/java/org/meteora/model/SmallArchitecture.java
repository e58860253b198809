package org.meteora.model;

import org.meteora.io.Jsonl;
import org.meteora.model.llama.LlamaConfig;

/** A model small enough to be made of random numbers in each test. */
public final class SmallArchitecture {
  private SmallArchitecture() {}

  /** Two layers, 4 query heads and 2 key heads of 8, MLP 48, 70 tokens. */
  public static Architecture create() {
    return LlamaConfig.parse(
        Jsonl.JSON
            .createObjectNode()
            .put("vocab_size", 70)
            .put("hidden_size", 32)
            .put("intermediate_size", 48)
            .put("num_hidden_layers", 2)
            .put("num_attention_heads", 4)
            .put("num_key_value_heads", 2),
        "test");
  }
}
