package org.meteora.parallel;

import java.util.List;

/**
 * What processes tell each other in numbers and bytes, which are there when a call returns. All
 * call the same methods in the same order.
 */
public interface Exchange {
  /** This process's number, from 0. */
  int rank();

  /** How many processes there are. */
  int size();

  /** The sums over all processes of a few numbers, added in the order of ranks. */
  double[] sum(double[] values);

  /** Everybody's bytes at the first process, in the order of ranks; an empty list at all others. */
  List<byte[]> gather(byte[] mine);

  /** The first process's bytes, at all. */
  byte[] broadcast(byte[] ofFirst);

  /** Returns when every process has called it. */
  default void barrier() {
    sum(new double[0]);
  }

  /** What a process sends and asks by itself, whatever the others do. */
  Messages messages();
}
