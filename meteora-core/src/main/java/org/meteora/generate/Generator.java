package org.meteora.generate;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import org.meteora.UserException;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Ops;

/**
 * Generates with a {@link Llama}: a list of prompts becomes batches of sequences that run to their
 * ends ({@link RunningBatch}). Immutable, and so are its settings of the routing: any number of
 * threads may generate with one model, each with a generator of its own settings. Requests that are
 * routed otherwise than the generator says run after those before them, but for those that have a
 * router each: they run together.
 */
public final class Generator implements TokenGenerator {
  final Llama model;
  final DecodeSession.Provider decoding;
  private final ForwardContext context;

  /** Whether prompts that begin alike share what is computed of that. */
  final boolean keepsPrefixes;

  /**
   * @param decoding runs the steps behind the prefill
   * @param context what is wanted of the gated layers
   * @throws IllegalArgumentException when it has a listener: one listens to a {@link Request}
   */
  public Generator(Llama model, DecodeSession.Provider decoding, ForwardContext context) {
    this(model, decoding, context, true);
  }

  private Generator(
      Llama model, DecodeSession.Provider decoding, ForwardContext context, boolean keepsPrefixes) {
    if (context.listener().isPresent()) {
      throw new IllegalArgumentException("a listener is a request's: Request.listenedBy");
    }
    this.model = model;
    this.decoding = decoding;
    this.context = context;
    this.keepsPrefixes = keepsPrefixes;
  }

  /** What it wants of the gated layers. */
  public ForwardContext context() {
    return context;
  }

  /** A generator with another k, T or router. */
  public Generator withRouting(RoutingSettings routing) {
    return with(context.withRouting(routing));
  }

  /** A generator that wants something else of the gated layers. */
  public Generator with(ForwardContext other) {
    return new Generator(model, decoding, other, keepsPrefixes);
  }

  /**
   * A generator that computes the whole of each prompt, even where others begin alike. Its answers
   * with one sequence at once depend on nothing else: all sums are taken in the same order.
   */
  public Generator withoutPrefixes() {
    return new Generator(model, decoding, context, false);
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
        var reason = "a prompt has %s tokens, more than the %s that the model takes here";
        listener.onFailure(i, new UserException(reason.formatted(length, limit)));
      } else if (length == limit || request.config().maxNewTokens() == 0) {
        listener.onAnswer(i, new int[0]);
      } else {
        try {
          sequences.add(
              new Sequence(i, request, limit, request.routing().orElse(context.routing())));
        } catch (UserException e) {
          listener.onFailure(i, e);
        }
      }
    }
    var batches = new LinkedHashMap<Object, List<Sequence>>();
    for (var sequence : sequences) {
      // a batch has one k and T and one router, or a router for each of its rows and the widest k
      Object each = decoding.passTokens().isPresent() ? sequence.routing.width() : "each";
      Object runsWith = sequence.routing.isOfEach() ? each : sequence.routing;
      batches.computeIfAbsent(runsWith, key -> new ArrayList<>()).add(sequence);
    }
    int max = Math.min(atOnce, decoding.maxSequences());
    int later = sequences.size();
    try (var recording = Ops.notRecording()) {
      for (var batch : batches.values()) {
        later -= batch.size();
        RunningBatch.run(this, batch, max, later, listener);
      }
    }
  }
}
