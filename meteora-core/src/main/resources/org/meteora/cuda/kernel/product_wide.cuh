// Products of 17 to 64 rows of x at the speed of memory, on Hopper.
// y (slices, rows, ld) = x (rows, k) · [W0; W1; …]ᵀ over a slice of k each. Rows of W go in groups of eight, which are dealt
// evenly over the blocks of a slice; of a block's groups so many are multiplied at a time as there are sums for. A stage of
// the ring has 64 columns of all rows of x and of these groups, which two warpgroups multiply by tensor cores out of shared
// memory, 64 rows of W each at a time, groups that are not there included. Every sum has one contributor, so y need not be cleared.
//
// Maps show row, column / 64, column % 64, swizzled as the tensor cores want it: the copy engine puts 16 bytes c of row r at
// place c ^ r % 8.
#define WIDE_CHUNK 64
#define WIDE_GROUP 8
#define WIDE_GROUP_BYTES (WIDE_GROUP * WIDE_CHUNK * 2)
#define WIDE_TILE 8          // groups of a tile of 64 rows of W
#define WIDE_LARGE 8         // groups of a large copy; a small one has one

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
  float* y;
  int rows, k, ld, slices, stages, groups, most, segments;  // most: groups of a block at a time at most
  int end[MAX_SEGMENTS];  // one past the segment's last group in the list of all
};
struct ProductWideMaps {
  ProductWide product;
  TensorMap x, large[MAX_SEGMENTS], small[MAX_SEGMENTS];
};

// What lane `lane` copies of groups [from, to): each lane one piece, in order; there are at most as many pieces as groups.
struct WidePiece {
  const TensorMap* map;
  int row, at;  // row in the matrix, group of the stage
};
__device__ __forceinline__ WidePiece widePiece(const ProductWideMaps& p, int from, int to, int lane) {
  int begin = 0, at = from, pieces = 0;
  for (int s = 0; at < to; s++) {
    const int end = p.product.end[s] < to ? p.product.end[s] : to;
    if (at < end) {
      const int large = (end - at) / WIDE_LARGE, small = (end - at) % WIDE_LARGE, piece = lane - pieces;
      if (piece < large) return {p.large + s, (at - begin + piece * WIDE_LARGE) * WIDE_GROUP, at - from + piece * WIDE_LARGE};
      if (piece < large + small) {
        const int group = at + large * WIDE_LARGE + piece - large;
        return {p.small + s, (group - begin) * WIDE_GROUP, group - from};
      }
      pieces += large + small;
      at = end;
    }
    begin = p.product.end[s];
  }
  return {nullptr, 0, 0};
}

// A warpgroup's part of a pass over the chunks: TILES tiles of its own.
template <int N, int TILES>
__device__ __forceinline__ void multiplyWide(const ProductWide& p, unsigned full, unsigned empty, unsigned ring, unsigned stageBytes, int chunks,
                                             int& stage, unsigned& phase, float* y, int n) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = warp >> 2;
  float c[TILES][N / 2];
#pragma unroll
  for (int t = 0; t < TILES; t++)
#pragma unroll
    for (int i = 0; i < N / 2; i++) c[t][i] = 0.f;
  int last = -1;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk++) {
    barrierWait(full + 8 * stage, phase);
    const unsigned x = ring + stage * stageBytes, w = x + N * WIDE_CHUNK * 2 + group * WIDE_TILE * WIDE_GROUP_BYTES;
#pragma unroll
    for (int t = 0; t < TILES; t++) holdSums(c[t]);
    beginTiles();
#pragma unroll
    for (int step = 0; step < 4; step++)
#pragma unroll
      for (int t = 0; t < TILES; t++)
        multiplyTile<N>(c[t], tileAt(w + t * 2 * WIDE_TILE * WIDE_GROUP_BYTES + step * 32), tileAt(x + step * 32));
    closeTiles();
#pragma unroll
    for (int t = 0; t < TILES; t++) holdSums(c[t]);
    waitForTiles<1>();  // the chunk before has been multiplied
    if (last >= 0 && lane == 0) barrierArrive(empty + 8 * last);
    last = stage;
    if (++stage == p.stages) { stage = 0; phase ^= 1; }
  }
  waitForTiles<0>();
