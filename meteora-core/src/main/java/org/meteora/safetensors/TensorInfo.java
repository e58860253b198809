package org.meteora.safetensors;

import java.util.Arrays;
import java.util.List;
import org.meteora.tensor.Dtype;

/**
 * What a safetensors header says of one tensor.
 *
 * @param shape dimensions; empty for a scalar
 * @param begin first byte, counted from the end of the header
 * @param end one past the last byte
 */
public record TensorInfo(String name, Dtype dtype, List<Long> shape, long begin, long end) {
  long[] dimensions() {
    return shape.stream().mapToLong(Long::longValue).toArray();
  }

  /** Whether the shape is exactly this. */
  public boolean hasShape(long... expected) {
    return Arrays.equals(dimensions(), expected);
  }

  /** Its size in the file. */
  public long bytes() {
    return end - begin;
  }
}
