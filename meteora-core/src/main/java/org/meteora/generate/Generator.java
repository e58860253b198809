package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import ai.djl.ndarray.NDManager;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.UserException;
import org.meteora.llama.KvCache;
import org.meteora.llama.Llama;
import org.meteora.torch.Ops;

/**
 * Generates with a {@link Llama}: one prefill of the left-padded batch, then a step a token; rows
 * leave the batch as they finish.
 */
public final class Generator implements TokenGenerator {
  private final Llama model;

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
    int width = seq;
    try (var cache = model.newCache(manager, padding, seq + 1)) {
      while (true) {
        if (!step(manager, cache, ids, width, rows, config, limit, listener)) {
          return;
        }
        ids = rows.stream().mapToLong(row -> row.next).toArray();
        width = 1;
      }
    }
  }

  /** One pass and one token a row; false when no row is left. */
  private boolean step(
      NDManager manager,
      KvCache cache,
      long[] ids,
      int width,
      List<Row> rows,
      GenerationConfig config,
      int limit,
      TokenListener listener) {
    int vocab = model.config().vocabSize();
    float[] logits;
    try (var scope = manager.newSubManager()) {
      NDArray input = scope.create(ids, Ops.shape(rows.size(), width));
      logits = model.next(input, cache).toFloatArray();
    }
    var kept = new ArrayList<Integer>();
    var staying = new ArrayList<Row>();
    for (int r = 0; r < rows.size(); r++) {
      var row = rows.get(r);
      if (row.ngrams != null) {
        for (int token : row.ngrams.banned()) {
          logits[r * vocab + token] = Float.NEGATIVE_INFINITY;
        }
      }
      int token = row.sampler.choose(logits, r * vocab, vocab);
      if (config.eosTokenIds().contains(token)) {
        continue;
      }
      row.next = token;
      row.answer.add(token);
      row.remember(token);
      listener.onToken(row.index, token);
      if (row.answer.size() < config.maxNewTokens()
          && row.promptLength + row.answer.size() < limit) {
        kept.add(r);
        staying.add(row);
      }
    }
    if (staying.isEmpty()) {
      return false;
    }
    if (staying.size() < rows.size()) {
      cache.keepRows(kept.stream().mapToInt(Integer::intValue).toArray());
      rows.clear();
      rows.addAll(staying);
    }
    return true;
  }
}
