package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.List;
import org.meteora.cuda.driver.Cublas;
import org.meteora.cuda.driver.Cublas.Matrix;
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

  /**
   * {@code y = x · wᵀ}.
   *
   * @param x (rows, in), row-major, in {@code dtype}
   * @param w (out, in), likewise
   * @param y float32 (rows, ld), of which the first {@code out} columns are written
   */
  record Product(Dtype dtype, long x, long w, long y, int rows, int in, int out, int ld) {
    Work by(Cublas cublas) {
      var to = new Matrix(y, rows, out, ld, Dtype.F32);
      var from = Matrix.of(x, rows, in, dtype);
      var weight = Matrix.of(w, out, in, dtype).transpose();
      return lane -> cublas.multiply(to, from, weight, false);
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

  /**
   * The products, whatever their order.
   *
   * @param beside launches that run one after the other while they do
   */
  Work together(List<Product> products, List<? extends Work> beside) {
    var chains = new ArrayList<List<? extends Work>>();
    for (var product : products) {
      var lane = chains.size() % LANES;
      chains.add(List.of(product.by(lanes.get(lane))));
    }
    if (!beside.isEmpty()) {
      chains.add(beside);
    }
    var used = Math.min(LANES, chains.size());
    return stream -> {
      if (used > 1) {
        begin.record(stream);
      }
      for (var i = 1; i < used; i++) {
        streams.get(i).await(begin);
      }
      // the small ones first: they are on the multiprocessors before the large ones fill them
      for (var i = chains.size() - 1; i >= 0; i--) {
        var own = streams.get(i % LANES);
        chains.get(i).forEach(work -> work.on(own));
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
