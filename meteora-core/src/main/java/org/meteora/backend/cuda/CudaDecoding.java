package org.meteora.backend.cuda;

import java.util.Optional;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicReference;
import org.meteora.UserException;
import org.meteora.cuda.kernel.DeviceSampler;
import org.meteora.generate.DecodeSession;
import org.meteora.generate.GenerationConfig;
import org.meteora.generate.ModelSession;
import org.meteora.generate.Sampler;
import org.meteora.model.KvCache;
import org.meteora.model.Llama;
import org.meteora.moe.ForwardContext;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Sessions on a GPU: {@link CudaDecoder}'s steps where it can take them, and the model's own, with
 * a line in the log that says why, where it cannot. A decoder is kept for the next session; while
 * it is in use another session makes its own.
 */
public final class CudaDecoding implements DecodeSession.Provider {
  private static final Logger LOG = LoggerFactory.getLogger(CudaDecoding.class);

  private final Llama model;
  private final Set<String> logged = ConcurrentHashMap.newKeySet();
  private final AtomicReference<CudaDecoder> idle = new AtomicReference<>();

  /**
   * @param model on a CUDA device
   */
  public CudaDecoding(Llama model) {
    this.model = model;
  }

  @Override
  public DecodeSession begin(
      KvCache filled, int[] rows, int maxLength, GenerationConfig config, ForwardContext context) {
    var refusal = CudaDecoder.refusal(model, rows.length, context);
    if (refusal.isEmpty()) {
      CudaDecoder decoder = null;
      try {
        decoder = decoder(context);
        decoder.begin(filled, rows, maxLength, config, context);
        return new Session(decoder, config, model.config().vocabSize());
      } catch (UserException e) {
        if (decoder != null) {
          decoder.close();
        }
        refusal = Optional.of(e.getMessage());
      }
    }
    if (logged.add(refusal.get())) {
      LOG.info("decoding operation by operation, not as a CUDA graph: {}", refusal.get());
    }
    return new ModelSession(model, filled, rows, config, context);
  }

  private CudaDecoder decoder(ForwardContext context) {
    var kept = idle.getAndSet(null);
    if (kept != null && kept.isFor(context)) {
      return kept;
    }
    if (kept != null) {
      kept.close();
    }
    return new CudaDecoder(model, context.routing().topK());
  }

  private final class Session implements DecodeSession {
    private final CudaDecoder decoder;
    private final Sampler sampler;
    private final float[] logits;

    Session(CudaDecoder decoder, GenerationConfig config, int vocab) {
      this.decoder = decoder;
      this.sampler = new Sampler(config, 0);
      this.logits = new float[vocab];
    }

    @Override
    public int[] step(int[] tokens, int[][] banned, long[] uniform) {
      var next = decoder.step(tokens, banned, uniform);
      for (int row = 0; row < next.length; row++) {
        if (next[row] == DeviceSampler.NOT_FINITE) {
          throw Sampler.notFinite();
        }
        if (banned[row].length > CudaDecoder.MAX_BANNED) {
          decoder.logits(row, logits);
          next[row] = sampler.choose(logits, 0, logits.length, banned[row], uniform[row]);
        }
      }
      return next;
    }

    @Override
    public void keepRows(int[] rows) {
      decoder.keepRows(rows);
    }

    @Override
    public void close() {
      if (!idle.compareAndSet(null, decoder)) {
        decoder.close();
      }
    }
  }

  /** Frees the decoder that is kept; the next session makes another. */
  @Override
  public void close() {
    var kept = idle.getAndSet(null);
    if (kept != null) {
      kept.close();
    }
  }
}
