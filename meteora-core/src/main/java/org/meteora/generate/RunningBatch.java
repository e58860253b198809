package org.meteora.generate;

import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Deque;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Set;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.model.MemoryNeed;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingSettings;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Sequences from their prompts to their ends: they are admitted as there is memory for them ({@link
 * Scheduler}), their prompts are computed a piece before each step ({@link Prefill}), and all that
 * run take a step a token ({@link DecodeSession}) until they end. When a step finds too little
 * memory, all that run are preempted and fewer at once go on.
 *
 * <p>Longer than most classes: who waits, whose prompt is half computed and who runs changes in
 * each of these parts, most of all when memory runs out in one of them.
 */
final class RunningBatch implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(RunningBatch.class);

  /** Tokens of prompts that may join together at least, however small passes are. */
  private static final long JOINING_TOKENS = 2048;

  /**
   * Passes over prompts that one of many sequences waits for, while the others' places are free.
   */
  private static final int PATIENCE = 8;

  private final Llama model;
  private final DecodeSession.Provider decoding;
  private final List<Sequence> sequences;
  private final AnswerListener listener;
  private final Beginnings beginnings;
  private final boolean keepsPrefixes;
  private final RoutingDispatcher dispatcher = new RoutingDispatcher();
  private final ForwardContext context;
  private final boolean packs;
  private final OptionalInt pass; // tokens, of prompts that are run by themselves
  private final Scheduler scheduler;
  private final List<Integer> running = new ArrayList<>(); // in the order in which they joined
  private final Deque<Integer> joining = new ArrayDeque<>(); // admitted, in order
  private final Set<Integer> alone = new HashSet<>(); // too much for one prefill with others
  private List<Integer> filled = List.of(); // the first that join, whose prompts are being run
  private Optional<Prefill> prefill = Optional.empty();
  private final int tokens; // of a sequence at most
  private long held = JOINING_TOKENS; // tokens that prefills had memory for
  private DecodeSession session;
  private int maxSequences;
  private final int later;

  private RunningBatch(
      Generator generator,
      List<Sequence> sequences,
      int maxSequences,
      int later,
      AnswerListener listener) {
    this.model = generator.model;
    this.decoding = generator.decoding;
    this.keepsPrefixes = generator.keepsPrefixes;
    this.sequences = sequences;
    this.later = later;
    this.listener = listener;
    this.maxSequences = Math.min(maxSequences, sequences.size());
    boolean listened = sequences.stream().anyMatch(each -> each.listener.isPresent());
    this.context =
        generator
            .context()
            .withRouting(routing(sequences))
            .withListener(listened ? Optional.of(dispatcher) : Optional.empty());
    packs = model.backend().runsPacked(model.config());
    pass = decoding.passTokens();
    boolean pads = !packs && !model.backend().fillsBlocks();
    beginnings = new Beginnings(sequences, KvCache.BLOCK, decoding.prefillTokens());
    tokens = sequences.stream().mapToInt(Sequence::most).max().orElseThrow();
    session = decoding.begin(this.maxSequences, tokens, this.context);
    scheduler =
        new Scheduler(
            new Scheduler.Limits(this.maxSequences, pads, pass),
            new KvBlocks(session.blocks(), KvCache.BLOCK),
            new AsScheduled());
    for (int i = 0; i < sequences.size(); i++) {
      scheduler.add(i, sequences.get(i).length());
    }
  }

  /** The sequences as the scheduler knows them. */
  private final class AsScheduled implements Scheduler.Sequences {
    @Override
    public int[] tokens(int sequence) {
      return sequences.get(sequence).tokens();
    }

    @Override
    public int most(int sequence) {
      return sequences.get(sequence).most();
    }

    @Override
    public int routing(int sequence) {
      return keepsPrefixes ? beginnings.routing(sequence) : -1;
    }

    @Override
    public boolean goesAhead(int sequence, int known) {
      return pass.isPresent()
          || alone.contains(sequence)
          || keepsPrefixes
              && beginnings.goesAhead(sequence, sequences.get(sequence).length(), known);
    }

    @Override
    public boolean isWanted(int sequence) {
      return listener.wants(sequences.get(sequence).request);
    }
  }

  /** What all are routed by; where each has a router of its own, with the k of the widest. */
  private static RoutingSettings routing(List<Sequence> sequences) {
    var first = sequences.getFirst().routing;
    if (!first.isOfEach()) {
      return first;
    }
    int width = sequences.stream().mapToInt(each -> each.routing.width()).max().orElseThrow();
    return new RoutingSettings(width, first.temperature(), new Router.Rows(List.of()));
  }

  /**
   * Runs sequences to their ends.
   *
   * @param sequences at least one, all routed alike or each {@linkplain RoutingSettings#isOfEach by
   *     a router of its own}
   * @param maxSequences at once, at least 1
   * @param later requests that wait for this batch's end
   * @param listener is told of every token, answer and failure
   */
  static void run(
      Generator generator,
      List<Sequence> sequences,
      int maxSequences,
      int later,
      AnswerListener listener) {
    RunningBatch batch;
    try {
      batch = new RunningBatch(generator, sequences, maxSequences, later, listener);
    } catch (UserException e) {
      sequences.forEach(sequence -> listener.onFailure(sequence.request, e));
      return;
    }
    try (batch) {
      batch.toTheEnd();
    }
  }

  private void toTheEnd() {
    while (scheduler.waiting() + scheduler.running() > 0) {
      long together = Math.max(JOINING_TOKENS, 2L * decoding.prefillTokens());
      // how long those that run wait for others' prompts: the longer, the fewer they are
      boolean waits = !running.isEmpty();
      int patience = Math.max(1, PATIENCE - PATIENCE * running.size() / maxSequences);
      long budget = waits ? (long) patience * decoding.prefillTokens() : together;
      plan(together);
      report();
      if (!joining.isEmpty() && !running.isEmpty() && session.isAhead()) {
        step(List.copyOf(running)); // what has begun is theirs alone
        continue;
      }
      while (!joining.isEmpty() && budget > 0) {
        budget -= runPrompts(waits ? Math.min(budget, together) : Long.MAX_VALUE);
        report();
        // a pass of few tokens takes almost as long as one of many: few are left for the next
        if (scheduler.isFilling() && 2 * budget >= decoding.prefillTokens()) {
          plan(budget);
        }
      }
      if (!running.isEmpty()) {
        step(List.copyOf(running));
      }
    }
  }

  private void report() {
    listener.onStep(
        new AnswerListener.Load(
            scheduler.waiting() + later,
            scheduler.running(),
            scheduler.blocksHeld(),
            scheduler.tokensSpared()));
  }

  /**
   * @param tokens of prompts that may join
   */
  private void plan(long tokens) {
    var plan = scheduler.next(joining.isEmpty() ? tokens : 0);
    plan.preempted().forEach(this::leave);
    plan.rejected().forEach(this::reject);
    joining.addAll(plan.admitted());
  }

  private void step(List<Integer> present) {
    var rows =
        present.stream()
            .map(sequences::get)
            .map(each -> new RoutingDispatcher.Row(each, each.length() - 1, 1));
    dispatcher.begin(rows.toList());
    boolean goesOn =
        joining.isEmpty() && present.stream().map(sequences::get).noneMatch(Sequence::endsNext);
    int[] next;
    try {
      next = session.step(nexts(present), goesOn);
    } catch (TooLittleMemory e) {
      restartWithFewer(present, e);
      return;
    }
    dispatcher.end();
    for (int i = 0; i < next.length; i++) {
      accept(present.get(i), next[i]);
    }
  }

  /** What a step needed is not there: all that run are preempted, and fewer at once go on. */
  private void restartWithFewer(List<Integer> present, TooLittleMemory reason) {
    for (int which : List.copyOf(joining).reversed()) {
      leave(which);
      scheduler.preempt(which);
    }
    for (int which : present.reversed()) {
      leave(which);
      if (maxSequences == 1 || pass.isPresent()) { // an answer would be computed otherwise again
        fail(which, reason);
      } else {
        scheduler.preempt(which);
      }
    }
    LOG.debug("{} sequences at once failed, fewer now: {}", maxSequences, reason.getMessage());
    maxSequences = Math.max(1, Math.min(maxSequences / 2, present.size()));
    session.close();
    try {
      session = decoding.begin(maxSequences, tokens, context);
    } catch (UserException e) {
      scheduler.leaveAll().forEach(which -> listener.onFailure(sequences.get(which).request, e));
      return;
    }
    scheduler.limit(maxSequences, new KvBlocks(session.blocks(), KvCache.BLOCK));
  }

  /** One that runs, or is about to join, no longer does. */
  private void leave(int which) {
    running.remove((Integer) which);
    if (joining.remove(which) && filled.contains(which)) {
      endPrefill();
    }
  }

  private void reject(int which) {
    leave(which);
    var sequence = sequences.get(which);
    listener.onFailure(
        sequence.request,
        new UserException(
            "too little memory for the keys and values of a sequence of %s tokens",
            pass.isPresent() ? sequence.most() : sequence.length()));
  }

  /**
   * Runs prompts of those that join.
   *
   * @param budget tokens to run at most
   * @return tokens that were run
   */
  private long runPrompts(long budget) {
    long done = 0;
    while (done < budget && !joining.isEmpty()) {
      int[] first;
      try {
        if (prefill.isEmpty()) {
          beginPrefill();
        }
        var its = prefill.get();
        done += run(its, budget - done);
        if (!its.isDone()) {
          continue;
        }
        first = join(its);
      } catch (UserException e) {
        endPrefill();
        doWithout(filled, e);
        continue;
      }
      // what a listener throws is no failure to join
      for (int i = 0; i < first.length; i++) {
        accept(filled.get(i), first[i]);
      }
    }
    return done;
  }

  private void beginPrefill() {
    filled = new ArrayList<>();
    long all = 0;
    int longest = 0;
    for (int which : joining) {
      int its = sequences.get(which).length();
      longest = Math.max(longest, its);
      all = packs ? all + its : (filled.size() + 1L) * longest;
      if (!filled.isEmpty() && (alone.contains(which) || !canHold(all))) {
        break;
      }
      filled.add(which);
      if (alone.contains(which)) {
        break;
      }
    }
    lookAtPrompts();
    var prompts = filled.stream().map(which -> sequences.get(which).tokens()).toList();
    prefill = Optional.of(prefill(prompts));
  }

  /** Whether there is memory for so many tokens' keys and values, known ones among them. */
  private boolean canHold(long its) {
    if (its > held && !model.backend().fillsBlocks()) {
      long bytes = MemoryNeed.cacheBytes(model.config(), model.dtype(), 1, its);
      long layer = MemoryNeed.layerBytes(model.config(), model.dtype(), its);
      long both = bytes + Math.max(bytes, 2 * layer); // what the passes need
      if (model.backend().memory(both).free() < both) {
        return false;
      }
      held = its;
    }
    return true;
  }

  private Prefill prefill(List<int[]> prompts) {
    if (model.backend().fillsBlocks()) {
      return OneRowPrefill.intoBlocks(
          model,
          session.pool(),
          prompts,
          filled.stream().map(scheduler::blocks).toList(),
          filled.stream().mapToInt(scheduler::known).toArray(),
          session.takesLogits());
    }
    var known = filled.stream().map(this::known).toList();
    return packs
        ? OneRowPrefill.packed(model, prompts, known, session.takesLogits())
        : padded(prompts, known);
  }

  private Optional<Known> known(int which) {
    int known = scheduler.known(which);
    return known == 0
        ? Optional.empty()
        : Optional.of(new Known(session.pool(), scheduler.blocks(which), known));
  }

  private PaddedPrefill padded(List<int[]> prompts, List<Optional<Known>> known) {
    int pad = sequences.getFirst().config.padTokenId();
    return new PaddedPrefill(model, pad, prompts, known, session.takesLogits());
  }

  /**
   * Runs so many tokens at most, but one of each where they are padded and whole passes where that
   * is asked for, and returns how many.
   */
  private long run(Prefill its, long left) {
    long budget = pass.isPresent() ? pass.getAsInt() : left;
    var rows = new ArrayList<RoutingDispatcher.Row>();
    switch (its) {
      case OneRowPrefill straight -> {
        var pieces = straight.next(budget);
        for (var piece : pieces) {
          var sequence = sequences.get(filled.get(piece.prompt()));
          rows.add(new RoutingDispatcher.Row(sequence, piece.first(), piece.count()));
        }
        dispatcher.begin(rows);
        straight.run(pieces, routed(rows, true));
      }
      case PaddedPrefill padded -> {
        int columns = (int) Math.clamp(budget / filled.size(), 1, padded.left());
        int[] places = padded.places();
        for (int i = 0; i < places.length; i++) {
          var sequence = sequences.get(filled.get(i));
          rows.add(new RoutingDispatcher.Row(sequence, places[i], columns));
        }
        dispatcher.begin(rows);
        padded.run(columns, routed(rows, false));
      }
    }
    dispatcher.end();
    return rows.stream().mapToLong(RoutingDispatcher.Row::tokens).sum();
  }

  /** The context of a pass over these, who may have routers of their own. */
  private ForwardContext routed(List<RoutingDispatcher.Row> rows, boolean packed) {
    var routers =
        rows.stream()
            .filter(row -> row.sequence().router.isPresent())
            .map(row -> new Router.Rows.Row(row.sequence().router.get(), row.first()))
            .toList();
    if (routers.isEmpty()) {
      return context;
    }
    var tokens = rows.stream().map(RoutingDispatcher.Row::tokens).toList();
    var router = new Router.Rows(routers, packed ? tokens : List.of());
    return context.withRouting(context.routing().withRouter(router));
  }

  /** Has routers look at the prompts that choose by them, if they have not. */
  private void lookAtPrompts() {
    var unseen = new LinkedHashMap<RoutingSettings, List<Sequence>>();
    for (int which : filled) {
      var sequence = sequences.get(which);
      if (sequence.router.isEmpty() && sequence.routing.router() instanceof Router.Probing) {
        unseen.computeIfAbsent(sequence.routing, key -> new ArrayList<>()).add(sequence);
      }
    }
    unseen.forEach(
        (routing, its) -> {
          var probe = ((Router.Probing) routing.router()).probe();
          var prompts = its.stream().map(sequence -> sequence.prompt).toList();
          try (var look = padded(prompts, Collections.nCopies(its.size(), Optional.empty()))) {
            look.run(
                look.left(),
                context.withRouting(routing.withRouter(probe)).withListener(Optional.empty()));
          }
          var chosen = probe.chosen(routing.topK());
          for (int i = 0; i < chosen.size(); i++) {
            its.get(i).router = Optional.of(chosen.get(i));
          }
        });
  }

  private void endPrefill() {
    prefill.ifPresent(Prefill::close);
    prefill = Optional.empty();
  }

  /**
   * What those whose prompts were run did not get: tried one by one, and then later if it is
   * memory, which others give back.
   */
  private void doWithout(List<Integer> group, UserException reason) {
    if (group.size() > 1) {
      LOG.debug(
          "{} prompts together failed, one by one now: {}", group.size(), reason.getMessage());
      alone.addAll(group);
      return;
    }
    int which = group.getFirst();
    joining.remove(which);
    if (running.isEmpty() || !(reason instanceof TooLittleMemory)) {
      fail(which, reason);
    } else {
      scheduler.preempt(which);
    }
  }

  private void fail(int which, UserException reason) {
    scheduler.remove(which);
    listener.onFailure(sequences.get(which).request, reason);
  }

  /**
   * Those whose prompts have been run take part in the next step.
   *
   * @return their first tokens
   */
  private int[] join(Prefill its) {
    if (its.cache().isPresent()) {
      var cache = its.cache().get();
      var columns = new ArrayList<KvCache.Columns>();
      var spans = cache.spans();
      for (int i = 0; i < spans.size(); i++) {
        int which = filled.get(i);
        columns.addAll(
            Known.columns(spans.get(i), scheduler.known(which), scheduler.blocks(which)));
      }
      session.join(cache, columns);
    }
    int[] first = session.first(nexts(filled), its.last());
    endPrefill();
    joining.removeAll(filled);
    running.addAll(filled);
    return first;
  }

  private List<DecodeSession.Next> nexts(List<Integer> those) {
    return those.stream().map(which -> sequences.get(which).next(scheduler.blocks(which))).toList();
  }

  /** Takes a sequence's next token; one that ends leaves. */
  private void accept(int which, int token) {
    var sequence = sequences.get(which);
    if (token == DecodeSession.NOT_FINITE) {
      leave(which);
      fail(which, Sampler.notFinite());
      return;
    }
    scheduler.computed(which);
    if (!sequence.config.eosTokenIds().contains(token)) {
      sequence.accept(token);
      scheduler.grew(which);
      listener.onToken(sequence.request, token);
      if (!sequence.hasEnded()) {
        return;
      }
    }
    leave(which);
    scheduler.remove(which);
    listener.onAnswer(sequence.request, sequence.result());
  }

  @Override
  public void close() {
    endPrefill();
    session.close();
  }
}
