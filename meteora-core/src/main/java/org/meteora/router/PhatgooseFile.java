package org.meteora.router;

import static java.lang.foreign.ValueLayout.JAVA_FLOAT_UNALIGNED;

import ai.djl.ndarray.NDArray;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.io.Digests;
import org.meteora.model.Llama;
import org.meteora.moe.GatedLinear;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;

/**
 * The vectors of an adapter for {@link Phatgoose}, beside it in its folder: {@code
 * phatgoose.safetensors} with {@code base_model.model.<module>.phatgoose.weight} {@code (in)}
 * float32 for each module that it acts on; the metadata have the checksum of the adapter's weights
 * that they were trained with.
 */
public final class PhatgooseFile {
  /** The file's name. */
  public static final String NAME = "phatgoose.safetensors";

  private static final String ADAPTER = "adapter_model.safetensors";
  private static final String CHECKSUM = "adapter_sha256";

  private PhatgooseFile() {}

  private static String key(String module) {
    return "base_model.model." + module + ".phatgoose.weight";
  }

  /**
   * Writes an adapter's vectors.
   *
   * @param folder gets the file; at last the adapter's own
   * @param adapter its PEFT folder
   * @param vectors {@code (in)} or {@code (1, in)} float32, by module
   */
  public static void write(Path folder, Path adapter, Map<String, NDArray> vectors) {
    var tensors = new LinkedHashMap<String, NDArray>();
    try {
      vectors.forEach(
          (module, v) -> tensors.put(key(module), v.reshape(v.getShape().size()).duplicate()));
      SafetensorsWriter.write(
          folder.resolve(NAME),
          tensors,
          Map.of("format", "pt", CHECKSUM, Digests.ofFile(adapter.resolve(ADAPTER))));
    } finally {
      tensors.values().forEach(NDArray::close);
    }
  }

  /**
   * Reads the vectors of all adapters of a model.
   *
   * @param paths the adapters', in the order of their indices
   * @throws UserException when one is missing, was trained with other weights than lie beside it,
   *     or does not fit
   */
  static Phatgoose router(Llama model, List<Path> paths) {
    var files = new ArrayList<SafetensorsFile>();
    try {
      paths.forEach(path -> files.add(open(path)));
      var read = new HashMap<Path, HashSet<String>>();
      var router =
          new Phatgoose(
              model,
              (adapter, linear) -> {
                var file = files.get(adapter);
                var key = key(linear.path());
                read.computeIfAbsent(file.path(), path -> new HashSet<>()).add(key);
                return vector(file, key, linear);
              });
      for (var file : files) {
        for (var key : file.tensors().keySet()) {
          if (!read.getOrDefault(file.path(), new HashSet<>()).contains(key)) {
            throw new UserException(
                "%s: the tensor %s is of a module that the adapter leaves as it is"
                    .formatted(file.path(), key));
          }
        }
      }
      return router;
    } finally {
      files.forEach(SafetensorsFile::close);
    }
  }

  private static SafetensorsFile open(Path path) {
    var folder = path.getParent();
    if (!Files.isRegularFile(path)) {
      throw new UserException(
          ("--router phatgoose: the adapter %s has no vectors, %s; \"meteora train-lora"
                  + " --phatgoose\" trains them")
              .formatted(folder.getFileName(), path));
    }
    var file = SafetensorsFile.open(path);
    try {
      if (!Digests.ofFile(folder.resolve(ADAPTER)).equals(file.metadata().get(CHECKSUM))) {
        throw new UserException(
            "%s was trained with another %s than the one beside it; \"meteora train-lora"
                + " --phatgoose\" trains it anew",
            path, ADAPTER);
      }
      return file;
    } catch (RuntimeException e) {
      file.close();
      throw e;
    }
  }

  private static float[] vector(SafetensorsFile file, String key, GatedLinear linear) {
    var info = file.requireFloat32(key, linear.weight().getShape().get(1));
    var v = file.bytes(info).toArray(JAVA_FLOAT_UNALIGNED);
    for (float each : v) {
      if (each != v[0]) {
        return v;
      }
    }
    throw new UserException(
        file.path() + ": " + key + " is the same everywhere: it has learnt nothing");
  }
}
