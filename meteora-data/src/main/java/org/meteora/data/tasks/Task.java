package org.meteora.data.tasks;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.List;
import java.util.OptionalInt;
import java.util.function.UnaryOperator;
import org.meteora.data.Sample;

/**
 * A task: what is asked, and how answers are scored.
 *
 * @param name also the name of its folder of data and of its adapter
 * @param prompt a record as prompt and answer
 * @param normaliser the last step of cleaning an answer, after trimming and lower case
 * @param metrics keys of the metrics, in the order in which they are shown
 * @param evalLimit samples at most in an evaluation
 */
public record Task(
    String name,
    Source source,
    Prompt prompt,
    UnaryOperator<String> normaliser,
    List<String> metrics,
    OptionalInt evalLimit) {

  /** How a record of the source becomes a prompt and its answer. */
  @FunctionalInterface
  public interface Prompt {
    /**
     * @param where the record stands, for errors: {@code file:line}
     * @throws org.meteora.UserException when the record lacks something
     */
    Sample of(JsonNode record, String where);
  }
}
