package org.meteora.checkpoint;

import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.ConcurrentHashMap;
import java.util.function.Function;
import java.util.stream.Stream;
import org.meteora.UserException;
import org.meteora.backend.Backends;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.Generator;
import org.meteora.generate.Tokenizer;
import org.meteora.io.CacheFolders;
import org.meteora.io.Digests;
import org.meteora.io.FolderNames;
import org.meteora.lora.LoraAdapter;
import org.meteora.model.Llama;
import org.meteora.model.LlamaFactory;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.Flags;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.meteora.parallel.Collective;
import org.meteora.router.LoraFlow;
import org.meteora.router.LoraFlowFile;
import org.meteora.router.Routers;
import org.meteora.safetensors.SafetensorsFile;
import org.meteora.safetensors.SafetensorsFolder;
import org.meteora.tensor.Devices;

/**
 * A model ready to run: base, adapters, tokenizer and settings. Closing it frees its memory and its
 * files.
 *
 * <p>Long, because {@link Spec}, which describes what is loaded, and the ways to write one are a
 * third of it.
 */
public final class LoadedModel implements AutoCloseable {
  private final Spec spec;
  private final Llama llama;
  private final DecodeSession.Provider decoding;
  private final Generator generator;
  private final List<String> adapterNames;
  private final GenerationConfig generation;
  private final ModelLoader loader;
  private final List<Path> sources;
  private final Map<String, Router> routers = new HashMap<>();
  private final Map<Path, String> hashes = new ConcurrentHashMap<>();

  /**
   * What to load.
   *
   * @param basePath a Hugging Face Llama folder
   * @param model {@code meteora}, {@code base}, or an adapter's name in {@code adapterDir}
   * @param checkpointPath the MeteoRA checkpoint, for {@code meteora}
   * @param adapterDir PEFT folders by name
   * @param topK adapters a token; the default is 2
   * @param temperature of the routing; the default is 1
   * @param device {@code cpu} or {@code cuda[:i]}
   * @param dtype f32, f16 or bf16; by default f32 on CPU, bf16 on CUDA
   * @param flags which implementation runs
   * @param router who chooses among the adapters of {@code meteora}, one of {@link Routers#NAMES};
   *     all but the gate do without a checkpoint, and take what is in {@code adapterDir} then
   */
  public record Spec(
      Path basePath,
      String model,
      Optional<Path> checkpointPath,
      Optional<Path> adapterDir,
      Optional<Integer> topK,
      Optional<Double> temperature,
      String device,
      Optional<String> dtype,
      Flags flags,
      String router) {
    /** Whether the adapters' own folders are read, without a checkpoint. */
    boolean fromAdapters() {
      return model.equals("meteora")
          && !router.equals(Routers.GATE)
          && (checkpointPath.filter(Files::exists).isEmpty()
              || router.equals(LoraFlow.NAME) && loraFlow().isPresent());
    }

    /** The checkpoint's path, where it names what {@code train --router lora-flow} wrote. */
    private Optional<Path> loraFlow() {
      return checkpointPath
          .map(LoraFlowFile::of)
          .filter(file -> file.endsWith(LoraFlowFile.NAME) && Files.isRegularFile(file));
    }

    private Routers.Sources routerSources() {
      return new Routers.Sources(adapterDir, loraFlow());
    }

    private static Spec of(
        Path basePath, String model, Optional<Path> checkpoint, Optional<Path> adapterDir) {
      return new Spec(
          basePath,
          model,
          checkpoint,
          adapterDir,
          Optional.empty(),
          Optional.empty(),
          "cpu",
          Optional.empty(),
          Flags.AUTO,
          Routers.GATE);
    }

    /** A base model alone, on the CPU. */
    public static Spec base(Path basePath) {
      return of(basePath, "base", Optional.empty(), Optional.empty());
    }

    /**
     * A MeteoRA model on the CPU.
     *
     * @param checkpoint one that names its adapters
     */
    public static Spec meteora(Path basePath, Path checkpoint) {
      return of(basePath, "meteora", Optional.of(checkpoint), Optional.empty());
    }

    /** A base model with the PEFT adapter {@code name} in {@code adapterDir}, on the CPU. */
    public static Spec adapter(Path basePath, Path adapterDir, String name) {
      return of(basePath, name, Optional.empty(), Optional.of(adapterDir));
    }

    /** The same with another routing temperature. */
    public Spec at(double otherTemperature) {
      return with(Optional.of(otherTemperature), device);
    }

    /** The same on another device, in its usual dtype. */
    public Spec on(String otherDevice) {
      return with(temperature, otherDevice);
    }

    private Spec with(Optional<Double> temperature, String device) {
      return new Spec(
          basePath,
          model,
          checkpointPath,
          adapterDir,
          topK,
          temperature,
          device,
          dtype,
          flags,
          router);
    }
  }

