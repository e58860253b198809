// What follows a product in a layer of a decode step.
// Whether a choice can be made while the product is at work: where it is given, or products are streamed. Kernels that nobody would
// launch take a quarter of the compiler's time.
#if SCORES == SCORES_GIVEN || DTYPE != 0 && __CUDA_ARCH__ >= 900 || defined(ON_CPU)
#define GATES_CAN_BE_FIRST 1
#endif
// Whether one may be taken over that a launch before has made: of few adapters each warp makes its own.
#if GATES_CAN_BE_FIRST && SCORES <= SCORES_MAGNITUDE && NREG > 1 || defined(ON_CPU)
#define CHOICE_CAN_BE_TAKEN 1
#endif
// q, k, v with their adapters → rotated q (float32, times `scale`) and the KV cache's next column.
struct DecodeRouteRopeAppend {
  ProductOutput product;
  RoutedLinear linear[3];
  float* q;
  T* kCache;
  T* vCache;
  const int* tables;   // as in DecodeAttention
  const int* lengths;  // negative: no sequence
  const float* invFreq;
  int heads, kvHeads, headDim, tableRows;
  float scale, ropeScale;
};
// Which linear a head belongs to, and which head it is there.
__device__ __forceinline__ int linearOf(const DecodeRouteRopeAppend& p, int& head) {
  if (head < p.heads) return 0;
  head -= p.heads;
  if (head < p.kvHeads) return 1;
  head -= p.kvHeads;
  return 2;
}
// Each lane of a block, which is a warp, has N pairs of a head's dimensions. Grid (heads + 2 kvHeads, ⌈pairs / 32 N⌉, rows).
template <Choosing WHEN>
__device__ __forceinline__ void ropeAppend(const DecodeRouteRopeAppend& p) {
  constexpr int N = 2;
  releaseNext();
  const int half = p.headDim / 2, row = blockIdx.z, i = (blockIdx.y * 32 + threadIdx.x) * N, left = half - i;
  int head = blockIdx.x;
  const int which = linearOf(p, head), o = head * p.headDim + i;
  const RoutedLinear& l = p.linear[which];
  const bool whole = l.vectors && half % N == 0, writes = head == 0 && blockIdx.y == 0;
  const AdapterInfo known[] = {adapterInfo<WHEN>(p.product, l)};
  const int length = p.lengths[row];
  const int place =  // in the pool, in tokens
      length < 0 ? -1 : p.tables[length / KV_BLOCK * p.tableRows + row] * KV_BLOCK + length % KV_BLOCK;
  float sine[N], cosine[N];
#pragma unroll
  for (int k = 0; k < N; k++) {
    sine[k] = 0.f;
    cosine[k] = 1.f;
    if (which < 2 && k < left) {
      sincosf((float)length * p.invFreq[i + k], &sine[k], &cosine[k]);
      sine[k] *= p.ropeScale;
      cosine[k] *= p.ropeScale;
    }
  }
  float v[2][N], logits[1][NREG];
  const int at[] = {l.outAt + o, l.outAt + o + half};
  const RoutedLinear* const linears[] = {&l};
  Route chosen[1];
  PrefetchedB<N> a, b;
  if (WHEN != BEHIND && l.n) {
    chooseEarly<WHEN>(p.product, row, linears, known, writes, chosen);
    a = prefetchB<N>(l, chosen[0], o, whole, left);
    b = prefetchB<N>(l, chosen[0], o + half, whole, left);
  }
  waitForPrevious();
  float z[1][TOPK][MAX_RANK / 32];
  if (WHEN != BEHIND && l.n) gatherRouted<2, 1, N>(p.product, row, at, whole, left, linears, chosen, v, z);
  else gather<2, WHEN != BEHIND ? 0 : 1, N>(p.product, row, at, whole, left, linears, v, logits);
  addBias<N>(l, o, left, v[0]);
  addBias<N>(l, o + half, left, v[1]);
  if (l.n) {
    if (WHEN == BEHIND) {
      chosen[0] = route(p.product, l, known[0], logits[0], row, writes);
      a = prefetchB<N>(l, chosen[0], o, whole, left);
      b = prefetchB<N>(l, chosen[0], o + half, whole, left);
      coefficients<1>(p.product, row, linears, chosen, z);
    }
    addRouted<N>(l, chosen[0], z[0], a, o, whole, left, v[0]);
    addRouted<N>(l, chosen[0], z[0], b, o + half, whole, left, v[1]);
  }
  clearNext(p.product);
#pragma unroll
  for (int k = 0; k < N; k++) {
    float a = v[0][k] * cosine[k] - v[1][k] * sine[k], b = v[1][k] * cosine[k] + v[0][k] * sine[k];
    v[0][k] = a;
    v[1][k] = b;
  }
  if (which == 0) {
    float* q = p.q + ((u64)row * p.heads + head) * p.headDim + i;
#pragma unroll
    for (int k = 0; k < N; k++) {
      v[0][k] *= p.scale;
      v[1][k] *= p.scale;
    }
    storeFloats<N>(q, half % N == 0, left, v[0]);
    storeFloats<N>(q + half, half % N == 0, left, v[1]);
  } else if (place >= 0) {
    T* cache = (which == 1 ? p.kCache : p.vCache) + (((u64)(place / KV_BLOCK) * p.kvHeads + head) * KV_BLOCK + place % KV_BLOCK) * p.headDim + i;
    storePacked<N>(cache, half % N == 0, left, v[0]);
    storePacked<N>(cache + half, half % N == 0, left, v[1]);
  }
}
extern "C" __global__ void __launch_bounds__(32) decode_route_rope_append(const __grid_constant__ DecodeRouteRopeAppend p) { ropeAppend<BEHIND>(p); }
#if GATES_CAN_BE_FIRST
extern "C" __global__ void __launch_bounds__(32) decode_route_rope_append_gates_first(const __grid_constant__ DecodeRouteRopeAppend p) { ropeAppend<GATES_FIRST>(p); }
#endif
#if CHOICE_CAN_BE_TAKEN
extern "C" __global__ void __launch_bounds__(32) decode_route_rope_append_chosen(const __grid_constant__ DecodeRouteRopeAppend p) { ropeAppend<CHOSEN>(p); }
#endif

