// Routing: the gates' top k, and what the chosen adapters add.
// One gated linear inside the output of a matrix-vector product over [W...; G...; A...]: float32 y (slots, rows, ld), where
// the sum over slots counts; its gate logits lie at gateAt, its z = A x at zAt.
struct RoutedLinear {
  const T* b;            // Bᵀ (sum of all ranks, out)
  const T* bias;         // (out) or null
  const int* offsets;    // (n + 1) rows of b; equal neighbours: the adapter does not target this linear
  const float* scales;   // (n)
  int* indices;          // (rows, TOPK) receives the choice, or null
  float* weights;        // (rows, TOPK) receives its weights, or null
  int outAt, gateAt, zAt, n, out, vectors;  // vectors: four outputs can be read at once, of y and of b
};

struct ProductOutput {
  const float* y;
  float* clear;           // what a later product will add to
  const float* invTemperature;
  u64 clearCount;
  const unsigned* gateTilesDone;  // how many of the gates' tiles, which come first, the product has put into y; or null
  int slots, ld, rows, gateTiles;  // all of all slots
  // Of the product's input, for who looks at its spread: as in Product. Without x, the product has left it in y's last two columns.
  const T* x;
  const float* sumsq;
  int k, partials;
  float eps;
  // The choice where it is given: (rows, TOPK), all below n, and its weights.
  const int* choice;
  const float* choiceWeights;
  // Where decode_route_z leaves each linear's choice in its indices and weights: how many it has, of all linears' rows; or null.
  unsigned* choicesDone;
  int choices;
};

__device__ __forceinline__ float sumSlots(const ProductOutput& c, int row, int at) {
  float v = 0;
#pragma unroll 4
  for (int s = 0; s < c.slots; s++) v += c.y[((u64)s * c.rows + row) * c.ld + at];
  return v;
}

__device__ __forceinline__ unsigned ordered(float v) {
  unsigned u = __float_as_uint(v);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ __forceinline__ float unordered(unsigned u) {
  return __uint_as_float(u & 0x80000000u ? u & 0x7fffffffu : ~u);
}
__device__ __forceinline__ unsigned warpMax(unsigned v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(0xffffffffu, v);
#else
  for (int d = 16; d > 0; d >>= 1) { unsigned o = __shfl_xor_sync(0xffffffffu, v, d); v = o > v ? o : v; }
  return v;
#endif
}

// The k largest logits and the softmax over them, by one warp. logits[i] of a lane belongs to adapter lane + 32 i; the
// lower index wins a tie. Every lane gets the result. A decode step has no kernel of its own for it: route() below calls
// it, and the kernels decode_route_… and decode_sum_route call that; decode_route_z, prefill_… and training_… call it themselves.
__device__ __forceinline__ void gateTopK(const float* logits, int n, float invTemperature, int* index, float* weight) {
  int lane = threadIdx.x & 31;
  unsigned key[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++) key[i] = lane + 32 * i < n ? ordered(logits[i]) : 0u;
  float first = 0, sum = 0;
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    unsigned best = 0;
#pragma unroll
    for (int i = 0; i < NREG; i++) best = key[i] > best ? key[i] : best;
    best = warpMax(best);
    unsigned at = 0;  // complement of the index, so that the maximum is the lowest index
#pragma unroll
    for (int i = NREG - 1; i >= 0; i--)
      if (key[i] == best && lane + 32 * i < n) at = ~(unsigned)(lane + 32 * i);
    at = warpMax(at);
    index[j] = (j < n) ? (int)~at : -1;
#pragma unroll
    for (int i = 0; i < NREG; i++)
      if (lane + 32 * i == index[j]) key[i] = 0;
    float v = unordered(best);
    if (j == 0) first = v;
    weight[j] = j < n ? __expf((v - first) * invTemperature) : 0.f;
    sum += weight[j];
  }
#pragma unroll
  for (int j = 0; j < TOPK; j++) weight[j] = __fdividef(weight[j], sum);
}

