package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import ai.djl.pytorch.jni.JniUtils;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;

/**
 * One GPU and its primary context, the one libtorch uses too: memory and streams can be shared with
 * it. Obtained by {@link #device}; there is one object a device and it is never closed, since the
 * context belongs to the process.
 *
 * <p>All methods may be called from any thread that has called {@link #makeCurrent} since it last
 * used another device. Addresses are plain {@code long}s. Failures of the driver are {@link
 * UserException}s of one line.
 */
public final class Cuda {
  private static final Map<Integer, Cuda> DEVICES = new ConcurrentHashMap<>();

  private final int index;
  private final long context;
  private final String name;
  private final int capability;
  private final int multiprocessors;
  private final int sharedMemory;
  private final double memoryRate;

  private Cuda(int index) {
    requireDriver();
    var count = CudaDriver.integer("counting GPUs", CudaDriver.DEVICE_COUNT);
    if (index < 0 || index >= count) {
      throw new UserException(
          "no GPU %s here (%s found): choose --device %s",
          index, count, count == 0 ? "cpu" : "cuda:0");
    }
    this.index = index;
    var device = CudaDriver.integer("opening GPU " + index, CudaDriver.DEVICE, index);
    this.context = CudaDriver.pointer("opening GPU " + index, CudaDriver.PRIMARY_CONTEXT, device);
    this.capability = attribute(device, 75) * 10 + attribute(device, 76);
    this.multiprocessors = attribute(device, 16);
    this.sharedMemory = attribute(device, 97);
    // kHz of a clock that moves two bits a line, and lines
    this.memoryRate = 1e3 * attribute(device, 36) * 2 * attribute(device, 37) / 8;
    try (var arena = Arena.ofConfined()) {
      var text = arena.allocate(256);
      CudaDriver.call("reading a GPU's name", CudaDriver.DEVICE_NAME, text.address(), 256, device);
      this.name = text.getString(0);
    }
    makeCurrent();
  }

  /**
   * GPU {@code index}, opened at the first call.
   *
   * @throws UserException without a driver or such a GPU
   */
  public static Cuda device(int index) {
    return DEVICES.computeIfAbsent(index, Cuda::new);
  }

  /** Whether GPU 0 can be used. */
  public static boolean isAvailable() {
    try {
      device(0);
      return true;
    } catch (UserException e) {
      return false;
    }
  }

  private static void requireDriver() {
    try {
      CudaDriver.load();
    } catch (ExceptionInInitializerError | NoClassDefFoundError e) {
      if (e.getCause() instanceof UserException user) {
        throw user;
      }
      throw new UserException("no usable CUDA driver here (libcuda.so.1): choose --device cpu", e);
    }
  }

  /**
   * @throws UserException when the driver lacks what kernels of our own need; memory can be asked
   *     for without it
   */
  public void requireKernels() {
    CudaDriver.requireAll();
  }

  private static int attribute(int device, int which) {
    return CudaDriver.integer(
        "reading a GPU's properties", CudaDriver.DEVICE_ATTRIBUTE, which, device);
  }

  public int index() {
    return index;
  }

  public String name() {
    return name;
  }

  /** Compute capability as a number, 90 for 9.0. */
  public int capability() {
    return capability;
  }

  public int multiprocessors() {
    return multiprocessors;
  }

  /** Bytes a second that the memory could move at most, 3.35 · 10¹² of an H100 SXM. */
  public double memoryRate() {
    return memoryRate;
  }

  /** Bytes of shared memory a block may use at most. */
  public int sharedMemory() {
    return sharedMemory;
  }

  /** Makes this the calling thread's device. */
  public void makeCurrent() {
    CudaDriver.check(
        "choosing GPU " + index, () -> (int) CudaDriver.SET_CURRENT.invokeExact(context));
  }

  /** Free and total bytes of device memory. */
  public record Memory(long free, long total) {}

  public Memory memory() {
    makeCurrent();
    try (var arena = Arena.ofConfined()) {
      var both = arena.allocate(16, 8);
      CudaDriver.call(
          "asking for free memory", CudaDriver.MEMORY_INFO, both.address(), both.address() + 8);
      return new Memory(both.get(JAVA_LONG, 0), both.get(JAVA_LONG, 8));
    }
  }

  /** Free bytes; when they are less than what is wanted, libtorch gives back what it keeps. */
  public long free(long wanted) {
    var free = memory().free();
    if (wanted <= free) {
      return free;
    }
    JniUtils.emptyCudaCache();
    return memory().free();
  }

  /**
   * Device memory, not cleared. Makes this the calling thread's device, as {@link #memory} does.
   *
   * @throws UserException when there is not enough, naming what is needed and what is free
   */
  public DeviceMemory allocate(long bytes) {
    makeCurrent();
    // what is free is asked for only then: the driver takes longer for that than for memory
    var address = CudaDriver.allocate(Math.max(bytes, 16));
    if (address == 0) {
      JniUtils.emptyCudaCache();
      address = CudaDriver.allocate(Math.max(bytes, 16));
    }
    if (address == 0) {
      throw new TooLittleMemory(
          "GPU %d has too little memory: %,d MiB are needed, %,d MiB are free"
              .formatted(index, (bytes >> 20) + 1, memory().free() >> 20));
    }
    return new DeviceMemory(address);
  }

  /** Device memory set to zero. */
  public DeviceMemory allocateZeroed(long bytes, Stream stream) {
    var memory = allocate(bytes);
    fill(memory.address(), 0, bytes, stream);
    return memory;
  }

  public void fill(long to, int value, long bytes, Stream stream) {
    if (bytes > 0) {
      CudaDriver.call("filling memory", CudaDriver.FILL, to, (byte) value, bytes, stream.handle());
    }
  }

  /**
   * Copies host memory to the device; {@code from} is native memory and must live until the stream
   * gets there.
   */
  public void toDevice(long to, MemorySegment from, long bytes, Stream stream) {
    CudaDriver.check(
        "copying to the GPU",
        () -> (int) CudaDriver.TO_DEVICE.invokeExact(to, from.address(), bytes, stream.handle()));
  }

  public void toHost(MemorySegment to, long from, long bytes, Stream stream) {
    CudaDriver.check(
        "copying from the GPU",
        () -> (int) CudaDriver.TO_HOST.invokeExact(to.address(), from, bytes, stream.handle()));
  }

  /** A new device array with these values; waits for the copy. */
  public DeviceMemory upload(int[] values, Stream stream) {
    try (var arena = Arena.ofConfined()) {
      return upload(arena.allocateFrom(java.lang.foreign.ValueLayout.JAVA_INT, values), stream);
    }
  }

  /** A new device array with these values; waits for the copy. */
  public DeviceMemory upload(float[] values, Stream stream) {
    try (var arena = Arena.ofConfined()) {
      return upload(arena.allocateFrom(java.lang.foreign.ValueLayout.JAVA_FLOAT, values), stream);
    }
  }

  private DeviceMemory upload(MemorySegment values, Stream stream) {
    var memory = allocate(values.byteSize());
    toDevice(memory.address(), values, values.byteSize(), stream);
    stream.synchronize();
    return memory;
  }

  /** Bytes of device memory; waits for the copy. */
  public byte[] download(long from, long bytes, Stream stream) {
    try (var arena = Arena.ofConfined()) {
      var host = arena.allocate(bytes, 16);
      toHost(host, from, bytes, stream);
      stream.synchronize();
      return host.toArray(JAVA_BYTE);
    }
  }
}
