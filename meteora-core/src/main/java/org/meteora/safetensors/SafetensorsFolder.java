package org.meteora.safetensors;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeMap;
import java.util.TreeSet;
import org.meteora.UserException;
import org.meteora.io.FolderNames;
import org.meteora.io.Jsonl;

/**
 * The weights of one model: {@code model.safetensors}, or the shards that {@code
 * model.safetensors.index.json} names.
 */
public final class SafetensorsFolder implements AutoCloseable {
  private static final long SMALL = 1 << 20;

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
      var file = path.resolve("model.safetensors");
      var index = path.resolve("model.safetensors.index.json");
      if (Files.isRegularFile(path)) {
        result.addAlone(path);
      } else if (!Files.isDirectory(path)) {
        throw new UserException("no such folder: " + path);
      } else if (Files.isRegularFile(file)) {
        result.addAlone(file);
      } else if (Files.isRegularFile(index)) {
        result.addShards(path, index);
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
      var name = value.isTextual() ? value.textValue() : "";
      if (!FolderNames.isOne(name)) {
        throw new UserException(index + ": \"" + name + "\" is not the name of a file beside it");
      }
      names.add(name);
    }
    var shards = new TreeMap<String, SafetensorsFile>();
    names.forEach(name -> shards.put(name, add(folder.resolve(name))));
    // the index decides which of two shards a tensor is taken from
    for (var entry : map.properties()) {
      var name = entry.getKey();
      var shard = shards.get(entry.getValue().asText());
      if (!shard.tensors().containsKey(name) && !shard.unread().containsKey(name)) {
        throw new UserException(
            index + ": the tensor " + name + " is not in " + entry.getValue().asText());
      }
      owner.put(name, shard);
    }
    for (var shard : shards.values()) {
      shard.tensors().keySet().forEach(tensor -> own(tensor, shard, map));
      shard.unread().keySet().forEach(tensor -> own(tensor, shard, map));
    }
  }

  private void own(String name, SafetensorsFile shard, JsonNode index) {
    var before = owner.putIfAbsent(name, shard);
    if (before != null && before != shard && !index.has(name)) {
      throw new UserException(
          "the tensor " + name + " is in both " + before.path() + " and " + shard.path());
    }
  }

  private SafetensorsFile add(Path file) {
    var opened = SafetensorsFile.open(file);
    files.add(opened);
    return opened;
  }

  private void addAlone(Path file) {
    var opened = add(file);
    opened.tensors().keySet().forEach(name -> owner.put(name, opened));
    opened.unread().keySet().forEach(name -> owner.put(name, opened));
  }

  /** The folder, or the file that it was opened by. */
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

  /** What is known of a tensor; empty where there is none, or one of a dtype that is not read. */
  public Optional<TensorInfo> info(String name) {
    var file = owner.get(name);
    return file == null ? Optional.empty() : Optional.ofNullable(file.tensors().get(name));
  }

  /**
   * The file that holds a tensor.
   *
   * @throws UserException when there is no such tensor
   */
  public SafetensorsFile requireTensor(String name) {
    var file = owner.get(name);
    if (file == null) {
      throw new UserException("the tensor " + name + " is missing in " + path);
    }
    return file;
  }

  /** The tensors that can be read. */
  public Iterable<String> names() {
    return owner.keySet().stream().filter(name -> info(name).isPresent()).toList();
  }

  /**
   * A tensor over the mapped file, read-only, valid until this is closed.
   *
   * @throws UserException when it is missing or its shape is another
   */
  public NDArray read(NDManager manager, String name, long... shape) {
    var file = requireTensor(name);
    var info = file.requireInfo(name);
    if (!info.hasShape(shape)) {
      throw new UserException(
          "%s: the tensor %s has the shape %s, expected %s",
          file.path(), name, info.shape(), Arrays.toString(shape));
    }
    file.requireFloating(name);
    // norms, biases, gates: what is small, and would make every answer nothing
    if (info.bytes() <= SMALL) {
      file.requireFinite(name);
    }
    return file.read(manager, name);
  }

  @Override
  public void close() {
    files.forEach(SafetensorsFile::close);
    files.clear();
    owner.clear();
  }
}
