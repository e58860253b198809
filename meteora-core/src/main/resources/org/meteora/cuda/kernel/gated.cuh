// The gated linear by itself: in decode without a captured step, in prefill and in training.
// y (rows, out), in T, += what the adapters add; the base product is there already. Grid (out / 64, rows, linears), a warp.
struct PrefillRouteAddAdapters {
  ProductOutput product;
  RoutedLinear linear[3];
  T* y[3];
};
extern "C" __global__ void __launch_bounds__(32) prefill_route_add_adapters(const __grid_constant__ PrefillRouteAddAdapters p) {
  releaseNext();
  const RoutedLinear& l = p.linear[blockIdx.z];
  const int row = blockIdx.y, o = (blockIdx.x * 32 + threadIdx.x) * 2, left = l.out - o;
  if ((int)blockIdx.x * 64 >= l.out) return;
  const AdapterInfo known = loadAdapterInfo(p.product, l);
  waitForPrevious();
  const bool whole = l.vectors;
  T* to = p.y[blockIdx.z] + (u64)row * l.out + o;
  float sum[1][2], logits[1][NREG];
  const RoutedLinear* const linears[] = {&l};
  gather<0, 1, 2>(p.product, row, nullptr, whole, 0, linears, nullptr, logits);
#pragma unroll
  for (int i = 0; i < 2; i++) sum[0][i] = i < left ? toFloat(to[i]) : 0.f;
  const Route chosen[] = {route(p.product, l, known, logits[0], row, blockIdx.x == 0)};
  const PrefetchedB<2> ahead = prefetchB<2>(l, chosen[0], o, whole, left);
  float z[1][TOPK][MAX_RANK / 32];
  coefficients<1>(p.product, row, linears, chosen, z);
  addRouted<2>(l, chosen[0], z[0], ahead, o, whole, left, sum[0]);
  storePacked<2>(to, false, left, sum[0]);
}

// weight · scale of the chosen adapter that a rank belongs to; 0: none.
__device__ __forceinline__ float factorOf(int rank, const int* begin, const int* end, const float* factor) {
  float f = 0;
#pragma unroll
  for (int j = 0; j < TOPK; j++)
    if (rank >= begin[j] && rank < end[j]) f = factor[j];
  return f;
}
// factor · v; 0 for a factor of 0, and v is not read then: most are not chosen.
__device__ __forceinline__ T scaled(float factor, const T& v) { return factor == 0.f ? fromFloat(0.f) : fromFloat(factor * toFloat(v)); }

// Prefill: z (tokens, sumR) becomes weight · scale · z, zero for adapters not chosen, in place; so that
// y = base + z Bᵀ is one matrix product. A row of the matrix has z of up to three linears and then the logits of their gates.
// Optionally writes the choice (tokens, TOPK). Grid (tokens / 8, linears).
struct ScaledLinear {
  const int* offsets;
  const float* scales;
  int* indices;
  float* weights;
  int at, logitsAt, n, sumR;
};
struct PrefillRouteScaleZ {
  T* rows;
  long long tokens, stride;
  const T* x;  // (tokens, k), the product's input
  int k;
  float invTemperature;
  ScaledLinear linear[3];
};
// The choice of a token for one linear and its weights, by a warp; written down where that is wanted.
template <class P>
__device__ __forceinline__ void choose(const P& p, const ScaledLinear& l, long long token, int* index, float* weight) {
  const int lane = threadIdx.x & 31;
  const T* z = p.rows + token * p.stride + l.at;
  const T* ofGate = p.rows + token * p.stride + l.logitsAt;
  float logits[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++) {
    const int e = lane + 32 * i;
    logits[i] = 0.f;
    if (e >= l.n) continue;
    const int first = l.offsets[e], rank = l.offsets[e + 1] - first;
#if SCORES == SCORES_NORM
    float squares = 0;
    for (int r = first; r < first + rank; r++) squares += toFloat(z[r]) * toFloat(z[r]);
    logits[i] = scoreOf(sqrtf(squares), rank);
#else
    logits[i] = scoreOf(toFloat(ofGate[e]), rank);
#endif
  }
  float inverse = p.invTemperature;
#if SCORES == SCORES_STANDARDIZED
  if (TOPK > 1) inverse *= inverseDeviation(p.x + token * p.k, p.k, 1.f);
#endif
  gateTopK(logits, l.n, inverse, index, weight);
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    if (lane == 0 && l.indices) l.indices[token * TOPK + j] = index[j];
    if (lane == 0 && l.weights) l.weights[token * TOPK + j] = weight[j];
  }
}
extern "C" __global__ void __launch_bounds__(256) prefill_route_scale_z(const __grid_constant__ PrefillRouteScaleZ p) {
  const ScaledLinear& l = p.linear[blockIdx.y];
  const int lane = threadIdx.x & 31;
  const long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.tokens) return;
  T* z = p.rows + token * p.stride + l.at;
  int index[TOPK], begin[TOPK], end[TOPK];
  float weight[TOPK], factor[TOPK];
  choose(p, l, token, index, weight);
#if SCORES == SCORES_NORM
  __syncwarp();  // z has been read by all lanes
#endif
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    begin[j] = index[j] < 0 ? 0 : l.offsets[index[j]];
    end[j] = index[j] < 0 ? 0 : l.offsets[index[j] + 1];
    factor[j] = index[j] < 0 ? 0.f : weight[j] * l.scales[index[j]];
  }
  for (int r = lane; r < l.sumR; r += 32) z[r] = scaled(factorOf(r, begin, end, factor), z[r]);
}

// Training: 0 for the chosen adapters of a token, -infinity for the others, to be added to the logits before a softmax.
struct TrainingTopKMask {
  const T* logits;
  float* mask;
  long long tokens;
  int n;
};
extern "C" __global__ void __launch_bounds__(256) training_top_k_mask(const __grid_constant__ TrainingTopKMask p) {
  int lane = threadIdx.x & 31;
  long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.tokens) return;
  float logits[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++) logits[i] = lane + 32 * i < p.n ? toFloat(p.logits[token * p.n + lane + 32 * i]) : 0.f;
  int index[TOPK];
  float weight[TOPK];
  gateTopK(logits, p.n, 1.f, index, weight);
#pragma unroll
  for (int i = 0; i < NREG; i++) {
    float v = negInf();
#pragma unroll
    for (int j = 0; j < TOPK; j++)
      if (index[j] == lane + 32 * i) v = 0.f;
    if (lane + 32 * i < p.n) p.mask[token * p.n + lane + 32 * i] = v;
  }
}
