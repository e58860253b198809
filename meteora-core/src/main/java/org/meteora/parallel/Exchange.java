package org.meteora.parallel;

import java.nio.ByteBuffer;
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
  default double[] sum(double[] values) {
    var sums = new double[values.length];
    for (var one : gather(bytes(values))) {
      var numbers = numbers(one);
      if (numbers.length != sums.length) {
        throw new IllegalStateException("processes do not agree on what they sum");
      }
      for (int i = 0; i < sums.length; i++) {
        sums[i] += numbers[i];
      }
    }
    return numbers(broadcast(bytes(sums)));
  }

  private static byte[] bytes(double[] values) {
    var buffer = ByteBuffer.allocate(Double.BYTES * values.length);
    buffer.asDoubleBuffer().put(values);
    return buffer.array();
  }

  private static double[] numbers(byte[] bytes) {
    var values = new double[bytes.length / Double.BYTES];
    ByteBuffer.wrap(bytes).asDoubleBuffer().get(values);
    return values;
  }

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