// The RMSNorm factor of row m, by one warp.
__device__ __forceinline__ float normFactor(const float* sumsq, int partials, int k, float eps, int m) {
  if (!sumsq) return 1.f;
  float v = 0;
  for (int i = threadIdx.x & 31; i < partials; i += 32) v += sumsq[m * partials + i];
  return rsqrtf(warpSum(v) / k + eps);
}

// What an adapter's logit is before the top k is taken, one of these (SCORES); all but the gates' leave out adapters that do not
// target the linear.
#define SCORES_PRODUCT 0       // the gates: as it is
#define SCORES_MAGNITUDE 1     // its absolute value
#define SCORES_STANDARDIZED 2  // divided by the standard deviation of the product's input
#define SCORES_NORM 3          // the norm of the adapter's z; there are no gates
#define SCORES_GIVEN 4         // none: who launches a step says what is chosen; there are no gates
#define GATED (SCORES != SCORES_NORM && SCORES != SCORES_GIVEN)

__device__ __forceinline__ float scoreOf(float logit, int rank) {
#if SCORES == SCORES_PRODUCT
  return logit;
#elif SCORES == SCORES_MAGNITUDE
  return rank > 0 ? fabsf(logit) : negInf();
#else
  return rank > 0 ? logit : negInf();
#endif
}

// 1 / the standard deviation of a row of x, by one warp; f: what x is to be multiplied by.
__device__ __forceinline__ float inverseDeviation(const T* x, int k, float f) {
  const int lane = threadIdx.x & 31;
  const float origin = toFloat(x[0]);
  const bool vectors = ((u64)x & 15) == 0;
  float sum = 0, squares = 0;
#pragma unroll 4
  for (int at = lane * 8; at < k; at += 256) {
    float v[8];
    load8(x, at, k, vectors, v);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float d = at + i < k ? v[i] - origin : 0.f;
      sum += d;
      squares += d * d;
    }
  }
  const float mean = warpSum(sum) / k, variance = warpSum(squares) / k - mean * mean;
  return rsqrtf(f * f * fmaxf(variance, 0.f) + 1e-12f);
}

// The same of what a product has left of it.
__device__ __forceinline__ float inverseDeviation(const ProductOutput& c, int row) {
  const float* y = c.y + (u64)row * c.ld + c.ld - 2;
  float sum = 0, squares = 0;
#pragma unroll 4
  for (int s = 0; s < c.slots; s++, y += (u64)c.rows * c.ld) {
    sum += __ldcg(y);
    squares += __ldcg(y + 1);
  }
  const float mean = sum / c.k;
  return rsqrtf(fmaxf(squares / c.k - mean * mean, 0.f) + 1e-12f);
}

// What one warp knows of a linear's adapters: lane + 32 i has adapter i's.
struct AdapterInfo {
  int offset[NREG], rank[NREG];
  float scale[NREG], invTemperature;
};
// Does not depend on the previous kernel.
__device__ __forceinline__ AdapterInfo loadAdapterInfo(const ProductOutput& c, const RoutedLinear& l) {
  AdapterInfo k;
  int lane = threadIdx.x & 31;
  k.invTemperature = l.n ? *c.invTemperature : 1.f;
#pragma unroll
  for (int i = 0; i < NREG; i++) {
    bool is = lane + 32 * i < l.n;
    k.offset[i] = is ? l.offsets[lane + 32 * i] : 0;
    k.rank[i] = is ? l.offsets[lane + 32 * i + 1] - k.offset[i] : 0;
    k.scale[i] = is ? l.scales[lane + 32 * i] : 0.f;
  }
  return k;
}
template <typename V>
__device__ __forceinline__ V ofAdapter(const V* of, int adapter) {
  V v = of[0];
#pragma unroll
  for (int i = 1; i < NREG; i++)
    if (adapter >> 5 == i) v = of[i];
  return __shfl_sync(0xffffffffu, v, adapter & 31);
}

