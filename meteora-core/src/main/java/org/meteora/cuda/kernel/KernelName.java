package org.meteora.cuda.kernel;

import java.util.Locale;

/**
 * Every kernel, with the record that mirrors its parameter. A name says what a kernel serves,
 * decode, prefill or training, and what it computes; those with <i>route</i> in it, and {@link
 * #TRAINING_TOP_K_MASK}, take the gates' top k ({@code gateTopK} in {@code routing.cuh}), unless a
 * router has chosen already. In the source they are written in small letters.
 */
public enum KernelName {
  /** A decode step's first: the tokens' embeddings, and the first RMSNorm's input. */
  DECODE_EMBED(DecodeLayerKernels.DecodeEmbed.class),

  /** {@code y = x Wᵀ} for up to 16 rows of any dtype, size and alignment. */
  PRODUCT_ANY(MatrixVector.Product.class),
  /** The same through the copy engine and tensor cores, for up to 8 rows. */
  PRODUCT_STREAM8(MatrixVector.StreamedProduct.class),
  /** The same for up to 16 rows. */
  PRODUCT_STREAM16(MatrixVector.StreamedProduct.class),

  /** {@code y = x Wᵀ} for up to 32 rows, by tensor cores out of shared memory. */
  PRODUCT_WIDE32(WideProduct.ProductWide.class),
  /** The same for up to 64 rows. */
  PRODUCT_WIDE64(WideProduct.ProductWide.class),
  /** The same for up to 256 rows. */
  PRODUCT_TILED(TiledProduct.ProductTiled.class),
  /** Gate, up, their adapters in the masked form and what follows, for up to 256 rows. */
  PRODUCT_SILU_UP(TiledProduct.ProductSiluUp.class),

  /** Sums of products of many rows, by tensor cores: {@code y = a0 · b0 + a1 · b1 + …}. */
  PRODUCT_SUM(SummedProducts.ProductSum.class),
  /** The same, of which the first go through dropout. */
  PRODUCT_SUM_DROPPED(SummedProducts.ProductSum.class),
  /** {@code [dropout(x) Aᵀ | x Gᵀ]}. */
  PRODUCT_MASKED(MaskedProducts.ProductMasked.class),
  /** {@code [∂zᵀ dropout(x); ∂lᵀ x]}. */
  PRODUCT_MASKED_GRADIENT(MaskedProducts.ProductMasked.class),

  /** Behind a product without A: routes, and multiplies the chosen adapters' rows of A alone. */
  DECODE_ROUTE_Z(DecodeLayerKernels.DecodeRouteZ.class),
  /** Behind q, k, v: routes, adds the adapters, rotates, and writes the KV cache's next column. */
  DECODE_ROUTE_ROPE_APPEND(DecodeLayerKernels.DecodeRouteRopeAppend.class),
  /** The same, routing while the product is still at work. */
  DECODE_ROUTE_ROPE_APPEND_GATES_FIRST(DecodeLayerKernels.DecodeRouteRopeAppend.class),
  /** The same, with the choice that {@link #DECODE_ROUTE_Z} has left. */
  DECODE_ROUTE_ROPE_APPEND_CHOSEN(DecodeLayerKernels.DecodeRouteRopeAppend.class),
  /** Attention of one new token a row over its KV cache. */
  DECODE_ATTENTION(DecodeAttentionKernel.DecodeAttention.class),
  /** The same on tensor cores, in clusters of blocks. */
  DECODE_ATTENTION_CLUSTER(DecodeAttentionKernel.DecodeAttention.class),
  /** Behind o and down: routes, adds the adapters and the residual, makes the next norm's input. */
  DECODE_ROUTE_ADD_RESIDUAL(DecodeLayerKernels.DecodeRouteAddResidual.class),
  /** The same, routing while the product is still at work. */
  DECODE_ROUTE_ADD_RESIDUAL_GATES_FIRST(DecodeLayerKernels.DecodeRouteAddResidual.class),
  /** The same, with the choice that {@link #DECODE_ROUTE_Z} has left. */
  DECODE_ROUTE_ADD_RESIDUAL_CHOSEN(DecodeLayerKernels.DecodeRouteAddResidual.class),
  /** Behind gate and up: routes, adds the adapters, {@code silu(gate) · up}; 2 outputs a thread. */
  DECODE_ROUTE_SILU_UP2(DecodeLayerKernels.DecodeRouteSiluUp.class),
  /** The same with 4 outputs a thread. */
  DECODE_ROUTE_SILU_UP4(DecodeLayerKernels.DecodeRouteSiluUp.class),
  /** The same with 2, routing while the product is still at work. */
  DECODE_ROUTE_SILU_UP2_GATES_FIRST(DecodeLayerKernels.DecodeRouteSiluUp.class),
  /** The same with 2, with the choice that {@link #DECODE_ROUTE_Z} has left. */
  DECODE_ROUTE_SILU_UP2_CHOSEN(DecodeLayerKernels.DecodeRouteSiluUp.class),
  /** The same with 4, routing while the product is still at work. */
  DECODE_ROUTE_SILU_UP4_GATES_FIRST(DecodeLayerKernels.DecodeRouteSiluUp.class),
  /** The same with 4, with the choice that {@link #DECODE_ROUTE_Z} has left. */
  DECODE_ROUTE_SILU_UP4_CHOSEN(DecodeLayerKernels.DecodeRouteSiluUp.class),

