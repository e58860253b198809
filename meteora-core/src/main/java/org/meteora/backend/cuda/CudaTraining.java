package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import java.util.function.IntConsumer;
import java.util.stream.IntStream;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.kernel.Kernels;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.cuda.kernel.TrainingKernels.Dropped;
import org.meteora.cuda.kernel.TrainingKernels.Norm;
import org.meteora.model.DecoderLayer;
import org.meteora.model.FrozenWeights;
import org.meteora.model.Gradients;
import org.meteora.model.Llama;
import org.meteora.model.LlamaTraining;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.GatedLinear;
import org.meteora.moe.Router;
import org.meteora.nn.Projection;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Training passes on a GPU: matrix products by cuBLAS, attention by libtorch, everything between by
 * kernels of our own, and nothing recorded but attention. Tokens lie one after another without
 * padding. Parameters' gradients are added to their sums where they are computed.
 *
 * <p>A pass keeps the activations of as many layers as memory allows, the last ones, and computes
 * those of the others again from their inputs. One that runs out of memory in its forward part is
 * begun again with fewer.
 *
 * <p>Long, because forward and backward share what the pass keeps, and are read side by side.
 */
final class CudaTraining implements LlamaTraining {
  private static final Logger LOG = LoggerFactory.getLogger(CudaTraining.class);

  /** Of logits held at once: elements. */
  private static final long LOGITS_AT_ONCE = 1L << 27;

  /** Device memory that is left to libtorch and others. */
  private static final long RESERVE = 1L << 30;

  private final Llama llama;
  private final Recompute recompute;
  private final TrainingDevice device;
  private final Dtype dtype;
  private final List<TrainingLayer> layers = new ArrayList<>();
  private final Norm norm;
  private final int first;
  private final int adapters;
  private final long gates;
  private final double dropout;
  private final TrainingMemory workspace;
  private final TrainingMemory activations;
  private final Watching watching = new Watching();
  private final NDManager manager;
  private boolean loggedKept;

  /** Bytes of activations that room was asked for. */
  private long asked;

  private int recomputed;

  private CudaTraining(
      Llama llama, Gradients gradients, Recompute recompute, TrainingDevice device) {
    this.llama = llama;
    this.recompute = recompute;
    this.device = device;
    this.dtype = llama.dtype();
    this.manager = llama.manager().newSubManager();
    device.makeCurrent();
    boolean flash = hasFlashAttention(llama, manager);
    for (int i = 0; i < llama.layers().size(); i++) {
      layers.add(new TrainingLayer(llama, i, flash, gradients, device, manager));
    }
    norm = TrainingLayer.norm(llama.norm());
    first = llama.adapted().findFirst().map(GatedLinear::layer).orElse(0);
    var groups = layers.stream().flatMap(layer -> layer.groups().stream()).toList();
    adapters = groups.stream().mapToInt(TrainingGroup::adapters).max().orElse(0);
    gates = groups.stream().mapToLong(TrainingGroup::gates).sum();
    dropout = llama.adapted().mapToDouble(GatedLinear::dropout).max().orElse(0);
    workspace = new TrainingMemory(manager);
    activations = new TrainingMemory(manager);
  }

  /**
   * Empty for a model that it cannot train.
   *
   * @throws UserException for what the device refuses
   */
  static Optional<LlamaTraining> of(
      Llama llama, Gradients gradients, Recompute recompute, TrainingDevice device) {
    var adapted = llama.adapted().toList();
    boolean fits =
        llama.linears().allMatch(linear -> Ops.dtype(linear.weight()) == llama.dtype())
            && llama.layers().stream().allMatch(CudaTraining::fits)
            && adapted.stream().map(linear -> linear.bank().size()).distinct().count() <= 1
            && adapted.stream().allMatch(linear -> linear.bank().size() <= Kernels.MAX_ADAPTERS)
            && adapted.stream().map(GatedLinear::dropout).distinct().count() <= 1;
    return fits
        ? Optional.of(new CudaTraining(llama, gradients, recompute, device))
        : Optional.empty();
  }