// h and the next RMSNorm's input of a warp's outputs.
template <int N>
__device__ __forceinline__ void writeNormInput(const float* h, int o, int row, int hidden, bool whole, const Packed<N>& weight,
                                               float* residual, T* out, float* sumsq) {
  float sum = 0, x[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    sum += o + i < hidden ? h[i] * h[i] : 0.f;
    x[i] = h[i] * unpacked<N>(weight, i);
  }
  storeFloats<N>(residual + (u64)row * hidden + o, whole, hidden - o, h);
  storePacked<N>(out + (u64)row * hidden + o, whole, hidden - o, x);
  sum = warpSum(sum);
  if (threadIdx.x == 0) sumsq[row * gridDim.x + blockIdx.x] = sum;
}

// h (rows, hidden) float32 += a linear with its adapters; then the next RMSNorm's input. Grid (hidden / 64, rows), a warp.
struct DecodeRouteAddResidual {
  ProductOutput product;
  RoutedLinear linear;
  float* h;
  const T* normWeight;
  T* out;
  float* sumsq;
  int hidden;
};
template <Choosing WHEN>
__device__ __forceinline__ void addResidual(const DecodeRouteAddResidual& p) {
  constexpr int N = 2;
  releaseNext();
  const int row = blockIdx.y, o = (blockIdx.x * 32 + threadIdx.x) * N, left = p.hidden - o;
  const RoutedLinear& l = p.linear;
  const bool whole = l.vectors, writes = blockIdx.x == 0;
  const AdapterInfo known[] = {adapterInfo<WHEN>(p.product, l)};
  const Packed<N> weight = loadPacked<N>(p.normWeight + o, whole, left);
  float h[N], sum[1][N], logits[1][NREG];
  const int at[] = {l.outAt + o};
  const RoutedLinear* const linears[] = {&l};
  Route chosen[1];
  PrefetchedB<N> ahead;
  if (WHEN != BEHIND && l.n) {
    chooseEarly<WHEN>(p.product, row, linears, known, writes, chosen);
    ahead = prefetchB<N>(l, chosen[0], o, whole, left);
  }
  waitForPrevious();
  loadFloats<N>(p.h + (u64)row * p.hidden + o, whole, left, h);
  float z[1][TOPK][MAX_RANK / 32];
  if (WHEN != BEHIND && l.n) gatherRouted<1, 1, N>(p.product, row, at, whole, left, linears, chosen, sum, z);
  else gather<1, WHEN != BEHIND ? 0 : 1, N>(p.product, row, at, whole, left, linears, sum, logits);
  addBias<N>(l, o, left, sum[0]);
  if (l.n) {
    if (WHEN == BEHIND) {
      chosen[0] = route(p.product, l, known[0], logits[0], row, writes);
      ahead = prefetchB<N>(l, chosen[0], o, whole, left);
      coefficients<1>(p.product, row, linears, chosen, z);
    }
    addRouted<N>(l, chosen[0], z[0], ahead, o, whole, left, sum[0]);
  }
  clearNext(p.product);
#pragma unroll
  for (int i = 0; i < N; i++) h[i] += sum[0][i];
  writeNormInput<N>(h, o, row, p.hidden, whole, weight, p.h, p.out, p.sumsq);
}
extern "C" __global__ void __launch_bounds__(32) decode_route_add_residual(const __grid_constant__ DecodeRouteAddResidual p) { addResidual<BEHIND>(p); }
#if GATES_CAN_BE_FIRST
extern "C" __global__ void __launch_bounds__(32) decode_route_add_residual_gates_first(const __grid_constant__ DecodeRouteAddResidual p) { addResidual<GATES_FIRST>(p); }
#endif
#if CHOICE_CAN_BE_TAKEN
extern "C" __global__ void __launch_bounds__(32) decode_route_add_residual_chosen(const __grid_constant__ DecodeRouteAddResidual p) { addResidual<CHOSEN>(p); }
#endif

