package org.meteora.parallel;

import java.util.List;

/**
 * What passes between a process and the first one without the others' taking part: called by each
 * for itself, whenever it likes.
 */
public interface Messages {
  /**
   * In the first process: {@link #nextNumber} begins from 0 again. All others must have what they
   * wanted of the numbers before, and hear of it, such as by {@link Collective#broadcast(byte[])}.
   */
  void restartNumbers();

  /** A number that no other process is given, in order: whose turn it is. */
  long nextNumber();

  /** In the first process: how many numbers have been given. */
  long numbersGiven();

  /**
   * Sends the first process a message, which is there when it asks ({@link #received}); nobody
   * waits.
   */
  void send(byte[] message);

  /** In the first process: messages that have come since it asked last, without waiting. */
  List<byte[]> received();

  /** Ends the run of all others: this process has failed and says why in one line. */
  void fail(String message);
}
