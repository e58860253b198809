package org.meteora.cli;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.meteora.cuda.decode.DecodeModel;
import org.meteora.cuda.decode.DecodeModel.Layer;
import org.meteora.cuda.decode.DecodeModel.Linear;
import org.meteora.cuda.decode.KvMemory;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.tensor.Dtype;

/** Random bfloat16 weights of a Llama with MeteoRA, made on the device. */
final class RandomDecodeModel implements AutoCloseable {
  /** A model's sizes and its adapters'. */
  record Sizes(
      int hidden,
      int heads,
      int kvHeads,
      int headDim,
      int intermediate,
      int vocab,
      int layers,
      int adapters,
      int rank,
      int topK) {
    /** Llama-3-8B's. */
    static Sizes llama3(int layers, int adapters, int rank, int topK) {
      return new Sizes(4096, 32, 8, 128, 14336, 128256, layers, adapters, rank, topK);
    }
  }

  private final Cuda cuda;
  private final Sizes sizes;
  private final Stream stream;
  private final GpuMeasure measure;
  private final List<DeviceMemory> memory = new ArrayList<>();
  private final DecodeModel model;
  private int seed = 1;

  RandomDecodeModel(Cuda cuda, Sizes sizes, GpuMeasure measure) {
    this.cuda = cuda;
    this.sizes = sizes;
    this.measure = measure;
    this.stream = Stream.create(cuda);
    var q = sizes.heads() * sizes.headDim();
    var kv = sizes.kvHeads() * sizes.headDim();
    var h = sizes.hidden();
    var inter = sizes.intermediate();
    var layers = new ArrayList<Layer>();
    for (var i = 0; i < sizes.layers(); i++) {
      layers.add(
          new Layer(
              norm(),
              norm(),
              linear(q, h),
              linear(kv, h),
              linear(kv, h),
              linear(h, q),
              linear(inter, h),
              linear(inter, h),
              linear(h, inter)));
    }
    var frequencies = new float[sizes.headDim() / 2];
    for (var i = 0; i < frequencies.length; i++) {
      frequencies[i] = (float) Math.pow(500000, -2.0 * i / sizes.headDim());
    }
    var table = cuda.upload(frequencies, stream);
    memory.add(table);
    this.model =
        new DecodeModel(
            Dtype.BF16,
            h,
            sizes.heads(),
            sizes.kvHeads(),
            sizes.headDim(),
            inter,
            sizes.vocab(),
            1e-5f,
            table.address(),
            1,
            random((long) sizes.vocab() * h, 1, 0),
            norm(),
            random((long) sizes.vocab() * h, (float) Math.sqrt(3.0 / h), 0),
            sizes.topK(),
            layers);
    stream.synchronize();
  }

  private long norm() {
    return random(sizes.hidden(), 0.1f, 1);
  }

  private Linear linear(int out, int in) {
    var scale = (float) Math.sqrt(3.0 / in);
    Optional<AdapterMemory> adapters = Optional.empty();
    if (sizes.adapters() > 0) {
      var n = sizes.adapters();
      var ranks = new int[n];
      Arrays.fill(ranks, sizes.rank());
      var scales = new float[n];
      Arrays.fill(scales, 2);
      var all = (long) n * sizes.rank();
      adapters =
          Optional.of(
              new AdapterMemory(
                  random((long) n * in, scale, 0),
                  random(all * in, scale, 0),
                  random(all * out, 0.05f, 0),
                  ranks,
                  scales));
    }
    return new Linear(random((long) out * in, scale, 0), 0, out, in, adapters);
  }

  private long random(long count, float scale, float shift) {
    var piece = cuda.allocate(2 * count);
    memory.add(piece);
    measure.fillRandom(piece.address(), count, seed++, scale, shift, stream);
    return piece.address();
  }

  DecodeModel model() {
    return model;
  }

  Sizes sizes() {
    return sizes;
  }

  /** A KV cache of random numbers, valid until {@link #release}. */
  KvMemory cache(int batch, int maxLength) {
    var each = (long) batch * sizes.kvHeads() * maxLength * sizes.headDim();
    var keys = new long[sizes.layers()];
    var values = new long[sizes.layers()];
    for (var i = 0; i < keys.length; i++) {
      keys[i] = random(each, 1, 0);
      values[i] = random(each, 1, 0);
    }
    stream.synchronize();
    return new KvMemory(keys, values, batch, maxLength);
  }

  /** Frees the newest cache. */
  void release(KvMemory cache) {
    for (var i = 0; i < 2 * cache.keys().length; i++) {
      memory.removeLast().close();
    }
  }

  @Override
  public void close() {
    memory.forEach(DeviceMemory::close);
    stream.close();
  }
}
