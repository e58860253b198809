package org.meteora.backend.cuda;

import ai.djl.ndarray.NDArray;
import java.util.List;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicReference;
import org.meteora.UserException;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.ModelSession;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Sessions on a GPU: {@link CudaDecoder}'s steps where it can take them, and the model's own, with
 * a line in the log that says why, where it cannot. A decoder is kept for the next session; while
 * it is in use another session makes its own.
 *
 * <p>Where nothing may depend on what runs beside a sequence, every step is one of {@link
 * CudaDecoder#INVARIANT_ROWS} rows, whoever has them, and every prompt is run by itself, in passes
 * of {@link #INVARIANT_PASS} tokens: the same kernels then add the same numbers in the same order.
 */
public final class CudaDecoding implements DecodeSession.Provider {
  private static final Logger LOG = LoggerFactory.getLogger(CudaDecoding.class);

  private static final long PREFILL = 4096L * 7_000_000_000L;

  /** A pass of an 8B model on an H100 takes the host as long as the GPU at about as many tokens. */
  private static final int INVARIANT_PASS = 512;

  private final Llama model;
  private final boolean invariant;
  private final Set<String> logged = ConcurrentHashMap.newKeySet();
  private final AtomicReference<CudaDecoder> idle = new AtomicReference<>();

  /**
   * @param model on a CUDA device
   * @param invariant whether nothing may depend on what runs beside a sequence
   */
  public CudaDecoding(Llama model, boolean invariant) {
    this.model = model;
    this.invariant = invariant;
  }

  @Override
  public int maxSequences() {
    return invariant ? CudaDecoder.INVARIANT_ROWS : CudaDecoder.MAX_ROWS;
  }

  @Override
  public OptionalInt passTokens() {
    return invariant ? OptionalInt.of(INVARIANT_PASS) : OptionalInt.empty();
  }

  /** As much arithmetic as 4,096 tokens of an 8B model: a small one's pass is mostly launches. */
  @Override
  public int prefillTokens() {
    long weights = 1 + model.linears().mapToLong(linear -> linear.weight().size()).sum();
    return (int) Math.clamp(PREFILL / weights, 2048, 8192) / 256 * 256;
  }

  @Override
  public DecodeSession begin(int sequences, int tokens, ForwardContext context) {
    int rows = invariant ? CudaDecoder.INVARIANT_ROWS : sequences;
    var refusal = CudaDecoder.refusal(model, rows, context);
    if (refusal.isEmpty()) {
      CudaDecoder decoder = null;
      try {
        decoder = decoder(context);
        decoder.begin(sequences, tokens, context);
        return new Session(decoder);
      } catch (UserException e) {
        close(decoder);
        refusal = Optional.of(e.getMessage());
      }
    }
    if (invariant) {
      throw new UserException("--batch-invariant cannot be had here: " + refusal.get());
    }
    if (logged.add(refusal.get())) {
      LOG.info("decoding operation by operation, not as a CUDA graph: {}", refusal.get());
    }
    return new ModelSession(model, sequences, tokens, context);
  }

  private CudaDecoder decoder(ForwardContext context) {
    var kept = idle.getAndSet(null);
    if (kept != null && kept.isFor(context)) {
      return kept;
    }
    close(kept);
    return new CudaDecoder(model, context.routing(), invariant);
  }

  private final class Session implements DecodeSession {
    private final CudaDecoder decoder;
    private boolean closed;

    Session(CudaDecoder decoder) {
      this.decoder = decoder;
    }

    @Override
    public KvCache pool() {
      return decoder.pool();
    }

    @Override
    public void join(KvCache filled, List<KvCache.Columns> columns) {
      decoder.join(filled, columns);
    }

    @Override
    public boolean takesLogits() {
      return false;
    }

    @Override
    public int[] first(List<Next> rows, NDArray last) {
      return decoder.first(rows, last);
    }

    @Override
    public int[] step(List<Next> rows, boolean goesOn) {
      return decoder.step(rows, goesOn);
    }

    @Override
    public boolean isAhead() {
      return decoder.isAhead();
    }

    @Override
    public void close() {
      if (closed) {
        return; // another session may have the decoder
      }
      closed = true;
      decoder.end();
      if (!idle.compareAndSet(null, decoder)) {
        decoder.close();
      }
    }
  }

  /** Frees the decoder that is kept; the next session makes another. */
  @Override
  public void close() {
    close(idle.getAndSet(null));
  }

  private static void close(CudaDecoder decoder) {
    if (decoder != null) {
      decoder.close();
    }
  }
}
