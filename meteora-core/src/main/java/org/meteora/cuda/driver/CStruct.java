package org.meteora.cuda.driver;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT;
import static java.lang.foreign.ValueLayout.JAVA_INT;
import static java.lang.foreign.ValueLayout.JAVA_LONG;

import java.lang.annotation.ElementType;
import java.lang.annotation.Retention;
import java.lang.annotation.RetentionPolicy;
import java.lang.annotation.Target;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.invoke.MethodHandle;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.MethodType;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.RecordComponent;
import java.util.ArrayList;
import java.util.List;
import org.meteora.foreign.Functions;

/**
 * How the C struct lies in memory that a record mirrors: its components are the struct's fields, by
 * name and in order. {@code long} is a pointer or a number of 64 bits; {@code int}, {@code float}
 * and {@code boolean} (0 or 1) have 4 bytes; a record is a nested struct; an array or a list is a C
 * array of {@link Count} elements, zeros where it is shorter.
 */
public final class CStruct {
  /** Elements of a C array. */
  @Retention(RetentionPolicy.RUNTIME)
  @Target(ElementType.RECORD_COMPONENT)
  public @interface Count {
    int value();
  }

  /** Alignment of a struct beyond its fields' own. */
  @Retention(RetentionPolicy.RUNTIME)
  @Target(ElementType.TYPE)
  public @interface Align {
    int value();
  }

  /**
   * One field.
   *
   * @param type of an element
   * @param count elements; 1 for what is no array
   * @param offset bytes from the struct's beginning
   * @param accessor takes a record as an {@code Object} and returns the component, a primitive as
   *     it is, anything else as an {@code Object}
   */
  public record Field(String name, Class<?> type, int count, int offset, MethodHandle accessor) {}

  private static final ClassValue<CStruct> ALL =
      new ClassValue<>() {
        @Override
        protected CStruct computeValue(Class<?> type) {
          return new CStruct(type);
        }
      };

  private final Class<?> type;
  private final List<Field> fields = new ArrayList<>();
  private final int size;
  private final int alignment;

  private CStruct(Class<?> type) {
    this.type = type;
    var end = 0;
    var widest =
        type.isAnnotationPresent(Align.class) ? type.getAnnotation(Align.class).value() : 1;
    for (var component : type.getRecordComponents()) {
      var array = component.getAnnotation(Count.class);
      var count = array == null ? 1 : array.value();
      var element = element(component);
      var at = roundUp(end, alignment(element));
      fields.add(new Field(component.getName(), element, count, at, accessor(component)));
      end = at + size(element) * count;
      widest = Math.max(widest, alignment(element));
    }
    this.alignment = widest;
    this.size = roundUp(end, widest);
  }

  /** The struct of a record type. */
  public static CStruct of(Class<? extends Record> type) {
    return ALL.get(type);
  }

  private static MethodHandle accessor(RecordComponent component) {
    var accessor = component.getAccessor();
    var value = accessor.getReturnType().isPrimitive() ? accessor.getReturnType() : Object.class;
    try {
      accessor.setAccessible(true);
      var handle = MethodHandles.lookup().unreflect(accessor);
      return handle.asType(MethodType.methodType(value, Object.class));
    } catch (IllegalAccessException e) {
      throw new IllegalStateException(component + " cannot be read", e);
    }
  }

  private static Class<?> element(RecordComponent component) {
    if (component.getType() == List.class) {
      var list = (ParameterizedType) component.getGenericType();
      return (Class<?>) list.getActualTypeArguments()[0];
    }
    return component.getType().isArray()
        ? component.getType().componentType()
        : component.getType();
  }

  private static int size(Class<?> type) {
    return type.isRecord() ? ALL.get(type).size : type == long.class ? 8 : 4;
  }

  private static int alignment(Class<?> type) {
    return type.isRecord() ? ALL.get(type).alignment : size(type);
  }

  private static int roundUp(int value, int to) {
    return (value + to - 1) / to * to;
  }

  /** Bytes. */
  public int size() {
    return size;
  }

  /** Bytes that an address of it is a multiple of. */
  public int alignment() {
    return alignment;
  }

  /** The fields, in order. */
  public List<Field> fields() {
    return List.copyOf(fields);
  }

  /** A field's offset in bytes. */
  public int offset(String field) {
    return fields.stream()
        .filter(it -> it.name().equals(field))
        .findFirst()
        .orElseThrow(() -> new IllegalArgumentException(type + " has no " + field))
        .offset();
  }

  /** Writes a record to memory of zeros. */
  public void write(Object value, MemorySegment to, long at) {
    for (var field : fields) {
      write(field, value, to, at + field.offset());
    }
  }

  /** A C array of the structs of {@code values}, all of one type. */
  public static MemorySegment array(Arena arena, List<? extends Record> values) {
    var struct = of(values.getFirst().getClass());
    var array = arena.allocate((long) struct.size * values.size(), Math.max(16, struct.alignment));
    for (var i = 0; i < values.size(); i++) {
      struct.write(values.get(i), array, (long) i * struct.size);
    }
    return array;
  }

  private static void write(Field field, Object from, MemorySegment to, long at) {
    try {
      var get = field.accessor();
      var kind = get.type().returnType();
      if (kind == long.class) {
        to.set(JAVA_LONG, at, (long) get.invokeExact(from));
      } else if (kind == int.class) {
        to.set(JAVA_INT, at, (int) get.invokeExact(from));
      } else if (kind == float.class) {
        to.set(JAVA_FLOAT, at, (float) get.invokeExact(from));
      } else if (kind == boolean.class) {
        to.set(JAVA_INT, at, (boolean) get.invokeExact(from) ? 1 : 0);
      } else {
        writeObject(field, (Object) get.invokeExact(from), to, at);
      }
    } catch (Throwable e) {
      throw Functions.unchecked(e);
    }
  }

  private static void writeObject(Field field, Object value, MemorySegment to, long at) {
    switch (value) {
      case int[] numbers ->
          MemorySegment.copy(numbers, 0, to, JAVA_INT, at, fitting(field, numbers.length));
      case long[] numbers ->
          MemorySegment.copy(numbers, 0, to, JAVA_LONG, at, fitting(field, numbers.length));
      case List<?> structs -> {
        var struct = ALL.get(field.type());
        for (var i = 0; i < fitting(field, structs.size()); i++) {
          struct.write(structs.get(i), to, at + (long) i * struct.size);
        }
      }
      default -> ALL.get(field.type()).write(value, to, at);
    }
  }

  private static int fitting(Field field, int length) {
    if (length > field.count()) {
      throw new IllegalArgumentException(field + " cannot hold " + length);
    }
    return length;
  }
}