  private LoadedModel(
      Spec spec,
      Llama llama,
      ForwardContext context,
      List<String> adapterNames,
      GenerationConfig generation,
      ModelLoader loader,
      List<Path> sources) {
    this.spec = spec;
    this.llama = llama;
    this.decoding = Backends.decoding(llama);
    this.adapterNames = adapterNames;
    this.generator = new Generator(llama, decoding, routed(context));
    this.generation = generation;
    this.loader = loader;
    this.sources = sources;
  }

  /**
   * Loads a model.
   *
   * @throws UserException when anything is missing, broken or does not fit
   */
  public static LoadedModel load(Spec spec) {
    return load(spec, Collective.single(), new Room(0, 0));
  }

  /**
   * Loads a model whose base several processes share, which each load it.
   *
   * @param sharers one process has it whole
   * @param room a line in the log says if there is no memory for it
   */
  public static LoadedModel load(Spec spec, Collective sharers, Room room) {
    requireRouter(spec);
    return ModelLoader.load(
        spec.basePath(), spec.device(), spec.dtype(), sharers, loader -> load(spec, loader, room));
  }

  /**
   * What the caller may ask for at once.
   *
   * @param sequences of a batch
   * @param tokens of each, prompt and answer
   */
  public record Room(int sequences, int tokens) {}

  private static void requireRouter(Spec spec) {
    Routers.require(spec.router());
    if (spec.router().equals(Routers.GATE)) {
      return;
    }
    if (!spec.model().equals("meteora")) {
      throw new UserException(
          "--router %s chooses among adapters: it goes with --model meteora, not with %s",
          spec.router(), spec.model());
    }
    if (spec.flags().singleAdapter().isPresent()) {
      throw new UserException(
          "--router " + spec.router() + " and MOELINEAR_SINGLE_MOE_LORA: set one of them");
    }
  }