  private static boolean fits(DecoderLayer layer) {
    return Arrays.stream(Projection.Input.values())
        .map(layer::projections)
        .allMatch(TrainingGroup::fits);
  }

  @Override
  public boolean accepts(ForwardContext context) {
    return context.training()
        && context.backendChooses()
        && context.listener().isEmpty()
        && context.tape().isEmpty()
        && switch (context.routing().router()) {
          case Router.Gates gated ->
              adapters <= 1 && gates == 0 || gates > 0 && topK(context) <= Kernels.MAX_TOP_K;
          case Router.Fixed fixed ->
              fixed.topK() == 1
                  && fixed.weights().stream().allMatch(weight -> weight == 1)
                  && fixed.adapters().stream().allMatch(each -> each >= 0 && each < adapters);
          default -> false;
        };
  }

  private int topK(ForwardContext context) {
    return Math.min(context.routing().topK(), Math.max(1, adapters));
  }

  private final class Plan {
    final Numbers numbers;
    final int tokens;
    final int labelled;
    final boolean gradients;

    /** Probability of dropout. */
    final double p;

    final int chunk;
    final Layout at;
    final long counted;
    final long countedBytes;
    final TrainingKernels.Counts counts;
    final long losses;
    final TrainingMemory.Scratch scratch;
    final long[] inputs;
    final long slope;
    final long compact;
    final long slopeOfCompact;
    final long again;

    /** Where things go in the workspace that begins at {@code region}. */
    Plan(TrainingMemory.Region region, Numbers numbers, boolean gradients, double p) {
      this.numbers = numbers;
      tokens = numbers.tokens;
      labelled = numbers.labelled;
      this.gradients = gradients;
      this.p = p;
      at = Layout.from(region.take(numbers.memory.byteSize()), tokens, labelled);
      countedBytes = 4L * (2L * tokens + (long) tokens * adapters + labelled);
      counted = region.take(countedBytes);
      counts = new TrainingKernels.Counts(counted + 8L * tokens, counted, counted + 4L * tokens);
      losses = counted + 8L * tokens + 4L * tokens * adapters;
      int bytes = dtype.bytes();
      int hidden = llama.config().hiddenSize();
      long wide = (long) tokens * hidden * bytes;
      scratch =
          TrainingMemory.Scratch.of(
              region, device, llama.config(), dtype, layers, tokens, positions(), p > 0);
      inputs = new long[layers.size() + 1];
      if (gradients) {
        for (int i = inputs.length - 1; i >= 0; i--) {
          boolean shared = i < first || i == 0 && embedsAgain();
          inputs[i] = shared ? inputs[i + 1] : region.take(wide);
        }
      } else {
        long[] both = {region.take(wide), region.take(wide)};
        for (int i = 0; i < inputs.length; i++) {
          inputs[i] = both[i % 2];
        }
      }
      slope = inputs[layers.size()]; // nobody needs the result once there is its gradient
      int vocab = llama.config().vocabSize();
      int most = (int) Math.clamp(LOGITS_AT_ONCE / vocab / 128 * 128, 128, 8192);
      chunk = Math.min(labelled, most);
      long bytesOfLogits = (long) chunk * vocab * bytes;
      long bytesOfCompact = (long) labelled * hidden * bytes;
      // the loss comes when no layer is computed: what serves one serves it
      again = region.take(Math.max(bytesOfLogits, bytesOfLayer(tokens, positions())));
      long bytesOfInner = (long) tokens * llama.config().intermediateSize() * bytes;
      boolean fits = 2 * (bytesOfCompact + TrainingMemory.ALIGNMENT) <= bytesOfInner;
      var place = fits ? new TrainingMemory.Region(scratch.inner()) : region;
      compact = place.take(bytesOfCompact);
      slopeOfCompact = place.take(gradients ? bytesOfCompact : 0);
    }

