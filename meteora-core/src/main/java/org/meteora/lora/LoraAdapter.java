package org.meteora.lora;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeSet;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.io.Folders;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.TensorInfo;

/**
 * A PEFT folder: {@code adapter_config.json} and {@code adapter_model.safetensors}, the latter
 * mapped.
 *
 * <p>Keys are PEFT's, {@code base_model.model.<module>.lora_A.weight}; the same without the prefix,
 * without the {@code model.} of a model that has no head, or with the adapter's name in them
 * ({@code lora_A.default.weight}), as training frameworks save them, mean the same and are read
 * too.
 *
 * @param loraKeys {@code <module>.lora_A} and {@code .lora_B}, and the keys of their tensors
 * @param wholeKeys weights of the base model that the adapter brings along, by the base's names
 *     ({@code lm_head.weight}), and the keys of their tensors
 */
public record LoraAdapter(
    String name,
    LoraConfig config,
    SafetensorsFile weights,
    Map<String, String> loraKeys,
    Map<String, String> wholeKeys)
    implements AutoCloseable {
  private static final String PREFIX = "base_model.model.";

  /** Keys of an adapter that was made for the model without its head. */
  private static final Pattern INNER = Pattern.compile("(layers|embed_tokens|norm)\\.");

  private static final Pattern LORA =
      Pattern.compile("(.+\\.lora_[AB])(?:\\.([A-Za-z0-9_-]+))?\\.weight");
  private static final Pattern WHOLE =
      Pattern.compile("(.+?)\\.(?:modules_to_save\\.(?:default\\.)?)?(weight|bias)");

  /**
   * @throws UserException when either file is missing or broken
   */
  public static LoraAdapter open(Path folder) {
    if (!Files.isDirectory(folder)) {
      throw new UserException("no such adapter: %s; \"meteora train-lora\" makes adapters", folder);
    }
    var config = LoraConfig.read(folder);
    var file = folder.resolve("adapter_model.safetensors");
    if (!Files.isRegularFile(file)) {
      throw new UserException("no adapter_model.safetensors in " + folder + hint(folder));
    }
    var weights = SafetensorsFile.open(file);
    try {
      return of(folder.toAbsolutePath().normalize().getFileName().toString(), config, weights);
    } catch (RuntimeException e) {
      weights.close();
      throw e;
    }
  }

  /** How to make it from another form of an adapter that lies there instead. */
  private static String hint(Path folder) {
    if (Files.exists(folder.resolve("adapter_model.bin"))) {
      return ", only adapter_model.bin, which can run code when it is read; convert it with"
          + " Python where you trust it: from safetensors.torch import save_file; import torch;"
          + " save_file(torch.load('adapter_model.bin', weights_only=True),"
          + " 'adapter_model.safetensors')";
    }
    if (Files.exists(folder.resolve("adapters.safetensors"))) {
      return ", only adapters.safetensors, as mlx-lm writes it; convert it to PEFT first:"
          + " lora_A.weight = lora_a transposed, lora_B.weight = lora_b transposed";
    }
    return "";
  }

  private static LoraAdapter of(String name, LoraConfig config, SafetensorsFile weights) {
    var lora = new LinkedHashMap<String, String>();
    var whole = new LinkedHashMap<String, String>();
    var names = new TreeSet<String>();
    for (var key : weights.tensors().keySet()) {
      var plain = key.startsWith(PREFIX) ? key.substring(PREFIX.length()) : key;
      if (INNER.matcher(plain).lookingAt()) {
        plain = "model." + plain;
      }
      var part = LORA.matcher(plain);
      String before;
      if (part.matches()) {
        names.add(part.group(2) == null ? "" : part.group(2));
        before = lora.put(part.group(1), key);
      } else {
        var module = WHOLE.matcher(plain);
        before = whole.put(module.matches() ? module.group(1) + "." + module.group(2) : plain, key);
      }
      if (before != null) {
        throw new UserException(
            weights.path() + ": " + before + " and " + key + " are two tensors of one weight");
      }
    }
    if (names.size() > 1) {
      throw new UserException(
          "%s: the keys name several adapters (%s); save one adapter a folder",
          weights.path(),
          String.join(", ", names.stream().map(each -> each.isEmpty() ? "none" : each).toList()));
    }
    for (var unread : weights.unread().entrySet()) {
      throw new UserException(
          "%s: the tensor %s is %s, an adapter's must be F32, F16 or BF16"
              .formatted(weights.path(), unread.getKey(), unread.getValue()));
    }
    for (var module : config.modulesToSave()) {
      if (whole.keySet().stream().noneMatch(key -> ("." + key).contains("." + module + "."))) {
        throw new UserException(
            weights.path().resolveSibling("adapter_config.json")
                + ": modules_to_save "
                + config.modulesToSave().stream().map(each -> '"' + each + '"').toList()
                + " is not supported without their weights in adapter_model.safetensors");
      }
    }
    return new LoraAdapter(name, config, weights, lora, whole);
  }

  /**
   * The adapters of a folder: its sub-folders with an {@code adapter_config.json}, sorted by name.
   */
  public static List<Path> list(Path adapterDir) {
    if (!Files.isDirectory(adapterDir)) {
      throw new UserException(
          "no such folder of adapters: " + adapterDir + "; \"meteora train-lora\" makes adapters");
    }
    var found = Folders.having(adapterDir, "adapter_config.json");
    if (found.isEmpty()) {
      throw new UserException(
          "no adapters in %s: a folder with adapter_config.json for each was expected, as \"meteora"
              + " train-lora\" makes them",
          adapterDir);
    }
    return found;
  }

  /** The rank of this adapter on a module; empty when it does not target it. */
  public Optional<Integer> rankOn(String module) {
    var a = weights.tensors().get(keyA(module));
    var b = weights.tensors().get(keyB(module));
    if (a == null && b == null) {
      return Optional.empty();
    }
    if (a == null
        || b == null
        || a.shape().size() != 2
        || b.shape().size() != 2
        || a.shape().get(0) < 1
        || !a.shape().get(0).equals(b.shape().get(1))
        || a.shape().get(0) > Integer.MAX_VALUE) {
      throw new UserException(
          weights.path() + ": lora_A and lora_B of " + module + " do not fit together");
    }
    weights.requireFloating(a.name());
    weights.requireFloating(b.name());
    return Optional.of(Math.toIntExact(a.shape().get(0)));
  }

  /** PEFT's name of a tensor. */
  static String key(String module, String matrix) {
    return PREFIX + module + "." + matrix + ".weight";
  }

  /** Name of the tensor A {@code (r, in)} of a module. */
  public String keyA(String module) {
    return loraKeys.getOrDefault(module + ".lora_A", key(module, "lora_A"));
  }

  /** Name of the tensor B {@code (out, r)} of a module. */
  public String keyB(String module) {
    return loraKeys.getOrDefault(module + ".lora_B", key(module, "lora_B"));
  }

  /**
   * A of a module, {@code (r, in)}, on the CPU in the file's dtype.
   *
   * @throws UserException when it holds a value that is no number
   */
  public NDArray readA(NDManager manager, String module) {
    weights.requireFinite(keyA(module));
    return weights.read(manager, keyA(module));
  }

  /** B of a module, {@code (out, r)}; otherwise as {@link #readA}. */
  public NDArray readB(NDManager manager, String module) {
    weights.requireFinite(keyB(module));
    return weights.read(manager, keyB(module));
  }

  /**
   * Checks that the adapter fits a linear layer.
   *
   * @throws UserException naming the tensor, what was expected and what was found
   */
  public void requireFits(String module, long in, long out) {
    rankOn(module)
        .ifPresent(
            rank -> {
              requireShape(weights.requireInfo(keyA(module)), rank, in);
              requireShape(weights.requireInfo(keyB(module)), out, rank);
            });
  }

  /** This adapter with these weights of its own alone. */
  public LoraAdapter withWholeKeys(Map<String, String> keys) {
    return new LoraAdapter(name, config, weights, loraKeys, Map.copyOf(keys));
  }

  /**
   * A weight of the adapter's own that takes the place of the base's, on the CPU in the file's
   * dtype.
   *
   * @param base the base's name of it, one of {@link #wholeKeys}
   * @throws UserException when its shape is not the base's
   */
  public NDArray readWhole(NDManager manager, String base, long... shape) {
    requireWholeShape(base, shape);
    return weights.read(manager, wholeKeys.get(base));
  }

  /**
   * @throws UserException when a weight of its own has another shape than the base's
   */
  public void requireWholeShape(String base, long... shape) {
    requireShape(weights.requireInfo(wholeKeys.get(base)), shape);
  }

  private void requireShape(TensorInfo tensor, long... shape) {
    if (!tensor.hasShape(shape) || !tensor.dtype().isFloatingPoint()) {
      throw new UserException(
          "the adapter %s was made for another base model: %s is %s %s, expected %s",
          name, tensor.name(), tensor.dtype(), tensor.shape(), Arrays.toString(shape));
    }
  }

  @Override
  public void close() {
    weights.close();
  }
}