  /** A decode step's first, of many rows: the tokens' embeddings, and their RMSNorm. */
  DECODE_EMBED_NORM(DecodeLayerKernels.DecodeEmbedNorm.class),
  /**
   * Behind o and down of many rows: routes, adds the adapters and the residual, and the RMSNorm.
   */
  DECODE_ROUTE_ADD_RESIDUAL_NORM(DecodeLayerKernels.DecodeRouteAddResidualNorm.class),
  /** Behind gate and up of many rows: routes, adds the adapters, {@code silu(gate) · up}. */
  DECODE_ROUTE_SILU_UP_WIDE(DecodeLayerKernels.DecodeRouteSiluUp.class),

  /** Behind a product: weighs all adapters, or is given their weights, and adds them to it. */
  DECODE_ADD_MIXTURE(DecodeLayerKernels.DecodeAddMixture.class),

  /** A product of few columns for many rows, in slices of its inner dimension. */
  DECODE_FEW_COLUMNS(FewColumns.DecodeFewColumns.class),
  /** The same by way of shared memory. */
  DECODE_FEW_COLUMNS_STAGED(FewColumns.DecodeFewColumns.class),
  /** The sum of the slices. */
  DECODE_SUM_PARTS(FewColumns.DecodeSumParts.class),

  /** The sum of the slices of gate's and up's gates and A, the choice, coefficients for whole B. */
  DECODE_SUM_ROUTE(MaskedAdapters.DecodeSumRoute.class),
  /**
   * Behind gate and up of many rows: the adapters by whole B, {@code silu(gate) · up}; 64 rows at a
   * time.
   */
  DECODE_MASKED_SILU_UP64(MaskedAdapters.DecodeMaskedSiluUp.class),
  /** The same, 128 rows at a time. */
  DECODE_MASKED_SILU_UP128(MaskedAdapters.DecodeMaskedSiluUp.class),

  /** Sums the logits' slots, removes banned tokens, and finds each block's largest. */
  SAMPLE_BLOCK_MAXIMA(DeviceSampler.SampleTokens.class),
  /** A decode step's last: the largest logit, or a token drawn by temperature, top-k and top-p. */
  SAMPLE_TOKENS(DeviceSampler.SampleTokens.class),