// h (rows, hidden) float32 = the tokens' embeddings, and the first RMSNorm's input. Grid (hidden / 32, rows), a warp.
struct DecodeEmbed {
  const T* table;
  const int* tokens;
  const T* normWeight;
  float* h;
  T* out;
  float* sumsq;
  float* clear;
  u64 clearCount;
  int hidden, vocab;
};
extern "C" __global__ void __launch_bounds__(32) decode_embed(const __grid_constant__ DecodeEmbed p) {
  releaseNext();
  waitForPrevious();
  const int row = blockIdx.y, o = blockIdx.x * 32 + threadIdx.x, token = p.tokens[row];
  const float h = token >= 0 && token < p.vocab && o < p.hidden ? toFloat(p.table[(u64)token * p.hidden + o]) : 0.f;
  ProductOutput c;
  c.clear = p.clear;
  c.clearCount = p.clearCount;
  clearNext(c);
  writeNormInput<1>(&h, o, row, p.hidden, true, loadPacked<1>(p.normWeight + o, true, p.hidden - o), p.h, p.out, p.sumsq);
}

// act (rows, inter) = silu(gate) · up, both with their adapters. Grid (inter / 32 N, rows), a warp.
struct DecodeRouteSiluUp {
  ProductOutput product;
  RoutedLinear gate, up;
  T* out;
  int inter;
};
template <int N, Choosing WHEN>
__device__ __forceinline__ void siluUp(const DecodeRouteSiluUp& p) {
  releaseNext();
  const int row = blockIdx.y, o = (blockIdx.x * 32 + threadIdx.x) * N, left = p.inter - o;
  const bool whole = p.gate.vectors && p.up.vectors, writes = blockIdx.x == 0;
  const AdapterInfo known[] = {adapterInfo<WHEN>(p.product, p.gate), adapterInfo<WHEN>(p.product, p.up)};
  float v[2][N], logits[2][NREG];
  const int at[] = {p.gate.outAt + o, p.up.outAt + o};
  const RoutedLinear* const linears[] = {&p.gate, &p.up};
  const bool adapted = p.gate.n | p.up.n;  // one of them without adapters chooses nothing
  Route chosen[2];
  PrefetchedB<N> a, b;
  if (WHEN != BEHIND && adapted) {
    chooseEarly<WHEN>(p.product, row, linears, known, writes, chosen);
    a = prefetchB<N>(p.gate, chosen[0], o, whole, left);
    b = prefetchB<N>(p.up, chosen[1], o, whole, left);
  }
  waitForPrevious();
  float z[2][TOPK][MAX_RANK / 32];
  if (WHEN != BEHIND && adapted) gatherRouted<2, 2, N>(p.product, row, at, whole, left, linears, chosen, v, z);
  else gather<2, WHEN != BEHIND ? 0 : 2, N>(p.product, row, at, whole, left, linears, v, logits);
  addBias<N>(p.gate, o, left, v[0]);
  addBias<N>(p.up, o, left, v[1]);
  if (adapted) {
    if (WHEN == BEHIND) {
      chosen[0] = route(p.product, p.gate, known[0], logits[0], row, writes);
      chosen[1] = route(p.product, p.up, known[1], logits[1], row, writes);
      a = prefetchB<N>(p.gate, chosen[0], o, whole, left);
      b = prefetchB<N>(p.up, chosen[1], o, whole, left);
      coefficients<2>(p.product, row, linears, chosen, z);
    }
    addRouted<N>(p.gate, chosen[0], z[0], a, o, whole, left, v[0]);
    addRouted<N>(p.up, chosen[1], z[1], b, o, whole, left, v[1]);
  }
  clearNext(p.product);
#pragma unroll
  for (int i = 0; i < N; i++) v[0][i] = silu(v[0][i]) * v[1][i];
  storePacked<N>(p.out + (u64)row * p.inter + o, whole, left, v[0]);
}
extern "C" __global__ void __launch_bounds__(32) decode_route_silu_up2(const __grid_constant__ DecodeRouteSiluUp p) { siluUp<2, BEHIND>(p); }
extern "C" __global__ void __launch_bounds__(32) decode_route_silu_up4(const __grid_constant__ DecodeRouteSiluUp p) { siluUp<4, BEHIND>(p); }
#if GATES_CAN_BE_FIRST
extern "C" __global__ void __launch_bounds__(32) decode_route_silu_up2_gates_first(const __grid_constant__ DecodeRouteSiluUp p) { siluUp<2, GATES_FIRST>(p); }
extern "C" __global__ void __launch_bounds__(32) decode_route_silu_up4_gates_first(const __grid_constant__ DecodeRouteSiluUp p) { siluUp<4, GATES_FIRST>(p); }
#endif
#if CHOICE_CAN_BE_TAKEN
extern "C" __global__ void __launch_bounds__(32) decode_route_silu_up2_chosen(const __grid_constant__ DecodeRouteSiluUp p) { siluUp<2, CHOSEN>(p); }
extern "C" __global__ void __launch_bounds__(32) decode_route_silu_up4_chosen(const __grid_constant__ DecodeRouteSiluUp p) { siluUp<4, CHOSEN>(p); }
#endif

