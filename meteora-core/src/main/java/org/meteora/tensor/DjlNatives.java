package org.meteora.tensor;

import ai.djl.ndarray.types.DataType;
import ai.djl.pytorch.jni.LibUtils;
import java.io.IOException;
import java.lang.classfile.ClassBuilder;
import java.lang.classfile.ClassElement;
import java.lang.classfile.ClassFile;
import java.lang.classfile.MethodModel;
import java.lang.classfile.TypeKind;
import java.lang.constant.ClassDesc;
import java.lang.constant.ConstantDescs;
import java.lang.constant.MethodTypeDesc;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.lang.reflect.AccessFlag;
import java.lang.reflect.Modifier;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Optional;
import java.util.Set;
import java.util.stream.Collectors;

/**
 * Frees DJL from the C++ layout of one PyTorch version. DJL's JNI library is compiled against
 * PyTorch 2.7.1; most of its natives call functions that every later version exports, but some were
 * compiled with inlined code that reads a tensor's fields or calls through its table of virtual
 * functions, and both have moved since (in 2.10 and in 2.12). {@link #install} defines DJL's class
 * of natives anew, before it is loaded: those are no longer native there, but call the methods
 * below, which do the same by libtorch's stable C ABI. What nothing here needs is refused by name.
 *
 * <p>The methods are called by DJL alone, and keep its names, arguments and results; handles are
 * addresses of tensors, which a caller owns where they are returned.
 */
public final class DjlNatives {
  private static final String NATIVES = "ai.djl.pytorch.jni.PyTorchLibrary";
  private static final ClassDesc HERE = ClassDesc.of(DjlNatives.class.getName());

  /**
   * Natives with inlined code of the same kind, or with a symbol that later versions lack, that no
   * command needs: found by disassembling the library and following its calls into its own copies
   * of PyTorch's inline functions.
   */
  static final Set<String> REFUSED =
      Set.of(
          """
          conj torchEye torchGetItem torchHannWindow torchIndex torchIndexAppendArray
          torchIndexAppendFixed torchIndexAppendNoneEllipsis torchIndexAppendSlice
          torchIndexPut torchLinspace torchNNAdaptiveAvgPool torchNNAdaptiveMaxPool
          torchNNAvgPool torchNNBatchNorm torchNNConvNd torchNNEmbedding
          torchNNInterpolate torchNNLinear torchNNLpPool torchNNMaxPool torchRandPerm
          torchSetBenchmarkCuDNN torchSparseCoo torchStartProfile
          """
              .strip()
              .split("\\s+"));

  /** libtorch's scalar types in the order of {@link DataType}. */
  private static final int[] SCALAR_TYPES = {6, 7, 5, 0, 3, 1, 4, 11, 9};

  private static final int CPU = 0;

  private DjlNatives() {}

  /**
   * Defines DJL's class of natives with the methods of this one. To be called before DJL's engine
   * is loaded.
   *
   * @return false if that class is there already, as DJL has it
   */
  static boolean install() {
    try (var in = LibUtils.class.getResourceAsStream("PyTorchLibrary.class")) {
      MethodHandles.privateLookupIn(LibUtils.class, MethodHandles.lookup())
          .defineClass(rewrite(in.readAllBytes()));
      return true;
    } catch (LinkageError e) {
      return false;
    } catch (IOException | IllegalAccessException e) {
      throw new IllegalStateException("DJL's " + NATIVES + " cannot be read", e);
    }
  }

  /** Names and types of the natives that are replaced. */
  static Set<String> replaced() {
    return Arrays.stream(DjlNatives.class.getDeclaredMethods())
        .filter(method -> Modifier.isPublic(method.getModifiers()))
        .map(
            method ->
                method.getName()
                    + MethodType.methodType(method.getReturnType(), method.getParameterTypes())
                        .toMethodDescriptorString())
        .collect(Collectors.toSet());
  }

