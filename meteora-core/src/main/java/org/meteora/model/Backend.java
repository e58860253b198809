package org.meteora.model;

import java.util.Optional;
import org.meteora.lora.AdapterBank;
import org.meteora.moe.GatedForward;
import org.meteora.moe.GatedTape;

/**
 * What computes a model on one kind of device: chosen once, when the model is made, by {@code
 * org.meteora.backend.Backends}. Its string says which and why.
 */
public interface Backend extends GatedForward.Provider {
  /** What lies between the products at inference. */
  LayerOps ops();

  /**
   * What lies between the products of a training pass on a tape of this backend.
   *
   * @param tape from {@link #tape}
   */
  default LayerOps ops(GatedTape tape) {
    return TensorOps.INSTANCE;
  }

  /**
   * The memory that a model's tensors are taken from.
   *
   * @param wanted when less is free, what libtorch keeps for its next tensors is given back first
   */
  Memory memory(long wanted);

  /**
   * Memory of a device.
   *
   * @param owner such as {@code GPU 0}
   * @param free bytes
   */
  record Memory(String owner, long free) {}

  /**
   * Whether a training pass may keep what libtorch records of it, rather than compute it again.
   *
   * @param bytes of it
   */
  default boolean keepsRecordings(long bytes) {
    return false;
  }

  /** Whether weights in the model's dtype stay where their files are mapped. */
  default boolean readsMappedFiles() {
    return false;
  }

  /**
   * Whether inference can run several sequences as one row, {@link
   * Llama#next(ai.djl.ndarray.NDArray, KvCache, java.util.List, boolean,
   * org.meteora.moe.ForwardContext)}.
   */
  default boolean runsPacked(Architecture architecture) {
    return false;
  }

  /**
   * Whether inference can run any tokens of sequences as one row over their blocks, {@link
   * Llama#next(ai.djl.ndarray.NDArray, KvCache, BlockTables, int[], boolean,
   * org.meteora.moe.ForwardContext)}.
   */
  default boolean fillsBlocks() {
    return false;
  }

  /**
   * Makes ready what inference will ask for, while the caller loads the model; returns at once.
   *
   * @param adapters behind gates; 0 for a model without gates
   */
  default void prepare(Architecture architecture, int topK, int adapters) {}

  /**
   * The adapters of a linear laid out as inference reads them here.
   *
   * @param bank given away: its tensors may be closed
   */
  default AdapterBank forInference(AdapterBank bank) {
    return bank;
  }

  /**
   * Whole training passes by the backend's own code; empty where it has none for this model.
   *
   * @param gradients where the gradients of trained parameters go
   */
  default Optional<LlamaTraining> training(
      Llama llama, Gradients gradients, LlamaTraining.Recompute recompute) {
    return Optional.empty();
  }
}
