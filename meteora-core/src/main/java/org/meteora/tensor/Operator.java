package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import java.util.Arrays;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.foreign.Functions;

/**
 * Calls of ATen operators by their names, with the overload behind a dot, through {@link
 * StableAbi}. Arguments stand in the schema's order: tensors, whole numbers, real ones (a double),
 * booleans, dtypes, and {@link Optional}s of a tensor or a whole number; those that are not given
 * are empty optionals, those of later versions of libtorch too.
 */
final class Operator {
  private static final MethodHandle DISPATCH =
      StableAbi.handle("aoti_torch_call_dispatcher", "(AAA)I");
  private static final MethodHandle MALLOC = Functions.bind("malloc", "(J)J");

  private static final Map<String, Name> NAMES = new ConcurrentHashMap<>();

  private record Name(MemorySegment operator, MemorySegment overload) {
    static Name of(String text) {
      int dot = text.indexOf('.');
      return new Name(
          Arena.global().allocateFrom(dot < 0 ? text : text.substring(0, dot)),
          Arena.global().allocateFrom(dot < 0 ? "" : text.substring(dot + 1)));
    }
  }

  /** A tensor that is no {@link NDArray}. */
  record Handle(long tensor) {}

  private Operator() {}

  /** The one result, attached to the manager of the first argument, a tensor. */
  static NDArray call(String name, Object... arguments) {
    return callIn(((NDArray) arguments[0]).getManager(), name, arguments);
  }

  /** The one result, attached to {@code manager}. */
  static NDArray callIn(NDManager manager, String name, Object... arguments) {
    return StableAbi.adopt(manager, run(name, arguments));
  }

  /** As {@link #call}, of an operator that writes into its first argument and returns it. */
  static void callInPlace(String name, Object... arguments) {
    StableAbi.delete(run(name, arguments));
  }

  /** As {@link #call}, of an operator with several results. */
  static NDArray[] callForAll(int results, String name, Object... arguments) {
    var manager = ((NDArray) arguments[0]).getManager();
    var stack = invoke(name, arguments);
    var all = new NDArray[results];
    Arrays.setAll(all, i -> StableAbi.adopt(manager, stack.getAtIndex(JAVA_LONG, i)));
    return all;
  }

  /** As {@link #call}, of an operator with several results, of which only the first is wanted. */
  static NDArray callForFirst(int results, String name, Object... arguments) {
    var stack = invoke(name, arguments);
    for (int i = 1; i < results; i++) {
      StableAbi.delete(stack.getAtIndex(JAVA_LONG, i));
    }
    return StableAbi.adopt(((NDArray) arguments[0]).getManager(), stack.getAtIndex(JAVA_LONG, 0));
  }

  /** The one result, the caller's. */
  static long run(String name, Object... arguments) {
    return invoke(name, arguments).getAtIndex(JAVA_LONG, 0);
  }

  private static MemorySegment invoke(String name, Object... arguments) {
    var known = NAMES.computeIfAbsent(name, Name::of);
    var stack = StableAbi.scratch();
    stack.fill((byte) 0);
    for (int i = 0; i < arguments.length; i++) {
      stack.setAtIndex(JAVA_LONG, i, slot(arguments[i]));
    }
    StableAbi.check(name, () -> (int) DISPATCH.invokeExact(known.operator, known.overload, stack));
    return stack;
  }

  /** An argument as the dispatcher takes it; of a tensor it takes a handle of its own. */
  private static long slot(Object argument) {
    return switch (argument) {
      case NDArray array -> StableAbi.newHandle(StableAbi.handleOf(array));
      case Handle handle -> StableAbi.newHandle(handle.tensor());
      case Dtype dtype -> dtype.scalarType();
      case Boolean flag -> flag ? 1 : 0;
      case Double number -> Double.doubleToRawLongBits(number);
      case Long number -> number;
      case Integer number -> number;
      case Optional<?> optional when optional.isEmpty() -> 0;
      case Optional<?> optional -> {
        long box = Functions.call(() -> (long) MALLOC.invokeExact(8L)); // the operator frees it
        MemorySegment.ofAddress(box).reinterpret(8).set(JAVA_LONG, 0, slot(optional.get()));
        yield box;
      }
      default -> throw new IllegalArgumentException("no argument of an operator: " + argument);
    };
  }
}
