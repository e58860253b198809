package org.meteora.router;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import org.meteora.model.Llama;
import org.meteora.moe.LayerGate;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * {@link LoraFlow}'s gates in a file, {@code lora_flow.safetensors}: {@code
 * layers.<l>.lora_flow.weight} {@code (N, hidden)} and {@code .bias} {@code (N)}, float32, for each
 * layer with adapters; the metadata's {@code adapters} is a JSON array of their names in the rows'
 * order.
 */
public final class LoraFlowFile {
  /** The file's name. */
  public static final String NAME = "lora_flow.safetensors";

  private static final String ADAPTERS = "adapters";

  private LoraFlowFile() {}

  /** Name of a layer's W ({@code weight}) or b ({@code bias}). */
  public static String key(int layer, String what) {
    return "layers." + layer + ".lora_flow." + what;
  }

  /**
   * @param tensors W and b of each layer by {@link #key}, float32
   * @param adapters their names in the order of the rows
   */
  public static void write(Path folder, Map<String, NDArray> tensors, List<String> adapters) {
    SafetensorsWriter.write(
        folder.resolve(NAME),
        tensors,
        Map.of("format", "pt", ADAPTERS, Jsonl.JSON.valueToTree(adapters).toString()));
  }

  /** The file that a path names: itself, or the one in a folder. */
  public static Path of(Path path) {
    return Files.isDirectory(path) ? path.resolve(NAME) : path;
  }

  /**
   * @param adapters the model's, in the order of their indices
   * @throws UserException when it is missing, broken, or for other adapters or another model
   */
  static LoraFlow router(Llama model, Path path, List<String> adapters) {
    try (var file = SafetensorsFile.open(path);
        var host = Devices.newHostManager()) {
      var rows = rows(file, adapters);
      var gates = new ArrayList<LayerGate>();
      var read = new HashSet<String>();
      for (int layer = 0; layer < model.layers().size(); layer++) {
        boolean acts =
            model.layers().get(layer).projections().stream()
                .anyMatch(each -> each.bank() != null && each.bank().totalRank() > 0);
        if (!acts) {
          gates.add(null);
          continue;
        }
        var index = host.create(rows);
        var weight = key(layer, "weight");
        var bias = key(layer, "bias");
        read.add(weight);
        read.add(bias);
        var w = tensor(file, host, weight, adapters.size(), model.config().hiddenSize());
        var b = tensor(file, host, bias, adapters.size());
        gates.add(
            new LayerGate(
                Ops.copyOf(Ops.indexSelect(w, 0, index), model.manager(), model.dtype()),
                Ops.copyOf(Ops.indexSelect(b, 0, index), model.manager(), Dtype.F32)));
      }
      for (var key : file.tensors().keySet()) {
        if (!read.contains(key)) {
          throw new UserException(
              file.path() + ": the tensor " + key + " is of no layer that has adapters");
        }
      }
      return new LoraFlow(gates);
    }
  }

  /** The file's rows in the order of the model's adapters. */
  private static long[] rows(SafetensorsFile file, List<String> adapters) {
    var names = new ArrayList<String>();
    try {
      Jsonl.JSON
          .readTree(file.metadata().getOrDefault(ADAPTERS, "[]"))
          .forEach(name -> names.add(name.asText()));
    } catch (com.fasterxml.jackson.core.JsonProcessingException e) {
      throw new UserException(file.path() + ": its metadata do not name the adapters", e);
    }
    if (names.size() != adapters.size() || !new HashSet<>(names).equals(new HashSet<>(adapters))) {
      throw new UserException(
          "%s is for the adapters %s, and here are %s"
              .formatted(file.path(), String.join(", ", names), String.join(", ", adapters)));
    }
    return adapters.stream().mapToLong(names::indexOf).toArray();
  }

  private static NDArray tensor(SafetensorsFile file, NDManager host, String key, long... shape) {
    file.requireFloat32(key, shape);
    return file.read(host, key);
  }
}
