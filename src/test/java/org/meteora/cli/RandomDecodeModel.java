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
import org.meteora.nn.KvBlock;
import org.meteora.nn.Scores;
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
      var linears = new ArrayList<Linear>(linears(h, q, kv, kv));
      linears.addAll(linears(q, h));
      linears.addAll(linears(h, inter, inter));
      linears.addAll(linears(inter, h));
      layers.add(new Layer(norm(), norm(), linears, Optional.empty()));
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
            Scores.PRODUCT,
            layers);
    stream.synchronize();
  }

  private long norm() {
    return random(sizes.hidden(), 0.1f, 1);
  }

  /** Linears with one input; all A, then all gates lie in one matrix, as a backend stacks them. */
  private List<Linear> linears(int in, int... outs) {
    var scale = (float) Math.sqrt(3.0 / in);
    var n = sizes.adapters();
    var all = n * sizes.rank();
    var rows = (outs.length * (n + all) + 7) / 8 * 8;
    var stack = n == 0 ? 0 : random((long) rows * in, scale, 0);
    var ranks = new int[n];
    Arrays.fill(ranks, sizes.rank());
    var scales = new float[n];
    Arrays.fill(scales, 2);
    var linears = new ArrayList<Linear>();
    for (var out : outs) {
      Optional<AdapterMemory> adapters = Optional.empty();
      if (n > 0) {
        var a = stack + 2L * linears.size() * all * in;
        var gate = stack + 2L * ((long) outs.length * all + linears.size() * n) * in;
        adapters =
            Optional.of(
                new AdapterMemory(gate, a, random((long) all * out, 0.05f, 0), ranks, scales));
      }
      linears.add(new Linear(random((long) out * in, scale, 0), 0, out, in, adapters));
    }
    return linears;
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

  /** A pool of random keys and values, valid until {@link #release}. */
  KvMemory cache(int batch, int maxLength) {
    var blocks = batch * KvBlock.of(maxLength);
    var each = (long) blocks * sizes.kvHeads() * KvBlock.TOKENS * sizes.headDim();
    var keys = new long[sizes.layers()];
    var values = new long[sizes.layers()];
    for (var i = 0; i < keys.length; i++) {
      keys[i] = random(each, 1, 0);
      values[i] = random(each, 1, 0);
    }
    stream.synchronize();
    return new KvMemory(keys, values, blocks, maxLength);
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
