// Options, element types, what only PTX can say, conversions.
#define NREG ((MAXN + 31) / 32)

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
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
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

// 16 bytes that come from memory with the whole 128 around them, which other blocks read at the same time.
__device__ __forceinline__ uint4 loadNeighbours(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}
// Streams through the read-only path without leaving a trace in L1.
__device__ __forceinline__ uint4 loadStream(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// What nobody reads soon does not drive other things out of L2.
__device__ __forceinline__ void storeStream(void* p, uint4 v) { __stcs((uint4*)p, v); }

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
// An address in shared memory as PTX has it.
__device__ __forceinline__ unsigned shared32(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
// Begins to copy 16 bytes, or zeros, to shared memory; copiesDone waits for all that this thread has begun.
__device__ __forceinline__ void copyAsync(unsigned to, bool wanted, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}
// What has been begun since the last one is a group; waits until N groups at most are not done.
__device__ __forceinline__ void closeGroup() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N>
__device__ __forceinline__ void waitForGroups() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
__device__ __forceinline__ void copiesDone() { asm volatile("cp.async.wait_all;" ::: "memory"); }
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
// Four matrices of 8 × 8 in shared memory, transposed: lane 8 m + r says where row r of matrix m lies, and lane 4 g + q gets of
// matrix m rows 2q and 2q + 1 at column g, as mma wants b.
__device__ __forceinline__ void loadTransposed(unsigned at, unsigned (&v)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at) : "memory");
}
// A matrix of 8 × 8 of which lane 4 g + q has row g at columns 2q and 2q + 1, transposed: rows 2q and 2q + 1 at column g.
__device__ __forceinline__ unsigned transposed(unsigned v) {
  unsigned t;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(t) : "r"(v));
  return t;
}
// As mma, of the first 8 columns of a and rows of b.
__device__ __forceinline__ void mma8(float* c, unsigned a0, unsigned a1, unsigned b0) {
#if DTYPE == 2
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#else
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
#endif
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(b0));
}
// The sums of two pairs.
__device__ __forceinline__ unsigned addPairs(unsigned a, unsigned b) {
  unsigned sum;
#if DTYPE == 2
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
#else
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(a), "r"(b));
#endif
  return sum;
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
// The sum over a block of 256 threads; every thread gets it. `sums`: 8 floats of shared memory, free for the next sum only
// behind a barrier.
__device__ __forceinline__ float blockSum(float v, float* sums) {
  v = warpSum(v);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = v;
  __syncthreads();
  v = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) v += sums[i];
  return v;
}

// Rows of columns, eight elements a thread: the piece of the calling one. Behind the last row there may be threads without any.
struct RowPiece {
  long long row;
  int at;        // its first column
  bool aligned;  // whether rows begin at whole 16 bytes, if the first does
};
__device__ __forceinline__ RowPiece rowPiece(int columns) {
  const int pieces = (columns + 7) / 8;
  const long long thread = (long long)blockIdx.x * 256 + threadIdx.x;
  return {thread / pieces, (int)(thread % pieces) * 8, columns % 8 == 0};
}
__device__ __forceinline__ float silu(float x) { return x / (1.f + __expf(-x)); }
