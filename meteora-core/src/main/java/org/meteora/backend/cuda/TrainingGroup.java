package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.cuda.driver.CStruct;
import org.meteora.cuda.driver.Cublas.Matrix;
import org.meteora.cuda.kernel.MaskedProducts;
import org.meteora.cuda.kernel.SummedProducts.Sum;
import org.meteora.cuda.kernel.SummedProducts.Term;
import org.meteora.cuda.kernel.TrainingKernels;
import org.meteora.cuda.kernel.TrainingKernels.ChosenTerm;
import org.meteora.cuda.kernel.TrainingKernels.Dropout;
import org.meteora.cuda.kernel.TrainingKernels.Dropped;
import org.meteora.cuda.kernel.TrainingKernels.GradientPart;
import org.meteora.cuda.kernel.TrainingKernels.GradientTerm;
import org.meteora.lora.AdapterBank;
import org.meteora.model.Gradients;
import org.meteora.moe.BankLayout;
import org.meteora.moe.GatedLinear;
import org.meteora.tensor.Dtype;
import org.meteora.tensor.Ops;

/**
 * Gated linears with one input x in training, forward and backward, on addresses. S is their stack
 * (see {@link BankLayout#stack}), x̃ what dropout leaves of x for the adapters:
 *
 * <pre>
 * [z | l] = [x̃ Aᵀ | x Gᵀ]      c = weight(l) · scale · z      y = x Wᵀ + c Bᵀ
 * ∂c = ∂y B   ∂B = ∂yᵀ c   [∂z | ∂l] from ∂c   ∂A = ∂zᵀ x̃   ∂G = ∂lᵀ x   ∂x = ∂y W + ∂l G,  ∂x̃ = ∂z A
 * </pre>
 *
 * <p>Long, because forward and backward share what the pass keeps, and are read side by side.
 */
final class TrainingGroup {
  /**
   * One linear.
   *
   * @param weight {@code (out, in)}
   * @param bias {@code (out)}, or 0
   * @param adapted its number among those with adapters; −1 without
   * @param b B {@code (out, ranks)}; null without adapters
   * @param rankAt its first column of c
   */
  private record Member(Matrix weight, long bias, int adapted, Matrix b, int rankAt) {
    int out() {
      return weight.rows();
    }

    int ranks() {
      return b == null ? 0 : b.isTransposed() ? b.rows() : b.columns();
    }

    boolean hasAdapters() {
      return adapted >= 0;
    }
  }

  /**
   * Where a gradient is added up.
   *
   * @param direct the parameter's whole sum, or 0
   * @param parts in device memory, or 0; of A they are among those of its stack
   * @param largest elements of the largest
   */
  private record Sink(long direct, long parts, int count, long largest) {
    boolean isTrained() {
      return direct != 0 || count > 0;
    }
  }

  private final TrainingDevice device;
  private final Dtype dtype;
  private final int bytes;
  private final int in;
  private final List<Member> members = new ArrayList<>();
  private final List<TrainingKernels.TrainingLinear> linears = new ArrayList<>();
  private final int ranks;
  private final int gates;
  private final int adapters;
  private final long stack;
  private final int stride;
  private final Sink ofStack;
  private final Sink ofRest; // of the stack, but for what goes by choice straight into whole sums
  private final boolean trainsA;
  private final boolean trainsGates;
  private final List<Sink> ofA = new ArrayList<>();
  private final List<Sink> ofB = new ArrayList<>();
  private final List<NDArray> kept = new ArrayList<>();
  private final boolean byChoice;
  private final boolean canChoose; // gradients, by choice
  private final int maxRank;

