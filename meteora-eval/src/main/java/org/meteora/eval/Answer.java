package org.meteora.eval;

import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.annotation.JsonPropertyOrder;

/**
 * One sample's outcome, as it is saved.
 *
 * @param index position in the task's data, from 0
 * @param prompt as in the data
 * @param truth the expected response, as in the data
 * @param decoded text of prompt and answer as the model wrote it; empty for a skipped sample
 * @param answer what is scored
 * @param newTokens length of the answer, EOS left out
 * @param skipped the prompt was too long, or could not be answered: it is not scored
 * @param promptLost the decoded text does not repeat the prompt exactly
 */
@JsonPropertyOrder({"task", "index", "prompt", "truth", "decoded", "answer"})
public record Answer(
    String task,
    int index,
    String prompt,
    String truth,
    String decoded,
    String answer,
    @JsonProperty("prompt_tokens") int promptTokens,
    @JsonProperty("new_tokens") int newTokens,
    boolean skipped,
    @JsonProperty("prompt_lost") boolean promptLost) {}
