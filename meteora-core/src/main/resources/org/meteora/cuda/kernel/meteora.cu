// The kernels of a decode step and of the gated LoRA layer. Compiled by NVRTC for the GPU at hand; no header is needed.
//
// Options: DTYPE 0 float32, 1 float16, 2 bfloat16 (weights, KV cache, activations between kernels; all sums are float32),
// TOPK adapters per token, MAXN adapters at most, HEAD_DIM, GROUP query heads that one attention block serves. With HEAD_DIM 0
// the kernels that only a whole decode step needs are left out, which compiles in a third of the time.
//
// A decode step is a chain of launches. Every kernel begins with waitForPrevious(): under programmatic dependent launch
// its blocks may start, and fetch what does not depend on the chain (weights), while the previous kernel still runs.
#ifndef DTYPE
#define DTYPE 2
#endif
#ifndef TOPK
#define TOPK 2
#endif
#ifndef MAXN
#define MAXN 32
#endif
#ifndef HEAD_DIM
#define HEAD_DIM 128
#endif
#ifndef GROUP
#define GROUP 4
#endif
#define NREG ((MAXN + 31) / 32)
#define MAX_RANK 64
#define MAX_ROWS 16

typedef unsigned long long u64;
#if DTYPE == 0
typedef float T;
#else
typedef unsigned short T;
#endif
#define ELEMENTS_16B (16 / (int)sizeof(T))

// ------------------------------------------------------------------------------------------------------ what only PTX can say
// The tests also compile this file as C++ for a CPU, where a header says these in other words.
#if DTYPE != 0 && __CUDA_ARCH__ >= 800
#define TENSOR_CORES
#endif
#ifndef ON_CPU
__device__ __forceinline__ float halfToFloat(unsigned short v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
}
__device__ __forceinline__ unsigned short floatToHalf(float v) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}
#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ unsigned short floatToBfloat(float v) {
  unsigned short h;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}
#endif

// Streams through the read-only path without leaving a trace in L1.
__device__ __forceinline__ uint4 loadStream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// 16 bytes through L2, or zeros. Stays where it is written, before or after a wait.
__device__ __forceinline__ uint4 loadIf(bool wanted, const void* p) {
  uint4 v;
  asm volatile(
      "{\n .reg .pred yes;\n setp.ne.s32 yes, %5, 0;\n mov.b32 %0, 0;\n mov.b32 %1, 0;\n mov.b32 %2, 0;\n mov.b32 %3, 0;\n"
      " @yes ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];\n}\n"
      : "=&r"(v.x), "=&r"(v.y), "=&r"(v.z), "=&r"(v.w)
      : "l"(p), "r"((int)wanted));
  return v;
}
__device__ __forceinline__ void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

#ifdef TENSOR_CORES
// c (16 × 8) += a (16 × 16) · b (16 × 8). Lane 4 g + q holds of a: rows g, g + 8, g, g + 8 at columns 2q, 2q, 2q + 8, 2q + 8
// (each with the column after it); of b: rows 2q and 2q + 8 (each with the row after it) of column g; of c: row g, then row
// g + 8, at columns 2q and 2q + 1.
__device__ __forceinline__ void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#if DTYPE == 2
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif

// Of a counter that other blocks raise; what they wrote before is seen after it.
__device__ __forceinline__ unsigned loadAcquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
__device__ __forceinline__ void waitABit() { __nanosleep(200); }

// Programmatic dependent launch.
__device__ __forceinline__ void releaseNext() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void waitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// Of a cluster's block `rank`.
__device__ __forceinline__ float sharedOf(const float* p, int rank) {
  unsigned at;
  float v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((unsigned)__cvta_generic_to_shared(p)), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
  return v;
}
__device__ __forceinline__ void clusterArrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void clusterWait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
#endif
#endif  // ON_CPU

// ---------------------------------------------------------------------------------------------------------- conversions
__device__ __forceinline__ float negInf() { return __int_as_float(0xff800000); }

#if DTYPE == 0
__device__ __forceinline__ float toFloat(T v) { return v; }
__device__ __forceinline__ T fromFloat(float v) { return v; }
#elif DTYPE == 1
__device__ __forceinline__ float toFloat(T v) { return halfToFloat(v); }
__device__ __forceinline__ T fromFloat(float v) { return floatToHalf(v); }
#else
__device__ __forceinline__ float toFloat(T v) { return __uint_as_float((unsigned)v << 16); }
__device__ __forceinline__ T fromFloat(float v) {
#if __CUDA_ARCH__ >= 900
  return floatToBfloat(v);
#else
  unsigned u = __float_as_uint(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (T)((u >> 16) | 0x40);  // NaN stays NaN
  return (T)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
#endif
}
#endif

#if DTYPE != 0
__device__ __forceinline__ float lowHalf(unsigned v) {
#if DTYPE == 2
  return __uint_as_float(v << 16);
#else
  return toFloat((T)(v & 0xffff));
#endif
}
__device__ __forceinline__ float highHalf(unsigned v) {
#if DTYPE == 2
  return __uint_as_float(v & 0xffff0000u);
#else
  return toFloat((T)(v >> 16));
#endif
}
#endif

__device__ __forceinline__ void unpack16B(uint4 v, float* f) {
#if DTYPE == 0
  f[0] = __uint_as_float(v.x); f[1] = __uint_as_float(v.y); f[2] = __uint_as_float(v.z); f[3] = __uint_as_float(v.w);
#else
  f[0] = lowHalf(v.x); f[1] = highHalf(v.x); f[2] = lowHalf(v.y); f[3] = highHalf(v.y);
  f[4] = lowHalf(v.z); f[5] = highHalf(v.z); f[6] = lowHalf(v.w); f[7] = highHalf(v.w);
#endif
}

// Eight elements at p + at, zeros past `end`; vector loads when whole and aligned.
__device__ __forceinline__ void load8(const T* p, int at, int end, bool aligned, float* f) {
  if (aligned && at + 8 <= end) {
#pragma unroll
    for (int i = 0; i < 8 / ELEMENTS_16B; i++)
      unpack16B(*(const uint4*)(p + at + i * ELEMENTS_16B), f + i * ELEMENTS_16B);
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] = at + i < end ? toFloat(p[at + i]) : 0.f;
  }
}

// Stores what load8 loads.
__device__ __forceinline__ void store8(T* p, int at, int end, bool aligned, const float* f) {
  if (aligned && at + 8 <= end) {
#if DTYPE == 0
    *(float4*)(p + at) = make_float4(f[0], f[1], f[2], f[3]);
    *(float4*)(p + at + 4) = make_float4(f[4], f[5], f[6], f[7]);
#else
    unsigned v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = fromFloat(f[2 * i]) | (unsigned)fromFloat(f[2 * i + 1]) << 16;
    *(uint4*)(p + at) = make_uint4(v[0], v[1], v[2], v[3]);
#endif
  } else {
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (at + i < end) p[at + i] = fromFloat(f[i]);
  }
}

#ifdef TENSOR_CORES
__device__ __forceinline__ unsigned pair(T low, T high) { return low | (unsigned)high << 16; }
// A pair of float32 as two pairs of T whose sum is nearer to it than one can be.
__device__ __forceinline__ void twoParts(float a, float b, unsigned& high, unsigned& low) {
  T ha = fromFloat(a), hb = fromFloat(b);
  high = pair(ha, hb);
  low = pair(fromFloat(a - toFloat(ha)), fromFloat(b - toFloat(hb)));
}
#endif

__device__ __forceinline__ float warpSum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

// ----------------------------------------------------------------------------------------------------------------- routing
// One gated linear inside the output of a matrix-vector product over [W...; G...; A...]: float32 y (slots, rows, ld), where
// the sum over slots counts; its gate logits lie at gateAt, its z = A x at zAt.
struct Linear {
  const T* b;            // Bᵀ (sum of all ranks, out)
  const T* bias;         // (out) or null
  const int* offsets;    // (n + 1) rows of b; equal neighbours: the adapter does not target this linear
  const float* scales;   // (n)
  int* indices;          // (rows, TOPK) receives the choice, or null
  float* weights;        // (rows, TOPK) receives its weights, or null
  int outAt, gateAt, zAt, n, out, vectors;  // vectors: four outputs can be read at once, of y and of b
};

struct Chain {
  const float* y;
  float* clear;           // what a later product will add to
  const float* invTemperature;
  u64 clearCount;
  const unsigned* early;  // how many of the gates' tiles, which come first, the product has put into y; or null
  int slots, ld, rows, earlyTiles;  // all of all slots
};

