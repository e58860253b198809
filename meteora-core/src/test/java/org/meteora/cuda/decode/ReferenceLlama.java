package org.meteora.cuda.decode;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.List;
import java.util.Optional;
import java.util.Random;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.meteora.cuda.kernel.AdapterMemory;
import org.meteora.cuda.kernel.Gpu;
import org.meteora.nn.KvBlock;
import org.meteora.tensor.Dtype;

/**
 * A random Llama with MeteoRA, on the GPU and in float64 on the heap; the latter decodes by the
 * textbook.
 */
public final class ReferenceLlama {
  record Config(
      Dtype dtype,
      int hidden,
      int heads,
      int kvHeads,
      int headDim,
      int inter,
      int vocab,
      int layers,
      int[] ranks,
      int topK,
      boolean bias) {}

  record Lin(
      double[] w,
      double[] bias,
      double[] g,
      double[] a,
      double[] b,
      int[] ranks,
      float[] scales,
      int out,
      int in) {}

  record Lay(double[] inputNorm, double[] postNorm, List<Lin> linears) {}

  final Config config;
  final DecodeModel model;
  final KvMemory cache;
  final int slots;

  /** The blocks of a sequence in each slot, all over the pool. */
  final int[][] tables;

  final int maxLength;
  private final List<Lay> layers = new ArrayList<>();
  private final double[] embedding;
  private final double[] finalNorm;
  private final double[] head;
  private final double[] invFreq;
  // [layer][slot][position][kvHeads * headDim]
  private final double[][][][] keys;
  private final double[][][][] values;
  double temperature = 1;

  /**
   * The smallest gap, of all gates of the last step, between the last logit chosen and the first
   * not chosen.
   */
  double margin;

  /** Moves the A and then the gates of linears from {@code begin} on into one matrix. */
  private static void stack(
      Gpu gpu,
      Dtype dtype,
      List<Lin> linears,
      List<DecodeModel.Linear> device,
      int begin,
      int end) {
    if (linears.get(begin).ranks().length == 0) {
      return;
    }
    var all =
        Stream.concat(
                linears.subList(begin, end).stream().map(Lin::a),
                linears.subList(begin, end).stream().map(Lin::g))
            .flatMapToDouble(Arrays::stream)
            .toArray();
    var a = gpu.put(all, dtype).address();
    var gate =
        a + linears.subList(begin, end).stream().mapToLong(l -> l.a().length).sum() * dtype.bytes();
    for (var i = begin; i < end; i++) {
      var it = device.get(i);
      var old = it.adapters().orElseThrow();
      device.set(
          i,
          new DecodeModel.Linear(
              it.weight(),
              it.bias(),
              it.out(),
              it.in(),
              Optional.of(new AdapterMemory(gate, a, old.b(), old.ranks(), old.scales()))));
      a += (long) linears.get(i).a().length * dtype.bytes();
      gate += (long) linears.get(i).g().length * dtype.bytes();
    }
  }

