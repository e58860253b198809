package org.meteora.generate;

import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Ops;

/**
 * Generates with a {@link Llama}: one prefill of the left-padded batch, then a step a token; rows
 * leave the batch as they finish. Immutable, and so are its settings of the routing: any number of
 * threads may generate with one model, each with a generator of its own settings.
 */
public final class Generator implements TokenGenerator {
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

  /** One sequence of the batch. */
  private static final class Row {
    final int index;
    final Sampler sampler;
    final NoRepeatNgram ngrams;
    final List<Integer> answer = new ArrayList<>();
    final int promptLength;
    int next;

    Row(int index, int[] prompt, GenerationConfig config) {
      this.index = index;
      this.promptLength = prompt.length;
      this.sampler = new Sampler(config, index);
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
  }

  @Override
  public List<int[]> generate(
      List<int[]> prompts, GenerationConfig config, TokenListener listener) {
    if (prompts.isEmpty()) {
      return List.of();
    }
    int limit = Math.min(config.maxLength(), model.config().maxPositionEmbeddings());
    int longest = 0;
    for (var prompt : prompts) {
      if (prompt.length == 0) {
        throw new UserException("a prompt without a single token cannot be continued");
      }
      if (prompt.length > limit) {
        throw new UserException(
            "a prompt has "
                + prompt.length
                + " tokens, more than the "
                + limit
                + " that the model takes here");
      }
      longest = Math.max(longest, prompt.length);
    }
    var rows = new ArrayList<Row>();
    var answers = new ArrayList<Row>();
    for (int i = 0; i < prompts.size(); i++) {
      var row = new Row(i, prompts.get(i), config);
      answers.add(row);
      if (row.promptLength < limit && config.maxNewTokens() > 0) {
        rows.add(row);
      }
    }
    if (!rows.isEmpty()) {
      try (var manager = model.manager().newSubManager();
          var recording = Ops.notRecording()) {
        run(manager, prompts, rows, config, limit, longest, listener);
      }
    }
    return answers.stream()
        .map(row -> row.answer.stream().mapToInt(Integer::intValue).toArray())
        .toList();
  }

  private void run(
      NDManager manager,
      List<int[]> prompts,
      List<Row> rows,
      GenerationConfig config,
      int limit,
      int longest,
      TokenListener listener) {
    int seq = rows.stream().mapToInt(row -> row.promptLength).max().orElse(longest);
    var padding = rows.stream().mapToInt(row -> seq - row.promptLength).toArray();
    var ids = new long[rows.size() * seq];
    Arrays.fill(ids, config.padTokenId());
    for (int r = 0; r < rows.size(); r++) {
      var prompt = prompts.get(rows.get(r).index);
      for (int i = 0; i < prompt.length; i++) {
        ids[r * seq + padding[r] + i] = prompt[i];
      }
    }
    var served =
        context.routing().router() instanceof Router.Reading reading
            ? context.withRouting(
                context
                    .routing()
                    .withRouter(
                        reading.of(rows.stream().map(row -> prompts.get(row.index)).toList())))
            : probed(manager, padding, ids, seq);
    try (var cache = model.newCache(manager, padding, seq + 1)) {
      var logits = ModelSession.logits(model, cache, ids, seq, served);
      var first = new Sampler(config, 0).choose(logits, banned(rows), uniform(rows));
      var kept = accept(rows, first, config, limit, listener);
      if (kept.length == 0) {
        return;
      }
      long maxLength = seq;
      for (var row : rows) {
        maxLength =
            Math.max(
                maxLength,
                Math.min(
                    (long) seq + config.maxNewTokens(), (long) seq - row.promptLength + limit));
      }
      try (var session = decoding.begin(cache, kept, (int) maxLength, config, served)) {
        while (!rows.isEmpty()) {
          int before = rows.size();
          var tokens = rows.stream().mapToInt(row -> row.next).toArray();
          var next = session.step(tokens, banned(rows), uniform(rows));
          kept = accept(rows, next, config, limit, listener);
          if (kept.length > 0 && kept.length < before) {
            session.keepRows(kept);
          }
        }
      }
    }
  }

  /** With a router that looks at the prompts first: what it chose for these. */
  private ForwardContext probed(NDManager manager, int[] padding, long[] ids, int seq) {
    var routing = context.routing();
    if (!(routing.router() instanceof Router.Probing probing)) {
      return context;
    }
    var probe = probing.probe();
    var along = context.withRouting(routing.withRouter(probe)).withListener(Optional.empty());
    try (var cache = model.newCache(manager, padding, seq)) {
      ModelSession.logits(model, cache, ids, seq, along);
    }
    return context.withRouting(routing.withRouter(probe.chosen(routing.topK())));
  }

  private static int[][] banned(List<Row> rows) {
    return rows.stream().map(Row::banned).toArray(int[][]::new);
  }

  private static long[] uniform(List<Row> rows) {
    return rows.stream().mapToLong(row -> row.sampler.uniform()).toArray();
  }

  /** Takes a token a row; {@code rows} keeps those that go on, whose former places are returned. */
  private int[] accept(
      List<Row> rows, int[] tokens, GenerationConfig config, int limit, TokenListener listener) {
    var kept = new ArrayList<Integer>();
    var staying = new ArrayList<Row>();
    for (int r = 0; r < tokens.length; r++) {
      var row = rows.get(r);
      if (config.eosTokenIds().contains(tokens[r])) {
        continue;
      }
      row.next = tokens[r];
      row.answer.add(tokens[r]);
      row.remember(tokens[r]);
      listener.onToken(row.index, tokens[r]);
      if (row.answer.size() < config.maxNewTokens()
          && row.promptLength + row.answer.size() < limit) {
        kept.add(r);
        staying.add(row);
      }
    }
    rows.clear();
    rows.addAll(staying);
    return kept.stream().mapToInt(Integer::intValue).toArray();
  }
}
