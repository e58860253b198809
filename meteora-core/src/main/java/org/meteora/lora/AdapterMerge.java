package org.meteora.lora;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDArrays;
import ai.djl.ndarray.NDList;
import ai.djl.ndarray.NDManager;
import ai.djl.ndarray.types.DataType;
import ai.djl.pytorch.jni.JniUtils;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Comparator;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.OptionalInt;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.function.Function;
import java.util.function.IntFunction;
import java.util.function.ToDoubleFunction;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.meteora.UserException;
import org.meteora.nn.Projection;
import org.meteora.safetensors.SafetensorsWriter;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * One adapter made of several, in float32, as PEFT's {@code add_weighted_adapter} makes it. With
 * s_i an adapter's scale and w_i its weight, {@code linear}, {@code ties}, {@code magnitude_prune},
 * {@code dare_linear} and {@code dare_ties} combine the A matrices, and apart from them the B
 * matrices, each with the factor √|w_i s_i|, which needs equal ranks; {@code cat} and {@code svd}
 * give Σ w_i s_i B_i A_i, exactly and at its best in a given rank; {@code ties_svd} combines the
 * whole updates s_i B_i A_i. An adapter that does not target a module is left out there.
 *
 * @param weights one an adapter; negative ones take an adapter's effect away
 * @param density share of the values that pruning keeps, 0…1, for the methods that prune
 * @param rank of the result of {@code svd} and {@code ties_svd}; by default the largest there is
 * @param seed of what {@code dare_…} drops; the draws are PyTorch's after {@code manual_seed}
 */
