package org.meteora.safetensors;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.io.Jsonl;

/**
 * The weights of one model: {@code model.safetensors}, or the shards that {@code
 * model.safetensors.index.json} names.
 */
public final class SafetensorsFolder implements AutoCloseable {
  private final Path path;
  private final List<SafetensorsFile> files = new ArrayList<>();
  private final Map<String, SafetensorsFile> owner = new LinkedHashMap<>();

  private SafetensorsFolder(Path path) {
    this.path = path;
  }

  /** Whether the folder holds weights in either form. */
  public static boolean hasWeights(Path folder) {
    return Files.isRegularFile(folder.resolve("model.safetensors"))
        || Files.isRegularFile(folder.resolve("model.safetensors.index.json"));
  }

  /**
   * @param path a folder, or one safetensors file
   * @throws UserException when weights are missing, broken, or the index and the shards disagree
   */
  public static SafetensorsFolder open(Path path) {
    var result = new SafetensorsFolder(path);
    try {
      if (Files.isRegularFile(path)) {
        result.add(path);
        return result;
      }
      if (!Files.isDirectory(path)) {
        throw new UserException("no such folder: " + path);
      }
      var index = path.resolve("model.safetensors.index.json");
      if (Files.isRegularFile(index) && !Files.isRegularFile(path.resolve("model.safetensors"))) {
        result.addShards(path, index);
      } else if (Files.isRegularFile(path.resolve("model.safetensors"))) {
        result.add(path.resolve("model.safetensors"));
      } else {
        throw new UserException(
            "no model.safetensors and no model.safetensors.index.json in " + path);
      }
      return result;
    } catch (RuntimeException e) {
      result.close();
      throw e;
    }
  }

  private void addShards(Path folder, Path index) {
    var map = Jsonl.readFile(index).path("weight_map");
    if (!map.isObject() || map.isEmpty()) {
      throw new UserException(index + ": no \"weight_map\"");
    }
    var names = new TreeSet<String>();
    for (var value : map) {
      var name = value.asText("");
      if (name.isEmpty() || name.contains("/") || name.contains("\\") || name.equals("..")) {
        throw new UserException(index + ": \"" + name + "\" is not the name of a file beside it");
      }
      names.add(name);
    }
    for (var name : names) {
      add(folder.resolve(name));
    }
    for (var entry : map.properties()) {
      var file = owner.get(entry.getKey());
      if (file == null || !file.path().getFileName().toString().equals(entry.getValue().asText())) {
        throw new UserException(
            index + ": the tensor " + entry.getKey() + " is not in " + entry.getValue().asText());
      }
    }
  }

  private void add(Path file) {
    var opened = SafetensorsFile.open(file);
    files.add(opened);
    for (var name : opened.tensors().keySet()) {
      var before = owner.put(name, opened);
      if (before != null) {
        throw new UserException(
            "the tensor " + name + " is in both " + before.path() + " and " + file);
      }
    }
  }

  public Path path() {
    return path;
  }

  /** The files, all of them mapped. */
  public List<SafetensorsFile> files() {
    return List.copyOf(files);
  }

  /** Metadata of all files together. */
  public Map<String, String> metadata() {
    var result = new LinkedHashMap<String, String>();
    files.forEach(file -> result.putAll(file.metadata()));
    return result;
  }

  public Optional<TensorInfo> info(String name) {
    var file = owner.get(name);
    return file == null ? Optional.empty() : Optional.of(file.tensors().get(name));
  }

  public Iterable<String> names() {
    return owner.keySet();
  }

  /**
   * A tensor over the mapped file, read-only, valid until this is closed.
   *
   * @throws UserException when it is missing or its shape is another
   */
  public NDArray read(NDManager manager, String name, long... shape) {
    var info =
        info(name)
            .orElseThrow(() -> new UserException("the tensor " + name + " is missing in " + path));
    if (!info.hasShape(shape)) {
      throw new UserException(
          owner.get(name).path()
              + ": the tensor "
              + name
              + " has the shape "
              + info.shape()
              + ", expected "
              + java.util.Arrays.toString(shape));
    }
    if (!info.dtype().isFloatingPoint()) {
      throw new UserException(
          owner.get(name).path()
              + ": the tensor "
              + name
              + " is "
              + info.dtype().safetensorsName()
              + ", expected F32, F16 or BF16");
    }
    return owner.get(name).read(manager, name);
  }

  @Override
  public void close() {
    files.forEach(SafetensorsFile::close);
    files.clear();
    owner.clear();
  }
}
