package org.meteora.parallel;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import java.util.regex.Pattern;
import org.meteora.model.Architecture;
import org.meteora.model.FrozenWeights;
import org.meteora.model.LlamaFactory;
import org.meteora.nn.Projection;
import org.meteora.tensor.Devices;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * A base model's frozen weights, shared among processes (as fully sharded data parallelism does,
 * Zhao et al., 2023): of every decoder layer, of the embedding and of the head each process keeps
 * one of as many equal parts. A layer is gathered into one of two buffers when a pass comes to it,
 * the next one into the other meanwhile; the layer after that takes the first one's place.
 * Embedding and head are gathered into memory that is given back when the pass goes on. The last
 * norm alone is whole everywhere.
 *
 * <p>A layer's tensors are views of its buffer and never move, so that a recorded pass finds them
 * again in its backward pass, once the layer has been gathered again.
 *
 * <p>Gathering takes all processes, in the same order. The passes of a training step are the same
 * everywhere. Before every other pass ({@link #begin}) the processes tell each other that there is
 * one; a process that has none left to make goes on to what it does next through {@link #meeting},
 * and takes part in the others' passes until they come there too.
 */
public final class ShardedWeights implements LlamaFactory.Weights, FrozenWeights {
  private static final Pattern LAYER = Pattern.compile("model\\.layers\\.(\\d+)\\.(.+)");
  private static final int BUFFERS = 2;

  /** Numbers between the beginnings of tensors: kernels read 16 bytes and more at once. */
  private static final long ALIGNMENT = 128;

  private final LlamaFactory.Weights source;
  private final NDManager manager;
  private final Dtype dtype;
  private final Collective collective;
  private final int layers;

  /** Where a layer's tensors begin in its buffer, by the end of their names. */
  private final Map<String, Long> places = new HashMap<>();

  /** Numbers of a layer in one process. */
  private final long part;

  private final List<NDArray> own = new ArrayList<>();
  private final List<Buffer> buffers = new ArrayList<>();
  private Collective.Constants constants;
  private Table embedding;
  private Table head;

  /** How many parts of a forward pass by itself have been used; −1 outside of one. */
  private int position = -1;

  private final class Buffer {
    final NDArray memory = Ops.empty(manager, dtype, part * collective.size());
    int layer = NONE;
    Collective.Queued gathering = () -> {};
  }

  /**
   * @param source reads the weights, or parts of them
   * @param manager owns the parts and the buffers
   * @param collective the processes that share the weights, two at least
   */
  public ShardedWeights(
      LlamaFactory.Weights source,
      Architecture config,
      NDManager manager,
      Dtype dtype,
      Collective collective) {
    this.source = source;
    this.manager = manager;
    this.dtype = dtype;
    this.collective = collective;
    this.layers = config.numHiddenLayers();
    long size = 0;
    for (var projection : Projection.values()) {
      var shape = config.shape(projection);
      size = place(projection.path(0) + ".weight", size, shape[0] * shape[1]);
      if (config.biased().contains(projection)) {
        size = place(projection.path(0) + ".bias", size, shape[0]);
      }
    }
    for (var norm : List.of("input_layernorm.weight", "post_attention_layernorm.weight")) {
      size = place("model.layers.0." + norm, size, config.hiddenSize());
    }
    part = partOf(size);
    for (int i = 0; i < layers; i++) {
      own.add(Ops.empty(manager, dtype, part));
    }
    for (int i = 0; i < Math.min(BUFFERS, layers); i++) {
      buffers.add(new Buffer());
    }
  }

  private long place(String nameInFirstLayer, long at, long size) {
    var matcher = LAYER.matcher(nameInFirstLayer);
    if (!matcher.matches()) {
      throw new IllegalArgumentException(nameInFirstLayer);
    }
    places.put(matcher.group(2), at);
    return aligned(at + size);
  }

  private static long aligned(long size) {
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  }

  private long partOf(long size) {
    return aligned((size + collective.size() - 1) / collective.size());
  }

  /** A matrix that is gathered where it is wanted and let go behind. */
  private final class Table {
    final NDArray ownPart;

    /** What the model has: the matrix while it is gathered, no numbers otherwise. */
    final NDArray handle;

    final NDArray nothing;
    NDArray memory;
    Collective.Queued gathering;

    /** Which of the constants it is. */
    final int which;

    Table(int which, String name, long... shape) {
      this.which = which;
      long length = partOf(shape[0] * shape[1]);
      ownPart = Ops.empty(manager, dtype, length);
      readOwn(ownPart, 0, name, shape);
      var one = Ops.empty(manager, dtype, 1, 1);
      try (var host = Devices.newHostManager()) {
        Ops.copy(one, host.create(Float.NaN));
      }
      nothing = one.broadcast(shape);
      handle = Ops.alias(manager, nothing);
    }

    void gather() {
      if (memory == null) {
        memory = Ops.empty(manager, dtype, ownPart.getShape().size() * collective.size());
        try (var numbers = Ops.narrow(memory, 0, 0, handle.getShape().size());
            var matrix = numbers.reshape(handle.getShape())) {
          Ops.share(handle, matrix);
        }
        gathering = constants().gather(which, memory);
      }
    }

    void letGo() {
      if (memory != null) {
        gathering.await();
        Ops.share(handle, nothing);
        memory.close();
        memory = null;
      }
    }
  }

  @Override
  public NDArray get(String name, long... shape) {
    if (name.equals("model.embed_tokens.weight")) {
      embedding = new Table(layers, name, shape);
      return embedding.handle;
    }
    if (name.equals("lm_head.weight")) {
      head = new Table(layers + 1, name, shape);
      return head.handle;
    }
    var matcher = LAYER.matcher(name);
    if (!matcher.matches()) {
      return source.get(name, shape);
    }
    int layer = Integer.parseInt(matcher.group(1));
    long at = places.get(matcher.group(2));
    readOwn(own.get(layer), at, name, shape);
    var memory = buffers.get(layer % BUFFERS).memory;
    try (var numbers = Ops.narrow(memory, 0, at, Ops.shape(shape).size())) {
      return numbers.reshape(shape);
    }
  }

  /** Reads what this process keeps of a tensor that begins at {@code at} in its whole. */
  private void readOwn(NDArray ownPart, long at, String name, long... shape) {
    long first = ownPart.getShape().size() * collective.rank();
    long from = Math.max(at, first);
    long to = Math.min(at + Ops.shape(shape).size(), first + ownPart.getShape().size());
    if (from < to) {
      try (var target = Ops.narrow(ownPart, 0, from - first, to - from)) {
        source.read(target, name, from - at, shape);
      }
    }
  }

  @Override
  public boolean hasOwnHead() {
    return source.hasOwnHead();
  }

  @Override
  public FrozenWeights frozen() {
    return this;
  }

  @Override
  public boolean isResident() {
    return false;
  }

  @Override
  public void use(int which, int next) {
    for (var table : head == null ? List.of(embedding) : List.of(embedding, head)) {
      if (table != table(which) && table != table(next)) {
        table.letGo();
      }
    }
    gather(which);
    if (which >= 0) {
      buffers.get(which % BUFFERS).gathering.await();
    } else {
      table(which).gathering.await();
    }
    if (next != NONE && (which < 0 || next < 0 || which % BUFFERS != next % BUFFERS)) {
      gather(next);
    }
    if (position >= 0 && which == inOrder(position)) {
      position++;
    }
  }

  /** The embedding or the head; null for anything else. */
  private Table table(int which) {
    return switch (which) {
      case EMBEDDING -> embedding;
      case HEAD -> head == null ? embedding : head;
      default -> null;
    };
  }

  /** All parts, the layers' first, when all have been read: at the first pass, which all make. */
  private Collective.Constants constants() {
    if (constants == null) {
      var parts = new ArrayList<>(own);
      parts.add(embedding.ownPart);
      if (head != null) {
        parts.add(head.ownPart);
      }
      constants = collective.constants(parts);
      manager.attachInternal(UUID.randomUUID().toString(), constants);
    }
    return constants;
  }

  private void gather(int which) {
    if (which < 0) {
      table(which).gather();
      return;
    }
    var buffer = buffers.get(which % BUFFERS);
    if (buffer.layer != which) {
      buffer.layer = which;
      buffer.gathering = constants().gather(which, buffer.memory);
    }
  }

  /** The parts of a forward pass. */
  private int inOrder(int at) {
    return at == 0 ? EMBEDDING : at <= layers ? at - 1 : at == layers + 1 ? HEAD : NONE;
  }

  @Override
  public Forward begin() {
    anybodyHasAPass(true);
    position = 0;
    return this::end;
  }

  /** Gathers what a pass that ended early did not: the others wait for it. */
  private void end() {
    while (inOrder(position) != NONE) {
      use(inOrder(position), inOrder(position + 1));
    }
    position = -1;
  }

  private boolean anybodyHasAPass(boolean mine) {
    return collective.sum(new double[] {mine ? 1 : 0})[0] > 0;
  }

  private void takePartUntilAllAreHere() {
    while (anybodyHasAPass(false)) {
      position = 0;
      end();
    }
  }

  /**
   * The processes, for what they tell each other between passes of which each makes its own number:
   * whoever comes first takes part in the others' passes until they have come too.
   *
   * @param frozen a model's
   * @param all {@code all} itself where nothing is shared
   */
  public static Exchange meeting(FrozenWeights frozen, Collective all) {
    return frozen instanceof ShardedWeights shared ? shared.new Meeting() : all;
  }

  private final class Meeting implements Exchange {
    @Override
    public int rank() {
      return collective.rank();
    }

    @Override
    public int size() {
      return collective.size();
    }

    @Override
    public double[] sum(double[] values) {
      takePartUntilAllAreHere();
      return collective.sum(values);
    }

    @Override
    public List<byte[]> gather(byte[] mine) {
      takePartUntilAllAreHere();
      return collective.gather(mine);
    }

    @Override
    public byte[] broadcast(byte[] ofFirst) {
      takePartUntilAllAreHere();
      return collective.broadcast(ofFirst);
    }

    @Override
    public Messages messages() {
      return collective.messages();
    }
  }
}
