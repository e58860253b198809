package org.meteora.safetensors;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.IntRange;
import net.jqwik.api.constraints.Size;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.meteora.UserException;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

class SafetensorsTest {
  @TempDir Path folder;

  static byte[] file(String header, int dataBytes) {
    var json = header.getBytes(java.nio.charset.StandardCharsets.UTF_8);
    return ByteBuffer.allocate(8 + json.length + dataBytes)
        .order(ByteOrder.LITTLE_ENDIAN)
        .putLong(json.length)
        .put(json)
        .array();
  }

  private void rejected(byte[] content, String why) throws IOException {
    var path = Files.write(folder.resolve("broken.safetensors"), content);
    assertThatThrownBy(() -> SafetensorsFile.open(path))
        .isInstanceOf(UserException.class)
        .hasMessageContaining("broken.safetensors")
        .hasMessageContaining(why)
        .message()
        .doesNotContain("\n");
  }

  @Test
  void whatWasWrittenIsRead() {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      var a = manager.create(new float[] {1, 2, 3, 4, 5, 6}, Ops.shape(2, 3));
      var path = folder.resolve("new/x.safetensors");
      SafetensorsWriter.write(
          path,
          Map.of("a", a, "b.half", Ops.cast(a, Dtype.BF16), "view", Ops.transpose(a, 0, 1)),
          Map.of("format", "pt"));
      try (var file = SafetensorsFile.open(path)) {
        assertThat(file.metadata()).containsExactly(Map.entry("format", "pt"));
        assertThat(file.tensors().get("b.half").dtype()).isEqualTo(Dtype.BF16);
        assertThat(file.read(manager, "a").toFloatArray()).containsExactly(1, 2, 3, 4, 5, 6);
        assertThat(file.read(manager, "view").toFloatArray()).containsExactly(1, 4, 2, 5, 3, 6);
        assertThat(Ops.cast(file.read(manager, "b.half"), Dtype.F32).toFloatArray())
            .containsExactly(1, 2, 3, 4, 5, 6);
      }
    }
  }

  @Test
  void brokenFilesAreNamed() throws IOException {
    rejected(new byte[3], "3 bytes");
    rejected(file("{}", 0, 1L << 40), "1099511627776");
    rejected(file("[]", 0), "not a JSON object");
    rejected(file("{\"a\":", 0), "not JSON");
    rejected(
        file("{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4),
        "does not fill");
    rejected(file("{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4), "no dtype");
    rejected(file("{}x", 0), "not JSON");
    rejected(file("{}{}", 0), "not JSON");
    rejected(file("{} null", 0), "not JSON");
    rejected(file(" {}", 0), "not a JSON object");
    rejected(file("\uFEFF{}", 0), "not a JSON object");
    rejected(file("{\"\0\0\":{}}".replace("\"", "\0\""), 0), "not JSON");
    rejected(new byte[] {3, 0, 0, 0, 0, 0, 0, 0, '{', (byte) 0xff, '}'}, "not UTF-8");
    rejected(
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4), "truncated");
    rejected(
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", 8),
        "does not fill");
    rejected(
        file(
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387905,4],\"data_offsets\":[0,16]}}",
            16),
        "impossible shape");
    rejected(
        file(
            "{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                + "\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}",
            12),
        "overlaps");
    rejected(
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8), "no tensor");
    rejected(
        file(
            "{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}",
            0),
        "Duplicate");
  }

  /** Tensors of a dtype that the model never uses are passed over; one that is asked for is not. */
  @Test
  void aTensorOfAnotherDtypeIsPassedOver() throws IOException {
    var path = folder.resolve("mixed.safetensors");
    for (var dtype : new String[] {"I16", "U16", "F8_E4M3:1", "F8_E5M2:1", "I8:1", "NEW"}) {
      int bytes = dtype.endsWith(":1") ? 1 : 2;
      Files.write(
          path,
          file(
              "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\""
                  + dtype.replace(":1", "")
                  + "\",\"shape\":[3],\"data_offsets\":[4,"
                  + (4 + 3 * bytes)
                  + "]}}   ",
              4 + 3 * bytes));
      try (var files = SafetensorsFolder.open(path);
          var manager = Devices.newManager(ai.djl.Device.cpu())) {
        assertThat(files.read(manager, "a", 1).toFloatArray()).containsExactly(0);
        assertThat(files.names()).containsExactly("a");
        assertThatThrownBy(() -> files.read(manager, "b", 3))
            .isInstanceOf(UserException.class)
            .hasMessageContaining("the tensor b is " + dtype.replace(":1", ""));
      }
    }
  }

  @Test
  void aFileThatChangedAfterItWasOpenedIsNotTouched() throws IOException {
    var path = folder.resolve("shrinks.safetensors");
    Files.write(
        path,
        file("{\"a\":{\"dtype\":\"F32\",\"shape\":[4096],\"data_offsets\":[0,16384]}}", 16384));
    try (var file = SafetensorsFile.open(path);
        var manager = Devices.newManager(ai.djl.Device.cpu())) {
      Files.write(path, new byte[100]);
      assertThatThrownBy(() -> file.read(manager, "a"))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("was changed");
    }
  }

  @Test
  void theIndexDecidesWhichOfTwoShardsHoldsATensor() throws IOException {
    try (var manager = Devices.newManager(ai.djl.Device.cpu())) {
      for (int shard = 1; shard <= 2; shard++) {
        var value = manager.create(new float[] {shard});
        SafetensorsWriter.write(
            folder.resolve("s" + shard + ".safetensors"),
            Map.of("both", value, "only" + shard, value),
            Map.of());
      }
      var index = folder.resolve("model.safetensors.index.json");
      Files.writeString(
          index,
          "{\"weight_map\":{\"only1\":\"s1.safetensors\",\"both\":\"s2.safetensors\","
              + "\"only2\":\"s2.safetensors\"}}");
      try (var files = SafetensorsFolder.open(folder)) {
        assertThat(files.read(manager, "both", 1).toFloatArray()).containsExactly(2);
        assertThat(files.read(manager, "only1", 1).toFloatArray()).containsExactly(1);
      }
      Files.writeString(
          index,
          "\uFEFF{\"weight_map\":{\"only1\":\"s1.safetensors\",\"only2\":\"s2.safetensors\"}}");
      assertThatThrownBy(() -> SafetensorsFolder.open(folder))
          .isInstanceOf(UserException.class)
          .hasMessageContaining("both");
    }
  }

  private static byte[] file(String header, int dataBytes, long length) {
    var bytes = file(header, dataBytes);
    ByteBuffer.wrap(bytes).order(ByteOrder.LITTLE_ENDIAN).putLong(0, length);
    return bytes;
  }

  /**
   * Any byte of a good file changed, or the file cut anywhere: either it opens, or one clear line
   * says why not.
   */
  @Property(tries = 400)
  void damageNeverCrashes(
      @ForAll @Size(max = 8) byte[] noise, @ForAll @IntRange(max = 220) int at, @ForAll boolean cut)
      throws IOException {
    var good =
        file(
            "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                + "\"b\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[16,24]}}",
            24);
    var bytes = good.clone();
    for (int i = 0; i < noise.length && at + i < bytes.length; i++) {
      bytes[at + i] = noise[i];
    }
    if (cut) {
      bytes = java.util.Arrays.copyOf(bytes, Math.min(at, bytes.length));
    }
    var path = Files.createTempFile("fuzz", ".safetensors");
    try {
      Files.write(path, bytes);
      try (var file = SafetensorsFile.open(path);
          var manager = Devices.newManager(ai.djl.Device.cpu())) {
        for (var name : file.tensors().keySet()) {
          assertThat(file.read(manager, name).size()).isGreaterThanOrEqualTo(0);
        }
      } catch (UserException e) {
        assertThat(e.getMessage()).doesNotContain("\n").contains("fuzz");
      }
    } finally {
      Files.delete(path);
    }
  }
}
