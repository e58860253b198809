// The kernels of a decode step and of the gated LoRA layer. Compiled by NVRTC for the GPU at hand; no header is needed.
//
// Options: DTYPE 0 float32, 1 float16, 2 bfloat16 (weights, KV cache, activations between kernels; all sums are float32),
// TOPK adapters per token, MAXN adapters at most, HEAD_DIM, GROUP query heads that one attention block serves.
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

// ---------------------------------------------------------------------------------------------------------- conversions
__device__ __forceinline__ float negInf() { return __int_as_float(0xff800000); }

#if DTYPE == 0
__device__ __forceinline__ float toFloat(T v) { return v; }
__device__ __forceinline__ T fromFloat(float v) { return v; }
#elif DTYPE == 1
__device__ __forceinline__ float toFloat(T v) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
}
__device__ __forceinline__ T fromFloat(float v) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
  return h;
}
#else
__device__ __forceinline__ float toFloat(T v) { return __uint_as_float((unsigned)v << 16); }
__device__ __forceinline__ T fromFloat(float v) {
  unsigned u = __float_as_uint(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (T)((u >> 16) | 0x40);  // NaN stays NaN
  return (T)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
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

// Streams through the read-only path without leaving a trace in L1.
__device__ __forceinline__ uint4 loadStream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

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

__device__ __forceinline__ float warpSum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}

// ------------------------------------------------------------------------------------------- programmatic dependent launch
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

// ----------------------------------------------------------------------------------------------------------------- routing
// One gated linear inside the output of a matrix-vector product over [W...; G...; A...]: float32 y (slots, rows, ld), where
// the sum over slots counts; its gate logits lie at gateAt, its z = A x at zAt.
struct Linear {
  const T* b;            // (out, sumR)
  const T* bias;         // (out) or null
  const int* offsets;    // (n + 1) columns of b; equal neighbours: the adapter does not target this linear
  const float* scales;   // (n)
  int* indices;          // (rows, TOPK) receives the choice, or null
  float* weights;        // (rows, TOPK) receives its weights, or null
  int outAt, gateAt, zAt, n, sumR, vectors;  // vectors: ranks and offsets are multiples of 8 and b is 16-byte aligned
};

struct Chain {
  const float* y;
  float* clear;           // what a later product will add to
  const float* invTemperature;
  u64 clearCount;
  int slots, ld, rows, pad;
};

#define MAX_STAGED 256
struct Selected {
  __align__(16) float coefficient[TOPK][MAX_RANK];  // weight · scale · z
  int off[TOPK], rank[TOPK];
  float staged[MAXN + MAX_STAGED];  // gate logits, then z of all adapters when they are no more than MAX_STAGED
  int offsets[MAXN + 1];
  float scales[MAXN];
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
  for (int j = 0; j < TOPK; j++) weight[j] /= sum;
}

// Fetches what does not depend on the previous kernel, by one warp.
__device__ __forceinline__ void prepareRoute(const Linear& l, Selected& s) {
  for (int i = threadIdx.x & 31; i <= l.n; i += 32) {
    s.offsets[i] = l.offsets[i];
    if (i < l.n) s.scales[i] = l.scales[i];
  }
}

// Loads logits and z of L linears into shared memory, by all threads of the block; every thread has its loads in flight
// together, so that the wait for memory comes once. A barrier must follow.
template <int L, int J, int THREADS>
__device__ __forceinline__ void stage(const Chain& c, const Linear* l, int row, Selected* s) {
  const u64 stride = (u64)c.rows * c.ld;
  const float* y = c.y + (u64)row * c.ld;
  for (int base = 0;; base += J * THREADS) {
    const float* at[L][J];
    float v[L][J];
    bool more = false;
#pragma unroll
    for (int i = 0; i < L; i++) {
      int total = l[i].n + (l[i].sumR <= MAX_STAGED ? l[i].sumR : 0);
      more |= base + J * THREADS < total;
#pragma unroll
      for (int j = 0; j < J; j++) {
        int k = base + j * THREADS + threadIdx.x;
        at[i][j] = k >= total ? 0 : k < l[i].n ? y + l[i].gateAt + k : y + l[i].zAt + k - l[i].n;
        v[i][j] = at[i][j] ? *at[i][j] : 0.f;
      }
    }
#pragma unroll 2
    for (int slot = 1; slot < c.slots; slot++)
#pragma unroll
      for (int i = 0; i < L; i++)
#pragma unroll
        for (int j = 0; j < J; j++)
          if (at[i][j]) v[i][j] += at[i][j][slot * stride];
#pragma unroll
    for (int i = 0; i < L; i++)
#pragma unroll
      for (int j = 0; j < J; j++)
        if (at[i][j]) s[i].staged[base + j * THREADS + threadIdx.x] = v[i][j];
    if (!more) return;
  }
}

// Fills `s` from what was staged, for one token of one linear, by the warp that prepared it; the grid's first block of a row
// writes the choice down.
__device__ __forceinline__ void route(const Chain& c, const Linear& l, int row, Selected& s) {
  int lane = threadIdx.x & 31;
  float logits[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++) logits[i] = lane + 32 * i < l.n ? s.staged[lane + 32 * i] : 0.f;
  const bool few = l.sumR <= MAX_STAGED;
  int index[TOPK];
  float weight[TOPK];
  topK(logits, l.n, *c.invTemperature, index, weight);
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    int e = index[j];
    int off = e < 0 ? 0 : s.offsets[e], rank = e < 0 ? 0 : s.offsets[e + 1] - off;
    float scale = e < 0 ? 0.f : weight[j] * s.scales[e];
    for (int r = lane; r < rank; r += 32)
      s.coefficient[j][r] = scale * (few ? s.staged[l.n + off + r] : sumSlots(c, row, l.zAt + off + r));
    if (lane == 0) { s.off[j] = off; s.rank[j] = rank; }
    if (lane == 0 && blockIdx.x == 0 && l.indices) {
      l.indices[row * TOPK + j] = e;
      l.weights[row * TOPK + j] = weight[j];
    }
  }
}

