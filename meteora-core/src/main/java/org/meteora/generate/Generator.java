package org.meteora.generate;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.List;
import java.util.Optional;
import org.meteora.TooLittleMemory;
import org.meteora.UserException;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Ops;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Generates with a {@link Llama}: prompts join as there is room for them ({@link Scheduler}), are
 * computed ({@link Prefill}), and take a step a token with all others that run ({@link
 * DecodeSession}) until they end. Immutable, and so are its settings of the routing: any number of
 * threads may generate with one model, each with a generator of its own settings.
 */
public final class Generator implements TokenGenerator {
  private static final Logger LOG = LoggerFactory.getLogger(Generator.class);

  /** Tokens for which memory is taken at once, of a sequence that may get longer. */
  private static final int EXPECTED = 1024;

  /** Tokens of prompts that those that run wait for at most. */
  private static final long PREFILL = 2048;

  private final Llama model;
  private final DecodeSession.Provider decoding;
  private final ForwardContext context;

  /**
   * @param decoding runs the steps behind the prefill
   * @param context what is wanted of the gated layers
   */
  public Generator(Llama model, DecodeSession.Provider decoding, ForwardContext context) {
    this.model = model;
    this.decoding = decoding;
    this.context = context;
  }

  /** What it wants of the gated layers. */
  public ForwardContext context() {
    return context;
  }

  /** A generator with another k, T or router. */
  public Generator withRouting(RoutingSettings routing) {
    return with(context.withRouting(routing));
  }

  /** A generator that tells this listener of every routing. */
  public Generator listenedBy(RoutingListener listener) {
    return with(context.withListener(Optional.of(listener)));
  }

  /** A generator that wants something else of the gated layers. */
  public Generator with(ForwardContext other) {
    return new Generator(model, decoding, other);
  }

  /** A request and what has come of it. */
  private static final class Sequence {
    final int request;
    final int[] prompt;
    final GenerationConfig config;
    final int limit;
    final Sampler sampler;
    final NoRepeatNgram ngrams;
    final List<Integer> answer = new ArrayList<>();
    int slot;
    private long uniform;
    private boolean drawn;

    Sequence(int request, Request of, int limit) {
      this.request = request;
      this.prompt = of.prompt();
      this.config = of.config();
      this.limit = limit;
      this.sampler = new Sampler(config, of.stream());
      this.ngrams =
          config.noRepeatNgramSize() > 0 ? new NoRepeatNgram(config.noRepeatNgramSize()) : null;
      for (int token : prompt) {
        remember(token);
      }
    }

    int[] banned() {
      return ngrams == null ? new int[0] : ngrams.banned();
    }

    void remember(int token) {
      if (ngrams != null) {
        ngrams.add(token);
      }
    }

    /** The random number of its next token, the same until it is {@link #accept}ed. */
    long uniform() {
      if (!drawn) {
        uniform = sampler.uniform();
        drawn = true;
      }
      return uniform;
    }

    void accept(int token) {
      answer.add(token);
      remember(token);
      drawn = false;
    }

    boolean isFull() {
      return answer.size() >= config.maxNewTokens() || length() >= limit;
    }

    /** Tokens of prompt and answer so far. */
    int length() {
      return prompt.length + answer.size();
    }

    /** Of prompt and answer: all that it may come to, but answers end before most often. */
    int expectedTokens() {
      long most = Math.min(limit, (long) prompt.length + config.maxNewTokens());
      return (int) Math.min(most, Math.max(EXPECTED, length() + KvCache.BLOCK));
    }

    /** Prompt and answer so far. */
    int[] tokens() {
      var all = Arrays.copyOf(prompt, length());
      for (int i = 0; i < answer.size(); i++) {
        all[prompt.length + i] = answer.get(i);
      }
      return all;
    }

    DecodeSession.Next next() {
      return new DecodeSession.Next(slot, answer.getLast(), banned(), uniform(), config);
    }

    int[] result() {
      return answer.stream().mapToInt(Integer::intValue).toArray();
    }
  }

  @Override
  public void generate(List<Request> requests, int atOnce, AnswerListener listener) {
    var sequences = new ArrayList<Sequence>();
    for (int i = 0; i < requests.size(); i++) {
      var request = requests.get(i);
      int limit = Math.min(request.config().maxLength(), model.config().maxPositionEmbeddings());
      int length = request.prompt().length;
      if (length == 0) {
        listener.onFailure(
            i, new UserException("a prompt without a single token cannot be continued"));
      } else if (length > limit) {
        listener.onFailure(
            i,
            new UserException(
                "a prompt has "
                    + length
                    + " tokens, more than the "
                    + limit
                    + " that the model takes here"));
      } else if (length == limit || request.config().maxNewTokens() == 0) {
        listener.onAnswer(i, new int[0]);
      } else {
        sequences.add(new Sequence(i, request, limit));
      }
    }
    // a listener knows the rows of the whole batch
    int most = context.listener().isPresent() ? atOnce : Math.min(atOnce, decoding.mostSequences());
    // who listens to batches, or chooses for one, must know its rows
    boolean together =
        context.listener().isPresent()
            || context.routing().router() instanceof Router.Probing
            || context.routing().router() instanceof Router.Reading;
    try (var recording = Ops.notRecording()) {
      int piece = together ? most : Math.max(1, sequences.size());
      for (int from = 0; from < sequences.size(); from += piece) {
        var some = sequences.subList(from, Math.min(sequences.size(), from + piece));
        run(some, most, together, listener);
      }
    }
  }