  /** Gated linears outside the decode engine, behind their product: routes, adds the adapters. */
  PREFILL_ROUTE_ADD_ADAPTERS(AdapterKernels.PrefillRouteAddAdapters.class),
  /** Routes, and scales z = A x by weight · scale, to zero for adapters not chosen. */
  PREFILL_ROUTE_SCALE_Z(AdapterKernels.PrefillRouteScaleZ.class),
  /** Routes, for the kernels behind {@link #GROUP_TOKENS}. */
  PREFILL_ROUTE(GroupedPrefill.PrefillRoute.class),
  /** Tokens sorted by their adapters. */
  GROUP_TOKENS(GroupedPrefill.GroupTokens.class),
  /** z = x Aᵀ of the adapters that each token chose. */
  GROUP_Z(GroupedPrefill.GroupZ.class),
  /** z Bᵀ of the adapters that each token chose. */
  GROUP_ADD(GroupedPrefill.GroupAdd.class),
  /** The same of z that lies token by token, summed over several linears; in training. */
  GROUP_ADD_BY_ROW(GroupedPrefill.GroupAdd.class),
  /** 0 for a token's top k, −∞ for other adapters, to be added to the logits. */
  TRAINING_TOP_K_MASK(AdapterKernels.TrainingTopKMask.class),

  /** {@code rmsnorm(h + delta) · weight}. */
  PREFILL_RMS_NORM(PrefillKernels.PrefillRmsNorm.class),
  /** Rotates queries and keys, and writes keys and values to the KV cache. */
  PREFILL_ROPE_APPEND(PrefillKernels.PrefillRopeAppend.class),
  /** Columns of rows of one KV cache to another's. */
  PREFILL_COPY_COLUMNS(PrefillKernels.PrefillCopyColumns.class),
  /** {@code silu(gate) · up}. */
  PREFILL_SILU_UP(PrefillKernels.PrefillSiluUp.class),

  /** RMSNorm, and its dropped form. */
  TRAINING_NORM(TrainingKernels.TrainingNorm.class),
  /** The gradient of a norm's input. */
  TRAINING_NORM_BACKWARD(TrainingKernels.TrainingNormBackward.class),
  /** {@code a + b}. */
  TRAINING_ADD(TrainingKernels.TrainingAdd.class),
  TRAINING_DROP(TrainingKernels.TrainingDrop.class),
  /** A bias in every row. */
  TRAINING_BIAS(TrainingKernels.TrainingBias.class),
  /** {@code silu(gate) · up}, and its dropped form. */
  TRAINING_SILU(TrainingKernels.TrainingSilu.class),
  /** The gradients of gate and up. */
  TRAINING_SILU_BACKWARD(TrainingKernels.TrainingSiluBackward.class),
  /** Heads between tokens and attention's rows, rotated. */
  TRAINING_HEADS(TrainingKernels.TrainingHeads.class),
  /** Routes, scales z, and counts the gates' losses. */
  TRAINING_ROUTE(TrainingKernels.TrainingRoute.class),
  /** The gradients of z and of the gates' logits. */
  TRAINING_ROUTE_BACKWARD(TrainingKernels.TrainingRouteBackward.class),
  /** Tokens by the adapters that they chose, always in the same order. */
  TRAINING_LISTS(TrainingKernels.TrainingLists.class),
  /** Gradients of A or B by the tokens that chose each adapter. */
  TRAINING_CHOSEN_GRADIENTS(TrainingKernels.TrainingChosenGradients.class),
  TRAINING_ROWS(TrainingKernels.TrainingRows.class),
  /** Cross-entropies over the vocabulary, and their gradient. */
  TRAINING_VOCABULARY_LOSS(TrainingKernels.TrainingVocabularyLoss.class),
  /** Adds gradients to their places in the flat buffer. */
  TRAINING_ADD_GRADIENTS(TrainingKernels.TrainingAddGradients.class),
  /** Rounds master values into the model's tensors. */
  TRAINING_PUBLISH(TrainingKernels.TrainingPublish.class),
  /** A step of AdamW. */
  TRAINING_ADAM_W(TrainingKernels.TrainingAdamW.class),
  TRAINING_SQUARES(TrainingKernels.TrainingSquares.class);

  private final Class<? extends Record> argument;

  KernelName(Class<? extends Record> argument) {
    this.argument = argument;
  }

  /**
   * The record that mirrors its parameter, a struct of the same name in the {@code .cuh} sources.
   */
  Class<? extends Record> argument() {
    return argument;
  }

  /** The name in the source. */
  public String inSource() {
    return name().toLowerCase(Locale.ROOT);
  }
}