// What the selected adapters add to output o.
__device__ __forceinline__ float loraOutput(const Linear& l, const Selected& s, int o) {
  float acc = 0;
  const T* b = l.b + (u64)o * l.sumR;
#if DTYPE != 0
  if (l.vectors) {
    uint4 v[TOPK];
#pragma unroll
    for (int j = 0; j < TOPK; j++)
      if (s.rank[j] > 0) v[j] = __ldg((const uint4*)(b + s.off[j]));
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      for (int r = 0; r < s.rank[j]; r += 8) {
        if (r > 0) v[j] = __ldg((const uint4*)(b + s.off[j] + r));
        float f[8];
        unpack16B(v[j], f);
        float4 c0 = *(const float4*)&s.coefficient[j][r], c1 = *(const float4*)&s.coefficient[j][r + 4];
        acc += f[0] * c0.x + f[1] * c0.y + f[2] * c0.z + f[3] * c0.w;
        acc += f[4] * c1.x + f[5] * c1.y + f[6] * c1.z + f[7] * c1.w;
      }
    }
    return acc;
  }
#endif
  for (int j = 0; j < TOPK; j++)
    for (int r = 0; r < s.rank[j]; r++) acc += toFloat(b[s.off[j] + r]) * s.coefficient[j][r];
  return acc;
}

// Output o of a linear without its adapters.
__device__ __forceinline__ float baseOutput(const Chain& c, const Linear& l, int row, int o) {
  float v = sumSlots(c, row, l.outAt + o);
  return l.bias ? v + toFloat(l.bias[o]) : v;
}