  private static LoadedModel load(Spec spec, ModelLoader loader, Room room) {
    if (spec.model().equals("meteora")) {
      spec.routerSources().require(spec.router());
    }
    var flags = spec.flags();
    var config = loader.config();
    var settings =
        new RoutingSettings(
            spec.topK().orElse(RoutingSettings.DEFAULT.topK()),
            spec.temperature().orElse(RoutingSettings.DEFAULT.temperature()));
    boolean meteora = spec.model().equals("meteora");
    boolean plain = !meteora && !spec.model().equals("base");
    var checkpoint = meteora && !spec.fromAdapters() ? checkpoint(spec, loader) : null;
    var opened = new ArrayList<LoraAdapter>();
    var folders =
        spec.fromAdapters()
            ? LoraAdapter.list(adapterDir(spec))
            : plain ? List.of(adapterFolder(spec)) : List.<Path>of();
    for (var folder : folders) {
      opened.add(loader.own(LoraAdapter.open(folder)));
      // checks every shape before anything is loaded
      MeteoraCheckpoint.describe(opened.getLast(), config);
    }
    if (spec.fromAdapters()) {
      TrainableModel.requireNoOwnWeights(spec.basePath(), opened, config);
    }
    boolean baseFromCheckpoint =
        !SafetensorsFolder.hasWeights(spec.basePath()) && checkpoint != null;
    var files =
        baseFromCheckpoint
            ? checkpoint.weights()
            : loader.own(SafetensorsFolder.open(spec.basePath()));
    var adapters =
        plain
            ? List.of(ModelBuilder.withOwnWeights(opened.getFirst(), files, config))
            : List.copyOf(opened);
    var names =
        checkpoint == null
            ? adapters.stream().map(LoraAdapter::name).toList()
            : checkpoint.adapters().stream().map(MeteoraCheckpoint.Adapter::name).toList();
    var prefix = baseFromCheckpoint ? "base_model.model." : "";
    var base = new ModelLoader.Base(files, prefix, plain ? adapters.getFirst() : null);
    Function<ModelBuilder, LlamaFactory.Banks> banks =
        builder -> {
          var backend = builder.backend();
          backend.prepare(config, settings.topK(), checkpoint == null ? 0 : names.size());
          return (layer, module) ->
              names.isEmpty()
                  ? null
                  : backend.forInference(
                      checkpoint != null
                          ? builder.bank(checkpoint, config, layer, module)
                          : builder.bank(adapters, config, layer, module));
        };
    var adapterFiles = new ArrayList<SafetensorsFile>();
    if (checkpoint != null && !baseFromCheckpoint) {
      adapterFiles.addAll(checkpoint.weights().files());
    }
    adapters.forEach(each -> adapterFiles.add(each.weights()));
    long adapterBytes =
        adapterFiles.stream()
            .flatMap(file -> file.tensors().values().stream())
            .mapToLong(info -> info.bytes() / info.dtype().bytes() * loader.dtype().bytes())
            .sum();
    long tokens = Math.min(room.tokens(), config.maxPositionEmbeddings());
    var cache =
        MemoryNeed.NONE.and(
            "a cache of %,d x %,d tokens".formatted(room.sequences(), tokens),
            MemoryNeed.cacheBytes(config, loader.dtype(), room.sequences(), tokens));
    var llama =
        loader.build(base, banks, MemoryNeed.NONE.and("adapters", adapterBytes), cache, flags, 0);
    var sources =
        Stream.concat(files.files().stream(), adapterFiles.stream())
            .map(SafetensorsFile::path)
            .toList();
    var generation = GenerationConfig.read(spec.basePath(), config);
    var context = ForwardContext.inference(settings, flags);
    return new LoadedModel(spec, llama, context, names, generation, loader, sources);
  }

  private static MeteoraCheckpoint checkpoint(Spec spec, ModelLoader loader) {
    var path =
        spec.checkpointPath()
            .orElseThrow(
                () ->
                    new UserException(
                        "no MeteoRA checkpoint given: set meteora_ckpt_path"
                            + " (--meteora-ckpt-path), or choose --model base or an adapter"));
    var checkpoint = loader.own(MeteoraCheckpoint.open(path, spec.adapterDir(), loader.config()));
    var single = spec.flags().singleAdapter();
    if (single.isPresent() && single.getAsInt() >= checkpoint.adapters().size()) {
      throw new UserException(
          "MOELINEAR_SINGLE_MOE_LORA=%s: there are %s adapters, counted from 0",
          single.getAsInt(), checkpoint.adapters().size());
    }
    return checkpoint;
  }

  private static Path adapterDir(Spec spec) {
    return spec.adapterDir()
        .orElseThrow(
            () ->
                new UserException("no folder of adapters given: set adapter_dir (--adapter-dir)"));
  }

  private static Path adapterFolder(Spec spec) {
    var dir = adapterDir(spec);
    var folder = dir.resolve(FolderNames.require("the adapter", spec.model()));
    if (!Files.isDirectory(folder)) {
      var names =
          LoraAdapter.list(dir).stream().map(path -> path.getFileName().toString()).toList();
      throw new UserException(
          "no adapter %s in %s; there are %s (or meteora, base)",
          spec.model(), dir, String.join(", ", names));
    }
    return folder;
  }

