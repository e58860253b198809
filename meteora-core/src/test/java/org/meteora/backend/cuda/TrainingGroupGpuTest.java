package org.meteora.backend.cuda;

import static org.assertj.core.api.Assertions.assertThat;

import ai.djl.Device;
import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.EnumSet;
import java.util.IdentityHashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.CsvSource;
import org.meteora.backend.Backends;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.Stream;
import org.meteora.cuda.kernel.KernelName;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.Kernels.Constants;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.cuda.kernel.TrainingKernels.Dropped;
import org.meteora.lora.AdapterBank;
import org.meteora.model.Gradients;
import org.meteora.moe.GatedLinear;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Three gated linears in training, bfloat16: multiplied over all ranks and of the chosen adapters
 * alone, beside each other and beside their formulas in float64. What chooses is the same in all:
 * logits that no rounding turns, or given ones.
 */
@Tag("gpu")
class TrainingGroupGpuTest {
  private static final int TOKENS = 333;
  private static final int IN = 384;
  private static final int[] OUT = {256, 128, 128};
  private static final int GIVEN_OFTEN = 5;

  private final Random random = new Random(3);
  private int[] ranks;
  private double[] scales;
  private float[] x;
  private float[] dropped;
  private float[][] weights;
  private float[][] gates;
  private float[][] loraA;
  private float[][] loraB;
  private float[][] slopes;

  /** Rounded to bfloat16: what is on the device. */
  private float[] numbers(double deviation, int count) {
    var result = new float[count];
    for (int i = 0; i < count; i++) {
      result[i] = round(deviation * random.nextGaussian());
    }
    return result;
  }

  private static float round(double value) {
    int bits = Float.floatToRawIntBits((float) value);
    return Float.intBitsToFloat(bits + 0x7fff + (bits >>> 16 & 1) & 0xffff0000);
  }

  private void draw(int adapters, boolean apart, double p) {
    ranks = IntStream.range(0, adapters).map(i -> i % 7 == 3 ? 0 : i % 5 == 0 ? 16 : 8).toArray();
    scales = IntStream.range(0, adapters).mapToDouble(i -> 1 + i % 3).toArray();
    int total = Arrays.stream(ranks).sum();
    double small = 1 / Math.sqrt(IN);
    weights = new float[OUT.length][];
    gates = new float[OUT.length][];
    loraA = new float[OUT.length][];
    loraB = new float[OUT.length][];
    slopes = new float[OUT.length][];
    for (int l = 0; l < OUT.length; l++) {
      weights[l] = numbers(small, OUT[l] * IN);
      gates[l] = numbers(small, adapters * IN);
      loraA[l] = numbers(small, total * IN);
      loraB[l] = numbers(0.1, OUT[l] * total);
      slopes[l] = numbers(1, TOKENS * OUT[l]);
    }
    x = numbers(1, TOKENS * IN);
    if (apart) { // each linear's gate finds two adapters in x, one larger than the other
      for (int t = 0; t < TOKENS; t++) {
        for (int l = 0; l < OUT.length; l++) {
          int first = random.nextInt(adapters);
          int second = (first + 1 + random.nextInt(adapters - 1)) % adapters;
          for (int i = 0; i < IN; i++) {
            double found = 6 * gates[l][first * IN + i] + 5 * gates[l][second * IN + i];
            x[t * IN + i] = (l == 0 ? 0.1f * x[t * IN + i] : x[t * IN + i]) + (float) found;
          }
        }
        for (int i = 0; i < IN; i++) {
          x[t * IN + i] = round(x[t * IN + i]);
        }
      }
    }
    dropped = x.clone();
    if (p > 0) {
      for (int i = 0; i < dropped.length; i++) {
        dropped[i] = random.nextDouble() < p ? 0 : round(x[i] / (1 - p));
      }
    }
  }

  /** Logits (tokens, adapters) of a linear, as a product rounds them. */
  private float[] logits(int linear) {
    int n = ranks.length;
    var result = new float[TOKENS * n];
    for (int t = 0; t < TOKENS; t++) {
      for (int a = 0; a < n; a++) {
        result[t * n + a] = round(dot(x, t, gates[linear], a));
      }
    }
    return result;
  }

  private static double dot(float[] a, int rowOfA, float[] b, int rowOfB) {
    double sum = 0;
    for (int i = 0; i < IN; i++) {
      sum += (double) a[rowOfA * IN + i] * b[rowOfB * IN + i];
    }
    return sum;
  }

