package org.meteora.checkpoint;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Random;
import java.util.function.Function;
import org.meteora.UserException;
import org.meteora.generate.Tokenizer;
import org.meteora.lora.AdapterBank;
import org.meteora.lora.LoraAdapter;
import org.meteora.lora.LoraConfig;
import org.meteora.model.Architecture;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.LayerGate;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.nn.Projection;
import org.meteora.parallel.Collective;
import org.meteora.router.LoraFlow;
import org.meteora.router.LoraFlowFile;
import org.meteora.router.Phatgoose;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * A frozen base model with adapters to be trained, in memory that may be written to. Closing it
 * frees its memory and its files.
 *
 * <p>Long, because the ways in which a model to be trained comes to be stand side by side, each
 * with what it begins with.
 *
 * @param context what its training wants of the gated layers: k, dropout, and what the flags ask
 *     for
 * @param flags that it was loaded with
 * @param adapters in the order of their indices, with their ranks and scales
 * @param loader owns its memory and files
 */
public record TrainableModel(
    Llama llama,
    ForwardContext context,
    Flags flags,
    List<MeteoraCheckpoint.Adapter> adapters,
    ModelLoader loader)
    implements AutoCloseable {
  /**
   * What every model in training needs.
   *
   * @param basePath a Hugging Face Llama folder
   * @param device {@code cpu} or {@code cuda[:i]}; empty: the first GPU, or the CPU when there is
   *     none
   * @param dtype of base, adapters and activations, f32 or bf16; empty: f32 on the CPU, bf16 on a
   *     GPU
   * @param dropout on the adapters' input
   * @param seed of first values
   * @param flags which implementation runs
   */
  public record Spec(
      Path basePath,
      Optional<String> device,
      Optional<String> dtype,
      int topK,
      double dropout,
      long seed,
      Flags flags) {}

  /**
   * Adapters embedded in a base model, with new gates: uniform in ±1/√in, as a linear layer begins.
   *
   * @param folders PEFT folders, in the order of the adapters' indices
   * @param sharers the processes that share the base model's weights, which each load it; one
   *     process has it whole
   * @throws org.meteora.UserException when anything is missing, broken or does not fit
   */
  public static TrainableModel meteora(Spec spec, List<Path> folders, Collective sharers) {
    BankMaker withGate =
        (bank, manager, layer, module) -> {
          long in = bank.loraA().getShape().get(1);
          long seed = seed(spec, layer, module, 0);
          var dtype = Ops.dtype(bank.loraA());
          return bank.withGate(uniform(manager, dtype, seed, bank.size(), in));
        };
    return embedded(spec, sharers, folders, Router.GATES, withGate);
  }

  /** One base serves all adapters: none of them may have an embedding, head or norm of its own. */
  static void requireNoOwnWeights(Path basePath, List<LoraAdapter> adapters, Architecture config) {
    for (var adapter : adapters) {
      if (adapter.wholeKeys().isEmpty()) {
        continue;
      }
      try (var base = SafetensorsFolder.open(basePath)) {
        var own = ModelBuilder.withOwnWeights(adapter, base, config).wholeKeys().keySet();
        if (!own.isEmpty()) {
          throw new UserException(
              "the adapter %s has weights of its own instead of the base model's, %s"
                  + " for one: it cannot share a base with others; it works alone, with"
                  + " --model %s",
              adapter.name(), own.iterator().next(), adapter.name());
        }
      }
    }
  }

  /**
   * New adapters without gates, as PEFT begins: A uniform in ±1/√in, the same for all, B zero.
   *
   * @param names of the adapters; several are one stack, and a router must say which acts
   * @param sharers the processes that share the base model's weights, which each load it; one
   *     process has it whole
   * @throws org.meteora.UserException when the base model is missing or broken, or lacks a layer
   *     that is named
   */
  public static TrainableModel lora(
      Spec spec, List<String> names, LoraConfig lora, Collective sharers) {
    return load(spec, sharers, loader -> lora(spec, loader, names, lora));
  }

  private static TrainableModel lora(
      Spec spec, ModelLoader loader, List<String> names, LoraConfig lora) {
    var config = loader.config();
    for (int layer : lora.layersToTransform()) {
      if (layer < 0 || layer >= config.numHiddenLayers()) {
        throw new UserException(
            "layers_to_transform: there is no layer %s; the base model's are 0 to %s",
            layer, config.numHiddenLayers() - 1);
      }
    }
    var ranks = new LinkedHashMap<String, Integer>();
    var scales = new LinkedHashMap<String, Double>();
    for (int layer = 0; layer < config.numHiddenLayers(); layer++) {
      for (var module : Projection.values()) {
        var path = module.path(layer);
        boolean targeted = lora.targets(layer, module.module());
        int rank = targeted ? lora.rankOf(path).orElseThrow() : 0;
        ranks.put(path, rank);
        scales.put(path, targeted ? lora.scaleOf(path, rank) : 1);
      }
    }
    Function<ModelBuilder, LlamaFactory.Banks> banks =
        builder ->
            (layer, module) -> {
              var path = module.path(layer);
              int rank = ranks.get(path);
              if (rank == 0) {
                return null;
              }
              var shape = config.shape(module);
              var manager = builder.manager();
              int n = names.size();
              var all = new int[n];
              Arrays.fill(all, rank);
              var factors = new double[n];
              Arrays.fill(factors, scales.get(path));
              var first =
                  uniform(manager, loader.dtype(), seed(spec, layer, module, 1), rank, shape[1]);
              var a = n == 1 ? first : repeated(first, n);
              var b = Ops.zeros(manager, loader.dtype(), shape[0], (long) n * rank);
              return new AdapterBank(null, a, b, all, factors);
            };
    var adapters =
        names.stream().map(name -> new MeteoraCheckpoint.Adapter(name, ranks, scales)).toList();
    return build(spec, loader, adapters, Router.GATES, banks);
  }

  /**
   * One adapter, frozen, with a vector v for each linear that it acts on, zero, in the place of a
   * gate {@code (1, in)}: what {@link org.meteora.router.Phatgoose#ALONE} weighs it by.
   *
   * @param folder the adapter's, a PEFT folder
   * @param sharers the processes that share the base model's weights
   * @throws org.meteora.UserException when anything is missing, broken or does not fit
   */
  public static TrainableModel phatgoose(Spec spec, Path folder, Collective sharers) {
    BankMaker withVector =
        (bank, manager, layer, module) -> {
          var a = bank.loraA();
          return bank.withGate(Ops.zeros(manager, Ops.dtype(a), 1, a.getShape().get(1)));
        };
    return embedded(spec, sharers, List.of(folder), Phatgoose.ALONE, acting(withVector));
  }

  /**
   * Adapters, frozen and without gates, and what {@link LoraFlow} weighs them by: W and b of each
   * layer, all zero.
   *
   * @param folders PEFT folders, in the order of the adapters' indices
   * @param sharers the processes that share the base model's weights
   * @throws org.meteora.UserException when anything is missing, broken or does not fit
   */
  public static TrainableModel loraFlow(Spec spec, List<Path> folders, Collective sharers) {
    var banks = acting((bank, manager, layer, module) -> bank);
    var model = embedded(spec, sharers, folders, Router.GATES, banks);
    var llama = model.llama();
    var manager = llama.manager();
    int n = folders.size();
    var gates = new ArrayList<LayerGate>();
    for (var layer : llama.layers()) {
      boolean acts = layer.projections().stream().anyMatch(each -> each.bank() != null);
      gates.add(
          acts
              ? new LayerGate(
                  Ops.zeros(manager, llama.dtype(), n, llama.config().hiddenSize()),
                  Ops.zeros(manager, Dtype.F32, n))
              : null);
    }
    var routing = model.context.routing().withRouter(new LoraFlow(gates));
    var context = model.context.withRouting(routing);
    return new TrainableModel(llama, context, model.flags, model.adapters, model.loader);
  }

  /** What a linear gets, made of the bank of all adapters there, whose ranks may all be 0. */
  private interface BankMaker {
    AdapterBank of(AdapterBank bank, NDManager manager, int layer, Projection module);
  }

  /** No bank where no adapter acts. */
  private static BankMaker acting(BankMaker maker) {
    return (bank, manager, layer, module) ->
        bank.totalRank() == 0 ? null : maker.of(bank, manager, layer, module);
  }

  /** A base model with the adapters of PEFT folders. */
  private static TrainableModel embedded(
      Spec spec, Collective sharers, List<Path> folders, Router router, BankMaker maker) {
    return load(
        spec,
        sharers,
        loader -> {
          var opened = new ArrayList<LoraAdapter>();
          try {
            folders.forEach(folder -> opened.add(LoraAdapter.open(folder)));
            var config = loader.config();
            var adapters =
                opened.stream().map(each -> MeteoraCheckpoint.describe(each, config)).toList();
            requireNoOwnWeights(spec.basePath(), opened, config);
            Function<ModelBuilder, LlamaFactory.Banks> banks =
                builder ->
                    (layer, module) -> {
                      var bank = builder.bank(opened, config, layer, module);
                      return maker.of(bank, builder.manager(), layer, module);
                    };
            return build(spec, loader, adapters, router, banks);
          } finally {
            opened.forEach(LoraAdapter::close);
          }
        });
  }

  private static TrainableModel build(
      Spec spec,
      ModelLoader loader,
      List<MeteoraCheckpoint.Adapter> adapters,
      Router router,
      Function<ModelBuilder, LlamaFactory.Banks> banks) {
    var settings = new RoutingSettings(spec.topK(), 1, router);
    var context = ForwardContext.inference(settings, spec.flags()).forTraining(true);
    var base = loader.own(SafetensorsFolder.open(spec.basePath()));
    var need = MemoryNeed.NONE.and("adapters", adapterBytes(loader, adapters, router));
    var weights = new ModelLoader.Base(base, "", null);
    Function<ModelBuilder, LlamaFactory.Banks> laidOut =
        builder -> {
          var made = banks.apply(builder);
          return (layer, module) -> {
            var bank = made.get(layer, module);
            return bank == null ? null : builder.backend().forInference(bank);
          };
        };
    var llama = loader.build(weights, laidOut, need, MemoryNeed.NONE, spec.flags(), spec.dropout());
    return new TrainableModel(llama, context, spec.flags(), adapters, loader);
  }

  /** Of gates, A and B, in the model's dtype. */
  private static long adapterBytes(
      ModelLoader loader, List<MeteoraCheckpoint.Adapter> adapters, Router router) {
    var config = loader.config();
    long numbers = 0;
    for (int layer = 0; layer < config.numHiddenLayers(); layer++) {
      for (var module : Projection.values()) {
        var shape = config.shape(module);
        for (var adapter : adapters) {
          numbers +=
              adapter.ranks().getOrDefault(module.path(layer), 0) * (shape[0] + shape[1])
                  + (router instanceof Router.Gates ? shape[1] : 0);
        }
      }
    }
    return numbers * loader.dtype().bytes();
  }

  private static TrainableModel load(
      Spec spec, Collective sharers, Function<ModelLoader, TrainableModel> steps) {
    return ModelLoader.load(
        spec.basePath(), spec.device().orElse("auto"), spec.dtype(), sharers, steps);
  }

  /** {@code (rows, columns)} as {@code (n · rows, columns)}, in its place. */
  private static NDArray repeated(NDArray first, int n) {
    try (first) {
      return NDArrays.concat(new NDList(Collections.nCopies(n, first)), 0);
    }
  }

  private static long seed(Spec spec, int layer, Projection module, int kind) {
    return ((spec.seed() * 31 + layer) * 31 + module.ordinal()) * 31 + kind;
  }

  /** In ±1/√columns. */
  private static NDArray uniform(
      NDManager manager, Dtype dtype, long seed, long rows, long columns) {
    double bound = 1 / Math.sqrt(columns);
    var random = new Random(seed);
    var values = new float[Math.toIntExact(rows * columns)];
    for (int i = 0; i < values.length; i++) {
      values[i] = (float) ((2 * random.nextDouble() - 1) * bound);
    }
    try (var host = Devices.newHostManager()) {
      return Ops.copyOf(host.create(values, Ops.shape(rows, columns)), manager, dtype);
    }
  }

  /** The base model's tokenizer. */
  public Tokenizer tokenizer() {
    return loader.tokenizer();
  }

  /** What {@link LoraFlow} learns, by {@code layers.<l>.lora_flow.{weight,bias}}. */
  public Map<String, NDArray> loraFlowParameters() {
    var result = new LinkedHashMap<String, NDArray>();
    if (context.routing().router() instanceof LoraFlow flow) {
      for (int layer = 0; layer < flow.gates().size(); layer++) {
        var gate = flow.gates().get(layer);
        if (gate != null) {
          result.put(LoraFlowFile.key(layer, "weight"), gate.weight());
          result.put(LoraFlowFile.key(layer, "bias"), gate.bias());
        }
      }
    }
    return result;
  }

  /**
   * What is trained, by {@code <projection>.{moe_gate,lora_A,lora_B}}: all gates, then all A and B,
   * both in the order of layers and projections.
   *
   * @param gatesOnly leave A and B out
   */
  public Map<String, NDArray> parameters(boolean gatesOnly) {
    return parameters(llama, gatesOnly);
  }

  /** As {@link #parameters(boolean)}, of any model with adapters. */
  public static Map<String, NDArray> parameters(Llama llama, boolean gatesOnly) {
    var result = new LinkedHashMap<String, NDArray>();
    llama
        .adapted()
        .filter(linear -> linear.bank().gate() != null)
        .forEach(linear -> result.put(linear.path() + ".moe_gate", linear.bank().gate()));
    llama
        .adapted()
        .filter(linear -> !gatesOnly && linear.bank().loraA().getShape().size() > 0)
        .forEach(
            linear -> {
              result.put(linear.path() + ".lora_A", linear.bank().loraA());
              result.put(linear.path() + ".lora_B", linear.bank().loraB());
            });
    return result;
  }

  @Override
  public void close() {
    loader.close();
  }
}
