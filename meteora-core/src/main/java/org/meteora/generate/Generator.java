package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashSet;
import java.util.List;
import java.util.Optional;
import java.util.Set;
import org.meteora.UserException;
import org.meteora.backend.cuda.CudaDecoder;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.tensor.Ops;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Generates with a {@link Llama}: one prefill of the left-padded batch, then a step a token; rows
 * leave the batch as they finish. On a GPU the steps are {@link CudaDecoder}'s where it can take
 * them, and the model's own, with a line in the log that says why, where it cannot.
 */
public final class Generator implements TokenGenerator, AutoCloseable {
  private static final Logger LOG = LoggerFactory.getLogger(Generator.class);

  private final Llama model;
  private final Set<String> told = new HashSet<>();
  private CudaDecoder decoder;

  public Generator(Llama model) {
    this.model = model;
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

    /** Bans and chooses, from the logits at {@code offset}, which are changed. */
    int choose(float[] logits, int offset, int vocab, int[] banned, long uniform) {
      for (int token : banned) {
        logits[offset + token] = Float.NEGATIVE_INFINITY;
      }
      return sampler.choose(logits, offset, vocab, uniform);
    }

    /**
     * A weight that is no number, or a dtype too small for the model, would choose token 0 for
     * ever.
     */
    void requireFinite(float[] logits, int offset, int vocab) {
      for (int i = offset; i < offset + vocab; i++) {
        if (!(Math.abs(logits[i]) <= Float.MAX_VALUE)) {
          throw new UserException(
              "the logits are not finite after "
                  + promptLength
                  + " tokens of the prompt and "
                  + answer.size()
                  + " of the answer (a value in the weights that is no number, or a dtype too small"
                  + " for them); the answer is given up");
        }
      }
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
    try (var cache = model.newCache(manager, padding, seq + 1)) {
      var kept =
          accept(rows, chosen(rows, pass(manager, cache, ids, seq, rows)), config, limit, listener);
      if (kept.length == 0) {
        return;
      }
      long most = seq;
      for (var row : rows) {
        most =
            Math.max(
                most,
                Math.min(
                    (long) seq + config.maxNewTokens(), (long) seq - row.promptLength + limit));
      }
      if (onGpu(cache, kept, (int) most, config)) {
        decode(rows, config, limit, listener);
        return;
      }
      while (kept.length > 0) {
        if (kept.length < cache.rows()) {
          cache.keepRows(kept);
        }
        var next = rows.stream().mapToLong(row -> row.next).toArray();
        kept =
            accept(
                rows, chosen(rows, pass(manager, cache, next, 1, rows)), config, limit, listener);
      }
    }
  }

  /** Runs new tokens through the model; the last position's logits, one row after another. */
  private float[] pass(NDManager manager, KvCache cache, long[] ids, int width, List<Row> rows) {
    try (var scope = manager.newSubManager()) {
      NDArray input = scope.create(ids, Ops.shape(rows.size(), width));
      return model.next(input, cache).toFloatArray();
    }
  }

  /** Bans and chooses: one token a row. */
  private int[] chosen(List<Row> rows, float[] logits) {
    int vocab = model.config().vocabSize();
    var tokens = new int[rows.size()];
    for (int r = 0; r < tokens.length; r++) {
      var row = rows.get(r);
      row.requireFinite(logits, r * vocab, vocab);
      tokens[r] = row.choose(logits, r * vocab, vocab, row.banned(), row.sampler.uniform());
    }
    return tokens;
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

  /** Hands the batch to the GPU's decode engine, if it can take it. */
  private boolean onGpu(KvCache cache, int[] slots, int most, GenerationConfig config) {
    if (!model.manager().getDevice().isGpu()) {
      return false;
    }
    var refusal = CudaDecoder.refusal(model, slots.length);
    if (refusal.isEmpty()) {
      try {
        if (decoder != null && !decoder.current()) {
          close();
        }
        if (decoder == null) {
          decoder = new CudaDecoder(model);
        }
        decoder.begin(cache, slots, most, config);
        return true;
      } catch (UserException e) {
        close();
        refusal = Optional.of(e.getMessage());
      }
    }
    if (told.add(refusal.get())) {
      LOG.info("decoding operation by operation, not as a CUDA graph: {}", refusal.get());
    }
    return false;
  }

  private void decode(List<Row> rows, GenerationConfig config, int limit, TokenListener listener) {
    var logits = new float[model.config().vocabSize()];
    while (!rows.isEmpty()) {
      int before = rows.size();
      var banned = rows.stream().map(Row::banned).toArray(int[][]::new);
      var uniform = rows.stream().mapToLong(row -> row.sampler.uniform()).toArray();
      var tokens = decoder.step(rows.stream().mapToInt(row -> row.next).toArray(), banned, uniform);
      for (int r = 0; r < before; r++) {
        if (banned[r].length > CudaDecoder.MAX_BANNED) {
          decoder.logits(r, logits);
          tokens[r] = rows.get(r).choose(logits, 0, logits.length, banned[r], uniform[r]);
        }
      }
      var kept = accept(rows, tokens, config, limit, listener);
      if (kept.length > 0 && kept.length < before) {
        decoder.keepRows(kept);
      }
    }
  }

  /** Frees the GPU's decode engine; the next generation makes another. */
  @Override
  public void close() {
    if (decoder != null) {
      decoder.close();
      decoder = null;
    }
  }
}