    /** Places in padded rows. */
    long positions() {
      return (long) numbers.rows * numbers.length;
    }

    TrainingLayer.Kept kept(TrainingMemory.Region region, int layer) {
      return layers.get(layer).kept(region, tokens, positions());
    }
  }

  /**
   * Where the arrays begin that a pass takes from the host, there and on the device.
   *
   * @param ids int32 (tokens)
   * @param slots int32 (tokens), each token's place in the padded rows
   * @param targets int32 (tokens), each token's task; −1: none
   * @param fixed int32 (tokens), each token's adapter where no gate chooses
   * @param labelAt int32 (labelled), the token of each label
   * @param labels int32 (labelled)
   * @param weights float32 (labelled), of the losses
   * @param end of them all
   */
  private record Layout(
      long ids,
      long slots,
      long targets,
      long fixed,
      long labelAt,
      long labels,
      long weights,
      long end) {
    static Layout from(long start, int tokens, int labelled) {
      long ofTokens = 4L * tokens;
      long ofLabels = 4L * labelled;
      long behindTokens = start + 4 * ofTokens;
      return new Layout(
          start,
          start + ofTokens,
          start + 2 * ofTokens,
          start + 3 * ofTokens,
          behindTokens,
          behindTokens + ofLabels,
          behindTokens + 2 * ofLabels,
          behindTokens + 3 * ofLabels);
    }
  }

  private static final class Numbers {
    final int rows;
    final int length;
    final int tokens;
    final int labelled;
    final int[] slotOfToken;
    final int[] positionOfLabel;
    final Layout at;
    final MemorySegment memory;

    Numbers(Input input, Router router, Arena arena) {
      rows = input.lengths().length;
      length = input.length();
      tokens = Arrays.stream(input.lengths()).sum();
      int positions = rows * length;
      slotOfToken = new int[tokens];
      var tokenOfSlot = new int[positions];
      int token = 0;
      for (int row = 0; row < rows; row++) {
        for (int t = 0; t < input.lengths()[row]; t++) {
          tokenOfSlot[row * length + t] = token;
          slotOfToken[token++] = row * length + t;
        }
      }
      positionOfLabel =
          IntStream.range(0, positions).filter(i -> input.labels()[i] != IGNORED).toArray();
      labelled = positionOfLabel.length;
      at = Layout.from(0, tokens, labelled);
      memory = arena.allocate(at.end(), 16);
      for (int i = 0; i < tokens; i++) {
        int slot = slotOfToken[i];
        set(at.ids(), i, (int) input.ids()[slot]);
        set(at.slots(), i, slot);
        long task = input.tasks() == null ? IGNORED : input.tasks()[slot];
        set(at.targets(), i, task == IGNORED ? -1 : (int) task);
        set(at.fixed(), i, router instanceof Router.Fixed it ? adapterOf(it, slot / length) : 0);
      }
      for (int i = 0; i < labelled; i++) {
        int slot = positionOfLabel[i];
        set(at.labelAt(), i, tokenOfSlot[slot]);
        set(at.labels(), i, (int) input.labels()[slot]);
        var each = input.weights();
        double weight = each.length == 1 ? each[0] : each[slot / length];
        memory.set(ValueLayout.JAVA_FLOAT, at.weights() + 4L * i, (float) weight);
      }
    }

    private static int adapterOf(Router.Fixed fixed, int row) {
      return fixed.adapters().get(fixed.adapters().size() == 1 ? 0 : row);
    }

    private void set(long array, int index, int value) {
      memory.set(ValueLayout.JAVA_INT, array + 4L * index, value);
    }
  }

