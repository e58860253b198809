package org.meteora.checkpoint;

import ai.djl.Device;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.Optional;
import java.util.function.Function;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.generate.Tokenizer;
import org.meteora.io.Progress;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.Architecture;
import org.meteora.model.Backend;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.MemoryNeed;
import org.meteora.model.llama.LlamaConfig;
import org.meteora.moe.Flags;
import org.meteora.parallel.Collective;
import org.meteora.parallel.ShardedWeights;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Loads models, for inference and for training: it opens their files, makes their memory and owns
 * both. A model keeps its loader and closes it; where loading fails, {@link #load} closes it.
 *
 * @param dtype that the model computes in
 * @param owned what is closed together with the model, the last first
 */
record ModelLoader(
    Architecture config,
    Device device,
    Dtype dtype,
    Tokenizer tokenizer,
    Collective sharers,
    Deque<AutoCloseable> owned)
    implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(ModelLoader.class);

  /**
   * Where a model's own weights come from.
   *
   * @param files all of them
   * @param prefix of every key: empty, or {@code base_model.model.} for a full MeteoRA checkpoint
   * @param adapter whose own embedding, head and norms take the place of the base's; null for none
   */
  record Base(SafetensorsFolder files, String prefix, LoraAdapter adapter) {}

  /**
   * Loads a model.
   *
   * @param device {@code cpu} or {@code cuda[:i]}
   * @param dtype by default f32 on the CPU, bf16 on a GPU
   * @param sharers the processes that share the base model's weights; one process has them whole
   * @param steps what is to be done with the loader, which belongs to their result
   * @throws UserException when the folder lacks {@code config.json} or the tokenizer
   */
  static <T> T load(
      Path basePath,
      String device,
      Optional<String> dtype,
      Collective sharers,
      Function<ModelLoader, T> steps) {
    var config = LlamaConfig.read(basePath);
    var parsed = Devices.parse(device);
    var inDtype = dtype.map(Dtype::ofOption).orElseGet(() -> Backends.usualDtype(parsed));
    var tokenizer = Tokenizer.load(basePath, config.vocabSize());
    var loader = new ModelLoader(config, parsed, inDtype, tokenizer, sharers, new ArrayDeque<>());
    loader.own(tokenizer);
    try {
      return steps.apply(loader);
    } catch (Throwable e) {
      try {
        loader.close();
      } catch (RuntimeException other) {
        e.addSuppressed(other);
      }
      throw e;
    }
  }

  <C extends AutoCloseable> C own(C resource) {
    owned.push(resource);
    return resource;
  }

  /**
   * Builds the model, in memory that this owns.
   *
   * @param banks the adapters of each projection, from what builds the model
   * @param more memory that is needed beside the weights
   * @param wanted what will be asked for later, perhaps; a line in the log says if it is not there
   * @param dropout on the adapters' input in training
   * @throws UserException when something is missing or broken or does not fit
   */
  Llama build(
      Base base,
      Function<ModelBuilder, LlamaFactory.Banks> banks,
      MemoryNeed more,
      MemoryNeed wanted,
      Flags flags,
      double dropout) {
    var manager = own(Devices.newManager(device));
    var backend = Backends.of(manager, dtype, flags);
    long bytes = 0;
    long bytesInMemory = 0;
    for (var name : base.files().names()) {
      var info = base.files().info(name).orElseThrow();
      bytes += info.bytes();
      if (!backend.readsMappedFiles() || info.dtype() != dtype) {
        bytesInMemory += info.bytes() / info.dtype().bytes() * dtype.bytes();
      }
    }
    if (sharers.size() > 1) { // two layers are whole beside a process's part, now and then the head
      bytesInMemory =
          bytesInMemory / sharers.size() + 2 * bytesInMemory / (config.numHiddenLayers() + 2);
    }
    var need = MemoryNeed.NONE.and("weights", bytesInMemory).and(more);
    var lack = need.lacking(backend);
    if (lack.isPresent()) {
      throw new UserException(lack.get() + smaller(backend));
    }
    need.and(wanted)
        .lacking(backend)
        .ifPresent(later -> LOG.warn("{}: where sequences grow so long fewer run at once", later));
    try (var progress = new Progress("loading", bytes, " MiB", 1 << 20)) {
      var builder =
          new ModelBuilder(manager, backend, dtype, base, config.tieWordEmbeddings(), progress);
      var weights =
          sharers.size() == 1
              ? builder
              : new ShardedWeights(builder, config, manager, dtype, sharers);
      return LlamaFactory.build(
          config, manager, dtype, weights, banks.apply(builder), backend, dropout);
    }
  }

  /** What takes less than a model that does not fit: no length or batch does. */
  private String smaller(Backend backend) {
    return (dtype == Dtype.F32 ? "; --dtype bf16 needs half of it" : "")
        + (backend.readsMappedFiles() ? "" : "; --device cpu takes this machine's memory");
  }

  /** Closes everything, the last opened first, whatever fails. */
  @Override
  public void close() {
    RuntimeException failure = null;
    while (!owned.isEmpty()) {
      try {
        owned.pop().close();
      } catch (Exception e) {
        if (failure == null) {
          failure = new IllegalStateException(e);
        } else {
          failure.addSuppressed(e);
        }
      }
    }
    if (failure != null) {
      throw failure;
    }
  }
}