  /**
   * @param linears of one input, their adapters as {@link #fits} asks
   * @param manager owns tables in device memory
   */
  TrainingGroup(
      List<GatedLinear> linears, Gradients gradients, TrainingDevice device, NDManager manager) {
    this.device = device;
    var first = linears.getFirst();
    dtype = Ops.dtype(first.weight());
    bytes = dtype.bytes();
    in = (int) first.weight().getShape().get(1);
    var adapted = linears.stream().filter(TrainingGroup::hasAdapters).toList();
    int at = 0;
    for (var linear : linears) {
      int out = (int) linear.weight().getShape().get(0);
      members.add(
          new Member(
              matrix(Ops.dataPointer(linear.weight()), out, in),
              linear.bias() == null ? 0 : Ops.dataPointer(linear.bias()),
              adapted.indexOf(linear),
              hasAdapters(linear) ? matrixB(linear.bank().loraB()) : null,
              at));
      at += members.getLast().ranks();
    }
    ranks = at;
    adapters = adapted.isEmpty() ? 0 : adapted.getFirst().bank().size();
    gates = (int) adapted.stream().filter(linear -> linear.bank().gate() != null).count();
    var all =
        adapted.isEmpty()
            ? null
            : BankLayout.stack(adapted.stream().map(GatedLinear::layout).toList());
    stack = all == null ? 0 : Ops.dataPointer(all);
    stride = all == null ? 0 : (int) all.getShape().get(0);
    byChoice = stride > 0 && adapted.stream().allMatch(linear -> isByChoice(linear.bank()));
    canChoose =
        adapted.stream().anyMatch(linear -> trains(linear.bank(), gradients))
            && adapted.stream().allMatch(linear -> areGradientsByChoice(linear.bank()));
    var parts = new ArrayList<GradientPart>();
    var rest = new ArrayList<GradientPart>();
    int row = 0;
    for (var linear : adapted) {
      var sums = gradients.of(linear.bank().loraA());
      ofA.add(isWhole(sums) ? direct(sums) : new Sink(0, 0, sums.size(), 0));
      parts(parts, sums, row, linear.bank().totalRank(), in);
      if (!isWhole(sums)) {
        parts(rest, sums, row, linear.bank().totalRank(), in);
      }
      row += linear.bank().totalRank();
    }
    trainsA = !parts.isEmpty();
    int ofA = parts.size();
    if (gates > 0) {
      for (var linear : adapted) {
        parts(parts, gradients.of(linear.bank().gate()), row, adapters, in);
        parts(rest, gradients.of(linear.bank().gate()), row, adapters, in);
        row += adapters;
      }
    }
    trainsGates = parts.size() > ofA;
    ofStack = sink(parts, manager);
    ofRest = canChoose ? sink(rest, manager) : ofStack;
    for (var linear : adapted) {
      var bank = linear.bank();
      this.linears.add(linear(bank, manager));
      var sums = gradients.of(bank.loraB());
      if (isWhole(sums)) {
        ofB.add(direct(sums));
      } else {
        var pieces = new ArrayList<GradientPart>();
        parts(pieces, sums, 0, (int) bank.loraB().getShape().get(0), bank.totalRank());
        ofB.add(sink(pieces, manager));
      }
    }
    maxRank = adapted.stream().mapToInt(linear -> linear.bank().maxRank()).max().orElse(0);
  }

  private static boolean trains(AdapterBank bank, Gradients gradients) {
    return !gradients.of(bank.loraA()).isEmpty() || !gradients.of(bank.loraB()).isEmpty();
  }

  private static boolean isWhole(List<Gradients.Part> sums) {
    return sums.size() == 1 && sums.getFirst().dim() < 0;
  }

  private static Sink direct(List<Gradients.Part> sums) {
    return new Sink(Ops.dataPointer(sums.getFirst().sum()), 0, 0, 0);
  }

  private Matrix matrix(long address, int rows, int columns) {
    return Matrix.of(address, rows, columns, dtype);
  }

  /** B {@code (out, ranks)}, which may lie in memory as Bᵀ. */
  private Matrix matrixB(NDArray b) {
    int out = (int) b.getShape().get(0);
    int ranks = (int) b.getShape().get(1);
    long address = Ops.dataPointer(b);
    return Ops.isRowMajor(b)
        ? matrix(address, out, ranks)
        : matrix(address, ranks, out).transpose();
  }

  private Matrix stack(int row, int count) {
    return matrix(stack + (long) row * in * bytes, count, in);
  }

  /** The same columns of S's product, or of its gradient. */
  private Matrix rows(long address, int tokens, int row, int count) {
    return new Matrix(address + (long) row * bytes, tokens, count, stride, dtype);
  }

  private static boolean hasAdapters(GatedLinear linear) {
    return linear.bank() != null && linear.bank().totalRank() > 0;
  }

  /** Whether this class can train these: one dtype, row-major, gates for all or for none. */
  static boolean fits(List<GatedLinear> linears) {
    var adapted = linears.stream().filter(TrainingGroup::hasAdapters).toList();
    return linears.stream().allMatch(linear -> linear.bank() == null || hasAdapters(linear))
        && linears.stream().allMatch(linear -> Ops.isRowMajor(linear.weight()))
        && adapted.stream().allMatch(linear -> isPlain(linear, Ops.dtype(linear.weight())))
        && adapted.stream().map(linear -> linear.bank().size()).distinct().count() <= 1
        && adapted.stream().map(linear -> linear.bank().gate() == null).distinct().count() <= 1
        && BankLayout.canStack(adapted.stream().map(GatedLinear::layout).toList());
  }