  private static byte[] rewrite(byte[] original) {
    var classFile = ClassFile.of();
    var replaced = replaced();
    return classFile.transformClass(
        classFile.parse(original), (builder, element) -> rewrite(builder, element, replaced));
  }

  private static void rewrite(ClassBuilder builder, ClassElement element, Set<String> replaced) {
    if (!(element instanceof MethodModel method) || !method.flags().has(AccessFlag.NATIVE)) {
      builder.with(element);
      return;
    }
    var name = method.methodName().stringValue();
    var type = method.methodTypeSymbol();
    boolean ours = replaced.contains(name + type.descriptorString());
    if (!ours && !REFUSED.contains(name)) {
      builder.with(element);
      return;
    }
    builder.withMethodBody(
        name,
        type,
        method.flags().flagsMask() & ~ClassFile.ACC_NATIVE,
        code -> {
          if (ours) {
            for (int i = 0; i < type.parameterCount(); i++) {
              code.loadLocal(TypeKind.from(type.parameterType(i)), code.parameterSlot(i));
            }
            code.invokestatic(HERE, name, type).return_(TypeKind.from(type.returnType()));
          } else {
            var exception = ClassDesc.of(UnsupportedOperationException.class.getName());
            code.new_(exception)
                .dup()
                .loadConstant(name + " depends on the version of PyTorch and is not used here")
                .invokespecial(
                    exception,
                    ConstantDescs.INIT_NAME,
                    MethodTypeDesc.of(ConstantDescs.CD_void, ConstantDescs.CD_String))
                .athrow();
          }
        });
  }

  // What a tensor is

  public static long[] torchSizes(long tensor) {
    return StableAbi.sizes(tensor);
  }

  public static int torchDType(long tensor) {
    int type = StableAbi.scalarType(tensor);
    for (int i = 0; i < SCALAR_TYPES.length; i++) {
      if (SCALAR_TYPES[i] == type) {
        return i;
      }
    }
    return DataType.UNKNOWN.ordinal();
  }

  public static int[] torchDevice(long tensor) {
    return StableAbi.device(tensor);
  }

  /** 0: all tensors here are dense. */
  public static int torchLayout(long tensor) {
    return 0;
  }

  public static boolean torchIsContiguous(long tensor) {
    return StableAbi.isRowMajor(tensor);
  }

  public static long torchToContiguous(long tensor) {
    return Operator.run("aten::contiguous", new Operator.Handle(tensor), 0);
  }

  // Its values

  public static byte[] torchDataPtr(long tensor) {
    long dense = torchToContiguous(tensor);
    try {
      return StableAbi.bytes(dense).toArray(ValueLayout.JAVA_BYTE);
    } finally {
      StableAbi.delete(dense);
    }
  }

  public static ByteBuffer torchDirectByteBuffer(long tensor) {
    return StableAbi.bytes(tensor).asByteBuffer();
  }

  /** A copy: DJL's own reads the buffer for as long as the tensor lives. */
  public static long torchFromBlob(
      ByteBuffer data, long[] shape, int dtype, int layout, int[] device, boolean gradient) {
    long tensor = torchEmpty(shape, dtype, layout, device, gradient);
    torchSet(tensor, data);
    return tensor;
  }

  public static void torchSet(long tensor, ByteBuffer data) {
    var source = MemorySegment.ofBuffer(data.duplicate().clear());
    if (StableAbi.device(tensor)[0] == CPU && StableAbi.isRowMajor(tensor)) {
      var target = StableAbi.bytes(tensor);
      MemorySegment.copy(source, 0, target, 0, target.byteSize());
    } else {
      long host = StableAbi.fromBlob(source, StableAbi.sizes(tensor), StableAbi.scalarType(tensor));
      try {
        StableAbi.copy(tensor, host);
      } finally {
        StableAbi.delete(host);
      }
    }
  }

  // New ones

