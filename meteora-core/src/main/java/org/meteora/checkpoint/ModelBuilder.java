package org.meteora.checkpoint;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.List;
import org.meteora.io.Progress;
import org.meteora.lora.AdapterBank;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.Architecture;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.moe.RoutingControl;
import org.meteora.nn.Projection;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Builds a {@link Llama} from mapped files: weights stay where they are mapped when device and
 * dtype are the file's, and are converted once otherwise; nothing passes through the Java heap.
 */
final class ModelBuilder implements LlamaFactory.Weights {
  private final NDManager manager;
  private final Dtype dtype;
  private final SafetensorsFolder base;
  private final String prefix;
  private final Progress progress;

  /**
   * @param manager owns the parameters; its device is the model's
   * @param prefix of every key in {@code base}: empty, or {@code base_model.model.} for a full
   *     MeteoRA checkpoint
   */
  ModelBuilder(
      NDManager manager, Dtype dtype, SafetensorsFolder base, String prefix, Progress progress) {
    this.manager = manager;
    this.dtype = dtype;
    this.base = base;
    this.prefix = prefix;
    this.progress = progress;
  }

  /**
   * @param banks the adapters of a layer's module; may return null
   */
  Llama build(
      Architecture config, LlamaFactory.Banks banks, RoutingControl control, double dropout) {
    return LlamaFactory.build(config, manager, dtype, this, banks, control, dropout);
  }

  @Override
  public NDArray get(String name, long... shape) {
    return place(base, key(name), shape);
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
    try (var host = NDManager.newBaseManager(ai.djl.Device.cpu(), "PyTorch")) {
      mapped = files.read(host, key, shape);
      progress.step(files.info(key).orElseThrow().bytes());
      return move(mapped, manager, dtype);
    }
  }

  /**
   * {@code mapped} itself, attached to the manager, when nothing has to change; else a converted
   * copy there.
   */
  static NDArray move(NDArray mapped, NDManager manager, Dtype dtype) {
    if (!manager.getDevice().isGpu() && Ops.dtype(mapped) == dtype) {
      mapped.attach(manager);
      return mapped;
    }
    var copy = Ops.empty(manager, dtype, mapped.getShape().getShape());
    Ops.copy(copy, mapped);
    return copy;
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
    return new AdapterBank(
        place(checkpoint.weights(), MeteoraCheckpoint.gateKey(path), n, shape[1]),
        place(checkpoint.weights(), MeteoraCheckpoint.loraAKey(path), total, shape[1]),
        place(checkpoint.weights(), MeteoraCheckpoint.loraBKey(path), shape[0], total),
        ranks,
        scales);
  }

  /**
   * The bank of a projection from adapters' folders, without a gate; null when none of them acts
   * there.
   */
  AdapterBank bank(List<LoraAdapter> adapters, Architecture config, int layer, Projection module) {
    return stack(manager, dtype, adapters, config, layer, module);
  }

  /** Stacks adapters' A and B of one projection, gate left out. */
  static AdapterBank stack(
      NDManager manager,
      Dtype dtype,
      List<LoraAdapter> adapters,
      Architecture config,
      int layer,
      Projection module) {
    var path = module.path(layer);
    var shape = config.shape(module);
    var ranks = new int[adapters.size()];
    var scales = new double[adapters.size()];
    var a = new ArrayList<NDArray>();
    var b = new ArrayList<NDArray>();
    try (var host = NDManager.newBaseManager(ai.djl.Device.cpu(), "PyTorch")) {
      for (int i = 0; i < adapters.size(); i++) {
        var adapter = adapters.get(i);
        adapter.requireFits(path, shape[1], shape[0]);
        ranks[i] = adapter.rankOn(path).orElse(0);
        scales[i] = ranks[i] == 0 ? 1 : adapter.config().scaleOf(path, ranks[i]);
        if (ranks[i] > 0) {
          a.add(Ops.cast(adapter.weights().read(host, adapter.keyA(path)), Dtype.F32));
          b.add(Ops.cast(adapter.weights().read(host, adapter.keyB(path)), Dtype.F32));
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
      var allA = NDArrays.concat(new NDList(a), 0);
      var allB = NDArrays.concat(new NDList(b), 1);
      var deviceA = Ops.empty(manager, dtype, allA.getShape().getShape());
      var deviceB = Ops.empty(manager, dtype, allB.getShape().getShape());
      Ops.copy(deviceA, allA);
      Ops.copy(deviceB, allB);
      return new AdapterBank(null, deviceA, deviceB, ranks, scales);
    }
  }
}
