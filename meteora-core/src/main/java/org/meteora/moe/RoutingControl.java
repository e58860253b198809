package org.meteora.moe;

import ai.djl.ndarray.NDManager;
import java.util.UUID;
import org.meteora.backend.cuda.GpuRouting;
import org.meteora.cuda.driver.Cuda;
import org.meteora.moe.forward.Flags;

/**
 * What all gated layers of one model share and a caller may change between passes. Not for use from
 * several threads.
 */
public final class RoutingControl {
  private RoutingSettings settings;
  private Flags flags;
  private RoutingListener listener;
  private boolean dropout = true;
  private GpuRouting gathering;
  private boolean inPass;

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

  /** A pass through all gated layers of a model; {@link #close} tells the listener of it. */
  public interface RoutedPass extends AutoCloseable {
    @Override
    void close();
  }

  /**
   * Begins a pass whose gates need not tell the listener at once: on a GPU what they choose is
   * gathered there, and told, in the same order, when the pass is closed. Elsewhere, and for
   * implementations that cannot gather, every gate tells the listener itself.
   *
   * @param model owns the model's parameters, and so the memory for this
   */
  public RoutedPass pass(NDManager model) {
    if (listener == null || !model.getDevice().isGpu()) {
      return () -> {};
    }
    if (gathering == null || gathering.isClosed()) {
      gathering = new GpuRouting(Cuda.device(model.getDevice().getDeviceId()));
      model.attachInternal(UUID.randomUUID().toString(), gathering);
    }
    inPass = true;
    return () -> {
      inPass = false;
      gathering.tell(listener);
    };
  }

  /** Where gates on a GPU may leave their choices now; null when each must tell the listener. */
  GpuRouting gathering() {
    return inPass ? gathering : null;
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
