package org.meteora.checkpoint;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import org.meteora.UserException;
import org.meteora.io.Progress;
import org.meteora.lora.AdapterBank;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.Architecture;
import org.meteora.model.Backend;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.nn.Projection;
import org.meteora.parallel.Collective;
import org.meteora.parallel.ShardedWeights;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Builds a {@link Llama} from mapped files: weights stay where they are mapped when device and
 * dtype are the file's, and are converted once otherwise; nothing passes through the Java heap.
 *
 * @param manager owns the parameters; its device is the model's
 * @param prefix of every key in {@code base}: empty, or {@code base_model.model.} for a full
 *     MeteoRA checkpoint
 * @param tied whether the head is the embedding
 * @param adapter whose own embedding, head and norms take the place of the base's; null for none
 */
record ModelBuilder(
    NDManager manager,
    Backend backend,
    Dtype dtype,
    SafetensorsFolder base,
    String prefix,
    boolean tied,
    LoraAdapter adapter,
    Progress progress)
    implements LlamaFactory.Weights {
  private static final String EMBEDDING = "model.embed_tokens.weight";
  private static final String HEAD = "lm_head.weight";

  /**
   * @param banks the adapters of a layer's module; may return null
   * @param sharers the processes that share the frozen weights; one process has them whole
   */
  Llama build(Architecture config, LlamaFactory.Banks banks, double dropout, Collective sharers) {
    var weights =
        sharers.size() == 1 ? this : new ShardedWeights(this, config, manager, dtype, sharers);
    return LlamaFactory.build(config, manager, dtype, weights, banks, backend, dropout);
  }

  @Override
  public NDArray get(String name, long... shape) {
    var own = adapter == null ? null : adapter.wholeKeys().get(name);
    if (own != null) {
      try (var host = Devices.newHostManager()) {
        return Ops.placed(adapter.readWhole(host, name, shape), manager, dtype);
      }
    }
    return place(base, keyInFile(name), shape);
  }

  /** Only the part's pages of a mapped file are touched. */
  @Override
  public void read(NDArray target, String name, long from, long... shape) {
    try (var host = Devices.newHostManager()) {
      var key = keyInFile(name);
      boolean own = adapter != null && adapter.wholeKeys().containsKey(name);
      var whole = own ? adapter.readWhole(host, name, shape) : base.read(host, key, shape);
      Ops.copy(target, Ops.narrow(whole.reshape(-1), 0, from, target.getShape().size()));
      if (!own && from + target.getShape().size() == whole.getShape().size()) {
        progress.step(base.info(key).orElseThrow().bytes());
      }
    }
  }

  /** Tied weights may be kept under either name. */
  private String keyInFile(String name) {
    var key = key(name);
    return tied && !has(key) && (name.equals(EMBEDDING) || name.equals(HEAD))
        ? key(name.equals(HEAD) ? EMBEDDING : HEAD)
        : key;
  }

  private boolean has(String key) {
    return base.info(key).isPresent();
  }

  /** As transformers does: a head in the file that differs from the embedding is used. */
  @Override
  public boolean hasOwnHead() {
    if (adapter != null
        && (adapter.wholeKeys().containsKey(HEAD) || adapter.wholeKeys().containsKey(EMBEDDING))) {
      return true;
    }
    return has(key(HEAD))
        && has(key(EMBEDDING))
        && !base.requireTensor(key(HEAD))
            .equal(key(HEAD), base.requireTensor(key(EMBEDDING)), key(EMBEDDING));
  }

  /**
   * The weights of its own that an adapter has instead of the base's, by name: those that are equal
   * are left out.
   *
   * @throws UserException when their shapes are not the base's, or it is not clear what they are
   *     for
   */
  static LoraAdapter withOwnWeights(
      LoraAdapter adapter, SafetensorsFolder base, Architecture config) {
    var own = new LinkedHashMap<String, String>();
    for (var entry : adapter.wholeKeys().entrySet()) {
      var name = entry.getKey();
      boolean head = name.equals(HEAD) || name.equals(EMBEDDING);
      adapter.requireWholeShape(
          name,
          head
              ? new long[] {config.vocabSize(), config.hiddenSize()}
              : new long[] {config.hiddenSize()});
      var twin = name.equals(HEAD) ? EMBEDDING : HEAD;
      var key = config.tieWordEmbeddings() && head && base.info(name).isEmpty() ? twin : name;
      if (!adapter.weights().equal(entry.getValue(), base.requireTensor(key), key)) {
        own.put(name, entry.getValue());
      }
    }
    if (config.tieWordEmbeddings()
        && own.containsKey(EMBEDDING)
        && !adapter.wholeKeys().containsKey(HEAD)) {
      throw new UserException(
          adapter.weights().path()
              + ": it has an embedding of its own for a model whose head is its embedding, and does"
              + " not say which head is meant: lm_head.weight is missing");
    }
    return adapter.withWholeKeys(own);
  }

  /** Published checkpoints keep a projection's weight under {@code base_layer}. */
  private String key(String name) {
    if (prefix.isEmpty()) {
      return name;
    }
    int dot = name.lastIndexOf('.');
    var wrapped = prefix + name.substring(0, dot) + ".base_layer" + name.substring(dot);
    return base.info(wrapped).isPresent() ? wrapped : prefix + name;
  }

  private NDArray place(SafetensorsFolder files, String key, long... shape) {
    NDArray mapped;
    try (var host = Devices.newHostManager()) {
      mapped = files.read(host, key, shape);
      progress.step(files.info(key).orElseThrow().bytes());
      return Ops.placed(mapped, manager, dtype);
    }
  }

  /** The bank of a projection from a MeteoRA checkpoint. */
  AdapterBank bank(
      MeteoraCheckpoint checkpoint, Architecture config, int layer, Projection module) {
    var path = module.path(layer);
    var shape = config.shape(module);
    int n = checkpoint.adapters().size();
    var ranks = new int[n];
    var scales = new double[n];
    int total = 0;
    for (int i = 0; i < n; i++) {
      var adapter = checkpoint.adapters().get(i);
      ranks[i] = adapter.ranks().getOrDefault(path, 0);
      scales[i] = adapter.scales().getOrDefault(path, 1.0);
      total += ranks[i];
    }
    var gate = place(checkpoint.weights(), MeteoraCheckpoint.gateKey(path), n, shape[1]);
    var stacked = stackedRanks(checkpoint, path, ranks, total);
    if (stacked == null) {
      return new AdapterBank(
          gate,
          place(checkpoint.weights(), MeteoraCheckpoint.loraAKey(path), total, shape[1]),
          place(checkpoint.weights(), MeteoraCheckpoint.loraBKey(path), shape[0], total),
          ranks,
          scales);
    }
    int all = Arrays.stream(stacked).sum();
    return new AdapterBank(
        gate,
        acting(checkpoint, MeteoraCheckpoint.loraAKey(path), 0, ranks, stacked, all, shape[1]),
        acting(checkpoint, MeteoraCheckpoint.loraBKey(path), 1, ranks, stacked, shape[0], all),
        ranks,
        scales);
  }

  /**
   * Rows that each adapter has in the file, where those that do not act on the module have rows
   * too; null where they have none.
   */
  private static int[] stackedRanks(
      MeteoraCheckpoint checkpoint, String path, int[] ranks, int total) {
    var info = checkpoint.weights().info(MeteoraCheckpoint.loraAKey(path));
    if (info.isEmpty() || info.get().shape().isEmpty() || info.get().shape().getFirst() == total) {
      return null;
    }
    var stacked = ranks.clone();
    for (int i = 0; i < stacked.length; i++) {
      if (stacked[i] == 0) {
        stacked[i] =
            checkpoint.adapters().get(i).ranks().values().stream()
                .mapToInt(Integer::intValue)
                .max()
                .orElse(0);
      }
    }
    return Arrays.stream(stacked).asLongStream().sum() == info.get().shape().getFirst()
        ? stacked
        : null;
  }

  /** The rows (axis 0) or columns (axis 1) of the adapters that act. */
  private NDArray acting(
      MeteoraCheckpoint checkpoint,
      String key,
      int axis,
      int[] ranks,
      int[] stacked,
      long... shape) {
    try (var host = Devices.newHostManager()) {
      var file = Ops.cast(checkpoint.weights().read(host, key, shape), Dtype.F32);
      progress.step(checkpoint.weights().info(key).orElseThrow().bytes());
      var parts = new NDList();
      long at = 0;
      for (int i = 0; i < ranks.length; i++) {
        if (ranks[i] > 0) {
          parts.add(Ops.narrow(file, axis, at, ranks[i]));
        }
        at += stacked[i];
      }
      var kept =
          parts.isEmpty()
              ? Ops.zeros(host, Dtype.F32, axis == 0 ? 0 : shape[0], axis == 0 ? shape[1] : 0)
              : NDArrays.concat(parts, axis);
      return Ops.copyOf(kept, manager, dtype);
    }
  }

  /**
   * The bank of a projection from adapters' folders, without a gate; its ranks are 0 when none of
   * them acts there.
   */
  AdapterBank bank(List<LoraAdapter> adapters, Architecture config, int layer, Projection module) {
    var path = module.path(layer);
    var shape = config.shape(module);
    var ranks = new int[adapters.size()];
    var scales = new double[adapters.size()];
    var a = new ArrayList<NDArray>();
    var b = new ArrayList<NDArray>();
    try (var host = Devices.newHostManager()) {
      for (int i = 0; i < adapters.size(); i++) {
        var adapter = adapters.get(i);
        adapter.requireFits(path, shape[1], shape[0]);
        ranks[i] = adapter.rankOn(path).orElse(0);
        scales[i] = ranks[i] == 0 ? 1 : adapter.config().scaleOf(path, ranks[i]);
        if (ranks[i] > 0) {
          a.add(Ops.cast(adapter.readA(host, path), Dtype.F32));
          b.add(Ops.cast(adapter.readB(host, path), Dtype.F32));
        }
      }
      if (a.isEmpty()) {
        return new AdapterBank(
            null,
            Ops.zeros(manager, dtype, 0, shape[1]),
            Ops.zeros(manager, dtype, shape[0], 0),
            ranks,
            scales);
      }
      return new AdapterBank(
          null,
          Ops.copyOf(NDArrays.concat(new NDList(a), 0), manager, dtype),
          Ops.copyOf(NDArrays.concat(new NDList(b), 1), manager, dtype),
          ranks,
          scales);
    }
  }
}
