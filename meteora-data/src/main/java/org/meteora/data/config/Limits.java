package org.meteora.data.config;

import org.meteora.UserException;

/** Limits of options' values. */
public final class Limits {
  private Limits() {}

  /**
   * @param values of the option; null for one that was not given
   * @throws UserException when one is smaller
   */
  public static void atLeast(long least, String option, Number... values) {
    for (var value : values) {
      if (value != null && value.longValue() < least) {
        throw new UserException(option + " must be at least " + least + ", not " + value);
      }
    }
  }
}