#pragma unroll
  for (int t = 0; t < TILES; t++) holdSums(c[t]);
  if (last >= 0 && lane == 0) barrierArrive(empty + 8 * last);
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
__device__ __forceinline__ void productWide(const ProductWideMaps& all) {
  DYNAMIC_SHARED(memory);
  const ProductWide& p = all.product;
  constexpr int X_BYTES = N * WIDE_CHUNK * 2;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int allChunks = p.k / WIDE_CHUNK, slice = blockIdx.x % p.slices, member = blockIdx.x / p.slices, members = gridDim.x / p.slices;
  const int chunk0 = (int)((long long)slice * allChunks / p.slices);
  const int chunks = (int)((long long)(slice + 1) * allChunks / p.slices) - chunk0;
  const int group0 = (int)((long long)p.groups * member / members);
  const int groups = (int)((long long)p.groups * (member + 1) / members) - group0;
  const int passes = (groups + p.most - 1) / p.most;
  const unsigned base = shared32(memory), full = base, empty = base + 8 * p.stages;
  const unsigned ring = (base + 16 * p.stages + 1023) & ~1023u, stageBytes = X_BYTES + p.most * WIDE_GROUP_BYTES;

  if (threadIdx.x == 0) {
    for (int s = 0; s < p.stages; s++) { barrierInit(full + 8 * s, 1); barrierInit(empty + 8 * s, 8); }
    barriersMade();
  }
  __syncthreads();
  releaseNext();

  if (warp == 8) {
    const u64 policy = readOnce(), keep = readOften();
    // weights depend on nothing: as many stages as there are of them are on their way before the previous kernel has ended
    const int units = passes * chunks, ahead = units < p.stages ? units : p.stages;
    auto step = [&](int unit, bool weights, bool input) {
      const int pass = unit / chunks, chunk = chunk0 + unit - pass * chunks, stage = unit % p.stages;
      const int from = groups * pass / passes, to = groups * (pass + 1) / passes;
      const unsigned at = ring + stage * stageBytes;
      if (weights) {
        barrierWait(empty + 8 * stage, unit / p.stages & 1 ^ 1);
        if (lane == 0) barrierExpect(full + 8 * stage, X_BYTES + (to - from) * WIDE_GROUP_BYTES);
        __syncwarp();
        const WidePiece piece = widePiece(all, group0 + from, group0 + to, lane);
        if (piece.map) tensorCopy(at + X_BYTES + piece.at * WIDE_GROUP_BYTES, piece.map, chunk, piece.row, full + 8 * stage, policy);
      }
      if (input && lane == 31) tensorCopy(at, &all.x, chunk, 0, full + 8 * stage, keep);
    };
    for (int i = 0; i < ahead; i++) step(i, true, false);
    waitForPrevious();
    for (int i = 0; i < ahead; i++) step(i, false, true);
    for (int i = ahead; i < units; i++) step(i, true, true);
    return;
  }

  waitForPrevious();
  float* const y = p.y + (u64)slice * p.rows * p.ld;
  int stage = 0;
  unsigned phase = 0;
  for (int pass = 0; pass < passes; pass++) {
    const int from = groups * pass / passes, n = groups * (pass + 1) / passes - from;
    float* const to = y + (group0 + from) * WIDE_GROUP;
    if (n > (2 + (warp >> 2)) * WIDE_TILE) multiplyWide<N, 2>(p, full, empty, ring, stageBytes, chunks, stage, phase, to, n);
    else multiplyWide<N, 1>(p, full, empty, ring, stageBytes, chunks, stage, phase, to, n);
  }
}
extern "C" __global__ void __launch_bounds__(288, 1) product_wide32(const __grid_constant__ ProductWideMaps p) { productWide<32>(p); }
extern "C" __global__ void __launch_bounds__(288, 1) product_wide64(const __grid_constant__ ProductWideMaps p) { productWide<64>(p); }
#endif
