package org.meteora.generate;

import ai.djl.ndarray.NDArray;
import java.util.List;
import java.util.OptionalInt;
import org.meteora.model.KvCache;
import org.meteora.moe.ForwardContext;

/** Another's session, but for what a test overrides. */
class DelegatingSession implements DecodeSession {
  private final DecodeSession session;

  DelegatingSession(DecodeSession session) {
    this.session = session;
  }

  @Override
  public KvCache pool() {
    return session.pool();
  }

  @Override
  public void join(KvCache filled, List<KvCache.Columns> columns) {
    session.join(filled, columns);
  }

  @Override
  public int[] step(List<Next> rows, boolean goesOn) {
    return session.step(rows, goesOn);
  }

  @Override
  public boolean takesLogits() {
    return session.takesLogits();
  }

  @Override
  public int[] first(List<Next> rows, NDArray last) {
    return session.first(rows, last);
  }

  @Override
  public boolean isAhead() {
    return session.isAhead();
  }

  @Override
  public void close() {
    session.close();
  }

  /** Another's sessions, but for what a test overrides. */
  static class Provider implements DecodeSession.Provider {
    private final DecodeSession.Provider provider;

    Provider(DecodeSession.Provider provider) {
      this.provider = provider;
    }

    @Override
    public DecodeSession begin(int sequences, int tokens, ForwardContext context) {
      return provider.begin(sequences, tokens, context);
    }

    @Override
    public int maxSequences() {
      return provider.maxSequences();
    }

    @Override
    public int prefillTokens() {
      return provider.prefillTokens();
    }

    @Override
    public OptionalInt passTokens() {
      return provider.passTokens();
    }

    @Override
    public void close() {
      provider.close();
    }
  }
}
