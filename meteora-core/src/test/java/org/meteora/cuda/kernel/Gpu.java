package org.meteora.cuda.kernel;

import java.lang.foreign.Arena;
import java.lang.foreign.ValueLayout;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.SplittableRandom;
import java.util.stream.IntStream;
import org.junit.jupiter.api.Assumptions;
import org.meteora.cuda.driver.Cuda;
import org.meteora.cuda.driver.DeviceMemory;
import org.meteora.cuda.driver.Stream;
import org.meteora.tensor.Dtype;

/** Arrays on the GPU beside their exact values in float64. */
public final class Gpu implements AutoCloseable {
  /** Values as the device has them, rounded to the dtype. */
  public record Array(long address, double[] values) {}

  private static final int BLOCK = 1 << 14;

  public final Cuda cuda;
  public final Stream stream;
  public final Random random;
  private final List<DeviceMemory> owned = new ArrayList<>();

  public Gpu(long seed) {
    Assumptions.assumeTrue(Cuda.isAvailable(), "no CUDA GPU on this machine");
    cuda = Cuda.device(0);
    cuda.makeCurrent();
    stream = Stream.create(cuda);
    random = new Random(seed);
  }

  /** Compiles what a class of tests will ask for, all at once instead of one after the other. */
  public static void compileAhead(java.util.stream.Stream<Kernels.Constants> wanted) {
    if (Cuda.isAvailable()) {
      int capability = Cuda.device(0).capability();
      wanted.distinct().forEach(each -> Kernels.prepare(capability, each));
    }
  }

  public static float round(double value, Dtype dtype) {
    return switch (dtype) {
      case BF16 -> fromBf16(toBf16((float) value));
      case F16 -> Float.float16ToFloat(Float.floatToFloat16((float) value));
      default -> (float) value;
    };
  }

  private static short toBf16(float value) {
    var bits = Float.floatToRawIntBits(value);
    return (short) ((bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16);
  }

  private static float fromBf16(short value) {
    return Float.intBitsToFloat(value << 16);
  }

  public Array put(double[] values, Dtype dtype) {
    var memory = cuda.allocate(Math.max(16, values.length * dtype.bytes()));
    owned.add(memory);
    return new Array(memory.address(), write(memory.address(), values, dtype));
  }

  /** Writes values to device memory; returns them as they are there, rounded. */
  public double[] write(long address, double[] values, Dtype dtype) {
    var rounded = new double[values.length];
    var bytes = ByteBuffer.allocate(values.length * dtype.bytes()).order(ByteOrder.nativeOrder());
    for (var i = 0; i < values.length; i++) {
      var v = round(values[i], dtype);
      rounded[i] = v;
      switch (dtype) {
        case BF16 -> bytes.putShort(toBf16(v));
        case F16 -> bytes.putShort(Float.floatToFloat16(v));
        default -> bytes.putFloat(v);
      }
    }
    try (var arena = Arena.ofConfined()) {
      cuda.toDevice(
          address,
          arena.allocateFrom(ValueLayout.JAVA_BYTE, bytes.array()),
          bytes.capacity(),
          stream);
      stream.synchronize();
    }
    return rounded;
  }

  public Array normal(int count, double scale, double shift, Dtype dtype) {
    var values = new double[count];
    var seed = random.nextLong();
    IntStream.rangeClosed(0, count / BLOCK)
        .parallel()
        .forEach(
            block -> {
              var own = new SplittableRandom(seed + block);
              for (var i = block * BLOCK; i < Math.min(count, (block + 1) * BLOCK); i++) {
                values[i] = own.nextGaussian() * scale + shift;
              }
            });
    return put(values, dtype);
  }

  /** The transpose of an array (rows, columns). */
  public Array transposed(Array array, int rows, int columns, Dtype dtype) {
    var values = new double[rows * columns];
    for (var i = 0; i < rows; i++) {
      for (var j = 0; j < columns; j++) {
        values[j * rows + i] = array.values()[i * columns + j];
      }
    }
    return put(values, dtype);
  }

  /** Memory full of NaN, for any stream. */
  public long poisoned(long bytes) {
    var memory = cuda.allocate(bytes);
    owned.add(memory);
    cuda.fill(memory.address(), 0xff, bytes, stream);
    stream.synchronize();
    return memory.address();
  }

  /** Memory full of zeros, for any stream. */
  public long zeros(long bytes) {
    var memory = cuda.allocateZeroed(bytes, stream);
    owned.add(memory);
    stream.synchronize();
    return memory.address();
  }

  public double[] get(long address, int count, Dtype dtype) {
    var bytes =
        ByteBuffer.wrap(cuda.download(address, (long) count * dtype.bytes(), stream))
            .order(ByteOrder.nativeOrder());
    var values = new double[count];
    for (var i = 0; i < count; i++) {
      values[i] =
          switch (dtype) {
            case BF16 -> fromBf16(bytes.getShort());
            case F16 -> Float.float16ToFloat(bytes.getShort());
            case I32 -> bytes.getInt();
            default -> bytes.getFloat();
          };
    }
    return values;
  }

  /** ‖a − b‖ / ‖b‖; NaN when either has one. */
  public static double error(double[] a, double[] b) {
    double difference = 0;
    double norm = 0;
    for (var i = 0; i < b.length; i++) {
      difference += (a[i] - b[i]) * (a[i] - b[i]);
      norm += b[i] * b[i];
    }
    return norm == 0 ? Math.sqrt(difference) : Math.sqrt(difference / norm);
  }

  @Override
  public void close() {
    stream.synchronize();
    owned.forEach(DeviceMemory::close);
    stream.close();
  }
}
