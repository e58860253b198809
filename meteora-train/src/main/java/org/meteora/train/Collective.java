package org.meteora.train;

import ai.djl.ndarray.NDArray;

/**
 * What crosses processes in training. Every process calls the same methods in the same order. With
 * one process ({@link #single}) nothing happens.
 */
public interface Collective {
  /** This process's number, from 0. */
  int rank();

  /** How many processes there are. */
  int size();

  /** Replaces a flat float32 buffer by its sum over all processes, in place. */
  void sum(NDArray buffer);

  /** The sums over all processes of a few numbers. */
  double[] sum(double[] values);

  /** Replaces a flat buffer by the first process's, in place. */
  void broadcast(NDArray buffer);

  /** Returns when every process has called it. */
  void barrier();

  /** One process: nothing to do. */
  static Collective single() {
    return new Collective() {
      @Override
      public int rank() {
        return 0;
      }

      @Override
      public int size() {
        return 1;
      }

      @Override
      public void sum(NDArray buffer) {}

      @Override
      public double[] sum(double[] values) {
        return values;
      }

      @Override
      public void broadcast(NDArray buffer) {}

      @Override
      public void barrier() {}
    };
  }
}