  /** The largest two, of equal ones the first. */
  private static int[] best(float[] logits, int from, int n) {
    int first = 0;
    for (int i = 1; i < n; i++) {
      first = logits[from + i] > logits[from + first] ? i : first;
    }
    int second = first == 0 ? 1 : 0;
    for (int i = 0; i < n; i++) {
      second = i != first && logits[from + i] > logits[from + second] ? i : second;
    }
    return new int[] {first, second};
  }

  /** The formulas in float64. */
  private Map<String, float[]> reference(float[][] logits, boolean drops) {
    int n = ranks.length;
    int total = Arrays.stream(ranks).sum();
    var offsets = new AdapterBank(null, null, null, ranks, scales).offsets();
    var slopeOfX = new double[TOKENS * IN];
    var slopeOfDropped = drops ? new double[TOKENS * IN] : slopeOfX;
    var result = new LinkedHashMap<String, float[]>();
    for (int l = 0; l < OUT.length; l++) {
      var y = new double[TOKENS * OUT[l]];
      var ofA = new double[total * IN];
      var ofB = new double[OUT[l] * total];
      var ofGates = new double[n * IN];
      for (int t = 0; t < TOKENS; t++) {
        for (int o = 0; o < OUT[l]; o++) {
          y[t * OUT[l] + o] = dot(x, t, weights[l], o);
          addRow(slopeOfX, t, slopes[l][t * OUT[l] + o], weights[l], o);
        }
        var chosen = best(logits[l], t * n, n);
        var weight = new double[2];
        var ofWeight = new double[2];
        double ratio = Math.exp(logits[l][t * n + chosen[1]] - logits[l][t * n + chosen[0]]);
        weight[0] = 1 / (1 + ratio);
        weight[1] = ratio / (1 + ratio);
        for (int j = 0; j < 2; j++) {
          double scale = scales[chosen[j]];
          for (int r = 0; r < ranks[chosen[j]]; r++) {
            int rank = offsets[chosen[j]] + r;
            double z = dot(dropped, t, loraA[l], rank);
            double slope = 0;
            for (int o = 0; o < OUT[l]; o++) {
              double dy = slopes[l][t * OUT[l] + o];
              slope += dy * loraB[l][o * total + rank];
              y[t * OUT[l] + o] += weight[j] * scale * z * loraB[l][o * total + rank];
              ofB[o * total + rank] += dy * weight[j] * scale * z;
            }
            ofWeight[j] += scale * z * slope;
            addRow(ofA, rank, weight[j] * scale * slope, dropped, t);
            addRow(slopeOfDropped, t, weight[j] * scale * slope, loraA[l], rank);
          }
        }
        double mean = weight[0] * ofWeight[0] + weight[1] * ofWeight[1];
        for (int j = 0; j < 2; j++) {
          double slope = weight[j] * (ofWeight[j] - mean);
          addRow(ofGates, chosen[j], slope, x, t);
          addRow(slopeOfX, t, slope, gates[l], chosen[j]);
        }
      }
      result.put("y " + l, floats(y));
      result.put("A " + l, floats(ofA));
      result.put("B " + l, floats(ofB));
      result.put("gates " + l, floats(ofGates));
    }
    result.put("x", floats(slopeOfX));
    if (drops) {
      result.put("dropped x", floats(slopeOfDropped));
    }
    return result;
  }

  private static void addRow(double[] to, int row, double factor, float[] from, int rowOfFrom) {
    for (int i = 0; i < IN; i++) {
      to[row * IN + i] += factor * from[rowOfFrom * IN + i];
    }
  }

  private static float[] floats(double[] values) {
    var result = new float[values.length];
    for (int i = 0; i < values.length; i++) {
      result[i] = (float) values[i];
    }
    return result;
  }

  /** On a GPU, of which memory that nobody has written is not a number. */
  private final class OnDevice implements AutoCloseable {
    final NDManager manager = Devices.newManager(Device.gpu(0));
    final Cuda cuda = Cuda.device(0);
    final List<GatedLinear> linears = new ArrayList<>();
    final Set<KernelName> launched = EnumSet.noneOf(KernelName.class);
    final int n = ranks.length;
    final int total = Arrays.stream(ranks).sum();

    OnDevice() {
      for (int l = 0; l < OUT.length; l++) {
        var bank =
            new AdapterBank(
                array(gates[l], n, IN),
                array(loraA[l], total, IN),
                array(loraB[l], OUT[l], total),
                ranks,
                scales);
        linears.add(
            new GatedLinear(
                array(weights[l], OUT[l], IN),
                null,
                bank.withTransposedB(),
                Backends.of(manager, Dtype.BF16)));
      }
    }

