package org.meteora.data.tasks;

import java.util.OptionalInt;
import java.util.Set;

/**
 * One of the 28 tasks.
 *
 * @param name also the name of its folder of data and of its adapter
 * @param source where its records come from
 * @param form how a record becomes a prompt and an answer
 * @param metrics how answers are scored
 * @param evalLimit samples at most in an evaluation
 */
public record Task(
    String name, Source source, PromptForm form, Set<Metric> metrics, OptionalInt evalLimit) {
  /** Where a task's records come from. */
  public enum Source {
    BIGBENCH,
    ALPACA,
    CNN_DAILYMAIL,
    GSM8K,
    NEWS_COMMENTARY_DE,
    NEWS_COMMENTARY_ES,
    NEWS_COMMENTARY_IT
  }

  /** How a BIG-bench record becomes a prompt. */
  public enum PromptForm {
    /** The input as it is. */
    INPUTS,
    /** The input, then a line for each choice. */
    CHOICES,
    /** The input, a question, then a line for each choice. */
    QUESTION_AND_CHOICES,
    /** A form of the source's own. */
    OWN
  }
}
