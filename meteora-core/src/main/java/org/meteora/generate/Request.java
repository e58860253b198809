package org.meteora.generate;

import java.util.Optional;
import java.util.function.IntPredicate;
import java.util.function.Supplier;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;

/**
 * A prompt to continue, and how.
 *
 * @param prompt token ids, at least one
 * @param config how tokens are chosen, and where it ends
 * @param stream of random numbers: requests of one seed draw from different ones
 * @param ends gives for an answer what takes its tokens one by one and says whether it ends with
 *     one by itself, such as by its text; empty for one that does not
 * @param routing k, T and who chooses; empty for the generator's own
 * @param listener is told of its routing: every token once, in order, as a batch of one row without
 *     padding
 */
public record Request(
    int[] prompt,
    GenerationConfig config,
    long stream,
    Optional<Supplier<IntPredicate>> ends,
    Optional<RoutingSettings> routing,
    Optional<RoutingListener> listener) {

  /** Ended by its config alone, and routed as the generator says; nobody listens. */
  public Request(int[] prompt, GenerationConfig config, long stream) {
    this(prompt, config, stream, Optional.empty(), Optional.empty(), Optional.empty());
  }

  /** The same, ended by this too. */
  public Request endedBy(Supplier<IntPredicate> value) {
    return new Request(prompt, config, stream, Optional.of(value), routing, listener);
  }

  /** The same with a routing of its own. */
  public Request withRouting(RoutingSettings value) {
    return new Request(prompt, config, stream, ends, Optional.of(value), listener);
  }

  /** The same, heard by this listener. */
  public Request listenedBy(RoutingListener value) {
    return new Request(prompt, config, stream, ends, routing, Optional.of(value));
  }
}