// All threads of the grid set the buffer of the next product to zero.
__device__ __forceinline__ void clearNext(const Chain& c) {
  u64 threads = (u64)gridDim.x * gridDim.y * gridDim.z * blockDim.x;
  u64 at = (((u64)blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  for (; at < c.clearCount; at += threads) c.clear[at] = 0.f;
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
  int slices, stages, vectors, tiles, pad;
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

#if DTYPE != 0 && __CUDA_ARCH__ >= 900
// At the speed of memory on Hopper and later: one block per multiprocessor. A producer streams 16 weight rows × 1024
// columns a stage into a ring in shared memory, each stage by one request of the copy engine (it starts before the previous
// kernel has ended: weights depend on nothing); eight warps multiply them on the tensor cores. The work, tiles × chunks, is
// dealt evenly over the blocks; a tile's sum may so have two contributors, which add to a y that was zero before: the order
// does not matter.
//
// A tensor map describes one matrix to the copy engine, so no tile has rows of two; rows and columns beyond the matrix
// arrive as zeros. A map shows row, column / d, column % d, where d is the largest power of two that divides k, at most 256.
#ifndef CHUNK
#define CHUNK 1024
#endif
#define STEPS (CHUNK / 256)  // of 32 columns, for each of eight warps
#define TILE 16
#define STAGE_BYTES (TILE * CHUNK * 2)

__device__ __forceinline__ unsigned shared32(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void barrierInit(unsigned b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(count));
}
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
__device__ __forceinline__ void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#if DTYPE == 2
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

template <int NT>  // NT × 8 rows of x at most
__device__ __forceinline__ void productStream(const Product& p, const TensorMap* maps) {
  extern __shared__ __align__(128) unsigned char memory[];
  const int stages = p.stages, slices = p.slices;
  const int allChunks = (p.k + CHUNK - 1) / CHUNK;
  const int slice = blockIdx.x % slices, member = blockIdx.x / slices, members = gridDim.x / slices;
  const int chunk0 = (int)((long long)slice * allChunks / slices);
  const int chunks = (int)((long long)(slice + 1) * allChunks / slices) - chunk0;
  const long long units = (long long)p.tiles * chunks;
  const int u0 = (int)(units * member / members), u1 = (int)(units * (member + 1) / members);
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
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  releaseNext();

  if (warp == 8) {
    if (lane == 0) {
      u64 policy;
      asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
      const int d = __ffs(p.k) - 1 < 8 ? __ffs(p.k) - 1 : 8;
      int tile = u0 / chunks, c = u0 - tile * chunks, stage = 0;
      unsigned phase = 1;
      Place place;
      for (int u = u0; u < u1; u++) {
        if (u == u0 || c == 0) place = placeOf(p, tile);
        barrierWait(empty + 8 * stage, phase);
        barrierExpect(full + 8 * stage, STAGE_BYTES);
        tensorCopy(ring + stage * STAGE_BYTES, maps + place.segment, (chunk0 + c) * CHUNK >> d, place.row, full + 8 * stage,
                   policy);
        if (++stage == stages) { stage = 0; phase ^= 1; }
        if (++c == chunks) { c = 0; tile++; }
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
      asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(xAt + m * xStride + at * 2), "r"(v.x), "r"(v.y), "r"(v.z),
                   "r"(v.w)
                   : "memory");
    }
  }
  asm volatile("bar.sync 1, 256;" ::: "memory");

  const int g = lane >> 2, q = lane & 3;
  float acc[NT][4];
#pragma unroll
  for (int n = 0; n < NT; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0.f;
  int tile = u0 / chunks, c = u0 - tile * chunks, stage = 0, parityOfSums = 0;
  unsigned phase = 0;
  float* y = p.y + (u64)slice * p.rows * p.ld;
  Place place;
  for (int u = u0; u < u1; u++) {
    if (u == u0 || c == 0) place = placeOf(p, tile);
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
        if (g + 8 * n < p.rows)
          asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                       : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                       : "r"(xAt + (g + 8 * n) * xStride + (c * CHUNK + kk) * 2));
        mma(acc[n], a.x, b.x, a.y, b.y, x.x, x.y);
        mma(acc[n], a.z, b.z, a.w, b.w, x.z, x.w);
      }
    }
    __syncwarp();
    if (lane == 0) barrierArrive(empty + 8 * stage);
    if (++stage == stages) { stage = 0; phase ^= 1; }
    if (++c == chunks || u + 1 == u1) {
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
      asm volatile("bar.sync 1, 256;" ::: "memory");
      int m = threadIdx.x / TILE, of = threadIdx.x % TILE;
      if (m < p.rows && of < place.valid) {
        float v = 0;
#pragma unroll
        for (int w = 0; w < 8; w++) v += sums[(parityOfSums * 8 + w) * (NT * 8 * TILE) + threadIdx.x];
        atomicAdd(y + (u64)m * p.ld + place.out + of, v * factor[m]);
      }
      parityOfSums ^= 1;
      if (c == chunks) { c = 0; tile++; }
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

// ----------------------------------------------------------------------------------------- what follows a product in a layer
// q, k, v with their adapters → rotated q (float32, times `scale`) and the KV cache's next column. Grid (blocks, rows).
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
extern "C" __global__ void __launch_bounds__(256) rope_append(const __grid_constant__ RopeAppend p) {
  __shared__ Selected selected[3];
  releaseNext();
  int row = blockIdx.y, warp = threadIdx.x >> 5;
  bool routes = warp < 3 && p.linear[warp].n;
  if (routes) prepareRoute(p.linear[warp], selected[warp]);
  int half = p.headDim / 2;
  int item = blockIdx.x * 256 + threadIdx.x, head = item / half, i = item - head * half;
  bool valid = head < p.heads + 2 * p.kvHeads;
  int which = head < p.heads ? 0 : head < p.heads + p.kvHeads ? 1 : 2;
  int h = which == 0 ? head : which == 1 ? head - p.heads : head - p.heads - p.kvHeads;
  waitForPrevious();
  float a = 0, b = 0;
  if (valid) {
    a = baseOutput(p.chain, p.linear[which], row, h * p.headDim + i);
    b = baseOutput(p.chain, p.linear[which], row, h * p.headDim + i + half);
  }
  if (p.linear[0].n | p.linear[1].n | p.linear[2].n) {
    stage<3, 1, 256>(p.chain, p.linear, row, selected);
    __syncthreads();
  }
  if (routes) route(p.chain, p.linear[warp], row, selected[warp]);
  clearNext(p.chain);
  __syncthreads();
  if (!valid) return;
  if (p.linear[which].n) {
    a += loraOutput(p.linear[which], selected[which], h * p.headDim + i);
    b += loraOutput(p.linear[which], selected[which], h * p.headDim + i + half);
  }
  int slot = p.slots[row], length = p.lengths[row];
  if (which < 2) {
    float s, c;
    sincosf((float)(length - p.starts[row]) * p.invFreq[i], &s, &c);
    s *= p.ropeScale;
    c *= p.ropeScale;
    float ra = a * c - b * s, rb = b * c + a * s;
    a = ra;
    b = rb;
  }
  if (which == 0) {
    float* q = p.q + ((u64)row * p.heads + h) * p.headDim;
    q[i] = a * p.scale;
    q[i + half] = b * p.scale;
  } else if (slot >= 0 && length < p.maxLength) {
    T* cache = (which == 1 ? p.kCache : p.vCache) + (((u64)slot * p.kvHeads + h) * p.maxLength + length) * p.headDim;
    cache[i] = fromFloat(a);
    cache[i + half] = fromFloat(b);
  }
}

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
    asm volatile("prefetch.global.L2 [%0];" ::"l"(keys + at));
    asm volatile("prefetch.global.L2 [%0];" ::"l"(values + at));
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

__device__ __forceinline__ void writeNormInput(float h, bool valid, int at, int row, int hidden, const T* weight, T* out,
                                               float* sumsq) {
  __shared__ float sums[4];
  float s = warpSum(valid ? h * h : 0.f);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = s;
  if (valid) out[(u64)row * hidden + at] = fromFloat(h * toFloat(weight[at]));
  __syncthreads();
  if (threadIdx.x == 0) sumsq[row * gridDim.x + blockIdx.x] = sums[0] + sums[1] + sums[2] + sums[3];
}

// h (rows, hidden) float32 += a linear with its adapters; then the next RMSNorm's input. Grid (hidden / 128, rows).
struct AddResidual {
  Chain chain;
  Linear linear;
  float* h;
  const T* normWeight;
  T* out;
  float* sumsq;
  int hidden, pad;
};
extern "C" __global__ void __launch_bounds__(128) add_residual(const __grid_constant__ AddResidual p) {
  __shared__ Selected selected;
  releaseNext();
  int row = blockIdx.y, o = blockIdx.x * 128 + threadIdx.x;
  bool valid = o < p.hidden, routes = threadIdx.x < 32 && p.linear.n;
  if (routes) prepareRoute(p.linear, selected);
  waitForPrevious();
  float h = valid ? p.h[(u64)row * p.hidden + o] + baseOutput(p.chain, p.linear, row, o) : 0.f;
  if (p.linear.n) {
    stage<1, 2, 128>(p.chain, &p.linear, row, &selected);
    __syncthreads();
  }
  if (routes) route(p.chain, p.linear, row, selected);
  clearNext(p.chain);
  __syncthreads();
  if (valid) {
    if (p.linear.n) h += loraOutput(p.linear, selected, o);
    p.h[(u64)row * p.hidden + o] = h;
  }
  writeNormInput(h, valid, o, row, p.hidden, p.normWeight, p.out, p.sumsq);
}

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
extern "C" __global__ void __launch_bounds__(128) embed(const __grid_constant__ Embed p) {
  releaseNext();
  waitForPrevious();
  int row = blockIdx.y, o = blockIdx.x * 128 + threadIdx.x, token = p.tokens[row];
  bool valid = o < p.hidden;
  float h = valid && token >= 0 && token < p.vocab ? toFloat(p.table[(u64)token * p.hidden + o]) : 0.f;
  if (valid) p.h[(u64)row * p.hidden + o] = h;
  Chain c;
  c.clear = p.clear;
  c.clearCount = p.clearCount;
  clearNext(c);
  writeNormInput(h, valid, o, row, p.hidden, p.normWeight, p.out, p.sumsq);
}

// act (rows, inter) = silu(gate) · up, both with their adapters. Grid (inter / 256, rows).
struct SiluUp {
  Chain chain;
  Linear gate, up;
  T* out;
  int inter, pad;
};
extern "C" __global__ void __launch_bounds__(256) silu_up(const __grid_constant__ SiluUp p) {
  __shared__ Selected selected[2];
  releaseNext();
  int row = blockIdx.y, warp = threadIdx.x >> 5, o = blockIdx.x * 256 + threadIdx.x;
  const Linear& mine = warp == 0 ? p.gate : p.up;
  bool routes = warp < 2 && mine.n;
  if (routes) prepareRoute(mine, selected[warp]);
  waitForPrevious();
  float g = 0, u = 0;
  if (o < p.inter) {
    g = baseOutput(p.chain, p.gate, row, o);
    u = baseOutput(p.chain, p.up, row, o);
  }
  if (p.gate.n | p.up.n) {
    stage<2, 1, 256>(p.chain, &p.gate, row, selected);
    __syncthreads();
  }
  if (routes) route(p.chain, mine, row, selected[warp]);
  clearNext(p.chain);
  __syncthreads();
  if (o >= p.inter) return;
  if (p.gate.n) g += loraOutput(p.gate, selected[0], o);
  if (p.up.n) u += loraOutput(p.up, selected[1], o);
  p.out[(u64)row * p.inter + o] = fromFloat(g / (1.f + __expf(-g)) * u);
}

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
  int vocab, logitSlots, rows, blocks, maxLength, pad;
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

// --------------------------------------------------------------------------------------------- the gated layer by itself
// y (rows, out), in T, += what the adapters add; the base product is there already. Grid (out / 256, rows, linears).
struct AddAdapters {
  Chain chain;
  Linear linear[3];
  T* y[3];
  int out[3];
  int pad;
};
extern "C" __global__ void __launch_bounds__(256) add_adapters(const __grid_constant__ AddAdapters p) {
  __shared__ Selected selected;
  int row = blockIdx.y, which = blockIdx.z, o = blockIdx.x * 256 + threadIdx.x, out = p.out[which];
  releaseNext();
  waitForPrevious();
  if (blockIdx.x * 256 >= out) return;
  stage<1, 1, 256>(p.chain, &p.linear[which], row, &selected);
  if (threadIdx.x < 32) prepareRoute(p.linear[which], selected);
  __syncthreads();
  if (threadIdx.x < 32) {
    route(p.chain, p.linear[which], row, selected);
  }
  __syncthreads();
  if (o >= out) return;
  T* y = p.y[which] + (u64)row * out + o;
  *y = fromFloat(toFloat(*y) + loraOutput(p.linear[which], selected, o));
}

// Many tokens: z (tokens, sumR) becomes weight · scale · z, zero for adapters not chosen, in place; so that
// y = base + z Bᵀ is one matrix product. Row strides in elements. Optionally writes the choice (tokens, TOPK).
struct MaskZ {
  const T* logits;
  T* z;
  const int* offsets;
  const float* scales;
  int* indices;
  float* weights;
  long long tokens, logitStride, zStride;
  int n, sumR;
  float invTemperature;
  int pad;
};
extern "C" __global__ void __launch_bounds__(256) mask_z(const __grid_constant__ MaskZ p) {
  releaseNext();
  waitForPrevious();
  int lane = threadIdx.x & 31;
  long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.tokens) return;
  float logits[NREG];
#pragma unroll
  for (int i = 0; i < NREG; i++)
    logits[i] = lane + 32 * i < p.n ? toFloat(p.logits[token * p.logitStride + lane + 32 * i]) : 0.f;
  int index[TOPK], begin[TOPK], end[TOPK];
  float weight[TOPK], factor[TOPK];
  topK(logits, p.n, p.invTemperature, index, weight);
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    begin[j] = index[j] < 0 ? 0 : p.offsets[index[j]];
    end[j] = index[j] < 0 ? 0 : p.offsets[index[j] + 1];
    factor[j] = index[j] < 0 ? 0.f : weight[j] * p.scales[index[j]];
    if (lane == 0 && p.indices) p.indices[token * TOPK + j] = index[j];
    if (lane == 0 && p.weights) p.weights[token * TOPK + j] = weight[j];
  }
  T* z = p.z + token * p.zStride;
  for (int r = lane; r < p.sumR; r += 32) {
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
// out = rmsnorm(h + delta) · weight; h += delta when there is one. One block a row.
struct NormRows {
  T* h;
  const T* delta;
  const T* weight;
  T* out;
  long long rows;
  int hidden;
  float eps;
};
extern "C" __global__ void __launch_bounds__(256) norm_rows(const __grid_constant__ NormRows p) {
  __shared__ float sums[8];
  T* h = p.h + (long long)blockIdx.x * p.hidden;
  const T* delta = p.delta ? p.delta + (long long)blockIdx.x * p.hidden : 0;
  T* out = p.out + (long long)blockIdx.x * p.hidden;
  bool aligned = p.hidden % 8 == 0;
  float sum = 0;
  for (int at = threadIdx.x * 8; at < p.hidden; at += 2048) {
    float f[8], g[8];
    load8(h, at, p.hidden, aligned, f);
    if (delta) load8(delta, at, p.hidden, aligned, g);
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (at + i < p.hidden) {
        if (delta) { h[at + i] = fromFloat(f[i] + g[i]); f[i] = toFloat(h[at + i]); }
        sum += f[i] * f[i];
      }
  }
  sum = warpSum(sum);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += sums[i];
  float factor = rsqrtf(sum / p.hidden + p.eps);
  for (int at = threadIdx.x; at < p.hidden; at += 256)
    out[at] = fromFloat(toFloat(fromFloat(toFloat(h[at]) * factor)) * toFloat(p.weight[at]));
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
  T o[8];
#pragma unroll
  for (int i = 0; i < 8; i++) o[i] = fromFloat(g[i] / (1.f + __expf(-g[i])) * u[i]);
#if DTYPE != 0
  if (p.vectors && n == 8) {
    uint4 v;
    v.x = o[0] | (unsigned)o[1] << 16; v.y = o[2] | (unsigned)o[3] << 16;
    v.z = o[4] | (unsigned)o[5] << 16; v.w = o[6] | (unsigned)o[7] << 16;
    *(uint4*)(p.out + at) = v;
    return;
  }
#endif
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (i < n) p.out[at + i] = o[i];
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