  @Override
  public Result run(Input input, ForwardContext context, boolean gradients, IntConsumer done) {
    device.makeCurrent();
    try (var arena = Arena.ofConfined();
        var scope = manager.newSubManager()) {
      var numbers = new Numbers(input, context.routing().router(), arena);
      var plan = plan(numbers, gradients, context);
      int kept = gradients ? keptLayers(plan) : 0;
      for (; ; kept = reserve(kept / 2, bytesOfLayer(plan.tokens, plan.positions()))) {
        try {
          return run(input, context, plan, kept, scope, done);
        } catch (OutOfDeviceMemory e) {
          // weights that are gathered: the other processes would be elsewhere in their pass
          if (kept == 0 || !llama.frozen().isResident()) {
            throw e.reason;
          }
          LOG.warn(
              "the GPU's memory ran out with the activations of {} layers kept: fewer are", kept);
        }
      }
    }
  }

  /** Lays a pass out in the workspace, which grows where it is too small. */
  private Plan plan(Numbers numbers, boolean gradients, ForwardContext context) {
    double p = context.dropout() ? dropout : 0;
    var sized = new TrainingMemory.Region(0);
    new Plan(sized, numbers, gradients, p);
    if (sized.taken() > workspace.size()) {
      close();
      device.freeBytes(); // gives back what was too small, too
      workspace.reserve(sized.taken());
    }
    return new Plan(workspace.region(), numbers, gradients, p);
  }

  /** In the forward part of a pass, which can be begun again. */
  private static final class OutOfDeviceMemory extends RuntimeException {
    private static final long serialVersionUID = 1;
    private final transient RuntimeException reason;

    OutOfDeviceMemory(RuntimeException reason) {
      this.reason = reason;
    }
  }

  private long bytesOfLayer(long tokens, long positions) {
    long largest = 0;
    for (var layer : layers) {
      var region = new TrainingMemory.Region(0);
      layer.kept(region, tokens, positions);
      largest = Math.max(largest, region.taken());
    }
    return largest;
  }

  /** What libtorch keeps of a layer's attention: its result, and a float32 a head and position. */
  private long bytesOfAttention(Plan plan) {
    long heads = llama.config().numAttentionHeads();
    long perHead = (long) llama.config().headDim() * dtype.bytes() + 4;
    long repeated = dtype == Dtype.F32 ? 3 : 1; // keys and values repeated to all heads
    return plan.positions() * heads * perHead * repeated;
  }

  /** Makes room for so many layers, or for fewer, and says for how many. */
  private int reserve(int count, long each) {
    for (int fewer = count; ; fewer /= 2) {
      try {
        activations.release();
        activations.reserve(fewer * each);
        return fewer;
      } catch (RuntimeException e) {
        if (fewer == 0 || !TooLittleMemory.isReportedBy(e)) {
          throw e;
        }
      }
    }
  }

  /** How many layers' activations this pass keeps; there is room for them. */
  private int keptLayers(Plan plan) {
    int count = layers.size() - first;
    if (recompute == Recompute.ALL) {
      return 0;
    }
    long each = bytesOfLayer(plan.tokens, plan.positions());
    long wanted = each * count;
    if (wanted > asked) { // more than there was ever room asked for
      asked = wanted;
      if (recompute == Recompute.NONE) {
        activations.reserve(wanted);
      } else {
        activations.release();
        long attention = bytesOfAttention(plan);
        long free = device.freeBytes() - RESERVE - 12 * attention;
        if (!llama.frozen().isResident()) { // embedding and head come and go
          free -= (long) llama.config().vocabSize() * llama.config().hiddenSize() * dtype.bytes();
        }
        int possible = (int) Math.max(0, Math.min(count, free / (each + attention)));
        possible = reserve(possible, each);
        if (!loggedKept) {
          loggedKept = true;
          LOG.info(
              "activations of {} of {} layers are kept, those of the others computed again",
              possible,
              count);
        }
      }
    }
    return (int) Math.min(count, activations.size() / each);
  }

