package org.meteora.foreign;

import static java.lang.foreign.ValueLayout.ADDRESS;
import static java.lang.foreign.ValueLayout.JAVA_BYTE;
import static java.lang.foreign.ValueLayout.JAVA_DOUBLE;
import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.foreign.Arena;
import java.lang.foreign.FunctionDescriptor;
import java.lang.foreign.Linker;
import java.lang.foreign.MemoryLayout;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.SymbolLookup;
import java.lang.invoke.MethodHandle;
import java.util.Optional;
import java.util.function.Consumer;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Binds C functions. A signature is written as the JVM writes a method's, {@code (JI)V}: {@code B I
 * J F D} are byte, int, long, float and double, {@code V} is no result, and {@code A} an address,
 * which is a {@link MemorySegment}. Where a pointer is a number here, or a size, it is {@code J}.
 */
public final class Functions {
  private static final Linker LINKER = Linker.nativeLinker();

  private static final Logger LOG = LoggerFactory.getLogger(Functions.class);

  private Functions() {}

  /** The first of these libraries that loads, by its name on the library path or by its path. */
  public static Optional<SymbolLookup> library(String... names) {
    for (var name : names) {
      try {
        return Optional.of(SymbolLookup.libraryLookup(name, Arena.global()));
      } catch (IllegalArgumentException e) {
        LOG.debug("{} does not load", name);
      }
    }
    return Optional.empty();
  }

  /** The handle of a function that is there. */
  public static MethodHandle bind(MemorySegment function, String signature) {
    return LINKER.downcallHandle(function, descriptor(signature));
  }

  /**
   * The handle of a library's function.
   *
   * @throws java.util.NoSuchElementException when the library has none of that name
   */
  public static MethodHandle bind(SymbolLookup library, String name, String signature) {
    return bind(library.find(name).orElseThrow(), signature);
  }

  /** The handle of a function of the C library. */
  public static MethodHandle bind(String name, String signature) {
    return bind(LINKER.defaultLookup(), name, signature);
  }

  /** A function's arguments and result. */
  public static FunctionDescriptor descriptor(String signature) {
    int end = signature.indexOf(')');
    var arguments =
        signature
            .substring(1, end)
            .chars()
            .mapToObj(Functions::layout)
            .toArray(MemoryLayout[]::new);
    char result = signature.charAt(end + 1);
    return result == 'V'
        ? FunctionDescriptor.ofVoid(arguments)
        : FunctionDescriptor.of(layout(result), arguments);
  }

  private static MemoryLayout layout(int letter) {
    return switch (letter) {
      case 'A' -> ADDRESS;
      case 'B' -> JAVA_BYTE;
      case 'I' -> JAVA_INT;
      case 'J' -> JAVA_LONG;
      case 'F' -> JAVA_FLOAT;
      case 'D' -> JAVA_DOUBLE;
      default -> throw new IllegalArgumentException("no type is called " + (char) letter);
    };
  }

  /** A call by {@link MethodHandle#invokeExact}. */
  @FunctionalInterface
  public interface ExactCall {
    /** The function's result, a number. */
    long run() throws Throwable;
  }

  /** Calls a function where speed matters. */
  public static long call(ExactCall call) {
    try {
      return call.run();
    } catch (Throwable e) {
      throw unchecked(e);
    }
  }

  /** What a call writes to the 8 bytes that it is given. */
  public static long written(Consumer<MemorySegment> call) {
    try (var arena = Arena.ofConfined()) {
      var out = arena.allocate(JAVA_LONG);
      call.accept(out);
      return out.get(JAVA_LONG, 0);
    }
  }

  /**
   * Calls a function where speed does not matter: arguments are boxed.
   *
   * @return its result; null of one that has none
   */
  public static Object call(MethodHandle function, Object... arguments) {
    try {
      return function.invokeWithArguments(arguments);
    } catch (Throwable e) {
      throw unchecked(e);
    }
  }

  /**
   * What a call of a handle threw, to be thrown on: itself where it is unchecked.
   *
   * @param thrown declared by {@link MethodHandle#invokeExact}, and never a checked exception
   */
  public static RuntimeException unchecked(Throwable thrown) {
    return switch (thrown) {
      case RuntimeException e -> e;
      case Error e -> throw e;
      default -> new IllegalStateException(thrown);
    };
  }
}