    NDArray array(float[] values, long... shape) {
      return Ops.convert(Ops.of(manager, values, shape), Dtype.BF16);
    }

    NDArray empty(Dtype dtype, long... shape) {
      var result = Ops.empty(manager, dtype, shape);
      long bytes = result.getShape().size() * dtype.bytes();
      cuda.fill(Ops.dataPointer(result), 0xff, bytes, Stream.LIBTORCH);
      return result;
    }

    /**
     * Forward and backward.
     *
     * @param byChoice multiplies by the chosen adapters alone, all but the gradients of A and B
     * @param gradientsByChoice those
     * @param given logits of each linear; null: as they come out
     */
    Map<String, float[]> run(
        boolean byChoice, boolean gradientsByChoice, float[][] given, boolean drops) {
      launched.clear();
      int bits = Dtype.BF16.bytes();
      int stride = (OUT.length * (total + n) + 7) / 8 * 8;
      var rows = empty(Dtype.BF16, TOKENS, stride);
      long atRows = Ops.dataPointer(rows);
      var plain = TrainingDevice.of(cuda, Dtype.BF16, manager);
      var device =
          new ForwardingDevice(plain) {
            @Override
            public int manyRanks() {
              return byChoice ? 1 : Integer.MAX_VALUE;
            }

            @Override
            public int manyAdapters() {
              return gradientsByChoice ? 1 : Integer.MAX_VALUE;
            }

            @Override
            public boolean canDrop(Sum sum) { // x̃ is given here, and no mask makes it of x
              return false;
            }

            @Override
            public TrainingKernels kernels(int topK, int adapters) {
              var kernels = Kernels.of(cuda, Constants.ofLayers(Dtype.BF16, topK, adapters));
              return new TrainingKernels(
                  (name, shape, argument) -> {
                    launched.add(name);
                    kernels.run(name, shape, argument, Stream.LIBTORCH);
                  },
                  64 << 10); // for several chunks
            }

            @Override
            public void multiply(Matrix c, Matrix a, Matrix b, boolean add) {
              super.multiply(c, a, b, add);
              long column = (c.address() - atRows) / bits;
              if (given != null && column >= 0 && column + c.columns() == stride) {
                for (int l = 0; l < given.length; l++) {
                  long at = atRows + (long) (OUT.length * total + l * n) * bits;
                  var to =
                      Ops.view(
                          manager, at, Dtype.BF16, new long[] {TOKENS, n}, new long[] {stride, 1});
                  Ops.copy(to, array(given[l], TOKENS, n));
                }
              }
            }
          };
      var sums = new IdentityHashMap<NDArray, NDArray>();
      linears.forEach(
          linear -> {
            var bank = linear.bank();
            for (var each : List.of(bank.gate(), bank.loraA(), bank.loraB())) {
              sums.put(each, Ops.zeros(manager, Dtype.F32, each.getShape().getShape()));
            }
          });
      var group =
          new TrainingGroup(
              linears,
              parameter -> List.of(new Gradients.Part(sums.get(parameter), -1, 0, 0)),
              device,
              manager);
      assertThat(group.bytesOfRows()).isEqualTo((long) stride * bits);
      var ofC = new long[2];
      for (int i = 0; i < 2; i++) {
        ofC[i] = Ops.dataPointer(empty(Dtype.U8, TOKENS * group.bytesOfC()));
      }
      var scratch =
          new TrainingGroup.Scratch(
              ofC[0],
              ofC[1],
              Ops.dataPointer(empty(Dtype.U8, TOKENS * group.bytesOfRows())),
              Ops.dataPointer(empty(Dtype.U8, group.bytesOfGradients())),
              Ops.dataPointer(empty(Dtype.U8, TrainingKernels.Choices.bytes(TOKENS))));
      var pass =
          new TrainingGroup.Pass(
              TOKENS,
              2,
              device.kernels(2, n),
              true,
              new TrainingKernels.Tasks(0, 0),
              0,
              scratch,
              new Watching());
      var input = array(x, TOKENS, IN);
      var inputOfAdapters = array(dropped, TOKENS, IN);
      long atX = Ops.dataPointer(input);
      var its =
          drops ? new Dropped(Ops.dataPointer(inputOfAdapters), 0, Dropout.NONE) : Dropped.NONE;
      var results = Arrays.stream(OUT).mapToObj(out -> empty(Dtype.BF16, TOKENS, out)).toList();
      var ofResults =
          IntStream.range(0, OUT.length).mapToObj(l -> array(slopes[l], TOKENS, OUT[l])).toList();
      var slopeOfX = empty(Dtype.BF16, TOKENS, IN);
      group.rows(pass, atX, its, atRows);
      group.forward(
          pass,
          atX,
          atRows,
          results.stream().mapToLong(Ops::dataPointer).toArray(),
          TrainingKernels.Counts.NONE);
      group.backward(
          pass,
          atX,
          its,
          atRows,
          ofResults.stream().mapToLong(Ops::dataPointer).toArray(),
          Ops.dataPointer(slopeOfX));
      var result = new LinkedHashMap<String, float[]>();
      for (int l = 0; l < OUT.length; l++) {
        var bank = linears.get(l).bank();
        result.put("y " + l, floats(results.get(l)));
        result.put("A " + l, floats(sums.get(bank.loraA())));
        result.put("B " + l, floats(sums.get(bank.loraB())));
        result.put("gates " + l, floats(sums.get(bank.gate())));
      }
      result.put("x", floats(slopeOfX));
      if (drops) {
        result.put("dropped x", floats(inputOfAdapters));
      }
      return result;
    }

