package org.meteora.tensor;

import static java.lang.foreign.ValueLayout.JAVA_LONG;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.lang.invoke.MethodHandle;
import java.util.Arrays;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import org.meteora.foreign.Functions;

/** A call of an ATen operator by its name, through {@link StableAbi}: its arguments, in order. */
final class OperatorCall {
  private static final MethodHandle DISPATCH =
      StableAbi.handle("aoti_torch_call_dispatcher", "(AAA)I");
  private static final MethodHandle MALLOC = Functions.bind("malloc", "(J)A");

  private static final Map<String, MemorySegment> NAMES = new ConcurrentHashMap<>();

  private final String operator;
  private final String overload;
  private final MemorySegment stack = StableAbi.scratch();
  private int slots;

  OperatorCall(String operator, String overload) {
    this.operator = operator;
    this.overload = overload;
  }

  /** A tensor; the operator consumes a handle of its own. */
  OperatorCall tensor(NDArray array) {
    return tensor(StableAbi.handleOf(array));
  }

  OperatorCall tensor(long handle) {
    return integer(StableAbi.newHandle(handle));
  }

  OperatorCall integer(long value) {
    stack.setAtIndex(JAVA_LONG, slots++, value);
    return this;
  }

  OperatorCall bool(boolean value) {
    return integer(value ? 1 : 0);
  }

  OperatorCall real(double value) {
    return integer(Double.doubleToRawLongBits(value));
  }

  /** An optional argument left empty. */
  OperatorCall none() {
    return integer(0);
  }

  /** Leaves all optional arguments from here on empty, those of later versions of libtorch too. */
  OperatorCall noneForTheRest() {
    while (slots < StableAbi.STACK_SLOTS) {
      none();
    }
    return this;
  }

  OperatorCall optionalTensor(NDArray array) {
    return array == null ? none() : filled(StableAbi.newHandle(StableAbi.handleOf(array)));
  }

  OperatorCall optionalInteger(long value) {
    return filled(value);
  }

  private OperatorCall filled(long value) {
    try {
      var slot = ((MemorySegment) MALLOC.invokeExact(8L)).reinterpret(8); // freed by the operator
      slot.set(ValueLayout.JAVA_LONG, 0, value);
      return integer(slot.address());
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  /** Runs the operator; its one result is attached to {@code manager}. */
  NDArray run(NDManager manager) {
    return StableAbi.adopt(manager, run());
  }

  /** Runs the operator; its one result is the caller's. */
  long run() {
    invoke();
    return stack.getAtIndex(JAVA_LONG, 0);
  }

  /** Runs an operator with two results. */
  NDArray[] runPair(NDManager manager) {
    return run(manager, 2);
  }

  /** Runs an operator with several results. */
  NDArray[] run(NDManager manager, int results) {
    invoke();
    var all = new NDArray[results];
    Arrays.setAll(all, i -> StableAbi.adopt(manager, stack.getAtIndex(JAVA_LONG, i)));
    return all;
  }

  /** Runs an operator with several results, of which only the first is wanted. */
  NDArray runFirst(NDManager manager, int results) {
    invoke();
    for (int i = 1; i < results; i++) {
      StableAbi.delete(stack.getAtIndex(JAVA_LONG, i));
    }
    return StableAbi.adopt(manager, stack.getAtIndex(JAVA_LONG, 0));
  }

  private void invoke() {
    try {
      StableAbi.check(
          (int) DISPATCH.invokeExact(name(operator), name(overload), stack),
          operator + (overload.isEmpty() ? "" : "." + overload));
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  @Override
  public String toString() {
    return operator + "(" + Arrays.toString(stack.asSlice(0, 8L * slots).toArray(JAVA_LONG)) + ")";
  }

  private static MemorySegment name(String text) {
    return NAMES.computeIfAbsent(text, Arena.global()::allocateFrom);
  }
}