// For banks too large to multiply whole: z = A x of the chosen adapters only. Who comes behind it may take its choice. Grid (rows of A /
// each, linears, rows).
struct DecodeRouteZ {
  ProductOutput product;
  RoutedLinear linear[3];
  const T* a[3];
  const T* x;
  const float* sumsq;
  float* y;
  int k, partials;
  float eps;
  int vectors, each;  // each: rows of A of a block, 1 or 2: behind a product's own each load takes microseconds, so threads have few
};
extern "C" __global__ void __launch_bounds__(256) decode_route_z(const __grid_constant__ DecodeRouteZ p) {
  __shared__ float sums[8][2];
  releaseNext();
  const RoutedLinear& l = p.linear[blockIdx.y];
  const T* a = p.a[blockIdx.y];
  const int row = blockIdx.z, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  // where gates come first all of this is done while the product is at work: it began when its input was there
  const bool early = p.product.gateTiles > 0;
  if (!early) waitForPrevious();
  int index[TOPK];
  float weight[TOPK];
#if SCORES == SCORES_GIVEN
  if (l.n) given(p.product, row, index, weight);
#else
  const RoutedLinear* const linears[] = {&l};
  float logits[1][NREG];
  if (early && l.n) gatherGates<1>(p.product, row, linears, logits);
  else gather<0, 1, 1>(p.product, row, nullptr, false, 0, linears, nullptr, logits);
#pragma unroll
  for (int i = 0; i < NREG; i++) {
    const int e = lane + 32 * i;
    logits[0][i] = e < l.n ? scoreOf(logits[0][i], l.offsets[e + 1] - l.offsets[e]) : 0.f;
  }
  if (l.n) gateTopK(logits[0], l.n, *p.product.invTemperature, index, weight);
#endif
  if (p.product.choices && blockIdx.x == 0 && threadIdx.x == 0) {
#pragma unroll
    for (int j = 0; j < TOPK; j++)
      if (l.n) {
        l.indices[row * TOPK + j] = index[j];
        l.weights[row * TOPK + j] = weight[j];
      }
    __threadfence();
    atomicAdd(p.product.choicesDone, 1u);
  }
  const T* w[] = {nullptr, nullptr};
  int to[2], first = blockIdx.x * p.each;  // of the chosen adapters' rows
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    if (!l.n || index[j] < 0) continue;
    const int off = l.offsets[index[j]], rank = l.offsets[index[j] + 1] - off;
#pragma unroll
    for (int r = 0; r < 2; r++)
      if (r < p.each && first + r >= 0 && first + r < rank) {
        w[r] = a + (u64)(off + first + r) * p.k;
        to[r] = off + first + r;
      }
    first -= rank;
  }
  const float factor = normFactor(p.sumsq, p.partials, p.k, p.eps, row);
  const T* const x = p.x + (u64)row * p.k;
  float sum[] = {0.f, 0.f};
  if (p.vectors) {
#pragma unroll 4
    for (int at = threadIdx.x * ELEMENTS_16B; at < p.k; at += 256 * ELEMENTS_16B) {
      const uint4 rows[] = {loadIf(w[0], w[0] + at), loadIf(w[1], w[1] + at)};
      float h[ELEMENTS_16B], f[ELEMENTS_16B];
      unpack16B(__ldcg((const uint4*)(x + at)), h);
#pragma unroll
      for (int r = 0; r < 2; r++) {
        unpack16B(rows[r], f);
#pragma unroll
        for (int e = 0; e < ELEMENTS_16B; e++) sum[r] += f[e] * h[e];
      }
    }
  } else {
    for (int at = threadIdx.x; at < p.k; at += 256)
#pragma unroll
      for (int r = 0; r < 2; r++)
        if (w[r]) sum[r] += toFloat(w[r][at]) * toFloat(x[at]);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    sum[r] = warpSum(sum[r]);
    if (lane == 0) sums[warp][r] = sum[r];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < 2; r++)
    if (threadIdx.x == r && w[r]) {
      float v = 0;
#pragma unroll
      for (int i = 0; i < 8; i++) v += sums[i][r];
      p.y[(u64)row * p.product.ld + l.zAt + to[r]] = v * factor;
    }
  if (early) waitForPrevious();  // who waits for this waits for the product
}
