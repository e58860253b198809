// Products of 17 to 64 rows of x at the speed of memory, on Hopper.
// y (slices, rows, ld) = x (rows, k) · [W0; W1; …]ᵀ over a slice of k each. Rows of W go in groups of eight. A block of a slice has so many
// passes of so many groups that lie together in one matrix, the last one of a matrix what is left. A stage of the ring has one or two
// chunks of 64 columns of all rows of x and of a pass' groups, which come by one request each; behind a matrix' end they are zeros. Two
// warpgroups multiply them by tensor cores out of shared memory, 64 rows of W each at a time, groups that are not there included. Every
// sum has one contributor, so y need not be cleared. Blocks of one matrix can have fewer groups than the others, and count themselves when y
// has them: who waits for these alone need not wait for the whole product.
//
// Maps show column / 64, row, column % 64, swizzled as the tensor cores want it: the copy engine puts 16 bytes c of row r at
// place c ^ r % 8, and one chunk behind the other.
#define WIDE_CHUNK 64
#define WIDE_GROUP 8
#define WIDE_GROUP_BYTES (WIDE_GROUP * WIDE_CHUNK * 2)
#define WIDE_TILE 8          // groups of a tile of 64 rows of W
#define WIDE_STAGES 12       // of the ring at most

#if defined(TENSOR_CORES) && (defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ON_CPU))
// How the tensor cores find rows of 64 columns, in eights of 1024 bytes.
__device__ __forceinline__ u64 tileAt(unsigned at) {
  return (u64)(at >> 4 & 0x3fff) | 1ull << 16 | (u64)(WIDE_GROUP_BYTES >> 4) << 32 | 1ull << 62;
}
// c (64 × N) += 16 columns of 64 rows of W · those of N rows of x, by a warpgroup. Lane 4 g + q of warp w holds of every eight
// rows of x: row 16 w + g, then 16 w + g + 8 of W, each at rows 2 q and 2 q + 1 of x.
#ifndef ON_CPU
#if DTYPE == 2
#define WIDE_TYPE "bf16"
#else
#define WIDE_TYPE "f16"
#endif
template <int N>
__device__ __forceinline__ void multiplyTile(float (&c)[N / 2], u64 w, u64 x);
template <>
__device__ __forceinline__ void multiplyTile<32>(float (&c)[16], u64 w, u64 x) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." WIDE_TYPE "." WIDE_TYPE " {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
      "}, %16, %17, 1, 1, 1, 0, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])
      : "l"(w), "l"(x));
}
template <>
__device__ __forceinline__ void multiplyTile<64>(float (&c)[32], u64 w, u64 x) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." WIDE_TYPE "." WIDE_TYPE " {"
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
      "}, %32, %33, 1, 1, 1, 0, 0;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),
        "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]),
        "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]), "+f"(c[23]),
        "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]), "+f"(c[30]), "+f"(c[31])
      : "l"(w), "l"(x));
}
// Nothing that was written to the sums stays behind, and nothing reads them before.
template <int N>
__device__ __forceinline__ void holdSums(float (&c)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
}
__device__ __forceinline__ void beginTiles() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void closeTiles() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void waitForTiles() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
#endif

struct ProductWide {
  TensorMap x, w[MAX_SEGMENTS];
  float* y;
  int rows, ld;
  int stages, chunks;                              // of the ring; of a stage
  int each, more;                                  // stages' worth of k of a slice; the first slices, so many, have one more
  int most, passes;                                // groups of a pass, passes of a block at most
  int early, earlyMost;                            // a matrix whose blocks have one pass of so many; -1: none
  unsigned* earlyDone;                             // counts these
  int groups[MAX_SEGMENTS], blocks[MAX_SEGMENTS];  // of a matrix; in each slice
};

// A warpgroup's part of a pass over so many stages: TILES tiles of its own.
template <int N, int TILES, int CHUNKS>
__device__ __forceinline__ void multiplyWide(const ProductWide& p, unsigned full, unsigned ring, unsigned stageBytes, int count, int& stage,
                                             unsigned& phase, float* y, int n, int most) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = warp >> 2;
  const unsigned empty = full + 8 * WIDE_STAGES, xBytes = N * WIDE_CHUNK * 2, wBytes = most * WIDE_GROUP_BYTES;  // of a chunk
  float c[TILES][N / 2];
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int i = 0; i < N / 2; i++) c[t][i] = 0.f;
#pragma unroll 1
  for (; count > 0; count--) {
    barrierWait(full + 8 * stage, phase);
    const unsigned at = ring + stage * stageBytes;
    const u64 x = tileAt(at), w = tileAt(at + CHUNKS * xBytes + group * WIDE_TILE * WIDE_GROUP_BYTES);
#pragma unroll
    for (int t = 0; t < TILES; t++) holdSums(c[t]);
    beginTiles();
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk++)
#pragma unroll
      for (int step = 0; step < 4; step++)