  /** Those that cannot run together run one by one, unless rows are listened to. */
  private void run(List<Sequence> some, int most, boolean together, AnswerListener listener) {
    boolean alone = together && some.size() > 1 && context.listener().isEmpty();
    var again = new ArrayList<Sequence>();
    Run run = null;
    try {
      run = new Run(some, most, together, listener);
    } catch (UserException e) {
      if (alone) {
        again.addAll(some);
      } else {
        some.forEach(sequence -> listener.onFailure(sequence.request, e));
      }
    }
    if (run != null) {
      try (var closed = run) {
        closed.alone = alone;
        closed.toTheEnd();
        again.addAll(closed.again);
      }
    }
    again.forEach(sequence -> run(List.of(sequence), 1, together, listener));
  }

  /** Sequences from their prompts to their ends. */
  private final class Run implements AutoCloseable {
    private final List<Sequence> sequences;
    private final AnswerListener listener;
    private final Scheduler scheduler;
    private final Optional<PrefixCache> prefixes;
    private final Prefill prefill;
    private final ForwardContext context;
    private DecodeSession session;
    private int wanted;
    private final List<Integer> running = new ArrayList<>(); // in the order in which they joined
    private final BitSet taken = new BitSet();
    private final boolean together;
    private final List<Sequence> again = new ArrayList<>(); // that are to run alone
    private boolean alone;

    Run(List<Sequence> sequences, int most, boolean together, AnswerListener listener) {
      this.together = together;
      this.sequences = sequences;
      this.listener = listener;
      var prompts = sequences.stream().map(sequence -> sequence.prompt).toList();
      prefixes = together ? Optional.empty() : Optional.of(new PrefixCache(model, prompts));
      prefill = new Prefill(model, sequences.getFirst().config.padTokenId(), prefixes);
      context = prefill.chosen(prompts, Generator.this.context);
      int tokens = sequences.stream().mapToInt(Sequence::expectedTokens).max().orElseThrow();
      wanted = Math.min(most, sequences.size());
      session = decoding.begin(wanted, tokens, context);
      if (together && session.sequences() < wanted) {
        session.close();
        throw new TooLittleMemory(
            "too little memory for the keys and values of %d sequences of %,d tokens"
                .formatted(wanted, tokens));
      }
      scheduler =
          new Scheduler(
              new Scheduler.Limits(
                  together ? most : Math.min(most, session.sequences()),
                  together ? Long.MAX_VALUE : session.room(),
                  KvCache.BLOCK,
                  PREFILL,
                  together));
      for (int i = 0; i < sequences.size(); i++) {
        int which = i;
        int known = prefixes.map(all -> all.sharedBy(which)).orElse(0);
        scheduler.add(i, sequences.get(i).length(), known);
      }
    }

    void toTheEnd() {
      while (scheduler.waiting() + scheduler.running() > 0) {
        var plan = scheduler.next();
        plan.leave().forEach(this::leave);
        for (int which : plan.refused()) {
          refuse(which);
        }
        join(plan.join());
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
        beginAnew(present, e);
        return;
      }
      for (int i = 0; i < next.length; i++) {
        accept(present.get(i), next[i]);
      }
    }

    /** What a step needed is not there: all that run are put back, and fewer at once go on. */
    private void beginAnew(List<Integer> present, TooLittleMemory reason) {
      int longest =
          present.stream().mapToInt(which -> sequences.get(which).length()).max().orElse(1);
      present.reversed().forEach(this::leave);
      if (together) {
        giveUp(present, reason);
        return; // none waits
      }
      for (int which : present.reversed()) {
        if (wanted == 1) {
          fail(which, reason);
        } else {
          scheduler.putBack(which);
        }
      }
      LOG.debug("{} sequences at once failed, fewer now: {}", wanted, reason.getMessage());
      wanted = Math.max(1, Math.min(wanted / 2, present.size()));
      session.close();
      session = decoding.begin(wanted, longest + KvCache.BLOCK, context);
      scheduler.limit(Math.min(wanted, session.sequences()), session.room());
    }

    private void leave(int which) {
      running.remove((Integer) which);
      session.leave(sequences.get(which).slot);
      taken.clear(sequences.get(which).slot);
    }

    private void refuse(int which) {
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
    private void join(List<Integer> fresh) {
      var group = new ArrayList<Integer>();
      for (int which : fresh) {
        if (prefixes.isPresent()
            && prefixes.get().isWorthKeeping(which, sequences.get(which).prompt)) {
          joinNow(group);
          group.clear();
          joinNow(List.of(which));
        } else {
          group.add(which);
        }
      }
      joinNow(group);
    }

    private void joinNow(List<Integer> group) {
      if (group.isEmpty()) {
        return;
      }
      float[] logits;
      try {
        logits = fill(group);
      } catch (UserException e) {
        if (together) {
          giveUp(group, e);
        } else if (group.size() > 1) {
          LOG.debug("{} prompts together failed, one by one now: {}", group.size(), e.getMessage());
          group.forEach(which -> joinNow(List.of(which)));
        } else if (running.isEmpty()) {
          fail(group.getFirst(), e);
        } else {
          scheduler.putBack(group.getFirst());
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
      if (!alone) {
        group.forEach(which -> fail(which, reason));
        return;
      }
      LOG.debug(
          "{} sequences together failed, one by one now: {}", group.size(), reason.getMessage());
      group.forEach(scheduler::remove);
      group.forEach(which -> again.add(sequences.get(which)));
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
        slots[i] = taken.nextClearBit(0);
        taken.set(slots[i]);
        sequences.get(which).slot = slots[i];
      }
      try {
        session.join(filled.cache(), slots);
      } catch (UserException e) {
        for (int slot : slots) {
          taken.clear(slot);
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
}
