package org.meteora.cuda.driver;

import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.stream.IntStream;

/**
 * A few streams beside one that others work on. Work on them lies between a {@link #fork} and a
 * {@link #join}: memory that a stream's allocator hands out again, on whichever of them, was then
 * last used before what is queued next, as long as no array is freed in between. There is one
 * object a device and it is never closed, since the backward pass returns to the streams of the
 * forward pass.
 */
public final class SideStreams {
  private static final int COUNT = 4;
  private static final Map<Integer, SideStreams> DEVICES = new ConcurrentHashMap<>();

  private final List<Stream> streams;
  private final List<Event> ends;
  private final Event begin;

  private SideStreams(Cuda cuda) {
    streams = IntStream.range(0, COUNT).mapToObj(i -> Stream.create(cuda)).toList();
    ends = IntStream.range(0, COUNT).mapToObj(i -> new Event()).toList();
    begin = new Event();
  }

  /** The streams of a GPU, made at the first call. */
  public static SideStreams of(Cuda cuda) {
    return DEVICES.computeIfAbsent(cuda.index(), index -> new SideStreams(cuda));
  }

  public List<Stream> streams() {
    return streams;
  }

  /** Lets all of them wait for what {@code main} has been given so far. */
  public synchronized void fork(Stream main) {
    begin.record(main);
    streams.forEach(stream -> stream.await(begin));
  }

  /** Lets {@code main} wait for what they have been given so far. */
  public synchronized void join(Stream main) {
    for (int i = 0; i < COUNT; i++) {
      ends.get(i).record(streams.get(i));
      main.await(ends.get(i));
    }
  }
}
