package org.meteora.generate;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import org.meteora.model.KvCache;

/** A request and what has come of it. */
final class Sequence {
  /** Tokens for which memory is taken at once, of a sequence that may get longer. */
  private static final int EXPECTED = 1024;

  final int request;
  final int[] prompt;
  final GenerationConfig config;
  final int limit;
  final Sampler sampler;
  final NoRepeatNgram ngrams;
  final List<Integer> answer = new ArrayList<>();
  int slot;
  private int known; // tokens of the answer that the model has run, or is given next
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
    known = answer.size();
    remember(token);
    drawn = false;
  }

  /**
   * Begins anew behind its prompt: the answer so far is run again token by token, for a router to
   * which it matters how a token is run.
   */
  void rewind() {
    known = 0;
  }

  /** Goes on to the next token of an answer that is run again; false when it has no more. */
  boolean replays() {
    boolean more = known < answer.size();
    known += more ? 1 : 0;
    return more;
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

  /** What is to be computed before its next step: prompt and answer so far, or the prompt alone. */
  int[] tokens() {
    var all = Arrays.copyOf(prompt, prompt.length + known);
    for (int i = 0; i < known; i++) {
      all[prompt.length + i] = answer.get(i);
    }
    return all;
  }

  DecodeSession.Next next() {
    return new DecodeSession.Next(slot, answer.get(known - 1), banned(), uniform(), config);
  }

  int[] result() {
    return answer.stream().mapToInt(Integer::intValue).toArray();
  }
}
