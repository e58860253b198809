package org.meteora.data.tasks;

/** How a task's answers are scored. */
public enum Metric {
  ACCURACY_EXACT,
  ACCURACY_FUZZY,
  YES_NO_ACCURACY,
  GSM8K_ACCURACY,
  BLEU,
  ROUGE
}
