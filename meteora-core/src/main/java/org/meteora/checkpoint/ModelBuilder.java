package org.meteora.checkpoint;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
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
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Builds a {@link Llama} from mapped files: weights stay where they are mapped when device and
 * dtype are the file's, and are converted once otherwise; nothing passes through the Java heap.
 *
 * @param manager owns the parameters; its device is the model's
 * @param tied whether the head is the embedding
 */
record ModelBuilder(
    NDManager manager,
    Backend backend,
    Dtype dtype,
    ModelLoader.Base base,
    boolean tied,
    Progress progress)
    implements LlamaFactory.Weights {
  private static final String EMBEDDING = "model.embed_tokens.weight";
  private static final String HEAD = "lm_head.weight";

  @Override
  public NDArray get(String name, long... shape) {
    if (ofAdapter(name)) {
      try (var host = Devices.newHostManager()) {
        return Ops.placed(base.adapter().readWhole(host, name, shape), manager, dtype);
      }
    }
    return place(base.files(), keyInFile(name), shape);
  }

  /** Only the part's pages of a mapped file are touched. */
  @Override
  public void read(NDArray target, String name, long from, long... shape) {
    try (var host = Devices.newHostManager()) {
      var key = keyInFile(name);
      boolean own = ofAdapter(name);
      var whole =
          own ? base.adapter().readWhole(host, name, shape) : base.files().read(host, key, shape);
      Ops.copy(target, Ops.narrow(whole.reshape(-1), 0, from, target.getShape().size()));
      if (!own && from + target.getShape().size() == whole.getShape().size()) {
        progress.step(base.files().info(key).orElseThrow().bytes());
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

  private boolean ofAdapter(String name) {
    return base.adapter() != null && base.adapter().wholeKeys().containsKey(name);
  }

  private boolean has(String key) {
    return base.files().info(key).isPresent();
  }

  /** As transformers does: a head in the file that differs from the embedding is used. */
  @Override
  public boolean hasOwnHead() {
    var files = base.files();
    return ofAdapter(HEAD)
        || ofAdapter(EMBEDDING)
        || has(key(HEAD))
            && has(key(EMBEDDING))
            && !files
                .requireTensor(key(HEAD))
                .equal(key(HEAD), files.requireTensor(key(EMBEDDING)), key(EMBEDDING));
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
    if (base.prefix().isEmpty()) {
      return name;
    }
    int dot = name.lastIndexOf('.');
    var wrapped = base.prefix() + name.substring(0, dot) + ".base_layer" + name.substring(dot);
    return has(wrapped) ? wrapped : base.prefix() + name;
  }

  private NDArray place(SafetensorsFolder files, String key, long... shape) {
    try (var host = Devices.newHostManager()) {
      var mapped = files.read(host, key, shape);
      progress.step(files.info(key).orElseThrow().bytes());
      return Ops.placed(mapped, manager, dtype);
    }
  }

  /** The bank of a projection from a MeteoRA checkpoint. */
  AdapterBank bank(
      MeteoraCheckpoint checkpoint, Architecture config, int layer, Projection module) {
    var path = module.path(layer);
    var shape = config.shape(module);
    var adapters = checkpoint.adapters();
    int n = adapters.size();
    var ranks = adapters.stream().mapToInt(each -> each.ranks().getOrDefault(path, 0)).toArray();
    var scales =
        adapters.stream().mapToDouble(each -> each.scales().getOrDefault(path, 1.0)).toArray();
    int total = Arrays.stream(ranks).sum();
    var files = checkpoint.weights();
    var gate = place(files, MeteoraCheckpoint.gateKey(path), n, shape[1]);
    var keyA = MeteoraCheckpoint.loraAKey(path);
    var keyB = MeteoraCheckpoint.loraBKey(path);
    var stacked = stackedRanks(checkpoint, path, ranks, total);
    if (stacked == null) {
      var a = place(files, keyA, total, shape[1]);
      return new AdapterBank(gate, a, place(files, keyB, shape[0], total), ranks, scales);
    }
    int all = Arrays.stream(stacked).sum();
    var a = acting(files, keyA, 0, ranks, stacked, all, shape[1]);
    var b = acting(files, keyB, 1, ranks, stacked, shape[0], all);
    return new AdapterBank(gate, a, b, ranks, scales);
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
      SafetensorsFolder files, String key, int axis, int[] ranks, int[] stacked, long... shape) {
    try (var host = Devices.newHostManager()) {
      var file = Ops.cast(files.read(host, key, shape), Dtype.F32);
      progress.step(files.info(key).orElseThrow().bytes());
      var parts = new NDList();
      long at = 0;
      for (int i = 0; i < ranks.length; i++) {
        if (ranks[i] > 0) {
          parts.add(Ops.narrow(file, axis, at, ranks[i]));
        }
        at += stacked[i];
      }
      return joined(parts, axis, shape[1 - axis]);
    }
  }

  /** One behind the other along an axis; perhaps none, of a matrix that is so long otherwise. */
  private NDArray joined(NDList parts, int axis, long other) {
    return parts.isEmpty()
        ? Ops.zeros(manager, dtype, axis == 0 ? 0 : other, axis == 0 ? other : 0)
        : Ops.copyOf(NDArrays.concat(parts, axis), manager, dtype);
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
    var a = new NDList();
    var b = new NDList();
    try (var host = Devices.newHostManager()) {
      for (int i = 0; i < adapters.size(); i++) {
        var adapter = adapters.get(i);
        ranks[i] = adapter.rankOn(path).orElse(0);
        scales[i] = ranks[i] == 0 ? 1 : adapter.config().scaleOf(path, ranks[i]);
        if (ranks[i] > 0) {
          a.add(Ops.cast(adapter.readA(host, path), Dtype.F32));
          b.add(Ops.cast(adapter.readB(host, path), Dtype.F32));
        }
      }
      return new AdapterBank(null, joined(a, 0, shape[1]), joined(b, 1, shape[0]), ranks, scales);
    }
  }
}
