// The kernels of a decode step and of the gated LoRA layer. Compiled by NVRTC for the GPU at hand; its headers are these files alone.
//
// Options: DTYPE 0 float32, 1 float16, 2 bfloat16 (weights, KV cache, activations between kernels; all sums are float32),
// TOPK adapters per token, MAXN adapters at most, HEAD_DIM, GROUP query heads that one attention block serves. With HEAD_DIM 0
// the kernels that only a whole decode step needs are left out, which compiles in a third of the time. With MASKED there are the products of
// training that drop their input, which take longer to compile than the others. MAX_ROWS of a
// product of our own, MAX_SEQUENCES of a step, MAX_RANK of an adapter, MAX_BANNED tokens of a row: the limits, which only the
// Java classes know.
//
// A decode step is a sequence of launches. Every kernel begins with waitForPrevious(): under programmatic dependent launch
// its blocks may start, and fetch what does not depend on it (weights), while the previous kernel still runs.
#include "common.cuh"
#include "routing.cuh"
#include "product.cuh"
#if HEAD_DIM > 0
#include "product_wide.cuh"
#include "decode_layer.cuh"
#include "decode_wide.cuh"
#include "decode_mixture.cuh"
#include "decode_masked.cuh"
#include "attention.cuh"
#include "sampling.cuh"
#endif
#include "gated.cuh"
#include "grouped.cuh"
#include "prefill.cuh"
#include "training.cuh"
#include "product_sum.cuh"
#include "product_tiled.cuh"
#if MASKED
#include "product_masked.cuh"
#endif