// The adapters that one token of one linear chose, for a warp: all lanes know which, and `factor` = weight · scale.
struct Route {
  int offset[TOPK], rank[TOPK];
  float factor[TOPK];
};
// A row's choice where it is given; it was there before the step began.
__device__ __forceinline__ void given(const ProductOutput& c, int row, int* index, float* weight) {
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    index[j] = c.choice[row * TOPK + j];
    weight[j] = c.choiceWeights[row * TOPK + j];
  }
}
// Chooses, by one warp; writes the choice down if it is to.
__device__ __forceinline__ Route route(const ProductOutput& c, const RoutedLinear& l, const AdapterInfo& known, const float* logits, int row,
                                       bool writes) {
  Route s;
  int index[TOPK];
#if SCORES == SCORES_GIVEN
  given(c, row, index, s.factor);
#else
  float score[NREG], inverse = known.invTemperature;
#if SCORES == SCORES_NORM
  const float* z = c.y + (u64)row * c.ld + l.zAt;
#pragma unroll
  for (int i = 0; i < NREG; i++) {
    float squares = 0;
#pragma unroll 1
    for (int first = 0; first < known.rank[i]; first += 8) {  // of eight ranks, all loads are in flight together
      float v[8];
#pragma unroll
      for (int r = 0; r < 8; r++) v[r] = 0.f;
      const float* of = z + known.offset[i] + first;
#pragma unroll 2
      for (int slot = 0; slot < c.slots; slot++, of += (u64)c.rows * c.ld)
#pragma unroll
        for (int r = 0; r < 8; r++)
          if (first + r < known.rank[i]) v[r] += __ldcg(of + r);
#pragma unroll
      for (int r = 0; r < 8; r++) squares += v[r] * v[r];
    }
    score[i] = scoreOf(sqrtf(squares), known.rank[i]);
  }
#else
#pragma unroll
  for (int i = 0; i < NREG; i++) score[i] = scoreOf(logits[i], known.rank[i]);
#endif
#if SCORES == SCORES_STANDARDIZED
  if (TOPK > 1 && l.n)
    inverse *= c.x ? inverseDeviation(c.x + (u64)row * c.k, c.k, normFactor(c.sumsq, c.partials, c.k, c.eps, row)) : inverseDeviation(c, row);
#endif
  gateTopK(score, l.n, inverse, index, s.factor);
#endif
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    int e = index[j] < 0 ? 0 : index[j];
    if (writes && (threadIdx.x & 31) == 0 && l.indices) {
      l.indices[row * TOPK + j] = index[j];
      l.weights[row * TOPK + j] = s.factor[j];
    }
    s.offset[j] = ofAdapter(known.offset, e);
    s.rank[j] = ofAdapter(known.rank, e);
    s.factor[j] *= ofAdapter(known.scale, e);
    if (index[j] < 0) s.rank[j] = 0;
  }
  return s;
}

