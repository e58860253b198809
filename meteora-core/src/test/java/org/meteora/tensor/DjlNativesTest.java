package org.meteora.tensor;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.Device;
import ai.djl.ndarray.index.NDIndex;
import ai.djl.ndarray.types.DataType;
import ai.djl.pytorch.jni.JniUtils;
import ai.djl.pytorch.jni.LibUtils;
import java.lang.reflect.Modifier;
import java.nio.FloatBuffer;
import java.util.Arrays;
import java.util.Set;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Test;

/** DJL's natives that depend on one PyTorch version are ours, or refused, on every path. */
class DjlNativesTest {
  private static Set<String> natives(boolean left) throws ClassNotFoundException {
    LibTorch.load();
    var type =
        Class.forName("ai.djl.pytorch.jni.PyTorchLibrary", false, LibUtils.class.getClassLoader());
    return Arrays.stream(type.getDeclaredMethods())
        .filter(method -> !Modifier.isStatic(method.getModifiers()))
        .filter(method -> Modifier.isNative(method.getModifiers()) == left)
        .map(java.lang.reflect.Method::getName)
        .collect(Collectors.toSet());
  }

  /** Both that the class was defined anew, and that DJL still has each of these natives. */
  @Test
  void replacesWhatItSays() throws ClassNotFoundException {
    var ours = natives(false);
    assertThat(ours)
        .containsAll(DjlNatives.REFUSED)
        .contains("torchDataPtr", "torchDirectByteBuffer", "torchFromBlob", "torchSet");
    assertThat(
            DjlNatives.replaced().stream()
                .map(method -> method.substring(0, method.indexOf('(')))
                .collect(Collectors.toSet()))
        .isSubsetOf(ours);
    assertThat(ours).hasSize(DjlNatives.REFUSED.size() + names(DjlNatives.replaced()));
  }

  private static int names(Set<String> methods) {
    return (int) methods.stream().map(m -> m.substring(0, m.indexOf('('))).distinct().count();
  }

  @Test
  void keepsValuesShapesAndTypes() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var x = manager.create(new float[] {1, 2, 3, 4, 5, 6}, Ops.shape(2, 3));
      assertThat(x.getShape()).isEqualTo(Ops.shape(2, 3));
      assertThat(x.getDevice()).isEqualTo(Device.cpu());
      assertThat(x.getDataType()).isEqualTo(DataType.FLOAT32);
      assertThat(Ops.transpose(x, 0, 1).toFloatArray()).containsExactly(1, 4, 2, 5, 3, 6);
      x.set(FloatBuffer.wrap(new float[] {6, 5, 4, 3, 2, 1}));
      assertThat(x.add(1).toFloatArray()).containsExactly(7, 6, 5, 4, 3, 2);
      Ops.transpose(x, 0, 1).set(FloatBuffer.wrap(new float[] {1, 4, 2, 5, 3, 6}));
      assertThat(x.toFloatArray()).containsExactly(1, 2, 3, 4, 5, 6);
      assertThat(x.sum().getFloat()).isEqualTo(21);
      assertThat(manager.create(new long[] {1L << 40}).toLongArray()).containsExactly(1L << 40);
      assertThat(manager.create(new boolean[] {true, false}).toBooleanArray())
          .containsExactly(true, false);
      assertThat(manager.create(new float[0]).toFloatArray()).isEmpty();
      assertThat(Ops.cast(x, Dtype.BF16).getDataType()).isEqualTo(DataType.UNKNOWN);
    }
  }

  @Test
  void makesNewOnes() {
    try (var manager = Devices.newManager(Device.cpu())) {
      assertThat(manager.zeros(Ops.shape(2)).toFloatArray()).containsExactly(0, 0);
      assertThat(manager.ones(Ops.shape(2), DataType.INT32).toIntArray()).containsExactly(1, 1);
      assertThat(manager.full(Ops.shape(2), 2.5f).toFloatArray()).containsExactly(2.5f, 2.5f);
      assertThat(manager.arange(5).toIntArray()).containsExactly(0, 1, 2, 3, 4);
      assertThat(manager.arange(1f, 2f, 0.25f).toFloatArray())
          .containsExactly(1, 1.25f, 1.5f, 1.75f);
      assertThat(manager.create(Ops.shape(3, 4)).zerosLike().getShape()).isEqualTo(Ops.shape(3, 4));
    }
  }

  @Test
  void drawsAlikeFromOneSeed() {
    try (var manager = Devices.newManager(Device.cpu())) {
      JniUtils.setSeed(7);
      var normal = manager.randomNormal(3, 2, Ops.shape(10_000), DataType.FLOAT32);
      var uniform = manager.randomUniform(-1, 1, Ops.shape(10_000));
      var whole = manager.randomInteger(0, 10, Ops.shape(10_000), DataType.INT64);
      JniUtils.setSeed(7);
      assertThat(manager.randomNormal(3, 2, Ops.shape(10_000), DataType.FLOAT32)).isEqualTo(normal);
      // standard errors: 0.02 of the normal mean, 0.006 of the uniform, 0.03 of the whole numbers
      assertThat(normal.mean().getFloat()).isBetween(2.9f, 3.1f);
      assertThat(uniform.mean().getFloat()).isBetween(-0.03f, 0.03f);
      assertThat(Arrays.stream(whole.toLongArray()).average().orElseThrow()).isBetween(4.35, 4.65);
      assertThat(Arrays.stream(whole.toLongArray()).distinct().count()).isEqualTo(10);
    }
  }

  @Test
  void refusesByName() {
    try (var manager = Devices.newManager(Device.cpu())) {
      var x = manager.ones(Ops.shape(4));
      assertThatThrownBy(() -> x.get(new NDIndex("1:3")))
          .isInstanceOf(UnsupportedOperationException.class)
          .hasMessageContaining("depends on the version of PyTorch");
    }
  }
}