  private static boolean isPlain(GatedLinear linear, Dtype dtype) {
    var b = linear.bank().loraB();
    try (var transposed = Ops.transpose(b, 0, 1)) {
      return linear.layout().isPlain()
          && Ops.dtype(b) == dtype
          && (Ops.isRowMajor(b) || Ops.isRowMajor(transposed));
    }
  }

  /** A matrix {@code (rows, columns)} of a launch's source from {@code row} on, and its sums. */
  private static void parts(
      List<GradientPart> result, List<Gradients.Part> sums, int row, int rows, int columns) {
    for (var part : sums) {
      long to = Ops.dataPointer(part.sum());
      int from = (int) part.from();
      int length = (int) part.length();
      result.add(
          switch (part.dim()) {
            case 0 ->
                new GradientPart(
                    to, (long) (row + from) * columns, length, columns, columns, columns);
            case 1 ->
                new GradientPart(to, (long) row * columns + from, rows, length, columns, length);
            default -> new GradientPart(to, (long) row * columns, rows, columns, columns, columns);
          });
    }
  }

  private Sink sink(List<GradientPart> parts, NDManager manager) {
    if (parts.isEmpty()) {
      return new Sink(0, 0, 0, 0);
    }
    try (var arena = Arena.ofConfined()) {
      var table = CStruct.array(arena, parts);
      long largest =
          parts.stream().mapToLong(part -> (long) part.rows() * part.columns()).max().orElseThrow();
      return new Sink(0, upload(table, manager), parts.size(), largest);
    }
  }

  private long upload(MemorySegment table, NDManager manager) {
    long address = keep(Ops.empty(manager, Dtype.U8, table.byteSize()));
    device.upload(address, table);
    return address;
  }

  private long keep(NDArray table) {
    kept.add(table);
    return Ops.dataPointer(table);
  }

  /** Whether products by choice take these, and gain by it. */
  private boolean isByChoice(AdapterBank bank) {
    long out = bank.loraB().getShape().get(0);
    long in = bank.loraA().getShape().get(1);
    return bank.totalRank() >= device.manyRanks()
        && bank.totalRank() * 2 * Math.max(in, out) < 1L << 31 // bytes are counted in 32 bits
        && hasWholeEights(bank)
        && in % 32 == 0
        && out % 32 == 0
        && !Ops.isRowMajor(bank.loraB());
  }

  private boolean areGradientsByChoice(AdapterBank bank) {
    return bank.size() >= device.manyAdapters()
        && hasWholeEights(bank)
        && bank.loraA().getShape().get(1) % 8 == 0
        && bank.loraB().getShape().get(0) % 8 == 0;
  }

  private boolean gradientsByChoice(Pass pass) {
    return canChoose && adapters / pass.topK() >= device.manyAdapters();
  }

  private static boolean hasWholeEights(AdapterBank bank) {
    return Arrays.stream(bank.ranks()).allMatch(rank -> rank % 8 == 0);
  }

  private TrainingKernels.TrainingLinear linear(AdapterBank bank, NDManager manager) {
    var offsets = Arrays.copyOf(bank.offsets(), adapters + 1);
    offsets[adapters] = bank.totalRank();
    var scales = new float[adapters];
    for (int i = 0; i < adapters; i++) {
      scales[i] = (float) bank.scales()[i];
    }
    int z = linears.stream().mapToInt(TrainingKernels.TrainingLinear::ranks).sum();
    return new TrainingKernels.TrainingLinear(
        keep(Ops.of(manager, offsets, offsets.length)),
        keep(Ops.of(manager, scales, adapters)),
        z,
        ranks + linears.size() * adapters,
        adapters,
        bank.totalRank());
  }

  boolean hasAdapters() {
    return stride > 0;
  }

  /** Gates, one of each linear, or none. */
  int gates() {
    return gates;
  }

  int adapters() {
    return adapters;
  }

  /** Bytes of z and logits of a token. */
  long bytesOfRows() {
    return (long) stride * bytes;
  }

  /** Bytes of c of a token. */
  long bytesOfC() {
    return (long) ranks * bytes;
  }