// N neighbouring numbers, at once where `whole` says so; zeros past `left`.
template <int N>
__device__ __forceinline__ void loadFloats(const float* p, bool whole, int left, float* v) {
  if (whole && left >= N) {
    if (N == 4) {
      float4 u = *(const float4*)p;
      v[0] = u.x; v[1 % N] = u.y; v[2 % N] = u.z; v[3 % N] = u.w;
    } else if (N == 2) {
      float2 u = *(const float2*)p;
      v[0] = u.x; v[1 % N] = u.y;
    } else {
      v[0] = *p;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = i < left ? p[i] : 0.f;
  }
}
template <int N>
__device__ __forceinline__ void storeFloats(float* p, bool whole, int left, const float* v) {
  if (whole && left >= N && N == 4) {
    *(float4*)p = make_float4(v[0], v[1 % N], v[2 % N], v[3 % N]);
  } else if (whole && left >= N && N == 2) {
    *(float2*)p = make_float2(v[0], v[1 % N]);
  } else {
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < left) p[i] = v[i];
  }
}
template <int N>
struct Packed {
#if DTYPE == 0
  float v[N];
#else
  unsigned v[(N + 1) / 2];
#endif
};
template <int N>
__device__ __forceinline__ Packed<N> loadPacked(const T* p, bool whole, int left) {
  Packed<N> r;
#if DTYPE == 0
  loadFloats<N>(p, whole, left, r.v);
#else
  if (whole && left >= N) {
    if (N == 4) {
      uint2 u = __ldg((const uint2*)p);
      r.v[0] = u.x; r.v[(N - 1) / 2] = u.y;
    } else {
      r.v[0] = N == 2 ? __ldg((const unsigned*)p) : __ldg(p);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 2)
      r.v[i / 2] = (i < left ? p[i] : 0) | (unsigned)(i + 1 < left ? p[i + 1] : 0) << 16;
  }
#endif
  return r;
}
template <int N>
__device__ __forceinline__ float unpacked(const Packed<N>& p, int i) {
#if DTYPE == 0
  return p.v[i];
#else
  return i & 1 ? highHalf(p.v[i / 2]) : lowHalf(p.v[i / 2]);
#endif
}
template <int N>
__device__ __forceinline__ void storePacked(T* p, bool whole, int left, const float* v) {
  T t[N];
#pragma unroll
  for (int i = 0; i < N; i++) t[i] = fromFloat(v[i]);
#if DTYPE != 0
  if (whole && left >= N) {
    if (N == 4)
      *(uint2*)p = make_uint2(t[0] | (unsigned)t[1 % N] << 16, t[2 % N] | (unsigned)t[3 % N] << 16);
    else if (N == 2)
      *(unsigned*)p = t[0] | (unsigned)t[1 % N] << 16;
    else
      *p = t[0];
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < N; i++)
    if (i < left) p[i] = t[i];
}

// What a product left for one row: N outputs at each of P places, without adapters, and the gates' logits of L linears; all
// loads of a slot are in flight together. A lane without outputs has left <= 0.
template <int P, int L, int N>
__device__ __forceinline__ void gather(const ProductOutput& c, int row, const int* at, bool whole, int left, const RoutedLinear* const* l,
                                       float (*sum)[N], float (*logits)[NREG]) {
#pragma unroll
  for (int i = 0; i < P; i++)
#pragma unroll
    for (int k = 0; k < N; k++) sum[i][k] = 0.f;
#pragma unroll
  for (int i = 0; i < L; i++)
#pragma unroll
    for (int k = 0; k < NREG; k++) logits[i][k] = 0.f;
  const int lane = threadIdx.x & 31;
  const float* y = c.y + (u64)row * c.ld;
#pragma unroll (P * N + L * NREG <= 5 ? 4 : 2)
  for (int s = 0; s < c.slots; s++, y += (u64)c.rows * c.ld) {
    float v[P ? P : 1][N], w[L ? L : 1][NREG];
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int k = 0; k < NREG; k++) w[i][k] = GATED && lane + 32 * k < l[i]->n ? __ldcg(y + l[i]->gateAt + lane + 32 * k) : 0.f;
#pragma unroll
    for (int i = 0; i < P; i++) loadFloats<N>(y + at[i], whole, left, v[i]);
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int k = 0; k < NREG; k++) logits[i][k] += w[i][k];
#pragma unroll
    for (int i = 0; i < P; i++)
#pragma unroll
      for (int k = 0; k < N; k++) sum[i][k] += v[i][k];
  }
}