  ReferenceLlama(Gpu gpu, Config c, int slots, int maxLength) {
    this.config = c;
    this.slots = slots;
    this.maxLength = maxLength;
    var deviceLayers = new ArrayList<DecodeModel.Layer>();
    var q = c.heads * c.headDim;
    var kv = c.kvHeads * c.headDim;
    int[][] shapes = {
      {q, c.hidden},
      {kv, c.hidden},
      {kv, c.hidden},
      {c.hidden, q},
      {c.inter, c.hidden},
      {c.inter, c.hidden},
      {c.hidden, c.inter}
    };
    for (var i = 0; i < c.layers; i++) {
      var linears = new ArrayList<Lin>();
      var device = new ArrayList<DecodeModel.Linear>();
      for (var j = 0; j < shapes.length; j++) {
        var out = shapes[j][0];
        var in = shapes[j][1];
        var w = gpu.normal(out * in, 1 / Math.sqrt(in), 0, c.dtype);
        var bias = gpu.normal(out, c.bias ? 0.3 : 0, 0, c.dtype);
        if (c.ranks.length == 0) {
          linears.add(new Lin(w.values(), bias.values(), null, null, null, c.ranks, null, out, in));
          device.add(
              new DecodeModel.Linear(
                  w.address(), c.bias ? bias.address() : 0, out, in, Optional.empty()));
          continue;
        }
        // a different adapter misses each module
        var ranks = c.ranks.clone();
        if (ranks.length > 3) {
          ranks[(i + j) % ranks.length] = 0;
        }
        var all = java.util.Arrays.stream(ranks).sum();
        var scales = new float[ranks.length];
        for (var e = 0; e < scales.length; e++) {
          scales[e] = 0.5f + gpu.random.nextFloat();
        }
        // gates that decide clearly, so that rounding does not change the choice
        var g = gpu.normal(ranks.length * in, 3 / Math.sqrt(in), 0, c.dtype);
        var a = gpu.normal(all * in, 1 / Math.sqrt(in), 0, c.dtype);
        var b = gpu.normal(all * out, 0.2, 0, c.dtype);
        linears.add(
            new Lin(
                w.values(),
                bias.values(),
                g.values(),
                a.values(),
                b.values(),
                ranks,
                scales,
                out,
                in));
        device.add(
            new DecodeModel.Linear(
                w.address(),
                c.bias ? bias.address() : 0,
                out,
                in,
                Optional.of(
                    new AdapterMemory(
                        g.address(),
                        a.address(),
                        gpu.transposed(b, out, all, c.dtype).address(),
                        ranks,
                        scales))));
      }
      if (i % 2 == 0) { // as a backend lays them; or each by itself
        stack(gpu, c.dtype, linears, device, 0, 3);
        stack(gpu, c.dtype, linears, device, 3, 4);
        stack(gpu, c.dtype, linears, device, 4, 6);
        stack(gpu, c.dtype, linears, device, 6, 7);
      }
      var n1 = gpu.normal(c.hidden, 0.2, 1, c.dtype);
      var n2 = gpu.normal(c.hidden, 0.2, 1, c.dtype);
      layers.add(new Lay(n1.values(), n2.values(), linears));
      deviceLayers.add(new DecodeModel.Layer(n1.address(), n2.address(), device, Optional.empty()));
    }
    var e = gpu.normal(c.vocab * c.hidden, 1, 0, c.dtype);
    var f = gpu.normal(c.hidden, 0.2, 1, c.dtype);
    var h = gpu.normal(c.vocab * c.hidden, 1 / Math.sqrt(c.hidden), 0, c.dtype);
    embedding = e.values();
    finalNorm = f.values();
    head = h.values();
    var frequencies = new double[c.headDim / 2];
    for (var i = 0; i < frequencies.length; i++) {
      frequencies[i] = Math.pow(10000, -2.0 * i / c.headDim);
    }
    var table = gpu.put(frequencies, Dtype.F32);
    invFreq = table.values();
    model =
        new DecodeModel(
            c.dtype,
            c.hidden,
            c.heads,
            c.kvHeads,
            c.headDim,
            c.inter,
            c.vocab,
            1e-5f,
            table.address(),
            1,
            e.address(),
            f.address(),
            h.address(),
            c.topK,
            org.meteora.nn.Scores.PRODUCT,
            deviceLayers);
    keys = new double[c.layers][slots][maxLength][];
    values = new double[c.layers][slots][maxLength][];
    var each = KvBlock.of(maxLength);
    var blocks = slots * each + 3; // some are nobody's
    var bytes = (long) blocks * kv * KvBlock.TOKENS * c.dtype.bytes();
    var k = new long[c.layers];
    var v = new long[c.layers];
    for (var i = 0; i < c.layers; i++) {
      k[i] = gpu.poisoned(bytes);
      v[i] = gpu.poisoned(bytes);
    }
    cache = new KvMemory(k, v, blocks, maxLength);
    var order = IntStream.range(0, blocks).boxed().collect(Collectors.toList());
    Collections.shuffle(order, new Random(blocks));
    tables = new int[slots][each];
    for (var slot = 0; slot < slots; slot++) {
      for (var i = 0; i < each; i++) {
        tables[slot][i] = order.get(slot * each + i);
      }
    }
  }