__device__ __forceinline__ float sumSlots(const Chain& c, int row, int at) {
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
// lower index wins a tie. Every lane gets the result.
__device__ __forceinline__ void topK(const float* logits, int n, float invTemperature, int* index, float* weight) {
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

// What one warp knows of a linear's adapters: lane + 32 i has adapter i's.
struct Known {
  int offset[NREG], rank[NREG];
  float scale[NREG], invTemperature;
};
// Does not depend on the previous kernel.
__device__ __forceinline__ Known know(const Chain& c, const Linear& l) {
  Known k;
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
__device__ __forceinline__ V knownOf(const V* of, int adapter) {
  V v = of[0];
#pragma unroll
  for (int i = 1; i < NREG; i++)
    if (adapter >> 5 == i) v = of[i];
  return __shfl_sync(0xffffffffu, v, adapter & 31);
}

// The adapters that one token of one linear chose, for a warp: all lanes know which, and `factor` = weight · scale.
struct Chosen {
  int offset[TOPK], rank[TOPK];
  float factor[TOPK];
};
// Chooses, by one warp; writes the choice down if it is to.
__device__ __forceinline__ Chosen choose(const Linear& l, const Known& known, const float* logits, int row, bool writes) {
  Chosen s;
  int index[TOPK];
  topK(logits, l.n, known.invTemperature, index, s.factor);
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    int e = index[j] < 0 ? 0 : index[j];
    if (writes && (threadIdx.x & 31) == 0 && l.indices) {
      l.indices[row * TOPK + j] = index[j];
      l.weights[row * TOPK + j] = s.factor[j];
    }
    s.offset[j] = knownOf(known.offset, e);
    s.rank[j] = knownOf(known.rank, e);
    s.factor[j] *= knownOf(known.scale, e);
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
__device__ __forceinline__ void gather(const Chain& c, int row, const int* at, bool whole, int left, const Linear* const* l,
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
      for (int k = 0; k < NREG; k++) w[i][k] = lane + 32 * k < l[i]->n ? __ldcg(y + l[i]->gateAt + lane + 32 * k) : 0.f;
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

// The gates' logits of L linears as soon as the product has them, before it ends; by a whole warp.
template <int L>
__device__ __forceinline__ void gatherEarly(const Chain& c, int row, const Linear* const (&l)[L], float (&logits)[L][NREG]) {
  if ((threadIdx.x & 31) == 0)
    while ((int)(loadAcquire(c.early) - (unsigned)c.earlyTiles) < 0) waitABit();
  __syncwarp();
  gather<0, L, 1>(c, row, nullptr, false, 0, l, nullptr, logits);
}
template <int N>
__device__ __forceinline__ void addBias(const Linear& l, int o, int left, float (&sum)[N]) {
  if (l.bias)
#pragma unroll
    for (int i = 0; i < N; i++)
      if (i < left) sum[i] += toFloat(l.bias[o + i]);
}

// The first rows of Bᵀ of the chosen adapters at a lane's outputs: they are on their way while z is fetched.
#define AHEAD (TOPK <= 2 ? 8 : TOPK <= 4 ? 4 : 1)
template <int N>
struct Ahead {
  Packed<N> v[TOPK][AHEAD];
};
template <int N>
__device__ __forceinline__ Ahead<N> loadAhead(const Linear& l, const Chosen& s, int o, bool whole, int left) {
  Ahead<N> b;
#pragma unroll
  for (int j = 0; j < TOPK; j++)
#pragma unroll
    for (int r = 0; r < AHEAD; r++)
      b.v[j][r] = loadPacked<N>(l.b + (unsigned)(s.offset[j] + r) * (unsigned)l.out + o, whole, r < s.rank[j] ? left : 0);
  return b;
}

// sum += what the chosen adapters add to a lane's outputs; by a whole warp.
template <int N>
__device__ __forceinline__ void addChosen(const Linear& l, const Chosen& s, const float (&z)[TOPK][MAX_RANK / 32],
                                          const Ahead<N>& ahead, int o, bool whole, int left, float (&sum)[N]) {
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
#pragma unroll
    for (int r = 0; r < AHEAD; r++) {
      float coefficient = __shfl_sync(0xffffffffu, z[j][0], r);
#pragma unroll
      for (int i = 0; i < N; i++) sum[i] += unpacked<N>(ahead.v[j][r], i) * coefficient;
    }
    for (int r = AHEAD; r < s.rank[j]; r += 8) {
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
__device__ __forceinline__ void coefficients(const Chain& c, int row, const Linear* const (&l)[L], const Chosen (&s)[L],
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
__device__ __forceinline__ void gatherChosen(const Chain& c, int row, const int* at, bool whole, int left,
                                             const Linear* const (&l)[L], const Chosen (&s)[L], float (*sum)[N],
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
__device__ __forceinline__ void clearNext(const Chain& c) {
  u64 threads = (u64)gridDim.x * gridDim.y * gridDim.z * blockDim.x;
  u64 first = (((u64)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  for (u64 at = first; at < c.clearCount / 4; at += threads) ((float4*)c.clear)[at] = make_float4(0, 0, 0, 0);
  if (first < c.clearCount % 4) c.clear[c.clearCount - 1 - first] = 0.f;
}

// ------------------------------------------------------------------------------------------------- matrix-vector products
// y (rows, ld) = x (rows, k) · [W0; W1; …]ᵀ, rows ≤ 16. With sumsq, x is an RMSNorm's input times its weight, not yet
// divided: the results are multiplied by rsqrt(mean(square) + eps), from `partials` sums of squares per row.
struct Segment {
  const T* w;
  int end, pad;  // one past the segment's last row in the list
};
#define MAX_SEGMENTS 9  // weights, gates and A of q, k and v
struct Product {
  const T* x;
  float* y;
  const float* sumsq;
  int rows, k, total, segments;
  int ld, partials;
  float eps;
  int slices, stages, vectors, tiles;
  int firstEarly, earlyTiles;  // tiles that are multiplied first
  unsigned* early;             // counts those that y has, of each slice
  Segment segment[MAX_SEGMENTS];
};

__device__ __forceinline__ const T* weightRow(const Product& p, int row) {
  int s = 0, begin = 0;
  while (row >= p.segment[s].end) { begin = p.segment[s].end; s++; }
  return p.segment[s].w + (u64)(row - begin) * p.k;
}

// The RMSNorm factor of row m, by one warp.
__device__ __forceinline__ float normFactor(const float* sumsq, int partials, int k, float eps, int m) {
  if (!sumsq) return 1.f;
  float v = 0;
  for (int i = threadIdx.x & 31; i < partials; i += 32) v += sumsq[m * partials + i];
  return rsqrtf(warpSum(v) / k + eps);
}

// Any dtype, size and alignment: one warp per weight row.
extern "C" __global__ void __launch_bounds__(256) product_any(const __grid_constant__ Product p) {
  __shared__ float factor[MAX_ROWS];
  releaseNext();
  waitForPrevious();
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  for (int m = warp; m < p.rows; m += 8) {
    float f = normFactor(p.sumsq, p.partials, p.k, p.eps, m);
    if (lane == 0) factor[m] = f;
  }
  __syncthreads();
  for (int row = blockIdx.x * 8 + warp; row < p.total; row += gridDim.x * 8) {
    const T* w = weightRow(p, row);
    float acc[MAX_ROWS];
#pragma unroll
    for (int m = 0; m < MAX_ROWS; m++) acc[m] = 0;
    if (p.vectors) {
      for (int at = lane * ELEMENTS_16B; at < p.k; at += 32 * ELEMENTS_16B) {
        float f[ELEMENTS_16B];
        unpack16B(loadStream(w + at), f);
#pragma unroll
        for (int m = 0; m < MAX_ROWS; m++)
          if (m < p.rows) {
            float g[ELEMENTS_16B];
            unpack16B(*(const uint4*)(p.x + (u64)m * p.k + at), g);
#pragma unroll
            for (int i = 0; i < ELEMENTS_16B; i++) acc[m] += f[i] * g[i];
          }
      }
    } else {
      for (int at = lane; at < p.k; at += 32) {
        float f = toFloat(w[at]);
#pragma unroll
        for (int m = 0; m < MAX_ROWS; m++)
          if (m < p.rows) acc[m] += f * toFloat(p.x[(u64)m * p.k + at]);
      }
    }
#pragma unroll
    for (int m = 0; m < MAX_ROWS; m++)
      if (m < p.rows) {
        float v = warpSum(acc[m]);
        if (lane == 0) p.y[(u64)m * p.ld + row] = v * factor[m];
      }
  }
}

// What one of `members` blocks multiplies: units, each a chunk of columns of a tile of rows. All blocks have as many, but for
// one. The early tiles go round the blocks and come first; a block has them whole, so that their sums have one contributor.
// The other tiles follow in one run, which may begin and end inside a tile.
struct Units {
  int member, members, chunks, early, first, count;
  int at, tile, chunk;

  __device__ __forceinline__ Units(const Product& p, int chunks, int member, int members)
      : member(member), members(members), chunks(chunks), at(0), tile(0), chunk(0) {
    const long long all = (long long)p.tiles * chunks;
    const int from = (int)(all * member / members), each = p.earlyTiles / members, rest = p.earlyTiles % members;
    count = (int)(all * (member + 1) / members) - from;
    early = (each + (member < rest)) * chunks;
    first = from - (member * each + (member < rest ? member : rest)) * chunks;
  }
  __device__ __forceinline__ bool isEarly() const { return at < early; }
  // Sets tile and chunk to those of unit `at`; whether the tile is another than that of the unit before.
  __device__ __forceinline__ bool enter(const Product& p) {
    if (at > 0 && chunk + 1 < chunks) {
      chunk++;
      return false;
    }
    if (at < early) {
      tile = p.firstEarly + member + at / chunks * members;
      chunk = 0;
    } else {
      const int unit = first + at - early;
      tile = unit / chunks;
      chunk = unit - tile * chunks;
      if (tile >= p.firstEarly) tile += p.earlyTiles;
    }
    return true;
  }
  // Whether the tile's sum is complete after unit `at` as far as this block goes.
  __device__ __forceinline__ bool leaves() const { return chunk + 1 == chunks || at + 1 == count; }
};

#if DTYPE != 0 && __CUDA_ARCH__ >= 900
// At the speed of memory on Hopper and later: one block per multiprocessor. A producer streams 16 weight rows × 1024
// columns a stage into a ring in shared memory, each stage by one request of the copy engine (it starts before the previous
// kernel has ended: weights depend on nothing); eight warps multiply them on the tensor cores. The work, tiles × chunks, is
// dealt evenly over the blocks; a tile's sum may so have two contributors, which add to a y that was zero before: the order
// does not matter. Who waits for the early tiles can choose adapters and fetch their B while the rest is multiplied.
//
// A tensor map describes one matrix to the copy engine, so no tile has rows of two; rows and columns beyond the matrix
// arrive as zeros. A map shows row, column / d, column % d, where d is the largest power of two that divides k, at most 256.
#ifndef CHUNK
#define CHUNK 1024
#endif
#define STEPS (CHUNK / 256)  // of 32 columns, for each of eight warps
#define TILE 16
#define STAGE_BYTES (TILE * CHUNK * 2)

#ifndef ON_CPU
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
__device__ __forceinline__ unsigned shared32(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void barrierInit(unsigned b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(count));
}
__device__ __forceinline__ void barriersMade() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
__device__ __forceinline__ void barrierArrive(unsigned b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory");
}
__device__ __forceinline__ void barrierExpect(unsigned b, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrierWait(unsigned b, unsigned parity) {
  asm volatile(
      "{\n .reg .pred done;\nagain:\n mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n @done bra out;\n"
      " bra again;\nout:\n}\n" ::"r"(b), "r"(parity) : "memory");
}
struct __align__(64) TensorMap { u64 opaque[16]; };
__device__ __forceinline__ void tensorCopy(unsigned to, const TensorMap* map, int c1, int c2, unsigned barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}],"
      " [%5], %6;" ::"r"(to),
      "l"(map), "r"(0), "r"(c1), "r"(c2), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ uint4 loadShared(unsigned at) {
  uint4 v;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
  return v;
}
__device__ __forceinline__ void storeShared(unsigned at, uint4 v) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ u64 readOnce() {
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
// The first 256 threads of a block.
__device__ __forceinline__ void syncConsumers() { asm volatile("bar.sync 1, 256;" ::: "memory"); }
#endif
__device__ __forceinline__ void swapIf(bool swap, uint4& a, uint4& b) {
  uint4 c = swap ? b : a;
  b = swap ? a : b;
  a = c;
}

// Where a tile lies when no tile has rows of two matrices.
struct Place {
  int segment, row, out, valid;  // row in the matrix, in the list of all rows, how many there are
};
__device__ __forceinline__ Place placeOf(const Product& p, int tile) {
  int begin = 0, s = 0;
  for (;; s++) {
    int rows = p.segment[s].end - begin, tiles = (rows + TILE - 1) / TILE;
    if (tile < tiles) {
      int left = rows - tile * TILE;
      return {s, tile * TILE, begin + tile * TILE, left < TILE ? left : TILE};
    }
    tile -= tiles;
    begin = p.segment[s].end;
  }
}
template <int NT>  // NT × 8 rows of x at most
__device__ __forceinline__ void productStream(const Product& p, const TensorMap* maps) {
  DYNAMIC_SHARED(memory);
  const int stages = p.stages, slices = p.slices;
  const int allChunks = (p.k + CHUNK - 1) / CHUNK;
  const int slice = blockIdx.x % slices, member = blockIdx.x / slices, members = gridDim.x / slices;
  const int chunk0 = (int)((long long)slice * allChunks / slices);
  const int chunks = (int)((long long)(slice + 1) * allChunks / slices) - chunk0;
  Units units(p, chunks, member, members);
  const unsigned base = shared32(memory);
  const unsigned full = base, empty = base + 8 * stages;
  float* factor = (float*)(memory + 256);
  float* sums = (float*)(memory + 512);                    // [2][8 warps][NT*8][TILE]
  const int sumsBytes = 2 * 8 * NT * 8 * TILE * 4;
  const int maxChunks = (allChunks + slices - 1) / slices;
  const int xStride = maxChunks * CHUNK * 2 + 64;
  const unsigned xAt = base + 512 + sumsBytes;
  const unsigned ring = (xAt + xStride * p.rows + 127) & ~127u;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;

  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; s++) { barrierInit(full + 8 * s, 1); barrierInit(empty + 8 * s, 8); }
    barriersMade();
  }
  __syncthreads();
  releaseNext();

  if (warp == 8) {
    if (lane == 0) {
      const u64 policy = readOnce();
      const int d = __ffs(p.k) - 1 < 8 ? __ffs(p.k) - 1 : 8;
      int stage = 0;
      unsigned phase = 1;
      Place place;
      for (; units.at < units.count; units.at++) {
        if (units.enter(p)) place = placeOf(p, units.tile);
        barrierWait(empty + 8 * stage, phase);
        barrierExpect(full + 8 * stage, STAGE_BYTES);
        tensorCopy(ring + stage * STAGE_BYTES, maps + place.segment, (chunk0 + units.chunk) * CHUNK >> d, place.row,
                   full + 8 * stage, policy);
        if (++stage == stages) { stage = 0; phase ^= 1; }
      }
    }
    waitForPrevious();
    return;
  }

  waitForPrevious();
  for (int m = warp; m < p.rows; m += 8) {
    float f = normFactor(p.sumsq, p.partials, p.k, p.eps, m);
    if (lane == 0) factor[m] = f;
  }
  {
    int k0 = chunk0 * CHUNK, length = p.k - k0 < chunks * CHUNK ? p.k - k0 : chunks * CHUNK;
    int pieces = chunks * CHUNK / 8;
    for (int i = threadIdx.x; i < pieces * p.rows; i += 256) {
      int m = i / pieces, at = (i - m * pieces) * 8;
      uint4 v = make_uint4(0, 0, 0, 0);
      if (at < length) v = *(const uint4*)(p.x + (u64)m * p.k + k0 + at);
      storeShared(xAt + m * xStride + at * 2, v);
    }
  }
  syncConsumers();

  const int g = lane >> 2, q = lane & 3;
  float acc[NT][4];
#pragma unroll
  for (int n = 0; n < NT; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.f;
  int stage = 0, parityOfSums = 0;
  unsigned phase = 0;
  float* y = p.y + (u64)slice * p.rows * p.ld;
  Place place;
  for (; units.at < units.count; units.at++) {
    if (units.enter(p)) place = placeOf(p, units.tile);
    barrierWait(full + 8 * stage, phase);
    uint4 laterA = make_uint4(0, 0, 0, 0), laterB = laterA;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      int kk = (warp * STEPS + step) * 32 + q * 8;
      unsigned wAt = ring + stage * STAGE_BYTES + g * CHUNK * 2 + kk * 2;
      uint4 a, b;
      // rows are a multiple of 128 bytes apart: odd ones take two steps' columns in the other order, lest even and odd rows
      // meet in the banks
      if (step % 2 == 0) {
        unsigned other = g & 1 ? 64 : 0;
        a = loadShared(wAt + other);
        b = loadShared(wAt + other + 8 * CHUNK * 2);
        laterA = loadShared(wAt + (64 - other));
        laterB = loadShared(wAt + (64 - other) + 8 * CHUNK * 2);
        swapIf(g & 1, a, laterA);
        swapIf(g & 1, b, laterB);
      } else {
        a = laterA;
        b = laterB;
      }
#pragma unroll
      for (int n = 0; n < NT; n++) {
        uint4 x = make_uint4(0, 0, 0, 0);
        if (g + 8 * n < p.rows) x = loadShared(xAt + (g + 8 * n) * xStride + (units.chunk * CHUNK + kk) * 2);
        mma(acc[n], a.x, b.x, a.y, b.y, x.x, x.y);
        mma(acc[n], a.z, b.z, a.w, b.w, x.z, x.w);
      }
    }
    __syncwarp();
    if (lane == 0) barrierArrive(empty + 8 * stage);
    if (++stage == stages) { stage = 0; phase ^= 1; }
    if (units.leaves()) {
      float* mine = sums + (parityOfSums * 8 + warp) * (NT * 8 * TILE);
#pragma unroll
      for (int n = 0; n < NT; n++) {
        int m = n * 8 + q * 2;
        mine[m * TILE + g] = acc[n][0];
        mine[(m + 1) * TILE + g] = acc[n][1];
        mine[m * TILE + g + 8] = acc[n][2];
        mine[(m + 1) * TILE + g + 8] = acc[n][3];
        acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.f;
      }
      syncConsumers();
      int m = threadIdx.x / TILE, of = threadIdx.x % TILE;
      if (m < p.rows && of < place.valid) {
        float v = 0;
#pragma unroll
        for (int w = 0; w < 8; w++) v += sums[(parityOfSums * 8 + w) * (NT * 8 * TILE) + threadIdx.x];
        atomicAdd(y + (u64)m * p.ld + place.out + of, v * factor[m]);
      }
      parityOfSums ^= 1;
      if (p.early && units.isEarly()) {
        __threadfence();
        syncConsumers();
        if (threadIdx.x == 0) atomicAdd(p.early, 1u);
      }
    }
  }
}
struct StreamedProduct {
  Product product;
  TensorMap map[MAX_SEGMENTS];
};
extern "C" __global__ void __launch_bounds__(288, 1) product_stream8(const __grid_constant__ StreamedProduct p) {
  productStream<1>(p.product, p.map);
}
extern "C" __global__ void __launch_bounds__(288, 1) product_stream16(const __grid_constant__ StreamedProduct p) {
  productStream<2>(p.product, p.map);
}
#endif

// ------------------------------------------------------------------------------------------ z of the selected adapters only
// For banks too large to multiply whole: z = A x for the adapters that the gate chose. Grid (rows of A / 8, linears, rows).
struct SelectZ {
  Chain chain;
  Linear linear[3];
  const T* a[3];
  const T* x;
  const float* sumsq;
  float* y;
  int k, partials;
  float eps;
  int vectors;
};
extern "C" __global__ void __launch_bounds__(256) select_z(const __grid_constant__ SelectZ p) {
  releaseNext();
  waitForPrevious();
  const Linear& l = p.linear[blockIdx.y];
  const T* a = p.a[blockIdx.y];
  int row = blockIdx.z, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float logits[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++) logits[i] = lane + 32 * i < l.n ? sumSlots(p.chain, row, l.gateAt + lane + 32 * i) : 0.f;
  int index[TOPK];
  float weight[TOPK];
  topK(logits, l.n, 1.f, index, weight);
  int want = blockIdx.x * 8 + warp;
  float factor = normFactor(p.sumsq, p.partials, p.k, p.eps, row);
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    if (index[j] < 0) continue;
    int off = l.offsets[index[j]], rank = l.offsets[index[j] + 1] - off;
    if (want >= 0 && want < rank) {
      const T* w = a + (u64)(off + want) * p.k;
      const T* x = p.x + (u64)row * p.k;
      float acc = 0;
      if (p.vectors) {
#pragma unroll 4
        for (int at = lane * ELEMENTS_16B; at < p.k; at += 32 * ELEMENTS_16B) {
          float f[ELEMENTS_16B], h[ELEMENTS_16B];
          unpack16B(__ldg((const uint4*)(w + at)), f);
          unpack16B(*(const uint4*)(x + at), h);
#pragma unroll
          for (int i = 0; i < ELEMENTS_16B; i++) acc += f[i] * h[i];
        }
      } else {
        for (int at = lane; at < p.k; at += 32) acc += toFloat(w[at]) * toFloat(x[at]);
      }
      acc = warpSum(acc);
      if (lane == 0) p.y[(u64)row * p.chain.ld + l.zAt + off + want] = acc * factor;
    }
    want -= rank;
  }
}

#if HEAD_DIM > 0
// ----------------------------------------------------------------------------------------- what follows a product in a layer
// q, k, v with their adapters → rotated q (float32, times `scale`) and the KV cache's next column.
struct RopeAppend {
  Chain chain;
  Linear linear[3];
  float* q;
  T* kCache;
  T* vCache;
  const int* slots;
  const int* lengths;
  const int* starts;
  const float* invFreq;
  int heads, kvHeads, headDim, maxLength;
  float scale, ropeScale;
};
// Which linear a head belongs to, and which head it is there.
__device__ __forceinline__ int linearOf(const RopeAppend& p, int& head) {
  if (head < p.heads) return 0;
  head -= p.heads;
  if (head < p.kvHeads) return 1;
  head -= p.kvHeads;
  return 2;
}
// Each lane of a block, which is a warp, has N pairs of a head's dimensions. Grid (heads + 2 kvHeads, ⌈pairs / 32 N⌉, rows).
// EARLY: the gates' logits are there before the rest of the product.
template <bool EARLY>
__device__ __forceinline__ void ropeAppend(const RopeAppend& p) {
  constexpr int N = 2;
  releaseNext();
  const int half = p.headDim / 2, row = blockIdx.z, i = (blockIdx.y * 32 + threadIdx.x) * N, left = half - i;
  int head = blockIdx.x;
  const int which = linearOf(p, head), o = head * p.headDim + i;
  const Linear& l = p.linear[which];
  const bool whole = l.vectors && half % N == 0, writes = head == 0 && blockIdx.y == 0;
  const Known known = know(p.chain, l);
  const int slot = p.slots[row], length = p.lengths[row];
  float sine[N], cosine[N];
#pragma unroll
  for (int k = 0; k < N; k++) {
    sine[k] = 0.f;
    cosine[k] = 1.f;
    if (which < 2 && k < left) {
      sincosf((float)(length - p.starts[row]) * p.invFreq[i + k], &sine[k], &cosine[k]);
      sine[k] *= p.ropeScale;
      cosine[k] *= p.ropeScale;
    }
  }
  float v[2][N], logits[1][NREG];
  const int at[] = {l.outAt + o, l.outAt + o + half};
  const Linear* const linears[] = {&l};
  Chosen chosen[1];
  Ahead<N> a, b;
  if (EARLY && l.n) {
    gatherEarly<1>(p.chain, row, linears, logits);
    chosen[0] = choose(l, known, logits[0], row, writes);
    a = loadAhead<N>(l, chosen[0], o, whole, left);
    b = loadAhead<N>(l, chosen[0], o + half, whole, left);
  }
  waitForPrevious();
  float z[1][TOPK][MAX_RANK / 32];
  if (EARLY && l.n) gatherChosen<2, 1, N>(p.chain, row, at, whole, left, linears, chosen, v, z);
  else gather<2, EARLY ? 0 : 1, N>(p.chain, row, at, whole, left, linears, v, logits);
  addBias<N>(l, o, left, v[0]);
  addBias<N>(l, o + half, left, v[1]);
  if (l.n) {
    if (!EARLY) {
      chosen[0] = choose(l, known, logits[0], row, writes);
      a = loadAhead<N>(l, chosen[0], o, whole, left);
      b = loadAhead<N>(l, chosen[0], o + half, whole, left);
      coefficients<1>(p.chain, row, linears, chosen, z);
    }
    addChosen<N>(l, chosen[0], z[0], a, o, whole, left, v[0]);
    addChosen<N>(l, chosen[0], z[0], b, o + half, whole, left, v[1]);
  }
  clearNext(p.chain);
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
  } else if (slot >= 0 && length < p.maxLength) {
    T* cache = (which == 1 ? p.kCache : p.vCache) + (((u64)slot * p.kvHeads + head) * p.maxLength + length) * p.headDim + i;
    storePacked<N>(cache, half % N == 0, left, v[0]);
    storePacked<N>(cache + half, half % N == 0, left, v[1]);
  }
}
extern "C" __global__ void __launch_bounds__(32) rope_append(const __grid_constant__ RopeAppend p) { ropeAppend<false>(p); }
extern "C" __global__ void __launch_bounds__(32) rope_append_early(const __grid_constant__ RopeAppend p) { ropeAppend<true>(p); }
// Attention of one new token per row over its KV cache, split over the sequence. Grid (splits, heads / GROUP, rows), 128
// threads. The block that ends last for a row and head group joins the splits and leaves the counter at zero.
struct Attention {
  const float* q;
  const T* kCache;
  const T* vCache;
  T* out;
  float* partial;
  unsigned* counters;
  const int* slots;
  const int* lengths;
  const int* starts;
  int heads, kvHeads, maxLength, splits;
};
#define SEGMENTS ((HEAD_DIM + 7) / 8)
#define LANE_SEGMENTS ((SEGMENTS + 7) / 8)
#define PADDED (SEGMENTS * 8)
#define KEYS 64
#define KEY_GROUPS (128 / SEGMENTS)
extern "C" __global__ void __launch_bounds__(128) attention(const __grid_constant__ Attention p) {
  __shared__ __align__(16) float score[GROUP][KEYS];
  __shared__ float correction[GROUP], top[GROUP], total[GROUP];
  __shared__ __align__(16) float reduce[KEY_GROUPS * GROUP * PADDED];
  __shared__ bool last;
  releaseNext();
  const int split = blockIdx.x, group = blockIdx.y, row = blockIdx.z, tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  const int kvHead = group * GROUP / (p.heads / p.kvHeads), slot = p.slots[row];
  const bool aligned = HEAD_DIM % 8 == 0;
  int begin = 0, end = 0, active = 1;  // splits that have work: at least KEYS keys each, or all
  if (slot >= 0) {
    int length = p.lengths[row] + 1 < p.maxLength ? p.lengths[row] + 1 : p.maxLength, first = p.starts[row];
    int each = ((length - first + p.splits - 1) / p.splits + KEYS - 1) / KEYS * KEYS;
    active = (length - first + each - 1) / each;
    begin = first + split * each;
    end = begin + each < length ? begin + each : length;
  }
  if (split >= active) return;
  const u64 cacheAt = ((u64)(slot < 0 ? 0 : slot) * p.kvHeads + kvHead) * p.maxLength * HEAD_DIM;
  const T* keys = p.kCache + cacheAt;
  const T* values = p.vCache + cacheAt;
  // Lengths and all columns but the newest are older than this step: they can come closer before the previous kernel ends.
  for (int at = begin * HEAD_DIM + tid * (128 / (int)sizeof(T)); at < end * HEAD_DIM && at < (begin + 4 * KEYS) * HEAD_DIM;
       at += 128 * (128 / (int)sizeof(T))) {
    prefetch(keys + at);
    prefetch(values + at);
  }
  waitForPrevious();

  float q[GROUP][LANE_SEGMENTS][8];
#pragma unroll
  for (int h = 0; h < GROUP; h++)
#pragma unroll
    for (int s = 0; s < LANE_SEGMENTS; s++)
{
        const int d = ((tid & 7) + 8 * s) * 8;
        const float* from = p.q + ((u64)row * p.heads + group * GROUP + h) * HEAD_DIM + d;
#if HEAD_DIM % 8 == 0
        float4 u = make_float4(0, 0, 0, 0), v = u;
        if (d < HEAD_DIM) { u = *(const float4*)from; v = *(const float4*)(from + 4); }
        q[h][s][0] = u.x; q[h][s][1] = u.y; q[h][s][2] = u.z; q[h][s][3] = u.w;
        q[h][s][4] = v.x; q[h][s][5] = v.y; q[h][s][6] = v.z; q[h][s][7] = v.w;
#else
#pragma unroll
        for (int i = 0; i < 8; i++) q[h][s][i] = d + i < HEAD_DIM ? from[i] : 0.f;
#endif
      }
  float acc[GROUP][8];
#pragma unroll
  for (int h = 0; h < GROUP; h++)
#pragma unroll
    for (int i = 0; i < 8; i++) acc[h][i] = 0.f;
  float runningMax = negInf(), runningSum = 0.f;  // of head `warp`
  const int keyGroup = tid / SEGMENTS, segment = tid - keyGroup * SEGMENTS;

  for (int t0 = begin; t0 < end; t0 += KEYS) {
#pragma unroll
    for (int pass = 0; pass < KEYS / 16; pass++) {
      int local = pass * 16 + (tid >> 3), key = t0 + local;
      float dot[GROUP];
#pragma unroll
      for (int h = 0; h < GROUP; h++) dot[h] = 0.f;
      if (key < end) {
#pragma unroll
        for (int s = 0; s < LANE_SEGMENTS; s++) {
          float f[8];
          load8(keys + (u64)key * HEAD_DIM, ((tid & 7) + 8 * s) * 8, HEAD_DIM, aligned, f);
#pragma unroll
          for (int h = 0; h < GROUP; h++)
#pragma unroll
            for (int i = 0; i < 8; i++) dot[h] += f[i] * q[h][s][i];
        }
      }
#pragma unroll
      for (int h = 0; h < GROUP; h++) {
        dot[h] += __shfl_xor_sync(0xffffffffu, dot[h], 1);
        dot[h] += __shfl_xor_sync(0xffffffffu, dot[h], 2);
        dot[h] += __shfl_xor_sync(0xffffffffu, dot[h], 4);
        if ((tid & 7) == 0) score[h][local] = key < end ? dot[h] : negInf();
      }
    }
    __syncthreads();
    if (warp < GROUP) {
      float a = score[warp][lane], b = score[warp][lane + 32];
      float m = fmaxf(a, b);
#pragma unroll
      for (int d = 16; d > 0; d >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
      float next = fmaxf(m, runningMax), factor = __expf(runningMax - next);
      a = __expf(a - next);
      b = __expf(b - next);
      score[warp][lane] = a;
      score[warp][lane + 32] = b;
      runningSum = runningSum * factor + warpSum(a + b);
      runningMax = next;
      if (lane == 0) correction[warp] = factor;
    }
    __syncthreads();
    if (keyGroup < KEY_GROUPS) {
#pragma unroll
      for (int h = 0; h < GROUP; h++)
#pragma unroll
        for (int i = 0; i < 8; i++) acc[h][i] *= correction[h];
#pragma unroll 8
      for (int local = keyGroup; local < KEYS; local += KEY_GROUPS) {
        if (t0 + local < end) {
          float f[8];
          load8(values + (u64)(t0 + local) * HEAD_DIM, segment * 8, HEAD_DIM, aligned, f);
#pragma unroll
          for (int h = 0; h < GROUP; h++) {
            float w = score[h][local];
#pragma unroll
            for (int i = 0; i < 8; i++) acc[h][i] += w * f[i];
          }
        }
      }
    }
    __syncthreads();
  }
  if (keyGroup < KEY_GROUPS)
#pragma unroll
    for (int h = 0; h < GROUP; h++)
#pragma unroll
      for (int i = 0; i < 8; i++) reduce[(keyGroup * GROUP + h) * PADDED + segment * 8 + i] = acc[h][i];
  if (warp < GROUP && lane == 0) { top[warp] = runningMax; total[warp] = runningSum; }
  __syncthreads();
  const int width = GROUP * (PADDED + 2);
  float* mine = p.partial + (((u64)row * gridDim.y + group) * p.splits + split) * width;
  for (int i = tid; i < GROUP * PADDED; i += 128) {
    float v = 0;
#pragma unroll
    for (int g = 0; g < KEY_GROUPS; g++) v += reduce[g * GROUP * PADDED + i];
    mine[i] = v;
  }
  if (tid < GROUP) {
    mine[GROUP * PADDED + tid] = top[tid];
    mine[GROUP * PADDED + GROUP + tid] = total[tid];
  }
  if (active > 1) __threadfence();
  __syncthreads();
  unsigned* counter = p.counters + row * gridDim.y + group;
  if (tid == 0) last = active == 1 || atomicAdd(counter, 1u) == (unsigned)active - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (tid == 0) *counter = 0;
  const float* all = p.partial + (((u64)row * gridDim.y + group) * p.splits) * width;
  // weight of each split, per head: exp(max - overall max) / overall sum
  float* weights = reduce;  // [splits][GROUP], splits ≤ 64
  if (warp < GROUP) {
    float m = negInf();
    for (int s = lane; s < active; s += 32) m = fmaxf(m, __ldcg(all + s * width + GROUP * PADDED + warp));
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
    float sum = 0;
    for (int s = lane; s < active; s += 32) {
      float own = __ldcg(all + s * width + GROUP * PADDED + warp), w = own == negInf() ? 0.f : __expf(own - m);
      weights[s * GROUP + warp] = w;
      sum += w * __ldcg(all + s * width + GROUP * PADDED + GROUP + warp);
    }
    sum = warpSum(sum);
    __syncwarp();
    for (int s = lane; s < active; s += 32) weights[s * GROUP + warp] *= sum > 0 ? 1.f / sum : 0.f;
  }
  __syncthreads();
  for (int i = tid; i < GROUP * PADDED; i += 128) {
    int h = i / PADDED, d = i - h * PADDED;
    float v = 0;
#pragma unroll 8
    for (int s = 0; s < active; s++) v += weights[s * GROUP + h] * __ldcg(all + s * width + i);
    if (d < HEAD_DIM) p.out[((u64)row * p.heads + group * GROUP + h) * HEAD_DIM + d] = fromFloat(v);
  }
}

#if defined(TENSOR_CORES) && __CUDA_ARCH__ >= 900 && (HEAD_DIM == 64 || HEAD_DIM == 128)
// The same on tensor cores. A cluster of `splits` blocks joins its results in shared memory; only long sequences need several
// clusters, which are joined as above. Every warp takes 16 keys at a time, straight from memory into the operands' registers:
// where an operand wants columns side by side, any order of the head's dimensions will do, so each lane takes 16 contiguous
// bytes. Grid (clusters · splits, heads / GROUP, rows), 128 threads.
//
// Scores are Q Kᵀ with the query heads as the rows; four heads leave four of the first eight rows, which hold what rounding q
// (and then the weights) to T leaves over: the sums are as exact as with float32 queries.
#define QUADS (HEAD_DIM / 32)    // 16 bytes of each of four lanes
#define OCTETS (HEAD_DIM / 64)   // 16 bytes of each of eight lanes
#define PART_ROW (HEAD_DIM + 4)
extern "C" __global__ void __launch_bounds__(128) attention_cluster(const __grid_constant__ Attention p) {
  __shared__ float parts[4][GROUP][PART_ROW], tops[4][GROUP], totals[4][GROUP];
  __shared__ float joined[GROUP * HEAD_DIM], top[GROUP], total[GROUP];
  __shared__ bool last;
  releaseNext();
  const int group = blockIdx.y, row = blockIdx.z, cluster = blockIdx.x / p.splits, rank = blockIdx.x % p.splits;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int kvHead = group * GROUP / (p.heads / p.kvHeads), slot = p.slots[row];
  int begin = 0, end = 0, newest = -1, clusters = 1;  // that have work
  if (slot >= 0) {
    newest = p.lengths[row];
    int length = newest + 1 < p.maxLength ? newest + 1 : p.maxLength, first = p.starts[row];
    int each = ((length - first + gridDim.x - 1) / gridDim.x + 15) / 16 * 16;
    if (each < KEYS) each = KEYS;
    clusters = (length - first + each * p.splits - 1) / (each * p.splits);
    begin = first + blockIdx.x * each;
    end = begin + each < length ? begin + each : length;
  }
  if (cluster >= clusters) return;
  const u64 cacheAt = ((u64)(slot < 0 ? 0 : slot) * p.kvHeads + kvHead) * p.maxLength * HEAD_DIM;
  const T* keys = p.kCache + cacheAt + q * 8;
  const T* values = p.vCache + cacheAt + g * 8;
  uint4 k[2][QUADS], v[4][OCTETS];
  auto loadKeys = [&](int from, int but) {
#pragma unroll
    for (int t = 0; t < 2; t++) {
      int key = from + t * 8 + g;
#pragma unroll
      for (int s = 0; s < QUADS; s++) k[t][s] = loadIf(key < end && key != but, keys + (u64)key * HEAD_DIM + s * 32);
    }
  };
  auto loadValues = [&](int from, int but) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int key = from + (i >> 1) * 8 + q * 2 + (i & 1);
#pragma unroll
      for (int s = 0; s < OCTETS; s++) v[i][s] = loadIf(key < end && key != but, values + (u64)key * HEAD_DIM + s * 64);
    }
  };
  // All columns but the newest are older than this step, and so are the lengths: the first are here before the previous
  // kernel ends.
  int t0 = begin + warp * 16;
  loadKeys(t0, newest);
  loadValues(t0, newest);
  waitForPrevious();

  unsigned query[QUADS][4];  // of row g: head g % 4, from four on what rounding left over
  {
    const int head = g & 3;
    const float* from = p.q + ((u64)row * p.heads + group * GROUP + head) * HEAD_DIM + q * 8;
#pragma unroll
    for (int s = 0; s < QUADS; s++) {
      float4 a = make_float4(0, 0, 0, 0), b = a;
      if (head < GROUP) { a = *(const float4*)(from + s * 32); b = *(const float4*)(from + s * 32 + 4); }
      unsigned low;
      const bool rest = g >= 4;
      twoParts(a.x, a.y, query[s][0], low); query[s][0] = rest ? low : query[s][0];
      twoParts(a.z, a.w, query[s][1], low); query[s][1] = rest ? low : query[s][1];
      twoParts(b.x, b.y, query[s][2], low); query[s][2] = rest ? low : query[s][2];
      twoParts(b.z, b.w, query[s][3], low); query[s][3] = rest ? low : query[s][3];
    }
  }
  if (t0 <= newest && newest < t0 + 16) {
    loadKeys(t0, -1);
    loadValues(t0, -1);
  }

  float o[OCTETS][8][2];  // of row g: dimensions 64 s + 16 q + j and 8 more
#pragma unroll
  for (int s = 0; s < OCTETS; s++)
#pragma unroll
    for (int j = 0; j < 8; j++) o[s][j][0] = o[s][j][1] = 0.f;
  float runningMax = negInf(), runningSum = 0.f;
  for (; t0 < end; t0 += 64) {
    float w[2][2], m = negInf();
#pragma unroll
    for (int t = 0; t < 2; t++) {
      float c[2][4] = {};
#pragma unroll
      for (int s = 0; s < QUADS; s++) {
        mma(c[0], query[s][0], 0, query[s][1], 0, k[t][s].x, k[t][s].y);
        mma(c[1], query[s][2], 0, query[s][3], 0, k[t][s].z, k[t][s].w);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float score = c[0][i] + c[1][i];
        score += __shfl_xor_sync(0xffffffffu, score, 16);
        w[t][i] = t0 + t * 8 + q * 2 + i < end ? score : negInf();
        m = fmaxf(m, w[t][i]);
      }
    }
    loadKeys(t0 + 64, -1);
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    m = fmaxf(m, runningMax);
    float factor = __expf(runningMax - m);
    runningMax = m;
    runningSum *= factor;
    unsigned weight[2];
#pragma unroll
    for (int t = 0; t < 2; t++) {
      float a = __expf(w[t][0] - m), b = __expf(w[t][1] - m);
      runningSum += a + b;
      unsigned low;
      twoParts(a, b, weight[t], low);
      if (g >= 4) weight[t] = low;
    }
#pragma unroll
    for (int s = 0; s < OCTETS; s++) {
      const unsigned* v0 = &v[0][s].x;
      const unsigned* v1 = &v[1][s].x;
      const unsigned* v2 = &v[2][s].x;
      const unsigned* v3 = &v[3][s].x;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int take = j & 1 ? 0x7632 : 0x5410;
        float c[4] = {o[s][j][0] * factor, o[s][j][1] * factor, 0.f, 0.f};
        mma(c, weight[0], 0, weight[1], 0, __byte_perm(v0[j / 2], v1[j / 2], take), __byte_perm(v2[j / 2], v3[j / 2], take));
        o[s][j][0] = c[0];
        o[s][j][1] = c[1];
      }
    }
    loadValues(t0 + 64, -1);
  }

  // The warps' results, then the blocks'.
  runningSum += __shfl_xor_sync(0xffffffffu, runningSum, 1);
  runningSum += __shfl_xor_sync(0xffffffffu, runningSum, 2);
#pragma unroll
  for (int s = 0; s < OCTETS; s++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float all = o[s][j][i] + __shfl_xor_sync(0xffffffffu, o[s][j][i], 16);
        if (g < GROUP) parts[warp][g][s * 64 + q * 16 + i * 8 + j] = all;
      }
  if (g < GROUP && q == 0) { tops[warp][g] = runningMax; totals[warp][g] = runningSum; }
  __syncthreads();
  for (int at = threadIdx.x; at < GROUP * HEAD_DIM; at += 128) {
    int h = at / HEAD_DIM, d = at - h * HEAD_DIM;
    float m = fmaxf(fmaxf(tops[0][h], tops[1][h]), fmaxf(tops[2][h], tops[3][h])), sum = 0, all = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float weight = tops[i][h] == negInf() ? 0.f : __expf(tops[i][h] - m);
      all += weight * parts[i][h][d];
      sum += weight * totals[i][h];
    }
    joined[at] = all;
    if (d == 0) { top[h] = m; total[h] = sum; }
  }
  clusterArrive();
  clusterWait();
  const int width = GROUP * (HEAD_DIM + 2);
  float* const all = p.partial + ((u64)row * gridDim.y + group) * (gridDim.x / p.splits) * width;
  T* const out = p.out + ((u64)row * p.heads + group * GROUP) * HEAD_DIM;
  for (int at = rank * 128 + threadIdx.x; at < GROUP * HEAD_DIM; at += p.splits * 128) {
    int h = at / HEAD_DIM;
    float tops[8], m = negInf(), sum = 0, v = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      tops[i] = i < p.splits ? sharedOf(&top[h], i) : negInf();
      m = fmaxf(m, tops[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < p.splits) {
        float weight = tops[i] == negInf() ? 0.f : __expf(tops[i] - m);
        sum += weight * sharedOf(&total[h], i);
        v += weight * sharedOf(&joined[at], i);
      }
    if (clusters == 1) {
      out[at] = fromFloat(sum > 0 ? v / sum : 0.f);
    } else {
      float* mine = all + cluster * width;
      mine[at] = v;
      if (at == h * HEAD_DIM) { mine[GROUP * HEAD_DIM + h] = m; mine[GROUP * HEAD_DIM + GROUP + h] = sum; }
    }
  }
  if (clusters > 1) __threadfence();
  clusterArrive();  // nobody leaves while others read
  clusterWait();
  if (clusters == 1 || rank != 0) return;
  unsigned* counter = p.counters + row * gridDim.y + group;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1u) == (unsigned)clusters - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  for (int at = threadIdx.x; at < GROUP * HEAD_DIM; at += 128) {
    int h = at / HEAD_DIM;
    float m = negInf(), sum = 0, v = 0;
    for (int i = 0; i < clusters; i++) m = fmaxf(m, __ldcg(all + i * width + GROUP * HEAD_DIM + h));
#pragma unroll 4
    for (int i = 0; i < clusters; i++) {
      float weight = __expf(__ldcg(all + i * width + GROUP * HEAD_DIM + h) - m);
      sum += weight * __ldcg(all + i * width + GROUP * HEAD_DIM + GROUP + h);
      v += weight * __ldcg(all + i * width + at);
    }
    out[at] = fromFloat(v / sum);
  }
}
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
struct AddResidual {
  Chain chain;
  Linear linear;
  float* h;
  const T* normWeight;
  T* out;
  float* sumsq;
  int hidden, pad;
};
template <bool EARLY>
__device__ __forceinline__ void addResidual(const AddResidual& p) {
  constexpr int N = 2;
  releaseNext();
  const int row = blockIdx.y, o = (blockIdx.x * 32 + threadIdx.x) * N, left = p.hidden - o;
  const Linear& l = p.linear;
  const bool whole = l.vectors, writes = blockIdx.x == 0;
  const Known known = know(p.chain, l);
  const Packed<N> weight = loadPacked<N>(p.normWeight + o, whole, left);
  float h[N], sum[1][N], logits[1][NREG];
  const int at[] = {l.outAt + o};
  const Linear* const linears[] = {&l};
  Chosen chosen[1];
  Ahead<N> ahead;
  if (EARLY && l.n) {
    gatherEarly<1>(p.chain, row, linears, logits);
    chosen[0] = choose(l, known, logits[0], row, writes);
    ahead = loadAhead<N>(l, chosen[0], o, whole, left);
  }
  waitForPrevious();
  loadFloats<N>(p.h + (u64)row * p.hidden + o, whole, left, h);
  float z[1][TOPK][MAX_RANK / 32];
  if (EARLY && l.n) gatherChosen<1, 1, N>(p.chain, row, at, whole, left, linears, chosen, sum, z);
  else gather<1, EARLY ? 0 : 1, N>(p.chain, row, at, whole, left, linears, sum, logits);
  addBias<N>(l, o, left, sum[0]);
  if (l.n) {
    if (!EARLY) {
      chosen[0] = choose(l, known, logits[0], row, writes);
      ahead = loadAhead<N>(l, chosen[0], o, whole, left);
      coefficients<1>(p.chain, row, linears, chosen, z);
    }
    addChosen<N>(l, chosen[0], z[0], ahead, o, whole, left, sum[0]);
  }
  clearNext(p.chain);
#pragma unroll
  for (int i = 0; i < N; i++) h[i] += sum[0][i];
  writeNormInput<N>(h, o, row, p.hidden, whole, weight, p.h, p.out, p.sumsq);
}
extern "C" __global__ void __launch_bounds__(32) add_residual(const __grid_constant__ AddResidual p) { addResidual<false>(p); }
extern "C" __global__ void __launch_bounds__(32) add_residual_early(const __grid_constant__ AddResidual p) { addResidual<true>(p); }

// h (rows, hidden) float32 = the tokens' embeddings, and the first RMSNorm's input. Grid (hidden / 32, rows), a warp.
struct Embed {
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
extern "C" __global__ void __launch_bounds__(32) embed(const __grid_constant__ Embed p) {
  releaseNext();
  waitForPrevious();
  const int row = blockIdx.y, o = blockIdx.x * 32 + threadIdx.x, token = p.tokens[row];
  const float h = token >= 0 && token < p.vocab && o < p.hidden ? toFloat(p.table[(u64)token * p.hidden + o]) : 0.f;
  Chain c;
  c.clear = p.clear;
  c.clearCount = p.clearCount;
  clearNext(c);
  writeNormInput<1>(&h, o, row, p.hidden, true, loadPacked<1>(p.normWeight + o, true, p.hidden - o), p.h, p.out, p.sumsq);
}

// act (rows, inter) = silu(gate) · up, both with their adapters. Grid (inter / 32 N, rows), a warp.
struct SiluUp {
  Chain chain;
  Linear gate, up;
  T* out;
  int inter, pad;
};
template <int N, bool EARLY>
__device__ __forceinline__ void siluUp(const SiluUp& p) {
  releaseNext();
  const int row = blockIdx.y, o = (blockIdx.x * 32 + threadIdx.x) * N, left = p.inter - o;
  const bool whole = p.gate.vectors && p.up.vectors, writes = blockIdx.x == 0;
  const Known ofGate = know(p.chain, p.gate), ofUp = know(p.chain, p.up);
  float v[2][N], logits[2][NREG];
  const int at[] = {p.gate.outAt + o, p.up.outAt + o};
  const Linear* const linears[] = {&p.gate, &p.up};
  const bool adapted = p.gate.n | p.up.n;  // one of them without adapters chooses nothing
  Chosen chosen[2];
  Ahead<N> a, b;
  if (EARLY && adapted) {
    gatherEarly<2>(p.chain, row, linears, logits);
    chosen[0] = choose(p.gate, ofGate, logits[0], row, writes);
    chosen[1] = choose(p.up, ofUp, logits[1], row, writes);
    a = loadAhead<N>(p.gate, chosen[0], o, whole, left);
    b = loadAhead<N>(p.up, chosen[1], o, whole, left);
  }
  waitForPrevious();
  float z[2][TOPK][MAX_RANK / 32];
  if (EARLY && adapted) gatherChosen<2, 2, N>(p.chain, row, at, whole, left, linears, chosen, v, z);
  else gather<2, EARLY ? 0 : 2, N>(p.chain, row, at, whole, left, linears, v, logits);
  addBias<N>(p.gate, o, left, v[0]);
  addBias<N>(p.up, o, left, v[1]);
  if (adapted) {
    if (!EARLY) {
      chosen[0] = choose(p.gate, ofGate, logits[0], row, writes);
      chosen[1] = choose(p.up, ofUp, logits[1], row, writes);
      a = loadAhead<N>(p.gate, chosen[0], o, whole, left);
      b = loadAhead<N>(p.up, chosen[1], o, whole, left);
      coefficients<2>(p.chain, row, linears, chosen, z);
    }
    addChosen<N>(p.gate, chosen[0], z[0], a, o, whole, left, v[0]);
    addChosen<N>(p.up, chosen[1], z[1], b, o, whole, left, v[1]);
  }
  clearNext(p.chain);
#pragma unroll
  for (int i = 0; i < N; i++) v[0][i] = v[0][i] / (1.f + __expf(-v[0][i])) * v[1][i];
  storePacked<N>(p.out + (u64)row * p.inter + o, whole, left, v[0]);
}
extern "C" __global__ void __launch_bounds__(32) silu_up2(const __grid_constant__ SiluUp p) { siluUp<2, false>(p); }
extern "C" __global__ void __launch_bounds__(32) silu_up4(const __grid_constant__ SiluUp p) { siluUp<4, false>(p); }
extern "C" __global__ void __launch_bounds__(32) silu_up2_early(const __grid_constant__ SiluUp p) { siluUp<2, true>(p); }
extern "C" __global__ void __launch_bounds__(32) silu_up4_early(const __grid_constant__ SiluUp p) { siluUp<4, true>(p); }

// The next token of each row: the largest logit, the lowest index of equals, or one drawn from the distribution. Banned
// tokens' logits become -infinity. Logits (slots, rows, vocab) are summed over slots into the first on the way.
// Grid (blocks, rows), then (1, rows).
#define MAX_BANNED 32
struct Wishes {
  u64 uniform[MAX_ROWS];  // of each row, in units of 2^-64
  u64 topP;               // in units of 2^-64; 0: 1
  float scale;            // 2^25 · log2(e) / temperature; 0: the largest logit
  int topK;               // 0: all
  int banned[MAX_ROWS];   // how many tokens of the row are
  int bans[MAX_ROWS][MAX_BANNED];
};
struct NextToken {
  float* logits;
  float* best;
  int* bestAt;
  int* tokens;
  int* lengths;
  const int* slots;
  const Wishes* wishes;
  unsigned* clear;        // counters of the step's products, for the next step
  int vocab, logitSlots, rows, blocks, maxLength, clearCount;
};
__device__ __forceinline__ void better(float& v, int& at, float w, int b) {
  if (w > v || (w == v && b < at)) { v = w; at = b; }
}
template <int WARPS>
__device__ __forceinline__ void blockBest(float& v, int& at) {
  __shared__ float values[WARPS];
  __shared__ int places[WARPS];
#pragma unroll
  for (int d = 16; d > 0; d >>= 1)
    better(v, at, __shfl_xor_sync(0xffffffffu, v, d), __shfl_xor_sync(0xffffffffu, at, d));
  if ((threadIdx.x & 31) == 0) { values[threadIdx.x >> 5] = v; places[threadIdx.x >> 5] = at; }
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < WARPS; w++) better(v, at, values[w], places[w]);
}
extern "C" __global__ void __launch_bounds__(256) best_in_blocks(const __grid_constant__ NextToken p) {
  releaseNext();
  waitForPrevious();
  int row = blockIdx.y, each = (p.vocab + p.blocks - 1) / p.blocks;
  int begin = blockIdx.x * each, end = begin + each < p.vocab ? begin + each : p.vocab;
  if (threadIdx.x < p.wishes->banned[row]) {
    int token = p.wishes->bans[row][threadIdx.x];
    if (token >= begin && token < end) p.logits[(u64)row * p.vocab + token] = negInf();
  }
  __syncthreads();
  float v = negInf();
  int at = 0x7fffffff;
  for (int i = begin + threadIdx.x; i < end; i += 256) {
    float* first = p.logits + (u64)row * p.vocab + i;
    float w = *first;
    for (int s = 1; s < p.logitSlots; s++) w += first[(u64)s * p.rows * p.vocab];
    if (p.logitSlots > 1) *first = w;
    better(v, at, w, i);
  }
  blockBest<8>(v, at);
  if (threadIdx.x == 0) { p.best[row * p.blocks + blockIdx.x] = v; p.bestAt[row * p.blocks + blockIdx.x] = at; }
}

// Sampling. All sums are of integers, so that their order does not matter, and every rounding is written out: the host's
// Sampler does the same arithmetic and chooses the same token.
#define PICK 1024
#define NO_MASS 0xffffffffu
#define BINS 2048

// -log2 of a token's probability over the likeliest token's, in units of 2^-25; NO_MASS from 44 on.
__device__ __forceinline__ unsigned exponentOf(float largest, float logit, float scale) {
  float x = __fmul_rn(__fsub_rn(largest, logit), scale);
  return x < 1476395008.f ? (unsigned)x : NO_MASS;
}

// 2^-exponent in units of 2^-44.
__device__ __forceinline__ u64 massOf(unsigned exponent) {
  float t = __fmul_rn((float)(exponent & 0x1ffffff), 2.98023223876953125e-8f);
  float v = 0.000114919952f;
  v = __fadd_rn(__fmul_rn(v, t), -0.00129163684f);
  v = __fadd_rn(__fmul_rn(v, t), 0.00959703512f);
  v = __fadd_rn(__fmul_rn(v, t), -0.0554992296f);
  v = __fadd_rn(__fmul_rn(v, t), 0.24022609f);
  v = __fadd_rn(__fmul_rn(v, t), -0.693147182f);
  v = __fadd_rn(__fmul_rn(v, t), 1.f);
  return (u64)__fmul_rn(v, __uint_as_float((127 + 44 - (exponent >> 25)) << 23));
}

__device__ __forceinline__ u64 warpScan(u64 v) {
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    u64 o = __shfl_up_sync(0xffffffffu, v, d);
    if ((threadIdx.x & 31) >= d) v += o;
  }
  return v;
}

// Calls f with the exponents of logits[from … to), `threads` apart, several loads in flight.
template <typename F>
__device__ __forceinline__ void exponents(const float* logits, int from, int to, int threads, float largest, float scale, F f) {
  for (int base = from; base < to; base += 8 * threads) {
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = base + j * threads < to ? logits[base + j * threads] : negInf();
#pragma unroll
    for (int j = 0; j < 8; j++) f(exponentOf(largest, v[j], scale));
  }
}

struct Picking {
  u64 bins[BINS];
  u64 parts[PICK / 32];
  int ties[PICK / 32];
  u64 sum;
  int at, tiesLeft;
};

// The smallest exponent so that all up to it have `target` tokens (or so much mass), and what those below it have; false
// when all together have less. Three passes over the logits, each looking at ten or eleven bits of the exponents.
__device__ __forceinline__ bool smallestReaching(u64 target, bool ofMass, const float* logits, int vocab, float largest,
                                                 float scale, Picking& s, unsigned& exponent, u64& below) {
  exponent = 0;
  below = 0;
  for (int shift = 20; shift >= 0; shift -= 10) {
    for (int i = threadIdx.x; i < BINS; i += PICK) s.bins[i] = 0;
    __syncthreads();
    exponents(logits, threadIdx.x, vocab, PICK, largest, scale, [&](unsigned e) {
      if (e != NO_MASS && (shift == 20 || e >> (shift + 10) == exponent >> (shift + 10)))
        atomicAdd(&s.bins[shift == 20 ? e >> 20 : (e >> shift) & 1023], ofMass ? massOf(e) : 1ull);
    });
    __syncthreads();
    if (threadIdx.x < 32) {
      const u64* mine = s.bins + threadIdx.x * (BINS / 32);
      u64 own = 0;
      for (int i = 0; i < BINS / 32; i++) own += mine[i];
      u64 upTo = below + warpScan(own);
      unsigned reached = __ballot_sync(0xffffffffu, upTo >= target);
      if (threadIdx.x == 0 && !reached) s.at = -1;
      if (reached && threadIdx.x == __ffs(reached) - 1) {
        int i = 0;
        for (upTo -= own; upTo + mine[i] < target; i++) upTo += mine[i];
        s.at = threadIdx.x * (BINS / 32) + i;
        s.sum = upTo;
      }
    }
    __syncthreads();
    if (s.at < 0) return false;
    exponent |= (unsigned)s.at << shift;
    below = s.sum;
  }
  return true;
}

// Draws among the tokens with exponents below `limit` and the first `ties` of those with `limit` itself: the token at which
// the mass, summed in the order of the tokens, goes beyond `point`. Each round finds the one of 32 parts in which it lies.
__device__ __forceinline__ int draw(u64 point, unsigned limit, int ties, const float* logits, int vocab, float largest,
                                    float scale, Picking& s) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const u64 tieMass = limit == NO_MASS ? 0 : massOf(limit);
  int begin = 0, end = vocab;
  while (end - begin > 128) {
    int each = ((end - begin + PICK / 32 - 1) / (PICK / 32) + 31) & ~31;
    int from = begin + warp * each, to = from + each < end ? from + each : end;
    u64 mass = 0;
    int equal = 0;
    exponents(logits, from + lane, to, 32, largest, scale, [&](unsigned e) {
      if (e < limit) mass += massOf(e);
      equal += e == limit && e != NO_MASS;
    });
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
      mass += __shfl_xor_sync(0xffffffffu, mass, d);
      equal += __shfl_xor_sync(0xffffffffu, equal, d);
    }
    if (lane == 0) { s.parts[warp] = mass; s.ties[warp] = equal; }
    __syncthreads();
    if (threadIdx.x == 0) {
      int part = 0, left = ties;
      for (;; part++) {
        int kept = s.ties[part] < left ? s.ties[part] : left;
        u64 all = s.parts[part] + kept * tieMass;
        if (point < all || part == PICK / 32 - 1) break;
        point -= all;
        left -= kept;
      }
      s.at = part;
      s.sum = point;
      s.tiesLeft = left;
    }
    __syncthreads();
    begin += s.at * each;
    end = begin + each < end ? begin + each : end;
    point = s.sum;
    ties = s.tiesLeft;
    __syncthreads();
  }
  for (; begin < end; begin += 32) {
    unsigned e = begin + lane < end ? exponentOf(largest, logits[begin + lane], scale) : NO_MASS;
    unsigned equal = __ballot_sync(0xffffffffu, e == limit && e != NO_MASS);
    bool kept = e < limit || (e == limit && e != NO_MASS && __popc(equal & ((1u << lane) - 1)) < ties);
    u64 upTo = warpScan(kept ? massOf(e) : 0);
    unsigned beyond = __ballot_sync(0xffffffffu, upTo > point);
    if (beyond) return begin + __ffs(beyond) - 1;
    point -= __shfl_sync(0xffffffffu, upTo, 31);
    ties -= __popc(equal) < ties ? __popc(equal) : ties;
  }
  return -1;
}

// One token by Hugging Face's warpers: temperature, top-k with the ties of the last, top-p.
__device__ __forceinline__ int sample(const Wishes& w, const float* logits, int row, int vocab, float largest, Picking& s) {
  unsigned limit = NO_MASS;
  int ties = 0x7fffffff;
  u64 below;
  unsigned exponent;
  if (w.topK > 0 && smallestReaching(w.topK, false, logits, vocab, largest, w.scale, s, exponent, below)) limit = exponent;
  u64 total = 0;
  exponents(logits, threadIdx.x, vocab, PICK, largest, w.scale, [&](unsigned e) {
    if (e <= limit && e != NO_MASS) total += massOf(e);
  });
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) total += __shfl_xor_sync(0xffffffffu, total, d);
  if ((threadIdx.x & 31) == 0) s.parts[threadIdx.x >> 5] = total;
  __syncthreads();
  total = 0;
  for (int i = 0; i < PICK / 32; i++) total += s.parts[i];
  __syncthreads();
  if (total == 0) return -1;
  if (w.topP) {
    u64 target = __umul64hi(w.topP, total);
    if (target == 0) target = 1;
    smallestReaching(target, true, logits, vocab, largest, w.scale, s, limit, below);
    u64 each = massOf(limit);
    ties = (int)((target - below + each - 1) / each);
    total = below + ties * each;
  }
  return draw(__umul64hi(w.uniform[row], total), limit, ties, logits, vocab, largest, w.scale, s);
}

extern "C" __global__ void __launch_bounds__(PICK) pick_tokens(const __grid_constant__ NextToken p) {
  __shared__ Picking picking;
  __shared__ float largest;
  releaseNext();
  waitForPrevious();
  int row = blockIdx.x;
  for (int i = threadIdx.x; row == 0 && i < p.clearCount; i += PICK) p.clear[i] = 0;
  float v = negInf();
  int at = 0x7fffffff;
  for (int i = threadIdx.x; i < p.blocks; i += PICK) better(v, at, p.best[row * p.blocks + i], p.bestAt[row * p.blocks + i]);
  blockBest<PICK / 32>(v, at);
  if (p.wishes->scale > 0) {
    if (threadIdx.x == 0) largest = v;
    __syncthreads();
    int drawn = sample(*p.wishes, p.logits + (u64)row * p.vocab, row, p.vocab, largest, picking);
    if (drawn >= 0) at = drawn;
  }
  if (threadIdx.x == 0) {
    p.tokens[row] = at == 0x7fffffff ? 0 : at;
    if (p.slots[row] >= 0 && p.lengths[row] < p.maxLength) p.lengths[row]++;
  }
}

#endif  // HEAD_DIM > 0

// --------------------------------------------------------------------------------------------- the gated layer by itself
// y (rows, out), in T, += what the adapters add; the base product is there already. Grid (out / 64, rows, linears), a warp.
struct AddAdapters {
  Chain chain;
  Linear linear[3];
  T* y[3];
};
extern "C" __global__ void __launch_bounds__(32) add_adapters(const __grid_constant__ AddAdapters p) {
  releaseNext();
  const Linear& l = p.linear[blockIdx.z];
  const int row = blockIdx.y, o = (blockIdx.x * 32 + threadIdx.x) * 2, left = l.out - o;
  if ((int)blockIdx.x * 64 >= l.out) return;
  const Known known = know(p.chain, l);
  waitForPrevious();
  const bool whole = l.vectors;
  T* to = p.y[blockIdx.z] + (u64)row * l.out + o;
  float sum[1][2], logits[1][NREG];
  const Linear* const linears[] = {&l};
  gather<0, 1, 2>(p.chain, row, nullptr, whole, 0, linears, nullptr, logits);
#pragma unroll
  for (int i = 0; i < 2; i++) sum[0][i] = i < left ? toFloat(to[i]) : 0.f;
  const Chosen chosen[] = {choose(l, known, logits[0], row, blockIdx.x == 0)};
  const Ahead<2> ahead = loadAhead<2>(l, chosen[0], o, whole, left);
  float z[1][TOPK][MAX_RANK / 32];
  coefficients<1>(p.chain, row, linears, chosen, z);
  addChosen<2>(l, chosen[0], z[0], ahead, o, whole, left, sum[0]);
  storePacked<2>(to, false, left, sum[0]);
}

// Many tokens: z (tokens, sumR) becomes weight · scale · z, zero for adapters not chosen, in place; so that
// y = base + z Bᵀ is one matrix product. A row of the matrix has z and behind it the gate's logits of up to three linears.
// Optionally writes the choice (tokens, TOPK). Grid (tokens / 8, linears).
struct Masked {
  const int* offsets;
  const float* scales;
  int* indices;
  float* weights;
  int at, n, sumR, pad;
};
struct MaskZ {
  T* rows;
  long long tokens, stride;
  float invTemperature;
  int pad;
  Masked linear[3];
};
extern "C" __global__ void __launch_bounds__(256) mask_z(const __grid_constant__ MaskZ p) {
  const Masked& l = p.linear[blockIdx.y];
  int lane = threadIdx.x & 31;
  long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.tokens) return;
  T* z = p.rows + token * p.stride + l.at;
  float logits[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++) logits[i] = lane + 32 * i < l.n ? toFloat(z[l.sumR + lane + 32 * i]) : 0.f;
  int index[TOPK], begin[TOPK], end[TOPK];
  float weight[TOPK], factor[TOPK];
  topK(logits, l.n, p.invTemperature, index, weight);
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    begin[j] = index[j] < 0 ? 0 : l.offsets[index[j]];
    end[j] = index[j] < 0 ? 0 : l.offsets[index[j] + 1];
    factor[j] = index[j] < 0 ? 0.f : weight[j] * l.scales[index[j]];
    if (lane == 0 && l.indices) l.indices[token * TOPK + j] = index[j];
    if (lane == 0 && l.weights) l.weights[token * TOPK + j] = weight[j];
  }
  for (int r = lane; r < l.sumR; r += 32) {
    float f = 0;
#pragma unroll
    for (int j = 0; j < TOPK; j++)
      if (r >= begin[j] && r < end[j]) f = factor[j];
    z[r] = f == 0.f ? fromFloat(0.f) : fromFloat(f * toFloat(z[r]));
  }
}