#pragma unroll
        for (int t = 0; t < TILES; t++)
          multiplyTile<N>(c[t], w + (chunk * wBytes + t * 2 * WIDE_TILE * WIDE_GROUP_BYTES + step * 32) / 16, x + (chunk * xBytes + step * 32) / 16);
    closeTiles();
    waitForTiles<0>();  // the stage is free long before the next one is there
#pragma unroll
    for (int t = 0; t < TILES; t++) holdSums(c[t]);
    if (lane == 0) barrierArrive(empty + 8 * stage);
    if (++stage == p.stages) { stage = 0; phase ^= 1; }
  }
  const int g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int of = (group + 2 * t) * WIDE_TILE + (warp & 3) * 2 + half;  // which group of the pass
      if (of < n)
#pragma unroll
        for (int i = 0; i < N / 8; i++)
#pragma unroll
          for (int j = 0; j < 2; j++) {
            const int row = i * 8 + 2 * q + j;
            if (row < p.rows) y[(u64)row * p.ld + of * WIDE_GROUP + g] = c[t][i * 4 + half * 2 + j];
          }
    }
}

template <int N>  // rows of x at most
__device__ __forceinline__ void productWide(const ProductWide& p) {
  DYNAMIC_SHARED(memory);
  const int warp = threadIdx.x >> 5, slice = blockIdx.y, first = slice * p.each + (slice < p.more ? slice : p.more);
  const int count = p.each + (slice < p.more);  // stages of a pass
  int matrix = 0, member = blockIdx.x, before = 0;  // groups of the matrices before
  for (; member >= p.blocks[matrix]; matrix++) {
    member -= p.blocks[matrix];
    before += p.groups[matrix];
  }
  const bool early = matrix == p.early;
  const int most = early ? p.earlyMost : p.most, ofBlock = early ? most : p.passes * most;
  const int from = member * ofBlock, left = p.groups[matrix] - from, to = from + (left < ofBlock ? left : ofBlock);
  const unsigned full = shared32(memory), empty = full + 8 * WIDE_STAGES, ring = (empty + 8 * WIDE_STAGES + 1023) & ~1023u;
  const unsigned xBytes = p.chunks * N * WIDE_CHUNK * 2, stageBytes = xBytes + p.chunks * p.most * WIDE_GROUP_BYTES;

  auto weights = [&](int stage, int group, int i) {
    barrierExpect(full + 8 * stage, xBytes + p.chunks * most * WIDE_GROUP_BYTES);
    tensorCopy(ring + stage * stageBytes + xBytes, p.w + matrix, group * WIDE_GROUP, (first + i) * p.chunks, full + 8 * stage, readOnce());
  };

  int ahead = count < p.stages ? count : p.stages;
  if (threadIdx.x == 256) {
#pragma unroll 1
    for (int s = 0; s < p.stages; s++) { barrierInit(full + 8 * s, 1); barrierInit(empty + 8 * s, 8); }
    barriersMade();
    writtenForCopies();
    // weights depend on nothing: as many stages as there are of them are on their way before the previous kernel has ended
#pragma unroll 1
    for (int i = 0; i < ahead; i++) weights(i, from, i);
    fetchMap(&p.x);
  }
  __syncthreads();
  releaseNext();

  int stage = 0;
  unsigned phase = 0;
  if (warp == 8) {
    waitForPrevious();
    if (threadIdx.x == 256)
      for (int group = from; group < to; group += most)
        for (int i = 0; i < count; i++) {
          if (--ahead < 0) {
            barrierWait(empty + 8 * stage, phase ^ 1);
            weights(stage, group, i);
          }
          tensorCopy(ring + stage * stageBytes, &p.x, 0, (first + i) * p.chunks, full + 8 * stage, readOften());
          if (++stage == p.stages) { stage = 0; phase ^= 1; }
        }
    return;
  }

  waitForPrevious();
  float* const y = p.y + (u64)slice * p.rows * p.ld;
  for (int group = from; group < to; group += most) {
    const int n = to - group < most ? to - group : most;
    const bool two = n > (2 + (warp >> 2)) * WIDE_TILE;
    float* const at = y + (before + group) * WIDE_GROUP;
    if (p.chunks == 1) {
      if (two) multiplyWide<N, 2, 1>(p, full, ring, stageBytes, count, stage, phase, at, n, most);
      else multiplyWide<N, 1, 1>(p, full, ring, stageBytes, count, stage, phase, at, n, most);
    } else {
      if (two) multiplyWide<N, 2, 2>(p, full, ring, stageBytes, count, stage, phase, at, n, most);
      else multiplyWide<N, 1, 2>(p, full, ring, stageBytes, count, stage, phase, at, n, most);
    }
  }
  if (early) {
    __threadfence();
    syncConsumers();
    if (threadIdx.x == 0) atomicAdd(p.earlyDone, 1u);
  }
}
extern "C" __global__ void __launch_bounds__(288, 1) product_wide32(const __grid_constant__ ProductWide p) { productWide<32>(p); }
extern "C" __global__ void __launch_bounds__(288, 1) product_wide64(const __grid_constant__ ProductWide p) { productWide<64>(p); }
#endif
