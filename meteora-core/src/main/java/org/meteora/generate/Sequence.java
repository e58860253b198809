package org.meteora.generate;

import java.util.Arrays;
import java.util.Optional;
import java.util.function.IntPredicate;
import java.util.function.Supplier;
import org.meteora.moe.Router;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;
import org.meteora.moe.SequenceRouter;

/** A request and what has come of it. */
final class Sequence {
  final int request;
  final int[] prompt;
  final GenerationConfig config;
  final RoutingSettings routing;
  final Optional<RoutingListener> listener;
  final int limit;
  final Sampler sampler;
  final NoRepeatNgram ngrams;

  /**
   * Who chooses for it alone; empty for a router of the whole batch, or one that has not looked.
   */
  Optional<SequenceRouter> router;

  /** Tokens whose routing the listener has been told of. */
  int reported;

  private final Optional<IntPredicate> ends;
  private boolean ended; // by those
  private int[] tokens; // prompt and answer so far, and room for more
  private int length;
  private final long[] uniforms = new long[2]; // of its next tokens
  private int drawn; // of them

  Sequence(int request, Request of, int limit, RoutingSettings routing) {
    this.request = request;
    this.prompt = of.prompt();
    this.tokens = prompt;
    this.length = prompt.length;
    this.config = of.config();
    this.routing = routing;
    this.listener = of.listener();
    this.ends = of.ends().map(Supplier::get);
    this.limit = limit;
    this.router =
        switch (routing.router()) {
          case Router.Fixed fixed -> Optional.of(fixed);
          case Router.Reading reading -> Optional.of(reading.of(prompt));
          default -> Optional.empty();
        };
    this.sampler = new Sampler(config, of.stream());
    this.ngrams = new NoRepeatNgram(config.noRepeatNgramSize());
    Arrays.stream(prompt).forEach(ngrams::add);
  }

  /** The random number of its next token, the same until it is {@link #accept}ed. */
  long uniform() {
    return uniform(0);
  }

  /** That of the token so many behind the next. */
  private long uniform(int behind) {
    while (drawn <= behind) {
      uniforms[drawn++] = sampler.uniform();
    }
    return uniforms[behind];
  }

  void accept(int token) {
    if (length == tokens.length) {
      tokens = Arrays.copyOf(tokens, Math.max(64, 2 * length));
    }
    tokens[length++] = token;
    ngrams.add(token);
    ended = ends.isPresent() && ends.get().test(token);
    router = router.map(each -> each.next(token));
    uniforms[0] = uniforms[1];
    drawn = Math.max(0, drawn - 1);
  }

  boolean hasEnded() {
    return length - prompt.length >= config.maxNewTokens() || length >= limit || ended;
  }

  /** Whether it is sure to end with its next token. */
  boolean endsNext() {
    return length + 1 >= most();
  }

  /** Tokens of prompt and answer so far. */
  int length() {
    return length;
  }

  /** Tokens of prompt and answer that it may come to. */
  int most() {
    return (int) Math.min(limit, (long) prompt.length + config.maxNewTokens());
  }

  /** What is to be computed before its next step: prompt and answer so far. */
  int[] tokens() {
    return Arrays.copyOf(tokens, length);
  }

  /**
   * @param blocks that have its keys and values
   */
  DecodeSession.Next next(int[] blocks) {
    return new DecodeSession.Next(
        blocks,
        length - 1,
        tokens[length - 1],
        ngrams.banned(),
        uniform(),
        uniform(1),
        config,
        router.map(each -> new Router.Rows.Row(each, length() - 1)));
  }

  int[] result() {
    return Arrays.copyOfRange(tokens, prompt.length, length);
  }
}