public record AdapterMerge(
    Method method, List<Double> weights, double density, OptionalInt rank, long seed) {
  private static final Pattern MODULE =
      Pattern.compile("(model\\.layers\\.(\\d+)\\.\\w+\\.(\\w+))\\.lora_A");

  /** How adapters are combined. */
  public enum Method {
    LINEAR,
    CAT,
    SVD,
    /** TIES-merging (arXiv 2306.01708): prune, elect a sign, mean of those who agree. */
    TIES,
    TIES_SVD,
    MAGNITUDE_PRUNE,
    /** DARE (arXiv 2311.03099): drop at random, scale up what is left. */
    DARE_LINEAR,
    DARE_TIES;

    /** Whether a density is used. */
    public boolean prunes() {
      return this != LINEAR && this != CAT && this != SVD;
    }

    /** Whether a rank can be chosen. */
    public boolean choosesRank() {
      return this == SVD || this == TIES_SVD;
    }

    /** Whether adapters of different ranks can be combined. */
    public boolean anyRanks() {
      return this == CAT || choosesRank();
    }

    /** Whether values are dropped at random. */
    public boolean drops() {
      return this == DARE_LINEAR || this == DARE_TIES;
    }

    boolean elects() {
      return this == TIES || this == TIES_SVD || this == DARE_TIES;
    }

    /** The name that PEFT has for it. */
    @Override
    public String toString() {
      return name().toLowerCase(Locale.ROOT);
    }
  }

  /**
   * The result.
   *
   * @param config of the adapter: scale 1 on every module
   * @param a by module, such as {@code model.layers.0.self_attn.q_proj}: A {@code (r, in)}
   * @param b by module: B {@code (out, r)}
   */
  public record Merged(LoraConfig config, Map<String, NDArray> a, Map<String, NDArray> b) {
    /**
     * Writes a folder that PEFT loads, the configuration last.
     *
     * @param baseModelName goes under {@code base_model_name_or_path}
     */
    public void write(Path folder, String baseModelName) {
      var tensors = new LinkedHashMap<String, NDArray>();
      a.forEach((module, each) -> tensors.put(LoraAdapter.key(module, "lora_A"), each));
      b.forEach((module, each) -> tensors.put(LoraAdapter.key(module, "lora_B"), each));
      SafetensorsWriter.write(
          folder.resolve("adapter_model.safetensors"), tensors, Map.of("format", "pt"));
      config.write(folder, baseModelName);
    }
  }

  /** A module's place, for PEFT's order: by layer, then q, k, v, o, gate, up, down. */
  private record Module(String path, int layer, String projection) {}

  /** One adapter's part on a module. */
  private record Part(NDArray a, NDArray b, double scale, double weight) {
    double factor() {
      return Math.sqrt(Math.abs(weight * scale));
    }
  }

  /**
   * Merges.
   *
   * @param adapters as many as there are weights
   * @param manager gets the result's tensors
   * @throws UserException when ranks or shapes do not fit together
   */
  public Merged run(List<LoraAdapter> adapters, NDManager manager) {
    if (adapters.size() != weights.size()) {
      throw new IllegalArgumentException("a weight for each adapter is needed");
    }
    var modules = modules(adapters);
    if (!method.anyRanks()) {
      requireEqualRanks(adapters, modules);
    }
    if (method.drops()) {
      JniUtils.setSeed(seed);
    }
    var allA = new LinkedHashMap<String, NDArray>();
    var allB = new LinkedHashMap<String, NDArray>();
    for (var module : modules) {
      try (var scratch = manager.newSubManager()) {
        var parts = parts(adapters, module.path(), scratch);
        NDArray[] merged =
            switch (method) {
              case CAT -> cat(parts);
              case SVD -> decompose(cat(parts), rank(parts));
              case TIES_SVD -> {
                // whole updates s_i B_i A_i (out, in)
                Function<Part, NDArray> update = p -> p.b().matMul(p.a()).mul((float) p.scale());
                yield decompose(combine(parts, update, Part::weight), rank(parts));
              }
              default ->
                  new NDArray[] {
                    combine(parts, Part::a, part -> Math.signum(part.weight()) * part.factor()),
                    combine(parts, Part::b, Part::factor)
                  };
            };
        allA.put(module.path(), Ops.copyOf(merged[0], manager, Dtype.F32));
        allB.put(module.path(), Ops.copyOf(merged[1], manager, Dtype.F32));
      }
    }
    return new Merged(config(adapters, modules, allA), allA, allB);
  }

  private static List<Module> modules(List<LoraAdapter> adapters) {
    var modules = new HashSet<Module>();
    for (var adapter : adapters) {
      for (var whole : adapter.wholeKeys().values()) {
        throw new UserException(
            "%s: %s is a whole weight; only LoRA can be merged", adapter.weights().path(), whole);
      }
      for (var key : adapter.loraKeys().keySet()) {
        var found = MODULE.matcher(key);
        if (found.matches()) {
          modules.add(new Module(found.group(1), Integer.parseInt(found.group(2)), found.group(3)));
        } else if (!key.endsWith(".lora_B")) {
          throw new UserException(
              adapter.weights().path() + ": the tensor " + key + " belongs to no projection");
        }
      }
    }
    return modules.stream()
        .sorted(
            Comparator.comparingInt(Module::layer)
                .thenComparingInt(each -> Projection.NAMES.indexOf(each.projection()))
                .thenComparing(Module::path))
        .toList();
  }

  private void requireEqualRanks(List<LoraAdapter> adapters, List<Module> modules) {
    for (var module : modules) {
      var ranks = new TreeMap<String, Integer>();
      adapters.forEach(
          adapter -> adapter.rankOn(module.path()).ifPresent(r -> ranks.put(adapter.name(), r)));
      if (ranks.values().stream().distinct().count() > 1) {
        throw new UserException(
            "the method %s needs adapters of equal rank, and on %s they have "
                    .formatted(method, module.path())
                + ranks.entrySet().stream()
                    .map(each -> each.getKey() + " " + each.getValue())
                    .collect(Collectors.joining(", "))
                + "; cat, svd and ties_svd take any ranks");
      }
    }
  }

  /** The adapters that target a module; those that do not are left out. */
  private List<Part> parts(List<LoraAdapter> adapters, String module, NDManager scratch) {
    var parts = new ArrayList<Part>();
    long[] shape = null;
    String first = null;
    for (int i = 0; i < adapters.size(); i++) {
      var adapter = adapters.get(i);
      var rank = adapter.rankOn(module);
      if (rank.isEmpty()) {
        continue;
      }
      var a = adapter.readA(scratch, module);
      var b = adapter.readB(scratch, module);
      var own = new long[] {b.getShape().get(0), a.getShape().get(1)};
      if (shape != null && !Arrays.equals(shape, own)) {
        throw new UserException(
            "the adapters %s and %s were made for other base models: on %s they change (%d, %d) and (%d, %d)"
                .formatted(first, adapter.name(), module, shape[0], shape[1], own[0], own[1]));
      }
      shape = own;
      first = adapter.name();
      parts.add(
          new Part(
              Ops.cast(a, Dtype.F32),
              Ops.cast(b, Dtype.F32),
              adapter.config().scaleOf(module, rank.get()),
              weights.get(i)));
    }
    return parts;
  }

  /** A {@code (Σr, in)} with the factors in it, B {@code (out, Σr)}. */
  private static NDArray[] cat(List<Part> parts) {
    var a = new NDList();
    var b = new NDList();
    for (var part : parts) {
      a.add(part.a().mul((float) (part.weight() * part.scale())));
      b.add(part.b());
    }
    return new NDArray[] {NDArrays.concat(a, 0), NDArrays.concat(b, 1)};
  }

  private int rank(List<Part> parts) {
    return rank.orElseGet(
        () ->
            parts.stream().mapToInt(part -> (int) part.a().getShape().get(0)).max().orElseThrow());
  }

  /**
   * The best rank-r form of B A, without making that product: B = U_b R_b and Aᵀ = U_a R_a with
   * orthonormal U leave the small matrix R_b R_aᵀ to decompose.
   */
  private static NDArray[] decompose(NDArray[] factors, int rank) {
    var a = Ops.svd(Ops.transpose(factors[0], 0, 1));
    var b = Ops.svd(factors[1]);
    // R = diag(S) Vᵀ
    var small = Ops.transpose(b[2].mul(b[1]), 0, 1).matMul(a[2].mul(a[1]));
    var kept = decompose(small, rank);
    return new NDArray[] {kept[0].matMul(Ops.transpose(a[0], 0, 1)), b[0].matMul(kept[1])};
  }

  /** The best rank-r form of a matrix: A = Vᵀ {@code (r, in)}, B = U diag(S) {@code (out, r)}. */
  private static NDArray[] decompose(NDArray x, int rank) {
    var usv = Ops.svd(x);
    long kept = Math.min(rank, usv[1].getShape().get(0));
    return new NDArray[] {
      Ops.transpose(Ops.narrow(usv[2], 1, 0, kept), 0, 1),
      Ops.narrow(usv[0], 1, 0, kept).mul(Ops.narrow(usv[1], 0, 0, kept))
    };
  }

  /** Tensors of one shape in one: pruned or thinned, with signs elected, as the method has it. */
  private NDArray combine(
      List<Part> parts, Function<Part, NDArray> tensor, ToDoubleFunction<Part> factor) {
    var sparse = parts.stream().map(tensor).map(this::sparse).toList();
    IntFunction<NDArray> weighted =
        i -> sparse.get(i).mul((float) factor.applyAsDouble(parts.get(i)));
    if (!method.elects()) {
      return IntStream.range(0, sparse.size())
          .mapToObj(weighted)
          .reduce(NDArray::add)
          .orElseThrow();
    }
    // the sign of the sum is elected, 0 counting as positive; a value of 0 agrees with neither
    var positive = sparse.stream().reduce(NDArray::add).orElseThrow().gte(0);
    NDArray sum = null;
    NDArray agreeing = null;
    for (int i = 0; i < sparse.size(); i++) {
      var each = sparse.get(i);
      var agrees =
          each.gt(0)
              .logicalAnd(positive)
              .logicalOr(each.lt(0).logicalAnd(positive.logicalNot()))
              .toType(DataType.FLOAT32, false);
      var own = weighted.apply(i).mul(agrees);
      sum = sum == null ? own : sum.add(own);
      agreeing = agreeing == null ? agrees : agreeing.add(agrees);
    }
    return sum.div(agreeing.maximum(1));
  }

  private NDArray sparse(NDArray x) {
    if (!method.prunes() || density >= 1) {
      return x;
    }
    if (method.drops()) {
      var kept = Ops.bernoulli(x.onesLike().mul((float) density));
      return x.mul(kept).div((float) density);
    }
    // the largest by magnitude, as many as the density says, rounded down
    var flat = x.abs().flatten();
    int count = (int) (density * flat.getShape().size());
    var mask = flat.zerosLike();
    if (count > 0) {
      var largest = Ops.topK(flat, count);
      mask = Ops.scatterAdd(mask, 0, largest[1], largest[0].onesLike());
    }
    return x.mul(mask.reshape(x.getShape()));
  }

  private static LoraConfig config(
      List<LoraAdapter> adapters, List<Module> modules, Map<String, NDArray> a) {
    var ranks = new LinkedHashMap<String, Integer>();
    modules.forEach(m -> ranks.put(m.path(), (int) a.get(m.path()).getShape().get(0)));
    int largest = ranks.values().stream().mapToInt(Integer::intValue).max().orElseThrow();
    ranks.values().removeIf(rank -> rank == largest);
    var alphas = new LinkedHashMap<String, Double>();
    ranks.forEach((module, rank) -> alphas.put(module, (double) rank));
    Set<Integer> layers = new TreeSet<>();
    if (adapters.stream().noneMatch(each -> each.config().layersToTransform().isEmpty())) {
      modules.forEach(each -> layers.add(each.layer()));
    }
    return new LoraConfig(
        largest,
        largest,
        adapters.getFirst().config().dropout(),
        new LoraConfig.Modules(
            modules.stream().map(Module::projection).collect(Collectors.toCollection(TreeSet::new)),
            null),
        LoraConfig.Modules.NONE,
        false,
        ranks,
        alphas,
        layers,
        Set.of());
  }
}