// The gates' logits of L linears as soon as the product has them, before it ends; by a whole warp. Nothing where the choice is given.
template <int L>
__device__ __forceinline__ void gatherGates(const ProductOutput& c, int row, const RoutedLinear* const (&l)[L], float (&logits)[L][NREG]) {
  if (SCORES == SCORES_GIVEN) return;
  if ((threadIdx.x & 31) == 0)
    while ((int)(loadAcquire(c.gateTilesDone) - (unsigned)c.gateTiles) < 0) waitABit();
  __syncwarp();
  gather<0, L, 1>(c, row, nullptr, false, 0, l, nullptr, logits);
}
// When the kernel behind a product knows what is chosen: behind it, as soon as the gates' logits are there, or as soon as
// decode_route_z has chosen by them.
enum Choosing { BEHIND, GATES_FIRST, CHOSEN };
template <Choosing WHEN>
__device__ __forceinline__ AdapterInfo adapterInfo(const ProductOutput& c, const RoutedLinear& l) {
  return WHEN == CHOSEN ? AdapterInfo{} : loadAdapterInfo(c, l);
}
// A row's choice for L linears before the product ends; by a whole warp.
template <Choosing WHEN, int L>
__device__ __forceinline__ void chooseEarly(const ProductOutput& c, int row, const RoutedLinear* const (&l)[L], const AdapterInfo (&known)[L],
                                            bool writes, Route (&chosen)[L]) {
  if (WHEN == CHOSEN) {
    if ((threadIdx.x & 31) == 0)
      while ((int)(loadAcquire(c.choicesDone) - (unsigned)c.choices) < 0) waitABit();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int j = 0; j < TOPK; j++) {
        const int index = l[i]->n ? __ldcg(l[i]->indices + row * TOPK + j) : -1, e = index < 0 ? 0 : index;
        const int begin = l[i]->n ? l[i]->offsets[e] : 0;
        chosen[i].offset[j] = begin;
        chosen[i].rank[j] = index < 0 ? 0 : l[i]->offsets[e + 1] - begin;
        chosen[i].factor[j] = index < 0 ? 0.f : __ldcg(l[i]->weights + row * TOPK + j) * l[i]->scales[e];
      }
  } else {
    float logits[L][NREG];
    gatherGates<L>(c, row, l, logits);
#pragma unroll
    for (int i = 0; i < L; i++) chosen[i] = route(c, *l[i], known[i], logits[i], row, writes);
  }
}
template <int N>
__device__ __forceinline__ void addBias(const RoutedLinear& l, int o, int left, float (&sum)[N]) {
  if (l.bias)
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < left) sum[i] += toFloat(l.bias[o + i]);
}

// The first rows of Bᵀ of the chosen adapters at a lane's outputs: they are on their way while z is fetched.
#define PREFETCHED (TOPK <= 2 ? 8 : TOPK <= 4 ? 4 : 1)
template <int N>
struct PrefetchedB {
  Packed<N> v[TOPK][PREFETCHED];
};
template <int N>
__device__ __forceinline__ PrefetchedB<N> prefetchB(const RoutedLinear& l, const Route& s, int o, bool whole, int left) {
  PrefetchedB<N> b;
#pragma unroll
  for (int j = 0; j < TOPK; j++)
#pragma unroll
    for (int r = 0; r < PREFETCHED; r++)
      b.v[j][r] = loadPacked<N>(l.b + (unsigned)(s.offset[j] + r) * (unsigned)l.out + o, whole, r < s.rank[j] ? left : 0);
  return b;
}

// sum += what the chosen adapters add to a lane's outputs; by a whole warp.
template <int N>
__device__ __forceinline__ void addRouted(const RoutedLinear& l, const Route& s, const float (&z)[TOPK][MAX_RANK / 32],
                                          const PrefetchedB<N>& ahead, int o, bool whole, int left, float (&sum)[N]) {
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
#pragma unroll
    for (int r = 0; r < PREFETCHED; r++) {
      float coefficient = __shfl_sync(0xffffffffu, z[j][0], r);
#pragma unroll
      for (int i = 0; i < N; i++) sum[i] += unpacked<N>(ahead.v[j][r], i) * coefficient;
    }
    for (int r = PREFETCHED; r < s.rank[j]; r += 8) {
      Packed<N> b[8];
#pragma unroll
      for (int k = 0; k < 8; k++)
        b[k] = loadPacked<N>(l.b + (unsigned)(s.offset[j] + r + k) * (unsigned)l.out + o, whole, r + k < s.rank[j] ? left : 0);
#pragma unroll
      for (int k = 0; k < 8; k++) {
        float coefficient = __shfl_sync(0xffffffffu, r + k < 32 ? z[j][0] : z[j][1], (r + k) & 31);
#pragma unroll
        for (int i = 0; i < N; i++) sum[i] += unpacked<N>(b[k], i) * coefficient;
      }
    }
  }
}

