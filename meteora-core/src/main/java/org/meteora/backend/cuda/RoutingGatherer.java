package org.meteora.backend.cuda;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;

import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.HostMemory;
import org.meteora.cuda.driver.Stream;
import org.meteora.moe.RoutingListener;

/**
 * What the gates of a pass on a GPU choose, on its way to the listener: kernels write it into
 * device memory, copies to the host are queued between them, and the listener is told when the
 * whole pass has been queued, while the GPU still works on it. So no gate waits for the host, nor
 * the host for a gate. Memory of both sides grows to {@link #ROOM} at most, or to what gates with
 * one input choose when that is more; a longer pass is told of in several parts.
 */
final class RoutingGatherer implements RoutingListener, AutoCloseable {
  private static final long ROOM = 64 << 20;
  private static final long FIRST_ROOM = 1 << 20;

  /** Bytes worth a copy of their own while a pass is being queued. */
  private static final long PIECE = 256 << 10;

  /** One gate's choice at {@code at}: int32 indices {@code (rows, tokens, topK)}, then weights. */
  private record Choice(int layer, int module, int rows, int tokens, int topK, long at) {
    int values() {
      return rows * tokens * topK;
    }
  }

  /** Choices whose copies {@code done} marks the end of. */
  private record Piece(List<Choice> choices, Event done) {}

  private final Cuda cuda;
  private RoutingListener listener;
  private final List<Piece> pieces = new ArrayList<>();
  private List<Choice> fresh = new ArrayList<>();
  private DeviceMemory device;
  private HostMemory host;
  private long room;
  private long used;
  private long copied;
  private boolean closed;

  RoutingGatherer(Cuda cuda) {
    this.cuda = cuda;
  }

  /** Gathers for this listener from now on. */
  void begin(RoutingListener value) {
    listener = value;
  }

  /** A gate that does not gather: those before it are told first. */
  @Override
  public void onRouting(
      int layer, int module, int rows, int tokens, int topK, int[] indices, float[] weights) {
    deliver();
    listener.onRouting(layer, module, rows, tokens, topK, indices, weights);
  }

  /**
   * Makes room for the choices of gates with one input, which kernels queued on libtorch's stream
   * before the next call must write.
   *
   * @param modules the gates', in a layer
   * @return for each gate the device address of int32 indices {@code (rows, tokens, topK)}, behind
   *     which follow float32 weights in the same layout
   */
  long[] next(int layer, int[] modules, int rows, int tokens, int topK) {
    cuda.makeCurrent();
    if (used - copied >= PIECE) {
      copy();
    }
    long each = 8L * rows * tokens * topK;
    long bytes = each * modules.length;
    if (used + bytes > room) {
      deliver();
      grow(Math.max(bytes, Math.clamp(2 * room, FIRST_ROOM, ROOM)));
    }
    var addresses = new long[modules.length];
    for (int i = 0; i < modules.length; i++) {
      fresh.add(new Choice(layer, modules[i], rows, tokens, topK, used));
      addresses[i] = device.address() + used;
      used += each;
    }
    return addresses;
  }

  private void grow(long bytes) {
    if (bytes > room) {
      free();
      room = 0;
      device = cuda.allocate(bytes);
      host = new HostMemory(cuda, bytes);
      room = bytes;
    }
  }

  private void copy() {
    if (!fresh.isEmpty()) {
      cuda.toHost(
          host.memory().asSlice(copied), device.address() + copied, used - copied, Stream.LIBTORCH);
      var done = new Event();
      done.record(Stream.LIBTORCH);
      pieces.add(new Piece(fresh, done));
      fresh = new ArrayList<>();
      copied = used;
    }
  }

  /**
   * Delivers to the listener all that was chosen since the last time, in order; waits for the GPU.
   */
  void deliver() {
    cuda.makeCurrent();
    copy();
    try {
      for (var piece : pieces) {
        piece.done().await();
        for (var choice : piece.choices()) {
          var indices = new int[choice.values()];
          var weights = new float[choice.values()];
          long at = choice.at();
          MemorySegment.copy(host.memory(), JAVA_INT, at, indices, 0, indices.length);
          at += 4L * indices.length;
          MemorySegment.copy(host.memory(), JAVA_FLOAT, at, weights, 0, weights.length);
          listener.onRouting(
              choice.layer(),
              choice.module(),
              choice.rows(),
              choice.tokens(),
              choice.topK(),
              indices,
              weights);
        }
      }
    } finally {
      // copies that a listener's failure left behind must not reach into what comes next
      if (!pieces.isEmpty()) {
        pieces.getLast().done().await();
      }
      pieces.forEach(piece -> piece.done().close());
      pieces.clear();
      used = 0;
      copied = 0;
    }
  }

  boolean isClosed() {
    return closed;
  }

  private void free() {
    if (device != null) {
      device.close();
      host.close();
    }
  }

  @Override
  public void close() {
    if (!closed) {
      closed = true;
      cuda.makeCurrent();
      Stream.LIBTORCH.synchronize();
      free();
    }
  }
}
