package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import java.util.List;
import org.meteora.tensor.Ops;

/** A collective of one. */
final class SingleProcess implements Collective, Messages {
  private long next;

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
  public void reduceScatter(NDArray buffer, NDArray part) {
    copy(part, buffer);
  }

  @Override
  public Queued reduceAside(NDArray buffer, int to) {
    return () -> {};
  }

  @Override
  public void allGather(NDArray part, NDArray buffer) {
    copy(buffer, part);
  }

  private static void copy(NDArray target, NDArray source) {
    if (Ops.dataPointer(target) != Ops.dataPointer(source)) {
      Ops.copy(target, source);
    }
  }

  @Override
  public void broadcast(NDArray buffer) {}

  @Override
  public List<byte[]> gather(byte[] mine) {
    return List.of(mine);
  }

  @Override
  public byte[] broadcast(byte[] ofFirst) {
    return ofFirst;
  }

  @Override
  public Messages messages() {
    return this;
  }

  @Override
  public void restartNumbers() {
    next = 0;
  }

  @Override
  public long nextNumber() {
    return next++;
  }

  @Override
  public long numbersGiven() {
    return next;
  }

  @Override
  public void send(byte[] message) {
    throw new IllegalStateException("the first process knows it");
  }

  @Override
  public List<byte[]> received() {
    return List.of();
  }

  @Override
  public void fail(String message) {}

  @Override
  public void close() {}
}
