package org.meteora.safetensors;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import ai.djl.ndarray.NDManager;
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
    try (var manager = NDManager.newBaseManager("PyTorch")) {
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
    rejected(file("{\"a\":{\"dtype\":\"F4\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4), "\"F4\"");
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
          var manager = NDManager.newBaseManager("PyTorch")) {
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
