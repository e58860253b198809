package org.meteora.checkpoint;

import ai.djl.ndarray.NDArray;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.JsonNode;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.TreeSet;
import java.util.regex.Pattern;
import org.meteora.UserException;
import org.meteora.io.Jsonl;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.Architecture;
import org.meteora.model.Llama;
import org.meteora.nn.Projection;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.safetensors.SafetensorsWriter;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A MeteoRA checkpoint: gates {@code moe_gate.weight (N, in)}, stacked {@code lora_A.weight (Σr,
 * in)} and {@code lora_B.weight (out, Σr)} for each projection, under {@code
 * base_model.model.model.layers.…}; with or without the base weights ({@code base_layer.weight} and
 * the rest).
 *
 * <p>Checkpoints written here name their adapters, ranks and scales in the metadata entry {@value
 * #METADATA_KEY}. Published ones say nothing: their adapters are in alphabetical order, and their
 * ranks and scales come from the adapters' own folders.
 *
 * @param adapters in the order of the stack
 */
public record MeteoraCheckpoint(SafetensorsFolder weights, List<Adapter> adapters)
    implements AutoCloseable {
  /**
   * Metadata entry: a JSON list of {@code {name, rank: {projection: r}, scale: {projection: s}}},
   * in the order of the stack.
   */
  public static final String METADATA_KEY = "meteora.adapters";

  private static final String PREFIX = "base_model.model.";
  private static final int HIGHEST_RANK = 1 << 16;
  private static final Logger LOG = LoggerFactory.getLogger(MeteoraCheckpoint.class);
  private static final Pattern BASE_WEIGHT =
      Pattern.compile(
          "(?:model\\.embed_tokens|lm_head|model\\.norm"
              + "|model\\.layers\\.(\\d{1,6})\\.(?:input|post_attention)_layernorm)\\.weight");

  /**
   * One adapter of the stack.
   *
   * @param ranks by projection path; 0 where it does not act
   * @param scales by projection path
   */
  public record Adapter(String name, Map<String, Integer> ranks, Map<String, Double> scales) {}

  /**
   * Opens a checkpoint and finds out which adapters it stacks.
   *
   * @param path a folder or a file
   * @param adapterDir the adapters' folders; needed when the checkpoint does not name its adapters
   * @throws UserException when files are missing or broken, or adapters do not fit
   */
  public static MeteoraCheckpoint open(Path path, Optional<Path> adapterDir, Architecture config) {
    if (!Files.exists(path)) {
      throw new UserException(
          "no such MeteoRA checkpoint: %s; \"meteora train\" makes one, \"meteora download\""
              + " fetches one",
          path);
    }
    var weights = SafetensorsFolder.open(path);
    try {
      var gate = weights.info(gateKey(Projection.Q.path(0)));
      if (gate.isEmpty() || gate.get().shape().size() != 2) {
        throw new UserException(
            path + ": not a MeteoRA checkpoint: there is no " + gateKey(Projection.Q.path(0)));
      }
      long n = gate.get().shape().getFirst();
      var metadata = weights.metadata().get(METADATA_KEY);
      List<Adapter> adapters =
          metadata != null
              ? parse(path, metadata, config)
              : fromFolders(path, n, adapterDir, config);
      if (metadata != null) {
        adapterDir.ifPresent(folder -> requireFolders(path, folder, adapters));
      }
      if (adapters.size() != n) {
        throw new UserException(
            path + ": it has " + n + " adapters, but " + adapters.size() + " are named");
      }
      return new MeteoraCheckpoint(weights, adapters);
    } catch (RuntimeException e) {
      weights.close();
      throw e;
    }
  }

  /**
   * A checkpoint of some of a folder's adapters is right; one with others than the folder's is a
   * mix-up.
   */
  private static void requireFolders(Path path, Path folder, List<Adapter> adapters) {
    var names =
        LoraAdapter.list(folder).stream().map(each -> each.getFileName().toString()).toList();
    for (var adapter : adapters) {
      if (!names.contains(adapter.name())) {
        throw new UserException(
            "the checkpoint %s has %s adapters, the folder %s has %s and lacks %s",
            path, adapters.size(), folder, names.size(), adapter.name());
      }
    }
  }

  private static List<Adapter> parse(Path path, String json, Architecture config) {
    try {
      var result = new ArrayList<Adapter>();
      var list = Jsonl.JSON.readTree(json);
      if (!list.isArray() || list.isEmpty()) {
        throw new UserException(
            path + ": the metadata entry " + METADATA_KEY + " is not a list of adapters");
      }
      for (JsonNode node : list) {
        var name = Jsonl.text(node, "name", path + " metadata");
        var ranks = new LinkedHashMap<String, Integer>();
        var scales = new LinkedHashMap<String, Double>();
        for (int layer = 0; layer < config.numHiddenLayers(); layer++) {
          for (var module : Projection.values()) {
            var projection = module.path(layer);
            var rank = node.path("rank").path(projection);
            var scale = node.path("scale").path(projection);
            if (!rank.isInt()
                || rank.intValue() < 0
                || rank.intValue() > HIGHEST_RANK
                || !scale.isNumber()
                || !Double.isFinite(scale.doubleValue())) {
              throw new UserException(
                  "%s: the metadata entry %s has no possible rank and scale of the"
                      + " adapter %s on %s: rank %s, scale %s",
                  path, METADATA_KEY, name, projection, rank, scale);
            }
            ranks.put(projection, rank.intValue());
            scales.put(projection, scale.doubleValue());
          }
        }
        result.add(new Adapter(name, ranks, scales));
      }
      return result;
    } catch (JsonProcessingException e) {
      throw new UserException(path + ": the metadata entry " + METADATA_KEY + " is not JSON");
    }
  }

  private static List<Adapter> fromFolders(
      Path path, long n, Optional<Path> adapterDir, Architecture config) {
    if (adapterDir.isEmpty()) {
      throw new UserException(
          path
              + ": the checkpoint does not name its adapters; give their folder (adapter_dir,"
              + " --adapter-dir)");
    }
    var folders = LoraAdapter.list(adapterDir.get());
    if (folders.size() != n) {
      throw new UserException(
          "the checkpoint %s has %s adapters, the folder %s has %s",
          path, n, adapterDir.get(), folders.size());
    }
    var result = new ArrayList<Adapter>();
    for (var folder : folders) {
      try (var adapter = LoraAdapter.open(folder)) {
        result.add(describe(adapter, config));
      }
    }
    return result;
  }

  /**
   * Ranks and scales of an adapter on every projection of a model.
   *
   * @throws UserException when its shapes do not fit the model or its own configuration, or it has
   *     tensors that belong to no projection
   */
  static Adapter describe(LoraAdapter adapter, Architecture config) {
    var unknown = new TreeSet<>(adapter.weights().tensors().keySet());
    for (var whole : adapter.wholeKeys().entrySet()) {
      if (isBaseWeight(whole.getKey(), config)) {
        unknown.remove(whole.getValue());
      }
    }
    var left = new ArrayList<String>();
    var ranks = new LinkedHashMap<String, Integer>();
    var scales = new LinkedHashMap<String, Double>();
    for (int layer = 0; layer < config.numHiddenLayers(); layer++) {
      for (var module : Projection.values()) {
        var projection = module.path(layer);
        var shape = config.shape(module);
        adapter.requireFits(projection, shape[1], shape[0]);
        int rank = adapter.rankOn(projection).orElse(0);
        var said = adapter.config().rankOf(projection);
        if (rank > 0 && said.isPresent() && rank != said.getAsInt()) {
          throw new UserException(
              "the adapter %s has the rank %s on %s, its adapter_config.json says %s",
              adapter.name(), rank, projection, said.getAsInt());
        }
        var targeted = adapter.config().adapts(projection);
        if (rank > 0 && !targeted.orElse(true)) {
          throw new UserException(
              "the adapter %s has tensors of %s, which target_modules, exclude_modules"
                  + " or layers_to_transform of its adapter_config.json leave out",
              adapter.name(), projection);
        }
        if (rank == 0 && targeted.orElse(false)) {
          left.add(projection);
        }
        unknown.remove(adapter.keyA(projection));
        unknown.remove(adapter.keyB(projection));
        ranks.put(projection, rank);
        scales.put(projection, rank == 0 ? 1 : adapter.config().scaleOf(projection, rank));
      }
    }
    if (ranks.values().stream().allMatch(rank -> rank == 0)) {
      throw new UserException(
          "the adapter %s was made for another base model: none of its tensors belongs to a"
              + " projection of this one",
          adapter.name());
    }
    if (!unknown.isEmpty()) {
      throw new UserException(
          "the adapter %s has %s tensors that belong to no projection of this model, %s"
              + " for one: leaving them out would change what it computes",
          adapter.name(), unknown.size(), unknown.first());
    }
    if (!left.isEmpty()) {
      LOG.warn(
          "the adapter {} has no tensors of {} modules that its adapter_config.json targets, {} for"
              + " one: it changes nothing there",
          adapter.name(),
          left.size(),
          left.getFirst());
    }
    return new Adapter(adapter.name(), ranks, scales);
  }

  /** Whether the base model has a weight of this name that an adapter may have been saved with. */
  private static boolean isBaseWeight(String name, Architecture config) {
    var weight = BASE_WEIGHT.matcher(name);
    return weight.matches()
        && (weight.group(1) == null
            || Integer.parseInt(weight.group(1)) < config.numHiddenLayers());
  }

  static String gateKey(String projection) {
    return PREFIX + projection + ".moe_gate.weight";
  }

  static String loraAKey(String projection) {
    return PREFIX + projection + ".lora_A.weight";
  }

  static String loraBKey(String projection) {
    return PREFIX + projection + ".lora_B.weight";
  }

  /**
   * The tensors of a checkpoint, by their keys.
   *
   * @param model a model with gates
   * @param withBase whether the base weights go in too, as in published checkpoints
   */
  public static Map<String, NDArray> tensors(Llama model, boolean withBase) {
    var result = new LinkedHashMap<String, NDArray>();
    for (int layer = 0; layer < model.layers().size(); layer++) {
      var block = model.layers().get(layer);
      for (var linear : block.projections()) {
        var path = linear.path();
        result.put(gateKey(path), linear.bank().gate());
        result.put(loraAKey(path), linear.bank().loraA());
        result.put(loraBKey(path), linear.bank().loraB());
        if (withBase) {
          result.put(PREFIX + path + ".base_layer.weight", linear.weight());
          if (linear.bias() != null) {
            result.put(PREFIX + path + ".base_layer.bias", linear.bias());
          }
        }
      }
      if (withBase) {
        var norm = PREFIX + "model.layers." + layer + ".%s_layernorm.weight";
        result.put(norm.formatted("input"), block.inputNorm().weight());
        result.put(norm.formatted("post_attention"), block.postAttentionNorm().weight());
      }
    }
    if (withBase) {
      result.put(PREFIX + "model.embed_tokens.weight", model.embedding());
      result.put(PREFIX + "model.norm.weight", model.norm().weight());
      if (model.head() != model.embedding()) {
        result.put(PREFIX + "lm_head.weight", model.head());
      }
    }
    return result;
  }

  /** The metadata that names a checkpoint's adapters. */
  public static Map<String, String> metadata(List<Adapter> adapters, boolean withBase) {
    var list = Jsonl.JSON.createArrayNode();
    for (var adapter : adapters) {
      var node = list.addObject().put("name", adapter.name());
      node.set("rank", Jsonl.JSON.valueToTree(adapter.ranks()));
      node.set("scale", Jsonl.JSON.valueToTree(adapter.scales()));
    }
    var base = withBase ? "included" : "left out";
    return Map.of("format", "pt", METADATA_KEY, list.toString(), "meteora.base_weights", base);
  }

  /**
   * Writes {@code model.safetensors} into a folder, atomically.
   *
   * @throws UserException when the file system refuses
   */
  public static void write(Path folder, Llama model, List<Adapter> adapters, boolean withBase) {
    var file = folder.resolve("model.safetensors");
    SafetensorsWriter.write(file, tensors(model, withBase), metadata(adapters, withBase));
  }

  @Override
  public void close() {
    weights.close();
  }
}
