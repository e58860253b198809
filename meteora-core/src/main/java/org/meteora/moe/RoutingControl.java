package org.meteora.moe;

/**
 * What all gated layers of one model share and a caller may change between passes. Not for use from
 * several threads.
 */
public final class RoutingControl {
  private RoutingSettings settings;
  private Flags flags;
  private RoutingListener listener;
  private boolean dropout = true;

  public RoutingControl(RoutingSettings settings, Flags flags) {
    this.settings = settings;
    this.flags = flags;
  }

  public RoutingSettings settings() {
    return settings;
  }

  /** Sets k and T for the passes to come. */
  public void settings(RoutingSettings value) {
    settings = value;
  }

  public Flags flags() {
    return flags;
  }

  /** Chooses another implementation for the passes to come. */
  public void flags(Flags value) {
    flags = value;
  }

  /** Who is told of every routing; null for nobody. */
  public RoutingListener listener() {
    return listener;
  }

  /** Sets who is told of every routing; null for nobody. */
  public void listener(RoutingListener value) {
    listener = value;
  }

  /**
   * Whether training passes drop out adapters' inputs; an evaluation between training steps turns
   * it off.
   */
  public boolean dropout() {
    return dropout;
  }

  /** Turns the training passes' dropout on or off. */
  public void dropout(boolean value) {
    dropout = value;
  }
}
