package org.meteora.generate;

import java.util.ArrayList;
import java.util.BitSet;
import java.util.List;
import java.util.Optional;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Sequences from their prompts to their ends: they are admitted as there is memory for them ({@link
 * Scheduler}), their prompts are computed ({@link Prefill}), and all that run take a step a token
 * ({@link DecodeSession}) until they end. When a step finds too little memory, all that run are
 * preempted and fewer at once go on.
 *
 * <p>A static batch ({@link #isStatic}) is admitted whole or not at all.
 */
final class RunningBatch implements AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(RunningBatch.class);

  /** Tokens of prompts that those that run wait for at most. */
  private static final long PREFILL_TOKENS = 2048;

  private final DecodeSession.Provider decoding;
  private final List<Sequence> sequences;
  private final AnswerListener listener;
  private final boolean isStatic;
  private final boolean retriesAlone;
  private final List<Sequence> toRetryAlone = new ArrayList<>();
  private final Optional<PrefixCache> prefixes;
  private final Prefill prefill;
  private final ForwardContext context;
  private final Scheduler scheduler;
  private final List<Integer> running = new ArrayList<>(); // in the order in which they joined
  private final BitSet usedSlots = new BitSet();
  private DecodeSession session;
  private int maxSequences;

  private RunningBatch(
      Llama model,
      DecodeSession.Provider decoding,
      ForwardContext context,
      List<Sequence> sequences,
      int maxSequences,
      AnswerListener listener) {
    this.decoding = decoding;
    this.sequences = sequences;
    this.listener = listener;
    this.isStatic = isStatic(context);
    this.retriesAlone = retriesAlone(context, sequences);
    this.maxSequences = Math.min(maxSequences, sequences.size());
    var prompts = sequences.stream().map(sequence -> sequence.prompt).toList();
    prefixes = isStatic ? Optional.empty() : Optional.of(new PrefixCache(model, prompts));
    prefill = new Prefill(model, sequences.getFirst().config.padTokenId(), prefixes);
    this.context = prefill.chosen(prompts, context);
    int tokens = sequences.stream().mapToInt(Sequence::expectedTokens).max().orElseThrow();
    session = decoding.begin(this.maxSequences, tokens, this.context);
    if (isStatic && session.sequences() < this.maxSequences) {
      session.close();
      throw new TooLittleMemory(
          "too little memory for the keys and values of %d sequences of %,d tokens"
              .formatted(this.maxSequences, tokens));
    }
    scheduler =
        new Scheduler(
            new Scheduler.Limits(
                Math.min(this.maxSequences, session.sequences()),
                isStatic ? Long.MAX_VALUE : session.kvCapacity(),
                KvCache.BLOCK,
                PREFILL_TOKENS,
                isStatic));
    for (int i = 0; i < sequences.size(); i++) {
      int index = i;
      int known = prefixes.map(all -> all.sharedBy(index)).orElse(0);
      scheduler.add(i, sequences.get(i).length(), known);
    }
  }

  /**
   * Whether a batch keeps its rows: who listens to batches, or chooses for one, must know them.
   *
   * @param context what is wanted of the gated layers
   */
  static boolean isStatic(ForwardContext context) {
    var router = context.routing().router();
    return context.listener().isPresent()
        || router instanceof Router.Probing
        || router instanceof Router.Reading;
  }

  /** A static batch that fails is tried one by one, unless its rows are listened to. */
  private static boolean retriesAlone(ForwardContext context, List<Sequence> sequences) {
    return isStatic(context) && context.listener().isEmpty() && sequences.size() > 1;
  }

  /**
   * Runs sequences to their ends.
   *
   * @param context what is wanted of the gated layers
   * @param sequences at least one; of a static batch at most {@code maxSequences}
   * @param maxSequences at once, at least 1
   * @param listener is told of every token, answer and failure
   * @return those that a static batch had too little memory for, with what they have so far: each
   *     is to run alone
   */
  static List<Sequence> run(
      Llama model,
      DecodeSession.Provider decoding,
      ForwardContext context,
      List<Sequence> sequences,
      int maxSequences,
      AnswerListener listener) {
    RunningBatch batch;
    try {
      batch = new RunningBatch(model, decoding, context, sequences, maxSequences, listener);
    } catch (UserException e) {
      if (retriesAlone(context, sequences)) {
        return sequences;
      }
      sequences.forEach(sequence -> listener.onFailure(sequence.request, e));
      return List.of();
    }
    try (batch) {
      batch.toTheEnd();
      return batch.toRetryAlone;
    }
  }

  private void toTheEnd() {
    while (scheduler.waiting() + scheduler.running() > 0) {
      var plan = scheduler.next();
      plan.preempted().forEach(this::leave);
      for (int which : plan.rejected()) {
        reject(which);
      }
      admit(plan.admitted());
      listener.onStep(
          new AnswerListener.Load(
              scheduler.waiting(),
              scheduler.running(),
              scheduler.columns(),
              prefixes.map(PrefixCache::tokensSpared).orElse(0L)));
      if (!running.isEmpty()) {
        step(List.copyOf(running));
      }
    }
  }

  private void step(List<Integer> present) {
    int[] next;
    try {
      next = session.step(present.stream().map(which -> sequences.get(which).next()).toList());
    } catch (TooLittleMemory e) {
      restartWithFewer(present, e);
      return;
    }
    for (int i = 0; i < next.length; i++) {
      accept(present.get(i), next[i]);
    }
  }

  /** What a step needed is not there: all that run are preempted, and fewer at once go on. */
  private void restartWithFewer(List<Integer> present, TooLittleMemory reason) {
    int longest = present.stream().mapToInt(which -> sequences.get(which).length()).max().orElse(1);
    present.reversed().forEach(this::leave);
    if (isStatic) {
      giveUp(present, reason);
      return; // none waits
    }
    for (int which : present.reversed()) {
      if (maxSequences == 1) {
        fail(which, reason);
      } else {
        scheduler.preempt(which);
      }
    }
    LOG.debug("{} sequences at once failed, fewer now: {}", maxSequences, reason.getMessage());
    maxSequences = Math.max(1, Math.min(maxSequences / 2, present.size()));
    session.close();
    session = decoding.begin(maxSequences, longest + KvCache.BLOCK, context);
    scheduler.limit(Math.min(maxSequences, session.sequences()), session.kvCapacity());
  }

  private void leave(int which) {
    running.remove((Integer) which);
    session.leave(sequences.get(which).slot);
    usedSlots.clear(sequences.get(which).slot);
  }

  private void reject(int which) {
    if (running.contains(which)) {
      leave(which);
    }
    var sequence = sequences.get(which);
    listener.onFailure(
        sequence.request,
        new UserException(
            "too little memory for the keys and values of a sequence of "
                + sequence.length()
                + " tokens"));
  }

  /** Those whose beginnings others share come one by one: the others need not compute them. */
  private void admit(List<Integer> fresh) {
    var group = new ArrayList<Integer>();
    for (int which : fresh) {
      if (prefixes.isPresent()
          && prefixes.get().isWorthKeeping(which, sequences.get(which).prompt)) {
        admitGroup(group);
        group.clear();
        admitGroup(List.of(which));
      } else {
        group.add(which);
      }
    }
    admitGroup(group);
  }

  private void admitGroup(List<Integer> group) {
    if (group.isEmpty()) {
      return;
    }
    float[] logits;
    try {
      logits = fill(group);
    } catch (UserException e) {
      if (isStatic) {
        giveUp(group, e);
      } else if (group.size() > 1) {
        LOG.debug("{} prompts together failed, one by one now: {}", group.size(), e.getMessage());
        group.forEach(which -> admitGroup(List.of(which)));
      } else if (running.isEmpty()) {
        fail(group.getFirst(), e);
      } else {
        scheduler.preempt(group.getFirst());
      }
      return;
    }
    // what a listener throws is no failure to join
    int vocab = logits.length / group.size();
    for (int i = 0; i < group.size(); i++) {
      var sequence = sequences.get(group.get(i));
      accept(
          group.get(i),
          sequence.sampler.chooseFinite(
              logits, i * vocab, vocab, sequence.banned(), sequence.uniform()));
    }
  }

  /** Those that run together or not at all are tried alone, unless their rows are listened to. */
  private void giveUp(List<Integer> group, UserException reason) {
    if (!retriesAlone) {
      group.forEach(which -> fail(which, reason));
      return;
    }
    LOG.debug(
        "{} sequences together failed, one by one now: {}", group.size(), reason.getMessage());
    group.forEach(scheduler::remove);
    for (int which : group) {
      sequences.get(which).rewind();
      toRetryAlone.add(sequences.get(which));
    }
  }

  private void fail(int which, UserException reason) {
    scheduler.remove(which);
    listener.onFailure(sequences.get(which).request, reason);
  }

  /** The logits of their last tokens. */
  private float[] fill(List<Integer> group) {
    var prompts = group.stream().map(which -> sequences.get(which).tokens()).toList();
    var filled = prefill.run(prompts, context);
    var slots = new int[group.size()];
    for (int i = 0; i < slots.length; i++) {
      int which = group.get(i);
      if (prefixes.isPresent() && prefixes.get().isWorthKeeping(which, prompts.get(i))) {
        keep(which, prompts.get(i), filled.cache(), i);
      }
      slots[i] = usedSlots.nextClearBit(0);
      usedSlots.set(slots[i]);
      sequences.get(which).slot = slots[i];
    }
    try {
      session.join(filled.cache(), slots);
    } catch (UserException e) {
      for (int slot : slots) {
        usedSlots.clear(slot);
      }
      throw e;
    }
    running.addAll(group);
    return filled.logits();
  }

  private void keep(int which, int[] prompt, KvCache filled, int row) {
    try {
      prefixes.orElseThrow().keep(which, prompt, filled, row);
    } catch (TooLittleMemory e) {
      LOG.debug("a beginning is not kept: {}", e.getMessage());
    }
  }

  /** Takes a sequence's next token; one that ends leaves. */
  private void accept(int which, int token) {
    var sequence = sequences.get(which);
    if (token == DecodeSession.NOT_FINITE) {
      end(which);
      listener.onFailure(sequence.request, Sampler.notFinite());
      return;
    }
    if (sequence.replays()) {
      return;
    }
    if (!sequence.config.eosTokenIds().contains(token)) {
      sequence.accept(token);
      scheduler.grew(which);
      listener.onToken(sequence.request, token);
      if (!sequence.isFull()) {
        return;
      }
    }
    end(which);
    listener.onAnswer(sequence.request, sequence.result());
  }

  private void end(int which) {
    leave(which);
    scheduler.remove(which);
  }

  @Override
  public void close() {
    session.close();
    prefixes.ifPresent(PrefixCache::close);
  }
}