  /** Bytes of gradients that are not summed in place. */
  long bytesOfGradients() {
    long largest = ofStack.isTrained() ? 4L * stride * in : 0;
    for (var member : members) {
      if (member.hasAdapters() && ofB.get(member.adapted()).count() > 0) {
        largest = Math.max(largest, 4L * member.out() * member.ranks());
      }
    }
    return largest;
  }

  /** Bytes of who chose whom. */
  long bytesOfChoices(long tokens) {
    return byChoice || canChoose ? TrainingKernels.Choices.bytes(tokens) : 0;
  }

  private TrainingKernels.Routed routed(boolean gated) {
    return new TrainingKernels.Routed(stride, gated, linears);
  }

  /**
   * What a pass is: how many tokens, what chooses, and who watches.
   *
   * @param gateWeight of each gate's cross-entropy at a token
   */
  record Pass(
      int tokens,
      int topK,
      TrainingKernels kernels,
      boolean gated,
      TrainingKernels.Tasks tasks,
      double gateWeight,
      Scratch scratch,
      Watching watch) {}

  /**
   * Whether products with what dropout leaves of x want the bits of what it keeps, and not that
   * itself.
   */
  boolean masks(Pass pass) {
    return stride > 0
        && !byChoice
        && !gradientsByChoice(pass)
        && device.canMask(dtype, pass.tokens(), in, ranks, stride);
  }

  private MaskedProducts.Input masked(int tokens, long x, Dropped dropped) {
    return new MaskedProducts.Input(
        matrix(x, tokens, in), dropped.kept(), dropped.dropout(), ranks);
  }

  /**
   * z and logits.
   *
   * @param x {@code (tokens, in)}
   * @param its as x, the adapters' input, or what of x that is; none: x
   * @param rows {@code (tokens, stride)}; written
   */
  void rows(Pass pass, long x, Dropped its, long rows) {
    if (stride == 0) {
      return;
    }
    if (its.kept() != 0) {
      var to = rows(rows, pass.tokens(), 0, stride);
      device.maskedRows(masked(pass.tokens(), x, its), stack(0, stride), to);
      return;
    }
    long dropped = its.x();
    if (byChoice) {
      if (gates > 0) {
        times(pass.tokens(), ranks, stride - ranks, x, rows);
      }
      var terms = termsOfA(dropped == 0 ? x : dropped, rows);
      pass.kernels().chosenProducts(choices(pass, rows), terms, stride);
      return;
    }
    if (dropped == 0) {
      times(pass.tokens(), 0, stride, x, rows);
      return;
    }
    times(pass.tokens(), 0, ranks, dropped, rows);
    if (gates > 0) {
      times(pass.tokens(), ranks, stride - ranks, x, rows);
    }
  }

  /** Some columns of S's product. */
  private void times(int tokens, int row, int count, long x, long rows) {
    device.multiply(
        rows(rows, tokens, row, count),
        matrix(x, tokens, in),
        stack(row, count).transpose(),
        false);
  }

  /**
   * All linears' results {@code y = x Wᵀ (+ bias) + c Bᵀ}: called by {@link TrainingLayer} for each
   * input of a layer in every pass of {@link CudaTraining}, which a GPU's training is unless that
   * refuses.
   *
   * @param rows from {@link #rows}
   * @param outputs {@code (tokens, out)} each; written
   */
  void forward(Pass pass, long x, long rows, long[] outputs, TrainingKernels.Counts counts) {
    int tokens = pass.tokens();
    long c = pass.scratch().c();
    if (stride > 0) {
      pass.watch().adapters(true);
      pass.kernels().route(tokens, routed(pass.gated()), rows, c, pass.tasks(), counts, 0);
    }
    var sums = new ArrayList<Sum>();
    pass.watch().adapters(false);
    for (int i = 0; i < outputs.length; i++) {
      var member = members.get(i);
      var y = matrix(outputs[i], tokens, member.out());
      var terms = new ArrayList<Term>();
      boolean begun = member.bias() != 0;
      if (begun) {
        pass.kernels().bias(tokens, member.out(), member.bias(), outputs[i]);
      }
      if (member.hasAdapters() && byChoice && !begun) {
        pass.watch().adapters(true);
        pass.kernels().chosenSum(chosen(pass), List.of(termOfB(member, outputs[i], c)), ranks);
        pass.watch().adapters(false);
        begun = true;
      } else if (member.hasAdapters()) { // first: what is there costs the long product nothing
        terms.add(new Term(columns(c, tokens, member), member.b().transpose()));
      }
      terms.add(new Term(matrix(x, tokens, in), member.weight().transpose()));
      sums.add(new Sum(y, begun, terms));
    }
    device.sum(sums, Dropout.NONE);
  }