// Training: 0 for the chosen adapters of a token, -infinity for the others, to be added to the logits before a softmax.
struct Choose {
  const T* logits;
  float* mask;
  long long tokens;
  int n, pad;
};
extern "C" __global__ void __launch_bounds__(256) choose_rows(const __grid_constant__ Choose p) {
  int lane = threadIdx.x & 31;
  long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.tokens) return;
  float logits[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++) logits[i] = lane + 32 * i < p.n ? toFloat(p.logits[token * p.n + lane + 32 * i]) : 0.f;
  int index[TOPK];
  float weight[TOPK];
  topK(logits, p.n, 1.f, index, weight);
#pragma unroll
  for (int i = 0; i < NREG; i++) {
    float v = negInf();
#pragma unroll
    for (int j = 0; j < TOPK; j++)
      if (index[j] == lane + 32 * i) v = 0.f;
    if (lane + 32 * i < p.n) p.mask[token * p.n + lane + 32 * i] = v;
  }
}

// --------------------------------------------------------------------------------------------------- many tokens, base model
// out = rmsnorm(h) · weight; with a delta of h + delta, which goes to sum. One block a row.
struct NormRows {
  const T* h;
  const T* delta;
  T* sum;
  const T* weight;
  T* out;
  long long rows;
  int hidden;
  float eps;
};
extern "C" __global__ void __launch_bounds__(256) norm_rows(const __grid_constant__ NormRows p) {
  __shared__ float sums[8];
  const long long row = (long long)blockIdx.x * p.hidden;
  const bool aligned = p.hidden % 8 == 0;
  const T* normed = p.delta ? p.sum + row : p.h + row;
  float squares = 0;
  for (int at = threadIdx.x * 8; at < p.hidden; at += 2048) {
    float f[8];
    load8(p.h + row, at, p.hidden, aligned, f);
    if (p.delta) {
      float g[8];
      load8(p.delta + row, at, p.hidden, aligned, g);
#pragma unroll
      for (int i = 0; i < 8; i++) f[i] = toFloat(fromFloat(f[i] + g[i]));
      store8(p.sum + row, at, p.hidden, aligned, f);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) squares += f[i] * f[i];
  }
  squares = warpSum(squares);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = squares;
  __syncthreads();
  squares = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) squares += sums[i];
  const float factor = rsqrtf(squares / p.hidden + p.eps);
  for (int at = threadIdx.x * 8; at < p.hidden; at += 2048) {  // what this thread has seen before
    float f[8], w[8];
    load8(normed, at, p.hidden, aligned, f);
    load8(p.weight, at, p.hidden, aligned, w);
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] = toFloat(fromFloat(f[i] * factor)) * w[i];
    store8(p.out + row, at, p.hidden, aligned, f);
  }
}