  /** The context with the router of the specification; the flags' single adapter stays. */
  private ForwardContext routed(ForwardContext context) {
    return spec.router().equals(Routers.GATE)
        ? context
        : context.withRouting(context.routing().withRouter(router(spec.router())));
  }

  /**
   * A router over this model's adapters, made at its first use and kept.
   *
   * @param name of {@link Routers#NAMES}
   * @throws UserException for the gate of a model without gates, or an unknown name
   */
  public Router router(String name) {
    if (name.equals(Routers.GATE) && spec.fromAdapters()) {
      throw new UserException(
          "the router gate needs a MeteoRA checkpoint: set meteora_ckpt_path"
              + " (--meteora-ckpt-path)");
    }
    synchronized (routers) {
      return routers.computeIfAbsent(
          name, each -> Routers.of(each, llama, adapterNames, spec.routerSources()));
    }
  }

  /** The model itself. */
  public Llama llama() {
    return llama;
  }

  /** The base model's tokenizer. */
  public Tokenizer tokenizer() {
    return loader.tokenizer();
  }

  /** The adapters in the order of their indices; one for a plain PEFT model, none for the base. */
  public List<String> adapterNames() {
    return adapterNames;
  }

  /** The model folder's own generation settings. */
  public GenerationConfig generationConfig() {
    return generation;
  }

  /** Continues token sequences with this model, with the routing that it was loaded with. */
  public Generator generator() {
    return generator;
  }

  /**
   * Answers one prompt.
   *
   * @param prompt taken as it is
   * @param config such as {@code generationConfig().withGreedy().withMaxNewTokens(100)}
   */
  public String answer(String prompt, GenerationConfig config) {
    var ids = tokenizer().encode(prompt, true);
    return tokenizer().decode(generator.generate(List.of(ids), config).getFirst(), true);
  }

  /** What it was loaded from. */
  public Spec spec() {
    return spec;
  }

  /** All settings and the hashes of all weight files, for a saved result. Reads the files once. */
  public Map<String, Object> describe() {
    return describe(generator.context().routing());
  }

  /** The same with another routing. */
  public Map<String, Object> describe(RoutingSettings routing) {
    var result = new LinkedHashMap<String, Object>();
    result.put("model", spec.model());
    result.put("base_model_path", CacheFolders.shown(spec.basePath()));
    result.put(
        "meteora_ckpt_path",
        spec.fromAdapters() ? null : spec.checkpointPath().map(CacheFolders::shown).orElse(null));
    result.put("adapter_dir", spec.adapterDir().map(CacheFolders::shown).orElse(null));
    result.put("adapters", adapterNames);
    result.put("router", spec.model().equals("meteora") ? routing.router().name() : null);
    result.put(
        "routing_top_k",
        adapterNames.isEmpty() ? routing.topK() : Math.min(routing.topK(), adapterNames.size()));
    result.put("routing_temperature", routing.temperature());
    result.putAll(spec.flags().describe());
    result.put("device", Devices.name(llama.manager().getDevice()));
    result.put("dtype", llama.dtype().label());
    var read = new ArrayList<>(sources);
    if (spec.model().equals("meteora")) {
      read.addAll(spec.routerSources().files(routing.router().name(), adapterNames));
    }
    // a processor reads some 2 GB/s: large models come in several files
    read.parallelStream().forEach(source -> hashes.computeIfAbsent(source, Digests::ofFile));
    var shown = new LinkedHashMap<String, String>();
    read.forEach(source -> shown.put(CacheFolders.shown(source), hashes.get(source)));
    result.put("sha256", shown);
    return result;
  }

  @Override
  public void close() {
    try (loader) {
      decoding.close();
    }
  }
}