  private Result run(
      Input input, ForwardContext context, Plan plan, int kept, NDManager scope, IntConsumer done) {
    watching.phase(Watching.Phase.FORWARD);
    if (plan.gradients) {
      parametersMayChange();
    }
    device.upload(plan.at.ids(), plan.numbers.memory);
    device.clear(plan.counted, plan.countedBytes);
    boolean counts = gated(context) && input.tasks() != null;
    var pass = pass(input, context, plan, counts, scope);
    recomputed = plan.gradients ? layers.size() - first - kept : recomputed;
    var attended = new TrainingLayer.Attended[layers.size()];
    var keptOf = new TrainingLayer.Kept[layers.size()];
    try {
      var region = activations.region();
      for (int i = layers.size() - kept; i < layers.size(); i++) {
        keptOf[i] = plan.kept(region, i);
      }
      forward(pass, plan, keptOf, attended);
    } catch (RuntimeException e) {
      close(attended);
      throw TooLittleMemory.isReportedBy(e) ? new OutOfDeviceMemory(e) : e;
    }
    try {
      loss(pass, plan);
      if (plan.gradients) {
        watching.phase(Watching.Phase.BACKWARD);
        backward(pass, plan, keptOf, attended, done);
      }
    } finally {
      close(attended);
    }
    watching.begin(Part.RESULTS);
    var result = results(plan, counts);
    watching.begin(Part.FORWARD);
    return result;
  }

  /** Whether {@link Ops#flashAttention} and its gradient can be had here: they are tried. */
  private static boolean hasFlashAttention(Llama llama, NDManager manager) {
    var config = llama.config();
    if (!llama.backend().runsPacked(config)) {
      return false;
    }
    try (var scope = manager.newSubManager();
        var recording = Ops.recording()) {
      var q = Ops.zeros(scope, llama.dtype(), 1, config.numAttentionHeads(), 3, config.headDim());
      var k = Ops.zeros(scope, llama.dtype(), 1, config.numKeyValueHeads(), 3, config.headDim());
      var v = Ops.zeros(scope, llama.dtype(), 1, config.numKeyValueHeads(), 3, config.headDim());
      for (var input : List.of(q, k, v)) {
        input.setRequiresGradient(true);
      }
      Ops.backward(Ops.flashAttention(q, k, v), q);
      return true;
    } catch (RuntimeException e) {
      LOG.info("attention as libtorch chooses it: {}", e.getMessage());
      return false;
    }
  }

  /** What inference has kept of the parameters is made anew. */
  private void parametersMayChange() {
    llama.adapted().forEach(linear -> linear.layout().parametersMayChange());
  }

  private boolean gated(ForwardContext context) {
    return gates > 0 && context.routing().router() instanceof Router.Gates;
  }

  /**
   * What all layers are told of a pass.
   *
   * @param counts whether gates have a loss and are counted
   */
  private TrainingLayer.Pass pass(
      Input input, ForwardContext context, Plan plan, boolean counts, NDManager scope) {
    boolean gated = gated(context);
    boolean padded = plan.tokens != plan.positions();
    return new TrainingLayer.Pass(
        new TrainingGroup.Pass(
            plan.tokens,
            gated ? topK(context) : 1,
            device.kernels(gated ? topK(context) : 1, Math.max(1, adapters)),
            gated,
            new TrainingKernels.Tasks(counts ? plan.at.targets() : 0, gated ? 0 : plan.at.fixed()),
            input.gateWeight(),
            plan.scratch.group(),
            watching),
        plan.numbers.rows,
        plan.numbers.length,
        padded ? plan.at.slots() : 0,
        llama.angles(scope, plan.numbers.length),
        Dropout.of(input.seed(), plan.p),
        counts ? plan.counts : TrainingKernels.Counts.NONE,
        plan.scratch,
        scope);
  }

  private static void close(TrainingLayer.Attended[] attended) {
    for (var each : attended) {
      if (each != null) {
        each.close();
      }
    }
  }

