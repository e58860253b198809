package org.meteora.checkpoint;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.LinkedHashMap;
import java.util.List;
import org.meteora.UserException;
import org.meteora.io.AtomicFiles;
import org.meteora.io.Folders;
import org.meteora.io.Progress;
import org.meteora.lora.AdapterMerge;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/** A base model with an adapter added into its weights, as a Hugging Face folder of its own. */
public final class MergedModel {
  /** Weights in other forms, which would not hold the adapter. */
  private static final List<String> OTHER_WEIGHTS =
      List.of(".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".bin.index.json");

  private MergedModel() {}

  /**
   * Writes W + B A, computed in float32, in the dtype of W: the same files of weights as the base
   * has, its index, and everything else that lies beside them; {@code config.json} last. One file
   * of weights is held in memory at a time.
   *
   * @param base a Hugging Face folder
   * @param adapter whose scale is 1 on every module
   * @param output a folder that is not there, or empty
   * @throws UserException when the base lacks a module of the adapter, or shapes differ
   */
  public static void write(Path base, AdapterMerge.Merged adapter, Path output) {
    try (var weights = SafetensorsFolder.open(base)) {
      requireFits(weights, adapter);
      long bytes = 0;
      for (var name : weights.names()) {
        bytes += weights.info(name).orElseThrow().bytes();
      }
      try (var progress = new Progress("merging", bytes, " MiB", 1 << 20)) {
        for (var file : weights.files()) {
          write(file, adapter, output.resolve(file.path().getFileName()), progress);
        }
      }
      copyOthers(base, output);
    }
  }

  private static void requireFits(SafetensorsFolder weights, AdapterMerge.Merged adapter) {
    for (var module : adapter.a().keySet()) {
      var name = module + ".weight";
      var info = weights.info(name);
      if (info.isEmpty()) {
        throw new UserException(
            "the adapters change %s, and there is no tensor %s in %s",
            module, name, weights.path());
      }
      long out = adapter.b().get(module).getShape().get(0);
      long in = adapter.a().get(module).getShape().get(1);
      if (!info.get().hasShape(out, in)) {
        throw new UserException(
            "the adapters were made for another base model: on %s they change"
                + " [%s, %s], and the weight in %s is %s",
            module, out, in, weights.path(), info.get().shape());
      }
    }
  }

  private static void write(
      SafetensorsFile file, AdapterMerge.Merged adapter, Path target, Progress progress) {
    try (var manager = Devices.newHostManager()) {
      var tensors = new LinkedHashMap<String, NDArray>();
      for (var info : file.tensors().values()) {
        var weight = file.read(manager, info.name());
        var module = info.name().replaceFirst("\\.weight$", "");
        var a = adapter.a().get(module);
        var b = adapter.b().get(module);
        tensors.put(info.name(), a == null ? weight : added(weight, a, b, manager));
        progress.step(info.bytes());
      }
      SafetensorsWriter.write(target, tensors, file.metadata());
    }
  }

  private static NDArray added(NDArray weight, NDArray a, NDArray b, NDManager manager) {
    try (var scratch = manager.newSubManager();
        var update = b.matMul(a)) {
      update.attach(scratch);
      var source = Ops.alias(scratch, weight);
      var sum = Ops.cast(source, Dtype.F32).add(update);
      var result = Ops.cast(sum, Ops.dtype(weight));
      result.attach(manager);
      return result;
    }
  }

  private static void copyOthers(Path base, Path output) {
    for (var entry : Folders.entries(base)) {
      var name = entry.getFileName().toString();
      if (Files.isRegularFile(entry)
          && !name.equals("config.json")
          && !name.endsWith(".safetensors")
          && OTHER_WEIGHTS.stream().noneMatch(name::endsWith)) {
        AtomicFiles.copy(entry, output.resolve(name));
      }
    }
    AtomicFiles.copy(base.resolve("config.json"), output.resolve("config.json"));
  }
}