  /** A of each linear, between x and columns of its ranks. */
  private List<ChosenTerm> termsOfA(long x, long rows) {
    return members.stream()
        .filter(Member::hasAdapters)
        .map(each -> term(each, x, in, stack(each.rankAt(), each.ranks()), rows))
        .toList();
  }

  private ChosenTerm termOfB(Member of, long y, long rows) {
    return term(of, y, of.out(), of.b(), rows);
  }

  private ChosenTerm term(Member of, long wide, int columns, Matrix matrix, long rows) {
    long narrow = rows + (long) of.rankAt() * bytes;
    return new ChosenTerm(of.adapted(), wide, columns, matrix.address(), narrow);
  }

  /** Where {@link #choices} are. */
  private TrainingKernels.Choices chosen(Pass pass) {
    long at = pass.scratch().choices();
    return new TrainingKernels.Choices(at, pass.tokens(), pass.topK(), maxRank, linears);
  }

  /** Who chooses whom, by the logits in {@code rows}. */
  private TrainingKernels.Choices choices(Pass pass, long rows) {
    return pass.kernels().choices(chosen(pass), routed(pass.gated()), rows, pass.tasks());
  }

  private Matrix columns(long c, int tokens, Member member) {
    return new Matrix(c + (long) member.rankAt() * bytes, tokens, member.ranks(), ranks, dtype);
  }

  /**
   * Scratch of a pass.
   *
   * @param c {@code (tokens, ranks)}
   * @param slopeOfC {@code (tokens, ranks)}
   * @param slopeOfRows {@code (tokens, stride)}
   * @param gradients {@link #bytesOfGradients}
   * @param choices {@link #bytesOfChoices}
   */
  record Scratch(long c, long slopeOfC, long slopeOfRows, long gradients, long choices) {}

  /**
   * Adds the parameters' gradients to their sums, and gives the input's.
   *
   * @param x as {@link #rows} had it, and {@code its}
   * @param rows from {@link #rows}
   * @param slopes gradients of the results
   * @param slopeOfX receives the gradient of x; may be memory of x; 0: not wanted
   * @return where that of x̃ is, still to go through the dropout: the memory of {@code its}, or 0,
   *     where the gradient of x has it
   */
  long backward(Pass pass, long x, Dropped its, long rows, long[] slopes, long slopeOfX) {
    long dropped = its.address();
    int tokens = pass.tokens();
    var scratch = pass.scratch();
    if (stride > 0) {
      pass.watch().adapters(true);
      var terms = new ArrayList<ChosenTerm>();
      for (int i = 0; i < slopes.length; i++) {
        var member = members.get(i);
        if (member.hasAdapters() && byChoice) {
          terms.add(termOfB(member, slopes[i], scratch.slopeOfC()));
        } else if (member.hasAdapters()) {
          var slope = matrix(slopes[i], tokens, member.out());
          device.multiply(columns(scratch.slopeOfC(), tokens, member), slope, member.b(), false);
        }
      }
      if (byChoice) {
        pass.kernels().chosenProducts(choices(pass, rows), terms, ranks);
      }
      pass.kernels()
          .routeBackward(
              tokens,
              routed(pass.gated()),
              rows,
              scratch.slopeOfC(),
              scratch.c(),
              scratch.slopeOfRows(),
              pass.tasks(),
              gradientsByChoice(pass) ? scratch.choices() : 0,
              pass.gateWeight());
      pass.watch().gradients();
      gradients(pass, x, its, slopes);
      pass.watch().adapters(false);
    }
    if (slopeOfX == 0) {
      return 0;
    }
    var sum = new ArrayList<Term>();
    boolean begun = false;
    if (byChoice) {
      pass.watch().adapters(true);
      begun = dropped == 0;
      var terms = termsOfA(begun ? slopeOfX : dropped, scratch.slopeOfRows());
      pass.kernels().chosenSum(chosen(pass), terms, stride);
      pass.watch().adapters(false);
    } else if (stride > 0) { // without dropout adapters and gates together
      sum.add(back(tokens, 0, dropped == 0 ? stride : ranks, scratch));
    }
    if (gates > 0 && pass.gated() && (byChoice || dropped != 0)) {
      sum.add(back(tokens, ranks, stride - ranks, scratch));
    }
    for (int i = 0; i < slopes.length; i++) {
      sum.add(new Term(matrix(slopes[i], tokens, members.get(i).out()), members.get(i).weight()));
    }
    var to = matrix(slopeOfX, tokens, in);
    boolean apart = dropped != 0 && !byChoice && !device.canDrop(new Sum(to, false, sum));
    if (apart) {
      var adapters = sum.removeFirst();
      device.multiply(matrix(dropped, tokens, in), adapters.a(), adapters.b(), false);
    }
    device.sum(List.of(new Sum(to, begun, sum)), apart || byChoice ? Dropout.NONE : its.dropout());
    return apart || byChoice ? dropped : 0;
  }

