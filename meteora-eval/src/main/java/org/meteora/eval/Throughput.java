package org.meteora.eval;

import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.annotation.JsonPropertyOrder;

/**
 * How fast answers were generated.
 *
 * @param seconds wall time of generation, loading left out
 */
@JsonPropertyOrder({"seconds", "samples", "prompt_tokens", "new_tokens", "samples_per_second"})
public record Throughput(
    double seconds,
    int samples,
    @JsonProperty("prompt_tokens") long promptTokens,
    @JsonProperty("new_tokens") long newTokens) {

  @JsonProperty("samples_per_second")
  public double samplesPerSecond() {
    return seconds > 0 ? samples / seconds : 0;
  }

  @JsonProperty("new_tokens_per_second")
  public double newTokensPerSecond() {
    return seconds > 0 ? newTokens / seconds : 0;
  }
}