// weight · scale · z of the chosen adapters of L linears; lane + 32 i has rank i's. From rank 32 FIRST on.
template <int L, int FIRST = 0>
__device__ __forceinline__ void coefficients(const ProductOutput& c, int row, const RoutedLinear* const (&l)[L], const Route (&s)[L],
                                             float (&z)[L][TOPK][MAX_RANK / 32]) {
  const int lane = threadIdx.x & 31;
  const u64 slot = (u64)c.rows * c.ld;
#pragma unroll
  for (int part = FIRST; part < MAX_RANK / 32; part++) {
    bool any = part == 0;
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int j = 0; j < TOPK; j++) {
        z[i][j][part] = 0.f;
        any |= s[i].rank[j] > 32 * part;
      }
    if (!any) continue;
    const float* y = c.y + (u64)row * c.ld + lane + 32 * part;
#pragma unroll (L * TOPK <= 2 ? 4 : 2)
    for (int k = 0; k < c.slots; k++, y += slot) {
      float v[L][TOPK];
#pragma unroll
      for (int i = 0; i < L; i++)
#pragma unroll
        for (int j = 0; j < TOPK; j++) v[i][j] = lane + 32 * part < s[i].rank[j] ? y[l[i]->zAt + s[i].offset[j]] : 0.f;
#pragma unroll
      for (int i = 0; i < L; i++)
#pragma unroll
        for (int j = 0; j < TOPK; j++) z[i][j][part] += v[i][j];
    }
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int j = 0; j < TOPK; j++) z[i][j][part] *= lane + 32 * part < s[i].rank[j] ? s[i].factor[j] : 0.f;
  }
}

// The outputs of gather and the coefficients of adapters chosen before, whose loads do not wait for each other either.
template <int P, int L, int N>
__device__ __forceinline__ void gatherRouted(const ProductOutput& c, int row, const int* at, bool whole, int left,
                                             const RoutedLinear* const (&l)[L], const Route (&s)[L], float (*sum)[N],
                                             float (&z)[L][TOPK][MAX_RANK / 32]) {
#pragma unroll
  for (int i = 0; i < P; i++)
#pragma unroll
    for (int k = 0; k < N; k++) sum[i][k] = 0.f;
#pragma unroll
  for (int i = 0; i < L; i++)
#pragma unroll
    for (int j = 0; j < TOPK; j++) z[i][j][0] = 0.f;
  const int lane = threadIdx.x & 31;
  const float* y = c.y + (u64)row * c.ld;
#pragma unroll (P * N + L * TOPK <= 6 ? 4 : 2)
  for (int slot = 0; slot < c.slots; slot++, y += (u64)c.rows * c.ld) {
    float v[P][N], w[L][TOPK];
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int j = 0; j < TOPK; j++) w[i][j] = lane < s[i].rank[j] ? y[l[i]->zAt + s[i].offset[j] + lane] : 0.f;
#pragma unroll
    for (int i = 0; i < P; i++) loadFloats<N>(y + at[i], whole, left, v[i]);
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int j = 0; j < TOPK; j++) z[i][j][0] += w[i][j];
#pragma unroll
    for (int i = 0; i < P; i++)
#pragma unroll
      for (int k = 0; k < N; k++) sum[i][k] += v[i][k];
  }
#pragma unroll
  for (int i = 0; i < L; i++)
#pragma unroll
    for (int j = 0; j < TOPK; j++) z[i][j][0] *= lane < s[i].rank[j] ? s[i].factor[j] : 0.f;
  coefficients<L, 1>(c, row, l, s, z);
}

// All threads of the grid set the buffer of the next product to zero.
__device__ __forceinline__ void clearNext(const ProductOutput& c) {
  u64 threads = (u64)gridDim.x * gridDim.y * gridDim.z * blockDim.x;
  u64 first = (((u64)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  for (u64 at = first; at < c.clearCount / 4; at += threads) ((float4*)c.clear)[at] = make_float4(0, 0, 0, 0);
  if (first < c.clearCount % 4) c.clear[c.clearCount - 1 - first] = 0.f;
}
