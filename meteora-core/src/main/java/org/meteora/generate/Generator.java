package org.meteora.generate;

import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.meteora.UserException;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.meteora.moe.RoutingListener;
import org.meteora.moe.RoutingSettings;
import org.meteora.tensor.Ops;

/**
 * Generates with a {@link Llama}: a list of prompts becomes batches of sequences that run to their
 * ends ({@link RunningBatch}). Immutable, and so are its settings of the routing: any number of
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
    int max = context.listener().isPresent() ? atOnce : Math.min(atOnce, decoding.maxSequences());
    int piece = RunningBatch.isStatic(context) ? max : Math.max(1, sequences.size());
    try (var recording = Ops.notRecording()) {
      for (int from = 0; from < sequences.size(); from += piece) {
        run(sequences.subList(from, Math.min(sequences.size(), from + piece)), max, listener);
      }
    }
  }

  /** Those that cannot run together run one by one. */
  private void run(List<Sequence> sequences, int max, AnswerListener listener) {
    RunningBatch.run(model, decoding, context, sequences, max, listener)
        .forEach(alone -> run(List.of(alone), 1, listener));
  }
}