    private static float[] floats(NDArray array) {
      return Ops.cast(array, Dtype.F32).toFloatArray();
    }

    @Override
    public void close() {
      manager.close();
    }
  }

  /** Distances over the second's size; of what is not a number, not a number. */
  private static Map<String, Double> distances(Map<String, float[]> a, Map<String, float[]> b) {
    var result = new LinkedHashMap<String, Double>();
    b.forEach(
        (name, expected) -> {
          double difference = 0;
          double size = 0;
          for (int i = 0; i < expected.length; i++) {
            difference += Math.pow((double) a.get(name)[i] - expected[i], 2);
            size += Math.pow(expected[i], 2);
          }
          result.put(name, Math.sqrt(difference / size));
        });
    return result;
  }

  @ParameterizedTest
  @CsvSource({
    "28, true, 0", "28, true, 0.1", "28, false, 0", "28, false, 0.1",
    "256, true, 0", "256, true, 0.1", "256, false, 0", "256, false, 0.1"
  })
  void chosenAdaptersAloneGiveTheGradientsOfAll(int adapters, boolean apart, double p) {
    draw(adapters, apart, p);
    var logits = new float[OUT.length][];
    for (int l = 0; l < OUT.length; l++) {
      logits[l] = logits(l);
      for (int t = 0; t < TOKENS; t++) {
        var sorted = Arrays.copyOfRange(logits[l], t * adapters, (t + 1) * adapters);
        Arrays.sort(sorted);
        if (apart) {
          assertThat(sorted[adapters - 2] - sorted[adapters - 3]).isGreaterThan(0.2f);
        } else if (t % 4 > 0) { // one adapter of many tiles
          logits[l][t * adapters + GIVEN_OFTEN] = round(sorted[adapters - 1] + 0.3);
        }
      }
    }
    var expected = reference(logits, p > 0);
    try (var device = new OnDevice()) {
      var given = apart ? null : logits;
      var products = List.of(KernelName.GROUP_Z, KernelName.GROUP_ADD_BY_ROW);
      var gradients = KernelName.TRAINING_CHOSEN_GRADIENTS;
      var all = device.run(false, false, given, p > 0);
      assertThat(device.launched).doesNotContainAnyElementsOf(products).doesNotContain(gradients);
      var chosen = device.run(true, false, given, p > 0);
      assertThat(device.launched).containsAll(products).doesNotContain(gradients);
      var both = device.run(true, true, given, p > 0);
      assertThat(device.launched).containsAll(products).contains(gradients);
      var gradientsAlone = device.run(false, true, given, p > 0);
      assertThat(device.launched).doesNotContainAnyElementsOf(products).contains(gradients);
      // sums of what several adapters add are rounded one by one
      assertThat(distances(chosen, all).values()).allMatch(each -> each < 0.005);
      assertThat(distances(all, expected).values()).allMatch(each -> each < 0.006);
      assertThat(distances(chosen, expected).values()).allMatch(each -> each < 0.006);
      assertThat(distances(both, expected).values()).allMatch(each -> each < 0.006);
      // the same factors, summed in another order
      assertThat(distances(gradientsAlone, all).values()).allMatch(each -> each < 1e-4);
      assertThat(distances(both, chosen).values()).allMatch(each -> each < 1e-4);
      // and always in the same one
      device
          .run(false, true, given, p > 0)
          .forEach((name, again) -> assertThat(again).isEqualTo(gradientsAlone.get(name)));
    }
  }
}
