package org.meteora.moe;

import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** Says once a process why another implementation is used than the one asked for. */
public final class Fallback {
  private static final Logger LOG = LoggerFactory.getLogger(Fallback.class);
  private static final Set<String> SAID = ConcurrentHashMap.newKeySet();

  private Fallback() {}

  /** What was said so far. */
  public static Set<String> said() {
    return Set.copyOf(SAID);
  }

  /** Says everything once more. */
  public static void forget() {
    SAID.clear();
  }

  public static void say(String message) {
    if (SAID.add(message)) {
      LOG.info("{}", message);
    }
  }
}