  public static long torchEmpty(
      long[] shape, int dtype, int layout, int[] device, boolean gradient) {
    long tensor = StableAbi.empty(shape, SCALAR_TYPES[dtype], device[0], Math.max(0, device[1]));
    if (gradient) {
      throw new UnsupportedOperationException("ask for the gradient by setRequiresGradient");
    }
    return tensor;
  }

  public static long torchZeros(
      long[] shape, int dtype, int layout, int[] device, boolean gradient) {
    return inPlace("aten::zero_", torchEmpty(shape, dtype, layout, device, gradient));
  }

  public static long torchOnes(
      long[] shape, int dtype, int layout, int[] device, boolean gradient) {
    return torchFull(shape, 1, dtype, layout, device, gradient);
  }

  public static long torchFull(
      long[] shape, double value, int dtype, int layout, int[] device, boolean gradient) {
    return fill(torchEmpty(shape, dtype, layout, device, gradient), value);
  }

  public static long torchZerosLike(
      long tensor, int dtype, int layout, int[] device, boolean gradient) {
    return torchZeros(StableAbi.sizes(tensor), dtype, layout, device, gradient);
  }

  public static long torchOnesLike(
      long tensor, int dtype, int layout, int[] device, boolean gradient) {
    return torchOnes(StableAbi.sizes(tensor), dtype, layout, device, gradient);
  }

  public static long torchArange(
      float start, float end, float step, int dtype, int layout, int[] device, boolean gradient) {
    int count = (int) Math.max(0, Math.ceil(((double) end - start) / step));
    long[] shape = {count};
    long doubles = StableAbi.empty(shape, Dtype.F64.scalarType(), CPU, 0);
    try {
      for (int i = 0; i < count; i++) {
        StableAbi.bytes(doubles).setAtIndex(ValueLayout.JAVA_DOUBLE, i, start + (double) step * i);
      }
      long result = torchEmpty(shape, dtype, layout, device, gradient);
      StableAbi.copy(result, doubles);
      return result;
    } finally {
      StableAbi.delete(doubles);
    }
  }

  public static long tensorUniform(
      double from, double to, long[] shape, int dtype, int layout, int[] device, boolean gradient) {
    return inPlace("aten::uniform_", torchEmpty(shape, dtype, layout, device, gradient), from, to);
  }

  public static long torchNormal(
      double mean,
      double deviation,
      long[] shape,
      int dtype,
      int layout,
      int[] device,
      boolean gradient) {
    return inPlace(
        "aten::normal_", torchEmpty(shape, dtype, layout, device, gradient), mean, deviation);
  }

  public static long torchRandint(
      long low, long high, long[] shape, int dtype, int layout, int[] device, boolean gradient) {
    return inPlace(
        "aten::random_.from",
        torchEmpty(shape, dtype, layout, device, gradient),
        low,
        Optional.of(high));
  }

  private static long fill(long tensor, double value) {
    long scalar = StableAbi.empty(new long[0], Dtype.F64.scalarType(), CPU, 0);
    try {
      StableAbi.bytes(scalar).set(ValueLayout.JAVA_DOUBLE, 0, value);
      StableAbi.copy(tensor, scalar);
      return tensor;
    } finally {
      StableAbi.delete(scalar);
    }
  }

  private static long inPlace(String operator, long tensor, Object... more) {
    var arguments = new Object[more.length + 1];
    arguments[0] = new Operator.Handle(tensor);
    System.arraycopy(more, 0, arguments, 1, more.length);
    Operator.callInPlace(operator, arguments);
    return tensor;
  }

  // The rest

  public static void torchDeleteTensor(long tensor) {
    StableAbi.delete(tensor);
  }

  public static void torchManualSeed(long seed) {
    StableAbi.seed(seed);
  }

  public static void torchCudaEmptyCache() {
    CudaAbi.emptyCudaCache();
  }

  /**
   * Nothing: with no capability known, DJL's default device is the CPU, and no other is implied.
   */
  public static void torchShowConfig(Set<String> features) {}
}