  /** Of sequences in these slots. */
  int[][] tables(int... slots) {
    return Arrays.stream(slots).mapToObj(slot -> tables[slot]).toArray(int[][]::new);
  }

  /** Of a sequence. */
  int maxBlocks() {
    return tables[0].length;
  }

  /**
   * Fills the first columns of a slot with random keys and values, on the GPU and here; values so
   * large that their average over all columns is not lost beside the residual stream.
   */
  void fill(Gpu gpu, int slot, int columns) {
    var d = config.headDim;
    for (var l = 0; l < config.layers; l++) {
      for (var here : List.of(keys[l][slot], values[l][slot])) {
        var there = here == keys[l][slot] ? cache.keys()[l] : cache.values()[l];
        for (var head = 0; head < config.kvHeads; head++) {
          var some = new double[columns * d];
          var scale = here == keys[l][slot] ? 1 : Math.sqrt(Math.max(1, columns / Math.E));
          for (var i = 0; i < some.length; i++) {
            some[i] = scale * gpu.random.nextGaussian();
          }
          for (var from = 0; from < columns; from += KvBlock.TOKENS) {
            var block = (long) tables[slot][from / KvBlock.TOKENS] * config.kvHeads + head;
            var end = Math.min(columns, from + KvBlock.TOKENS) * d;
            var its =
                gpu.write(
                    there + block * KvBlock.TOKENS * d * config.dtype.bytes(),
                    Arrays.copyOfRange(some, from * d, end),
                    config.dtype);
            System.arraycopy(its, 0, some, from * d, its.length);
          }
          for (var p = 0; p < columns; p++) {
            if (here[p] == null) {
              here[p] = new double[config.kvHeads * d];
            }
            System.arraycopy(some, p * d, here[p], head * d, d);
          }
        }
      }
    }
  }

  /** Logits of one more token of a sequence in {@code slot}, at column {@code length}. */
  double[] step(int token, int slot, int length) {
    margin = Double.POSITIVE_INFINITY;
    var h = new double[config.hidden];
    System.arraycopy(embedding, token * config.hidden, h, 0, config.hidden);
    for (var l = 0; l < config.layers; l++) {
      var layer = layers.get(l);
      var x = norm(h, layer.inputNorm);
      var q = rotate(linear(layer.linears.get(0), x), length);
      var d = config.headDim;
      keys[l][slot][length] = rounded(rotate(linear(layer.linears.get(1), x), length));
      values[l][slot][length] = rounded(linear(layer.linears.get(2), x));
      var attended = new double[config.heads * d];
      for (var head = 0; head < config.heads; head++) {
        var kvAt = head / (config.heads / config.kvHeads) * d;
        var scores = new double[length + 1];
        var top = Double.NEGATIVE_INFINITY;
        for (var p = 0; p <= length; p++) {
          for (var i = 0; i < d; i++) {
            scores[p] += q[head * d + i] * keys[l][slot][p][kvAt + i] / Math.sqrt(d);
          }
          top = Math.max(top, scores[p]);
        }
        double sum = 0;
        for (var p = 0; p <= length; p++) {
          sum += scores[p] = Math.exp(scores[p] - top);
        }
        for (var p = 0; p <= length; p++) {
          for (var i = 0; i < d; i++) {
            attended[head * d + i] += scores[p] / sum * values[l][slot][p][kvAt + i];
          }
        }
      }
      add(h, linear(layer.linears.get(3), attended));
      x = norm(h, layer.postNorm);
      var gate = linear(layer.linears.get(4), x);
      var up = linear(layer.linears.get(5), x);
      for (var i = 0; i < gate.length; i++) {
        up[i] *= gate[i] / (1 + Math.exp(-gate[i]));
      }
      add(h, linear(layer.linears.get(6), up));
    }
    return times(head, norm(h, finalNorm), config.vocab);
  }

