package org.meteora.train;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;
import org.meteora.UserException;
import org.meteora.checkpoint.TrainableModel;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Digests;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.train.batch.Batches;
import org.meteora.train.batch.TrainingSample;

/**
 * What a resumed run must share with the run it goes on with: otherwise the values saved would mean
 * something else.
 *
 * @param files fingerprints of what was read, by what it is (in the plural)
 */
public record RunIdentity(Map<String, String> settings, Map<String, String> files) {
  /**
   * A run's.
   *
   * @param basePath the base model's folder: its configuration, and the names, sizes and headers of
   *     its weight files, are compared, not all of its weights
   * @param adapters PEFT folders of the adapters embedded, in the order of their indices
   */
  static RunIdentity of(
      TrainConfig config,
      TrainableModel model,
      List<String> tasks,
      List<TrainingSample> samples,
      Path basePath,
      List<Path> adapters) {
    var settings = new LinkedHashMap<>(config.identity());
    settings.put("dtype", model.llama().dtype().label());
    settings.put("tasks", String.join(",", tasks));
    var files = new LinkedHashMap<String, String>();
    files.put("base model's files", base(basePath));
    if (!adapters.isEmpty()) {
      files.put("adapters", adapters(model, adapters));
    }
    files.put("data", Long.toHexString(Batches.fingerprint(samples)));
    return new RunIdentity(settings, files);
  }

  List<String> lines() {
    var result = new ArrayList<String>();
    settings.forEach((name, value) -> result.add(name + " " + value));
    files.forEach((name, fingerprint) -> result.add(name + " of checksum " + fingerprint));
    return result;
  }

  /** This with another setting in the place of one. */
  RunIdentity replaced(String name, String other, String value) {
    var result = new LinkedHashMap<>(settings);
    result.remove(name);
    result.put(other, value);
    return new RunIdentity(result, files);
  }

  /**
   * Compares with what a checkpoint holds.
   *
   * @param before its identity as JSON
   * @throws UserException naming what differs
   */
  void requireSame(Path checkpoint, JsonNode before) {
    settings.forEach(
        (name, value) -> {
          var old = before.path("settings").path(name).asText("unknown");
          if (!old.equals(value)) {
            throw new UserException(
                "cannot resume from %s: %s was %s, now it is %s", checkpoint, name, old, value);
          }
        });
    files.forEach(
        (what, fingerprint) -> {
          if (!before.path("files").path(what).asText().equals(fingerprint)) {
            throw new UserException(
                "cannot resume from %s: the %s are others than then".formatted(checkpoint, what));
          }
        });
  }

  private static String base(Path folder) {
    var digest = Digests.sha256();
    Digests.update(digest, folder.resolve("config.json"), Long.MAX_VALUE);
    try (var weights = SafetensorsFolder.open(folder)) {
      for (var file : weights.files()) {
        var path = file.path();
        digest.update(
            (path.getFileName() + " " + Files.size(path)).getBytes(StandardCharsets.UTF_8));
        Digests.update(digest, path, headerBytes(path));
      }
    } catch (IOException e) {
      throw new UserException("cannot read " + folder + ": " + AtomicFiles.reason(e), e);
    }
    return HexFormat.of().formatHex(digest.digest());
  }

  private static String adapters(TrainableModel model, List<Path> folders) {
    var digest = Digests.sha256();
    for (int i = 0; i < folders.size(); i++) {
      var adapter = model.adapters().get(i);
      var numbers = new TreeMap<>(adapter.ranks()) + " " + new TreeMap<>(adapter.scales());
      digest.update(numbers.getBytes(StandardCharsets.UTF_8));
      Digests.update(digest, folders.get(i).resolve("adapter_model.safetensors"), Long.MAX_VALUE);
    }
    return HexFormat.of().formatHex(digest.digest());
  }

  /** The length's eight bytes and the header. */
  private static long headerBytes(Path file) throws IOException {
    try (var in = Files.newInputStream(file)) {
      return Long.BYTES
          + ByteBuffer.wrap(in.readNBytes(Long.BYTES)).order(ByteOrder.LITTLE_ENDIAN).getLong();
    }
  }
}
