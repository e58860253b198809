package org.meteora.eval;

import java.util.BitSet;
import org.meteora.parallel.Exchange;

/**
 * Which prompts are this process's. Each goes through the same list, and takes the next one that
 * nobody has when it has room: that of the number it is given. So all end at about the same time,
 * however long answers are.
 */
final class Dealing {
  private final Exchange collective;
  private final int prompts;
  private final BitSet own = new BitSet();

  /** All before it are dealt. */
  private int dealt;

  Dealing(Exchange collective, int prompts) {
    this.collective = collective;
    this.prompts = prompts;
  }

  /** Whether it is this process's, asked in order when there is room for it. */
  boolean takes(int prompt) {
    while (prompt >= dealt) {
      int next = (int) collective.messages().nextNumber();
      own.set(next);
      dealt = next + 1;
    }
    return own.get(prompt);
  }

  /**
   * Whether this process passes on what came of it; what fails before it runs does so everywhere.
   */
  boolean has(int prompt) {
    return prompt < dealt ? own.get(prompt) : prompt % collective.size() == collective.rank();
  }

  /** How many others have taken that this process, the first, has not come to. */
  long takenByOthers() {
    return Math.max(0, Math.min(prompts, collective.messages().numbersGiven()) - dealt);
  }
}