// Rotates queries (batch, seq, heads, headDim) in place, and puts keys, rotated, and values, both (batch, seq, kvHeads, headDim),
// into the cache (batch, kvHeads, capacity, headDim) behind its first `past` positions. Cosines and sines (seq, headDim), of
// every sequence (angleRows) or of all, are those that x · cos + (its halves exchanged) · sin takes: the first sines are negated.
// One thread: 8 pairs of a head, or one where heads have an odd form.
struct RopeRows {
  T* q;
  const T* k;
  const T* v;
  const T* cosines;
  const T* sines;
  T* keys;
  T* values;
  long long tokens, capacity, past;
  int seq, angleRows, heads, kvHeads, headDim, vectors;
};
template <int N>
__device__ __forceinline__ void ropeRow(const RopeRows& p, long long token, int head, int i) {
  const int half = p.headDim / 2, kv = head < p.heads ? 0 : head < p.heads + p.kvHeads ? 1 : 2;
  const long long sequence = token / p.seq, t = token % p.seq;
  if (kv) head -= kv == 1 ? p.heads : p.heads + p.kvHeads;
  T* q = p.q + (token * p.heads + head) * p.headDim + i;
  const T* from = kv == 0 ? q : (kv == 1 ? p.k : p.v) + (token * p.kvHeads + head) * p.headDim + i;
  T* to = kv == 0 ? q : (kv == 1 ? p.keys : p.values) + ((sequence * p.kvHeads + head) * p.capacity + p.past + t) * p.headDim + i;
  const long long angle = ((p.angleRows > 1 ? sequence * p.seq : 0) + t) * p.headDim + i;
  float a[8], b[8], c[8], s[8];
  load8(from, 0, N, N == 8, a);
  load8(from + half, 0, N, N == 8, b);
  if (kv < 2) {
    load8(p.cosines + angle, 0, N, N == 8, c);
    load8(p.sines + angle + half, 0, N, N == 8, s);
#pragma unroll
    for (int j = 0; j < N; j++) {
      const float x = a[j], y = b[j];
      a[j] = x * c[j] - y * s[j];
      b[j] = y * c[j] + x * s[j];
    }
  }
  store8(to, 0, N, N == 8, a);
  store8(to + half, 0, N, N == 8, b);
}
extern "C" __global__ void __launch_bounds__(256) rope_rows(const __grid_constant__ RopeRows p) {
  const int pairs = p.vectors ? p.headDim / 16 : p.headDim / 2, heads = p.heads + 2 * p.kvHeads;
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x, token = at / (pairs * heads);
  if (token >= p.tokens) return;
  const int rest = (int)(at % (pairs * heads));
  if (p.vectors)
    ropeRow<8>(p, token, rest / pairs, rest % pairs * 8);
  else
    ropeRow<1>(p, token, rest / pairs, rest % pairs);
}

