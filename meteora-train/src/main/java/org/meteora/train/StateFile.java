package org.meteora.train;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.ValueLayout;
import java.util.Map;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** Reads what a training has written of its state, and believes none of it unchecked. */
final class StateFile {
  private StateFile() {}

  /** What a file says that no training wrote. */
  static final class Damaged extends RuntimeException {
    Damaged(String what) {
      super(what);
    }
  }

  /**
   * An entry of a file's metadata.
   *
   * @throws Damaged when it is not there
   */
  static String text(Map<String, String> metadata, String name) {
    var value = metadata.get(name);
    if (value == null) {
      throw new Damaged("its metadata lacks \"" + name + "\"");
    }
    return value;
  }

  /**
   * An entry that is a whole number from 0.
   *
   * @throws Damaged when it is something else
   */
  static long number(Map<String, String> metadata, String name) {
    var text = text(metadata, name);
    if (!text.matches("\\d{1,15}")) {
      throw new Damaged("its metadata has \"" + name + "\": \"" + text + "\"");
    }
    return Long.parseLong(text);
  }

  /**
   * A tensor of the state: float32, one dimension, as many finite numbers as are trained.
   *
   * @throws Damaged when it is something else
   */
  static NDArray tensor(
      SafetensorsFile file, NDManager scope, String name, long size, boolean positive) {
    var info = file.tensors().get(name);
    if (info == null || info.dtype() != Dtype.F32 || !info.hasShape(size)) {
      throw new Damaged(
          info == null
              ? "it lacks the tensor " + name
              : "%s is %s %s, not f32 [%s]"
                  .formatted(name, info.dtype().label(), info.shape(), size));
    }
    var tensor = file.read(scope, name);
    var memory = Ops.memory(tensor);
    for (long i = 0; i < size; i++) {
      float value = memory.getAtIndex(ValueLayout.JAVA_FLOAT, i);
      if (!Float.isFinite(value) || positive && value < 0) {
        throw new Damaged(name + " holds " + value + " at " + i);
      }
    }
    return tensor;
  }
}