  private void forward(
      TrainingLayer.Pass pass,
      Plan plan,
      TrainingLayer.Kept[] kept,
      TrainingLayer.Attended[] attended) {
    llama.frozen().use(FrozenWeights.EMBEDDING, 0);
    embed(pass, plan);
    for (int i = 0; i < layers.size(); i++) {
      // what lies before the first adapter needs no gradient, and its input is not kept
      long output = plan.inputs[i + 1];
      llama.frozen().use(i, i + 1 < layers.size() ? i + 1 : FrozenWeights.HEAD);
      boolean isKept = kept[i] != null;
      var here = isKept ? kept[i] : again(plan, i);
      var each = layers.get(i).forward(pass, plan.inputs[i], here, output, isKept);
      if (isKept) {
        attended[i] = each;
      } else {
        each.close();
      }
    }
  }

  private void embed(TrainingLayer.Pass pass, Plan plan) {
    int hidden = llama.config().hiddenSize();
    long table = Ops.dataPointer(llama.embedding());
    pass.kernels().rows(plan.tokens, hidden, table, plan.inputs[0], plan.at.ids(), false);
  }

  /**
   * Whether the first layer's input is written over by its result, and made once more for its
   * backward pass, when the second layer's input is no longer needed.
   */
  private boolean embedsAgain() {
    return first == 0 && layers.size() > 1 && llama.frozen().isResident();
  }

  /** Where a layer's activations are that are computed again, or not kept. */
  private TrainingLayer.Kept again(Plan plan, int layer) {
    return plan.kept(new TrainingMemory.Region(plan.again), layer);
  }

  /** The vocabulary's loss; with gradients, that of the last layer's output. */
  private void loss(TrainingLayer.Pass pass, Plan plan) {
    watching.begin(Part.LOSS);
    llama.frozen().use(FrozenWeights.HEAD, plan.gradients ? layers.size() - 1 : FrozenWeights.NONE);
    var kernels = pass.kernels();
    int hidden = llama.config().hiddenSize();
    int vocab = llama.config().vocabSize();
    int bytes = dtype.bytes();
    long last = plan.inputs[layers.size()];
    long normed = plan.scratch.normed(Projection.Input.MLP);
    kernels.norm(plan.tokens, norm, last, 0, 0, normed, Dropped.NONE);
    kernels.rows(plan.labelled, hidden, normed, plan.compact, plan.at.labelAt(), false);
    var head = Matrix.of(Ops.dataPointer(llama.head()), vocab, hidden, dtype);
    for (int from = 0; from < plan.labelled; from += plan.chunk) {
      int count = Math.min(plan.chunk, plan.labelled - from);
      long at = (long) from * hidden * bytes;
      var logits = Matrix.of(plan.again, count, vocab, dtype);
      var x = Matrix.of(plan.compact + at, count, hidden, dtype);
      device.multiply(logits, x, head.transpose(), false);
      kernels.vocabularyLoss(
          count,
          vocab,
          plan.again,
          plan.at.labels() + 4L * from,
          plan.gradients ? plan.at.weights() + 4L * from : 0,
          plan.losses + 4L * from);
      if (plan.gradients) {
        var slope = Matrix.of(plan.slopeOfCompact + at, count, hidden, dtype);
        device.multiply(slope, logits, head, false);
      }
    }
    if (plan.gradients) {
      device.clear(normed, (long) plan.tokens * hidden * bytes);
      kernels.rows(plan.labelled, hidden, plan.slopeOfCompact, normed, plan.at.labelAt(), true);
      kernels.normBackward(plan.tokens, norm, last, normed, 0, 0, plan.slope, Dropout.NONE);
    }
  }

  private void backward(
      TrainingLayer.Pass pass,
      Plan plan,
      TrainingLayer.Kept[] kept,
      TrainingLayer.Attended[] attended,
      IntConsumer done) {
    var silent = pass.withoutCounts();
    for (int i = layers.size() - 1; i >= first; i--) {
      llama.frozen().use(i, i > first ? i - 1 : FrozenWeights.EMBEDDING); // of the next step
      var layer = layers.get(i);
      boolean fresh = kept[i] == null;
      var here = fresh ? again(plan, i) : kept[i];
      if (i == 0 && embedsAgain()) {
        watching.between();
        embed(silent, plan);
      }
      if (fresh) {
        watching.phase(Watching.Phase.AGAIN);
        attended[i] = layer.forward(silent, plan.inputs[i], here, 0, true);
        watching.phase(Watching.Phase.BACKWARD);
      }
      var each = attended[i];
      attended[i] = null;
      layer.backward(silent, plan.inputs[i], here, each, plan.slope, i > first, fresh);
      done.accept(i);
    }
    // nothing is still being fetched when the pass has ended
    llama.frozen().use(FrozenWeights.EMBEDDING, FrozenWeights.NONE);
  }

