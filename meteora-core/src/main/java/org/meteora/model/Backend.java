package org.meteora.model;

import org.meteora.lora.AdapterBank;
import org.meteora.moe.GatedForward;

/**
 * What computes a model on one kind of device: chosen once, when the model is made, by {@code
 * org.meteora.backend.Backends}. Its string says which and why.
 */
public interface Backend extends GatedForward.Provider {
  /** What lies between the products at inference. */
  LayerOps ops();

  /**
   * Says before a model is loaded that it does not fit.
   *
   * @param bytes of its weights, in its dtype
   * @throws org.meteora.UserException naming what is needed and what is free
   */
  void requireMemory(long bytes);

  /**
   * Makes ready what inference will ask for, while the caller loads the model; returns at once.
   *
   * @param topK adapters a token
   * @param adapters behind gates; 0 for a model without gates
   */
  void prepare(Architecture architecture, int topK, int adapters);

  /**
   * The adapters of a linear laid out as inference reads them here.
   *
   * @param bank given away: its tensors may be closed
   */
  AdapterBank forInference(AdapterBank bank);
}
