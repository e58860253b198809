package org.meteora.tensor;

import java.util.Locale;
import org.meteora.UserException;

/** Element types, by the names that safetensors gives them, and libtorch's number for them. */
public enum Dtype {
  F32(6, 4),
  F16(5, 2),
  BF16(15, 2),
  F64(7, 8),
  I64(4, 8),
  I32(3, 4),
  BOOL(11, 1),
  U8(0, 1);

  private static final Dtype[] ALL = values();

  private final int scalarType;
  private final int bytes;

  Dtype(int scalarType, int bytes) {
    this.scalarType = scalarType;
    this.bytes = bytes;
  }

  /** What options call it, such as {@code bf16}. */
  public String label() {
    return name().toLowerCase(Locale.ROOT);
  }

  /** libtorch's {@code ScalarType}. */
  public int scalarType() {
    return scalarType;
  }

  /** Of one element. */
  public int bytes() {
    return bytes;
  }

  /** Whether it has fractions. */
  public boolean isFloatingPoint() {
    return this == F32 || this == F16 || this == BF16 || this == F64;
  }

  /** The dtype a model computes in. */
  public static Dtype ofOption(String name) {
    return switch (name) {
      case "f32", "float32" -> F32;
      case "f16", "float16" -> F16;
      case "bf16", "bfloat16" -> BF16;
      default -> throw new UserException("unknown dtype \"" + name + "\": choose f32, f16 or bf16");
    };
  }

  static Dtype ofScalarType(int scalarType) {
    for (var dtype : ALL) {
      if (dtype.scalarType == scalarType) {
        return dtype;
      }
    }
    throw new IllegalStateException("libtorch dtype " + scalarType + " is not used here");
  }
}