  private double[] rounded(double[] v) {
    var out = new double[v.length];
    for (var i = 0; i < v.length; i++) {
      out[i] = Gpu.round(v[i], config.dtype);
    }
    return out;
  }

  private static void add(double[] h, double[] y) {
    for (var i = 0; i < h.length; i++) {
      h[i] += y[i];
    }
  }

  private static double[] norm(double[] h, double[] weight) {
    double sum = 0;
    for (var v : h) {
      sum += v * v;
    }
    var out = new double[h.length];
    for (var i = 0; i < h.length; i++) {
      out[i] = h[i] / Math.sqrt(sum / h.length + 1e-5) * weight[i];
    }
    return out;
  }

  private double[] rotate(double[] x, int position) {
    var d = config.headDim;
    var out = new double[x.length];
    for (var at = 0; at < x.length; at += d) {
      for (var i = 0; i < d / 2; i++) {
        var c = Math.cos(position * invFreq[i]);
        var s = Math.sin(position * invFreq[i]);
        out[at + i] = x[at + i] * c - x[at + i + d / 2] * s;
        out[at + i + d / 2] = x[at + i + d / 2] * c + x[at + i] * s;
      }
    }
    return out;
  }

  public static double[] times(double[] w, double[] x, int out) {
    var outputs = IntStream.range(0, out);
    return (out * x.length < 1 << 16 ? outputs : outputs.parallel())
        .mapToDouble(
            o -> {
              double sum = 0;
              for (var i = 0; i < x.length; i++) {
                sum += w[o * x.length + i] * x[i];
              }
              return sum;
            })
        .toArray();
  }

  private double[] linear(Lin l, double[] x) {
    var y = times(l.w, x, l.out);
    if (config.bias) {
      add(y, l.bias);
    }
    if (l.ranks.length > 0) {
      var sorted = times(l.g, x, l.ranks.length);
      java.util.Arrays.sort(sorted);
      var n = sorted.length;
      if (config.topK < n) {
        margin = Math.min(margin, sorted[n - config.topK] - sorted[n - config.topK - 1]);
      }
      add(y, adapters(x, l.g, l.a, l.b, l.ranks, l.scales, l.out, config.topK, temperature));
    }
    return y;
  }

  /** Σ weight · scale · (x Aᵀ) Bᵀ over the top-k adapters. */
  public static double[] adapters(
      double[] x,
      double[] g,
      double[] a,
      double[] b,
      int[] ranks,
      float[] scales,
      int out,
      int topK,
      double temperature) {
    var logits = times(g, x, ranks.length);
    var weights = weights(logits, topK, temperature);
    var all = java.util.Arrays.stream(ranks).sum();
    var z = times(a, x, all);
    var y = new double[out];
    var at = 0;
    for (var e = 0; e < ranks.length; e++) {
      for (var r = 0; r < ranks[e]; r++, at++) {
        for (var o = 0; o < out && weights[e] != 0; o++) {
          y[o] += weights[e] * scales[e] * z[at] * b[o * all + at];
        }
      }
    }
    return y;
  }

  /** Softmax(logits / T) over the k largest, zero elsewhere. */
  public static double[] weights(double[] logits, int topK, double temperature) {
    var weights = new double[logits.length];
    double sum = 0;
    var first = Double.NaN;
    for (var j = 0; j < topK; j++) {
      var best = -1;
      for (var e = 0; e < logits.length; e++) {
        if (weights[e] == 0 && (best < 0 || logits[e] > logits[best])) {
          best = e;
        }
      }
      first = j == 0 ? logits[best] : first;
      sum += weights[best] = Math.exp((logits[best] - first) / temperature);
    }
    for (var e = 0; e < logits.length; e++) {
      weights[e] /= sum;
    }
    return weights;
  }
}