// out = silu(gate) · up, elementwise.
struct SiluRows {
  const T* gate;
  const T* up;
  T* out;
  long long count;
  int vectors, pad;
};
extern "C" __global__ void __launch_bounds__(256) silu_rows(const __grid_constant__ SiluRows p) {
  long long at = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
  if (at >= p.count) return;
  int n = p.count - at < 8 ? (int)(p.count - at) : 8;
  float g[8], u[8];
  load8(p.gate + at, 0, n, p.vectors, g);
  load8(p.up + at, 0, n, p.vectors, u);
#pragma unroll
  for (int i = 0; i < 8; i++) g[i] = g[i] / (1.f + __expf(-g[i])) * u[i];
  store8(p.out + at, 0, n, p.vectors, g);
}

// ------------------------------------------------------------------------------------------------------------- measurement
struct Fill {
  T* out;
  u64 count;
  unsigned seed;
  float scale, shift;
  int pad;
};
extern "C" __global__ void __launch_bounds__(256) fill_random(const __grid_constant__ Fill p) {
  u64 step = (u64)gridDim.x * 256;
  for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < p.count; i += step) {
    unsigned v = (unsigned)i * 0x9e3779b9u ^ (unsigned)(i >> 32) * 0x85ebca6bu ^ p.seed * 0xc2b2ae35u;
    v ^= v >> 16; v *= 0x7feb352du; v ^= v >> 15; v *= 0x846ca68bu; v ^= v >> 16;
    p.out[i] = fromFloat(((float)(v >> 8) / 8388608.f - 1.f) * p.scale + p.shift);
  }
}
struct Read {
  const uint4* from;
  unsigned* out;
  u64 count;
};
extern "C" __global__ void __launch_bounds__(512) read_all(const __grid_constant__ Read p) {
  u64 step = (u64)gridDim.x * 512;
  unsigned x = 0;
  u64 i = (u64)blockIdx.x * 512 + threadIdx.x;
  for (; i + 7 * step < p.count; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = loadStream(p.from + i + j * step);
#pragma unroll
    for (int j = 0; j < 8; j++) x ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  for (; i < p.count; i += step) {
    uint4 v = loadStream(p.from + i);
    x ^= v.x ^ v.y ^ v.z ^ v.w;
  }
  if (x == 0x12345678u) *p.out = x;
}