  /** The gradient of S's input from that of some columns of its product. */
  private Term back(int tokens, int row, int count, Scratch scratch) {
    return new Term(rows(scratch.slopeOfRows(), tokens, row, count), stack(row, count));
  }

  private void gradients(Pass pass, long x, Dropped its, long[] slopes) {
    int tokens = pass.tokens();
    var scratch = pass.scratch();
    var kernels = pass.kernels();
    var inPlace = new ArrayList<GradientTerm>();
    boolean choose = gradientsByChoice(pass);
    if (choose) {
      kernels.lists(chosen(pass));
    }
    for (int i = 0; i < slopes.length; i++) {
      var member = members.get(i);
      if (!member.hasAdapters() || !ofB.get(member.adapted()).isTrained()) {
        continue;
      }
      var sink = ofB.get(member.adapted());
      boolean direct = sink.direct() != 0;
      long to = direct ? sink.direct() : scratch.gradients();
      var c = columns(scratch.c(), tokens, member);
      if (choose) {
        var term =
            new GradientTerm(
                member.adapted(), slopes[i], member.out(), c.address(), ranks, to, true, direct);
        if (direct) {
          inPlace.add(term);
        } else {
          kernels.chosenGradients(chosen(pass), List.of(term));
        }
      } else {
        device.multiply(
            Matrix.of(to, member.out(), member.ranks(), Dtype.F32),
            matrix(slopes[i], tokens, member.out()).transpose(),
            c,
            direct);
      }
      if (!direct) {
        kernels.addGradients(sink.parts(), sink.count(), sink.largest(), scratch.gradients());
      }
    }
    kernels.chosenGradients(chosen(pass), inPlace);
    boolean masks = its.kept() != 0;
    long ofAdapters = its.x() == 0 ? x : its.x();
    boolean both = trainsA && trainsGates && its.x() == 0 && !choose;
    if (masks && trainsA) {
      var slope = rows(scratch.slopeOfRows(), tokens, 0, both ? stride : ranks);
      device.maskedGradient(masked(tokens, x, its), slope, scratch.gradients());
    } else if (choose) {
      kernels.chosenGradients(chosen(pass), gradientsOfA(ofAdapters, scratch));
    } else if (trainsA) {
      ofRows(tokens, 0, both ? stride : ranks, ofAdapters, scratch);
    }
    if (trainsGates && !both) {
      ofRows(tokens, ranks, stride - ranks, x, scratch);
    }
    var sink = choose ? ofRest : ofStack;
    kernels.addGradients(sink.parts(), sink.count(), sink.largest(), scratch.gradients());
  }

  private List<GradientTerm> gradientsOfA(long x, Scratch scratch) {
    var terms = new ArrayList<GradientTerm>();
    for (var member : members) {
      if (member.hasAdapters() && ofA.get(member.adapted()).isTrained()) {
        long direct = ofA.get(member.adapted()).direct();
        long to = direct != 0 ? direct : scratch.gradients() + 4L * member.rankAt() * in;
        long slope = scratch.slopeOfRows() + (long) member.rankAt() * bytes;
        terms.add(new GradientTerm(member.adapted(), x, in, slope, stride, to, false, direct != 0));
      }
    }
    return terms;
  }

  /** The gradient of some of S's rows. */
  private void ofRows(int tokens, int row, int count, long x, Scratch scratch) {
    device.multiply(
        Matrix.of(scratch.gradients() + 4L * row * in, count, in, Dtype.F32),
        rows(scratch.slopeOfRows(), tokens, row, count).transpose(),
        matrix(x, tokens, in),
        false);
  }
}
