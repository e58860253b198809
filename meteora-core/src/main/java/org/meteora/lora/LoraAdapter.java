package org.meteora.lora;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.safetensors.SafetensorsFile;

/**
 * A PEFT folder: {@code adapter_config.json} and {@code adapter_model.safetensors}, the latter
 * mapped.
 *
 * @param name the folder's name
 */
public record LoraAdapter(String name, LoraConfig config, SafetensorsFile weights)
    implements AutoCloseable {
  private static final String PREFIX = "base_model.model.";

  /**
   * @throws UserException when either file is missing or broken
   */
  public static LoraAdapter open(Path folder) {
    if (!Files.isDirectory(folder)) {
      throw new UserException("no such adapter: " + folder);
    }
    var config = LoraConfig.read(folder);
    var file = folder.resolve("adapter_model.safetensors");
    if (!Files.isRegularFile(file)) {
      throw new UserException("no adapter_model.safetensors in " + folder);
    }
    return new LoraAdapter(folder.getFileName().toString(), config, SafetensorsFile.open(file));
  }

  /**
   * The adapters of a folder: its sub-folders with an {@code adapter_config.json}, sorted by name.
   */
  public static List<Path> list(Path adapterDir) {
    if (!Files.isDirectory(adapterDir)) {
      throw new UserException("no such folder of adapters: " + adapterDir);
    }
    var found = new TreeSet<Path>();
    try (var entries = Files.newDirectoryStream(adapterDir)) {
      for (var entry : entries) {
        if (Files.isRegularFile(entry.resolve("adapter_config.json"))) {
          found.add(entry);
        }
      }
    } catch (java.io.IOException e) {
      throw new UserException("cannot read the folder " + adapterDir, e);
    }
    if (found.isEmpty()) {
      throw new UserException(
          "no adapters in "
              + adapterDir
              + ": a folder with adapter_config.json for each was expected");
    }
    return new ArrayList<>(found);
  }

  private static String key(String module, String matrix) {
    return PREFIX + module + "." + matrix + ".weight";
  }

  /** The rank of this adapter on a module; empty when it does not target it. */
  public Optional<Integer> rankOn(String module) {
    var a = weights.tensors().get(key(module, "lora_A"));
    var b = weights.tensors().get(key(module, "lora_B"));
    if (a == null && b == null) {
      return Optional.empty();
    }
    if (a == null
        || b == null
        || a.shape().size() != 2
        || b.shape().size() != 2
        || !a.shape().get(0).equals(b.shape().get(1))) {
      throw new UserException(
          weights.path() + ": lora_A and lora_B of " + module + " do not fit together");
    }
    return Optional.of(Math.toIntExact(a.shape().get(0)));
  }

  /** Name of the tensor A {@code (r, in)} of a module. */
  public String keyA(String module) {
    return key(module, "lora_A");
  }

  /** Name of the tensor B {@code (out, r)} of a module. */
  public String keyB(String module) {
    return key(module, "lora_B");
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
              requireShape(keyA(module), rank, in);
              requireShape(keyB(module), out, rank);
            });
  }

  private void requireShape(String key, long rows, long columns) {
    var info = weights.tensors().get(key);
    if (!info.hasShape(rows, columns)) {
      throw new UserException(
          "the adapter "
              + name
              + " was made for another base model: "
              + key
              + " has the shape "
              + info.shape()
              + ", expected ["
              + rows
              + ", "
              + columns
              + "]");
    }
  }

  @Override
  public void close() {
    weights.close();
  }
}
