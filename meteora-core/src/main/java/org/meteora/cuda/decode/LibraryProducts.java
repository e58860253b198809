package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.List;
import java.util.stream.IntStream;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Event;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.driver.Work;
import org.meteora.tensor.Dtype;

/**
 * cuBLAS on a step's stream and on some beside it, for products that do not wait for each other:
 * one of few columns leaves most of a GPU idle.
 */
final class LibraryProducts implements AutoCloseable {
  private static final int LANES = 4;

  /** {@code y = x · wᵀ}, as {@link Cublas#product} takes it. */
  record Product(Dtype dtype, long x, long w, long y, int rows, int in, int out, int ld) {
    Work by(Cublas cublas) {
      return cublas.product(dtype, x, w, y, rows, in, out, ld);
    }
  }

  private final List<Stream> streams = new ArrayList<>();
  private final List<Cublas> lanes = new ArrayList<>();
  private final List<Event> ends = new ArrayList<>();
  private final Event begin = new Event();

  /**
   * @param stream the step's
   * @throws org.meteora.UserException without cuBLAS or memory for it
   */
  LibraryProducts(Cuda cuda, Stream stream) {
    try {
      for (var i = 0; i < LANES; i++) {
        streams.add(i == 0 ? stream : Stream.create(cuda));
        lanes.add(new Cublas(cuda, streams.getLast()));
        ends.add(new Event());
      }
    } catch (RuntimeException | Error e) {
      close();
      throw e;
    }
  }

  /** The products, whatever their order. */
  Work together(List<Product> products) {
    var works =
        IntStream.range(0, products.size())
            .mapToObj(i -> products.get(i).by(lanes.get(i % LANES)))
            .toList();
    var used = Math.min(LANES, works.size());
    return stream -> {
      if (used > 1) {
        begin.record(stream);
      }
      for (var i = 1; i < used; i++) {
        streams.get(i).await(begin);
      }
      for (var i = 0; i < works.size(); i++) {
        works.get(i).on(streams.get(i % LANES));
      }
      for (var i = 1; i < used; i++) {
        ends.get(i).record(streams.get(i));
        stream.await(ends.get(i));
      }
    };
  }

  @Override
  public void close() {
    lanes.forEach(Cublas::close);
    ends.forEach(Event::close);
    begin.close();
    streams.stream().skip(1).forEach(Stream::close);
  }
}