  private Result results(Plan plan, boolean counts) {
    var numbers = plan.numbers;
    int positions = (int) plan.positions();
    try (var arena = Arena.ofConfined()) {
      var host = arena.allocate(plan.countedBytes, 16);
      device.download(host, plan.counted);
      var losses = new float[positions];
      long from = plan.losses - plan.counted;
      for (int i = 0; i < plan.labelled; i++) {
        losses[numbers.positionOfLabel[i]] = host.get(ValueLayout.JAVA_FLOAT, from + 4L * i);
      }
      if (!counts) {
        return new Result(losses, new float[0], new float[0], new int[0], 0);
      }
      var gateLosses = new float[positions];
      var right = new float[positions];
      var dominating = new int[positions];
      Arrays.fill(dominating, -1);
      for (int i = 0; i < plan.tokens; i++) {
        int slot = numbers.slotOfToken[i];
        gateLosses[slot] = host.get(ValueLayout.JAVA_FLOAT, 4L * i);
        right[slot] = host.get(ValueLayout.JAVA_FLOAT, 4L * (plan.tokens + i));
        if (numbers.memory.get(ValueLayout.JAVA_INT, numbers.at.targets() + 4L * i) >= 0) {
          dominating[slot] = largest(host, 8L * plan.tokens + 4L * adapters * i);
        }
      }
      return new Result(losses, gateLosses, right, dominating, gates);
    }
  }

  private int largest(MemorySegment votes, long at) {
    int best = 0;
    float most = votes.get(ValueLayout.JAVA_FLOAT, at);
    for (int i = 1; i < adapters; i++) {
      float each = votes.get(ValueLayout.JAVA_FLOAT, at + 4L * i);
      if (each > most) {
        most = each;
        best = i;
      }
    }
    return best;
  }

  @Override
  public NDArray layer(int layer, NDArray hidden, NDArray gradient, ForwardContext context) {
    device.makeCurrent();
    var shape = hidden.getShape();
    int rows = (int) shape.get(0);
    int length = (int) shape.get(1);
    var lengths = new int[rows];
    Arrays.fill(lengths, length);
    var labels = new long[rows * length];
    Arrays.fill(labels, IGNORED);
    var input =
        new Input(new long[rows * length], lengths, length, labels, null, new double[] {1}, 0, 1);
    try (var arena = Arena.ofConfined();
        var scope = manager.newSubManager()) {
      var numbers = new Numbers(input, context.routing().router(), arena);
      var plan = plan(numbers, true, context);
      device.upload(plan.at.ids(), plan.numbers.memory);
      var pass = pass(input, context, plan, false, scope);
      var result = Ops.empty(hidden.getManager(), dtype, shape.getShape());
      Ops.copy(result, gradient);
      long x = Ops.dataPointer(hidden);
      var each = layers.get(layer);
      var again = again(plan, layer);
      watching.phase(Watching.Phase.FORWARD);
      var attended = each.forward(pass, x, again, plan.inputs[0], true);
      watching.phase(Watching.Phase.BACKWARD);
      each.backward(pass, x, again, attended, Ops.dataPointer(result), true, true);
      return result;
    }
  }

  @Override
  public int recomputedLayers() {
    return recomputed;
  }

  @Override
  public void close() {
    workspace.release();
    activations.release();
    asked = 0;
  }

  @Override
  public void watch(Watch watch) {
    watching.set(watch);
  }
}
