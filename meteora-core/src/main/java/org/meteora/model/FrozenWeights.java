package org.meteora.model;

/**
 * Where a model's frozen weights are while passes go by: all in memory ({@link #RESIDENT}), or
 * shared among processes and gathered as passes come to them.
 *
 * <p>Its parts are the decoder layers by number, {@link #EMBEDDING} and {@link #HEAD}. Whoever
 * computes with a part's tensors asks for it before; those of other parts are undefined from then
 * on, except those of the layer asked for before.
 */
public interface FrozenWeights {
  int EMBEDDING = -1;

  int HEAD = -2;

  /** No part. */
  int NONE = -3;

  /** Everything is there. */
  FrozenWeights RESIDENT =
      new FrozenWeights() {
        @Override
        public void use(int part, int next) {
          // it is there
        }

        @Override
        public Forward begin() {
          return () -> {};
        }

        @Override
        public boolean isResident() {
          return true;
        }
      };

  /**
   * Sees to it that what is queued from now on finds a part's tensors.
   *
   * @param next the part that will be asked for next, which may be fetched meanwhile; {@link #NONE}
   *     when it is not known
   */
  void use(int part, int next);

  /**
   * Begins a forward pass by itself: the embedding, all layers in order, the head. Not for the
   * passes of a training step, of which all processes make the same number.
   */
  Forward begin();

  /** Whether everything is in memory all the time. */
  boolean isResident();

  /** A forward pass by itself; closed when it has ended, in whatever way. */
  interface Forward extends AutoCloseable {
    @Override
    void close();
  }
}
