package org.meteora.cuda.driver;

import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;

/**
 * Writes a C struct field by field with C's alignment (8 bytes for pointers and longs, 4 for ints
 * and floats).
 */
public final class Struct {
  private final ByteBuffer bytes = ByteBuffer.allocate(4096).order(ByteOrder.nativeOrder());

  /** A pointer or a 64-bit number. */
  public Struct add(long value) {
    align();
    bytes.putLong(value);
    return this;
  }

  public Struct add(int value) {
    bytes.putInt(value);
    return this;
  }

  public Struct add(float value) {
    bytes.putFloat(value);
    return this;
  }

  public Struct add(boolean value) {
    return add(value ? 1 : 0);
  }

  /** Ends a nested struct: what follows starts at a multiple of 8. */
  public Struct align() {
    return align(8);
  }

  /** What follows starts at a multiple of {@code size} bytes. */
  public Struct align(int size) {
    bytes.position((bytes.position() + size - 1) / size * size);
    return this;
  }

  /** A nested struct, 8-byte aligned. */
  public Struct add(Struct nested) {
    align();
    bytes.put(nested.bytes.array(), 0, nested.bytes.position());
    return align();
  }

  /** Zeros, for unused array elements. */
  public Struct skip(int count) {
    align();
    bytes.position(bytes.position() + count);
    return this;
  }

  MemorySegment copyTo(Arena arena) {
    align();
    // The driver reads as many bytes as the kernel's parameter has: trailing array elements not
    // written are zeros.
    var segment = arena.allocate(4096, 16);
    MemorySegment.copy(
        bytes.array(), 0, segment, java.lang.foreign.ValueLayout.JAVA_BYTE, 0, bytes.position());
    return segment;
  }
}
