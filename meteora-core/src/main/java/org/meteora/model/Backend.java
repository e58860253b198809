package org.meteora.model;

import org.meteora.moe.GatedForward;

/**
 * What computes a model on one kind of device: chosen once, when the model is made, by {@code
 * org.meteora.backend.Backends}. Its string says which and why.
 */
public interface Backend extends GatedForward.Provider {
  /** What lies between the products at inference. */
  LayerOps ops();
}
