// Products of 65 to 256 rows of x, on Hopper, as product_sum.cuh has them: a block multiplies 128 rows of x by 224 of W, whose bytes from
// memory are what most of the time goes by. A cluster's two blocks have tiles beneath each other and share W, or beside each other, of 128
// rows and fewer, and share x: each copies half of it to both. Sums have one contributor each.
#if TOPK == 1 && defined(TENSOR_CORES) && (defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ON_CPU))
#define TILED_COLUMNS 224
#define TILED_B_BYTES (TILED_COLUMNS * SUM_INNER * 2)
#define TILED_STAGE_BYTES (SUM_A_BYTES + TILED_B_BYTES)
#define TILED_STAGES 5
#define TILED_MATRICES 9

#ifndef ON_CPU
#define SUM_REGISTERS112 SUM_REGISTERS96 \
      ",%48,%49,%50,%51,%52,%53,%54,%55"
#define SUMS56(i) SUMS16(i), SUMS16(i + 16), SUMS16(i + 32), SUMS4(i + 48), SUMS4(i + 52)
// N columns of c (64 × 224) from the one at AT on += 16 columns of 64 rows of a · those of b, as it lies.
template <int N, int AT, bool ROW_MAJOR_B>
__device__ __forceinline__ void multiplyTiled(float (&c)[112], u64 a, u64 b) {
  if constexpr (N == 224)
    asm volatile("wgmma.mma_async.sync.aligned.m64n224k16.f32." SUM_TYPES " {" SUM_REGISTERS224 "}, %112, %113, 1, 1, 1, 0, %114;"
                 : SUMS56(0), SUMS56(56)
                 : "l"(a), "l"(b), "n"((int)ROW_MAJOR_B));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n112k16.f32." SUM_TYPES " {" SUM_REGISTERS112 "}, %56, %57, 1, 1, 1, 0, %58;"
                 : SUMS56(AT / 2)
                 : "l"(a), "l"(b), "n"((int)ROW_MAJOR_B));
}
#endif

__device__ __forceinline__ SumRing tiledRing(unsigned char* memory) {
  const unsigned at = (shared32(memory) + 1023) & ~1023u;
  const SumRing ring = makeRing(at, TILED_STAGES, at + TILED_STAGES * TILED_STAGE_BYTES);
  releaseNext();
  return ring;
}
// Where a block's tiles are.
struct TiledPlace {
  int beside, rank;
  __device__ __forceinline__ explicit TiledPlace(int beside) : beside(SUM_BLOCKS > 1 && beside), rank(rankOfBlock()) {}
  __device__ __forceinline__ int row() const { return beside ? 0 : rank * SUM_ROWS; }
  // 64 columns of the block's rows; the map's pieces have as many rows as this copies.
  __device__ __forceinline__ void rows(unsigned to, const TensorMap* map, int column, unsigned full) const {
    if (beside)
      pieceToBoth(to + rank * (SUM_A_BYTES / 2), map, column, rank * (SUM_ROWS / 2), full);
    else
      pieceToThis(to, map, column, row(), full);
  }
  // One of the two halves of what is multiplied by these.
  __device__ __forceinline__ void half(int which, unsigned to, const TensorMap* map, int column, int row, unsigned full) const {
    if (beside)
      pieceToThis(to, map, column, row, full);
    else if (which % SUM_BLOCKS == rank)
      pieceToBoth(to, map, column, row, full);
  }
};
__device__ __forceinline__ unsigned tiledStage(const SumRing& ring) { return ring.at + ring.stage * TILED_STAGE_BYTES; }
__device__ __forceinline__ void waitForStage(const SumRing& ring) { barrierWait(ring.empty + 8 * ring.stage, ring.phase); }
// W's pieces of a chunk: rows from the first and the second place on.
__device__ __forceinline__ void copyWeights(const SumRing& ring, const TiledPlace& place, int stage, const TensorMap* first, int row0, const TensorMap* second,
                                            int row1, int chunk) {
  const unsigned full = ring.full + 8 * stage, to = ring.at + stage * TILED_STAGE_BYTES + SUM_A_BYTES;
  barrierExpect(full, TILED_STAGE_BYTES);
  place.half(0, to, first, chunk * SUM_INNER, row0, full);
  place.half(1, to + TILED_B_BYTES / 2, second, chunk * SUM_INNER, row1, full);
}
// N columns of c, from AT on, += so many chunks. Parts of c are waited for chunk by chunk, else the compiler does so for each product (C7511).
template <int N, int AT, bool ROW_MAJOR_B>
__device__ __forceinline__ void addTiled(float (&c)[112], SumRing& ring, int chunks, int group) {
#pragma unroll 1
  for (; chunks > 0; chunks--) {
    barrierWait(ring.full + 8 * ring.stage, ring.phase);
    const unsigned a = tiledStage(ring) + group * (SUM_A_BYTES / 2), b = tiledStage(ring) + SUM_A_BYTES;
    holdSum(c);
    beginSums();
#pragma unroll
    for (int step = 0; step < SUM_INNER / 16; step++)
      multiplyTiled<N, AT, ROW_MAJOR_B>(c, rowsAt(a + 32 * step), ROW_MAJOR_B ? columnsAt(b + 16 * 128 * step) : rowsAt(b + 32 * step));
    closeSums();
    holdSum(c);
    if constexpr (N == TILED_COLUMNS)
      giveBack<1>(c, ring);
    else {
      ring.last = ring.stage;
      giveBack<0>(c, ring);
    }
    ring.next();
  }
  if constexpr (N == TILED_COLUMNS) giveBack<0>(c, ring);
}

// y (slices, rows, ld) = x (rows, k) · [W0; W1; …]ᵀ over a slice of k each, in float32.
struct ProductTiled {
  TensorMap x, w[TILED_MATRICES];
  float* y;
  int rows, k, ld, slices, matrices;
  int columns[TILED_MATRICES], at[TILED_MATRICES];  // rows of W; where they go in a row of y
};
// What a cluster multiplies, one after another: slices of tiles, all tiles' first ones before the second ones.
struct TiledWork {
  int next, tiles;
  int matrix, column, slice, from, to;  // at hand: chunks of the inner dimension
  __device__ __forceinline__ static int tilesOf(const ProductTiled& p, int matrix) { return (p.columns[matrix] + TILED_COLUMNS - 1) / TILED_COLUMNS; }
  __device__ __forceinline__ explicit TiledWork(const ProductTiled& p) : next(blockIdx.x / SUM_BLOCKS), tiles(0) {
    for (int i = 0; i < p.matrices; i++) tiles += tilesOf(p, i);
  }
  __device__ __forceinline__ bool more(const ProductTiled& p) {
    if (next >= tiles * p.slices) return false;
    slice = next / tiles;
    int tile = next % tiles;
    for (matrix = 0; tile >= tilesOf(p, matrix); matrix++) tile -= tilesOf(p, matrix);
    column = tile * TILED_COLUMNS;
    from = p.k / SUM_INNER * slice / p.slices, to = p.k / SUM_INNER * (slice + 1) / p.slices;
    next += gridDim.x / SUM_BLOCKS;
    return true;
  }
};
// The copying thread. Weights depend on nothing: the first of them are on their way before the kernel in front has ended.
__device__ __forceinline__ void copyTiles(const ProductTiled& p, SumRing& ring) {
  const TiledPlace place(false);
  TiledWork work(p);
  auto weights = [&](int chunk, int stage) {
    const TensorMap* const w = p.w + work.matrix;
    copyWeights(ring, place, stage, w, work.column, w, work.column + TILED_COLUMNS / 2, chunk);
  };
  bool more = work.more(p);
  int ahead = 0;
  for (; more && ahead < TILED_STAGES && work.from + ahead < work.to; ahead++) weights(work.from + ahead, ahead);
  waitForPrevious();
  for (; more; more = work.more(p))
    for (int chunk = work.from; chunk < work.to; chunk++) {
      if (--ahead < 0) {
        waitForStage(ring);
        weights(chunk, ring.stage);
      }
      place.rows(tiledStage(ring), &p.x, chunk * SUM_INNER, ring.full + 8 * ring.stage);
      ring.next();
    }
}
__device__ __forceinline__ void storeTile(const ProductTiled& p, const float (&c)[112], const TiledWork& work, int group) {
  const int lane = threadIdx.x & 31, row = TiledPlace(false).row() + 64 * group + 16 * (threadIdx.x >> 5 & 3) + (lane >> 2), q = 2 * (lane & 3);
  const int columns = p.columns[work.matrix] - work.column;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    if (row + 8 * half >= p.rows) continue;
    float* const to = p.y + ((size_t)work.slice * p.rows + row + 8 * half) * p.ld + p.at[work.matrix] + work.column;
#pragma unroll
    for (int eight = 0; eight < TILED_COLUMNS / 8; eight++) {
      const int column = 8 * eight + q, i = 4 * eight + 2 * half;
      if (column + 1 < columns)
        *(float2*)(to + column) = {c[i], c[i + 1]};
      else if (column < columns)
        to[column] = c[i];
    }
  }
}
// A kernel's body: a thread copies, two warpgroups multiply one Work after another.
template <class Work, class P, class Copy, class Multiply>
__device__ __forceinline__ void runTiled(const P& p, unsigned char* memory, Copy copy, Multiply multiply) {
  const int group = threadIdx.x >> 7;
  SumRing ring = tiledRing(memory);
  if (group == 2) {
    fewRegisters();
    ring.phase = 1;
    if (threadIdx.x == 256) copy(p, ring);
  } else {
    manyRegisters();
    ring.phase = 0;
    waitForPrevious();
    float c[112];
    for (Work work(p); work.more(p);) {
#pragma unroll
      for (int i = 0; i < 112; i++) c[i] = 0.f;
      multiply(c, ring, work, group);
    }
  }
  // no block ends while the other still writes to its shared memory
  clusterArrive();
  clusterWait();
}
extern "C" __global__ void __launch_bounds__(384, 1) product_tiled(const __grid_constant__ ProductTiled p) {
  DYNAMIC_SHARED(memory);
  runTiled<TiledWork>(p, memory, copyTiles, [&](float (&c)[112], SumRing& ring, const TiledWork& work, int group) {
    addTiled<TILED_COLUMNS, 0, false>(c, ring, work.to - work.from, group);
    storeTile(p, c, work, group);
  });
}

// out (rows, outs) = silu(gate) · up, each x · Wᵀ + coefficients · Bᵀ + bias: a tile has 112 outputs of gate and those of up.
struct ProductSiluUp {
  TensorMap x, w[2];                 // gate's, up's
  TensorMap coefficients[2], b[2];  // (rows, ranks), (ranks, outs), where there are ranks
  const T* bias[2];                  // or null
  T* out;
  int rows, k, outs, ranks[2], beside;
};
#define SILU_COLUMNS (TILED_COLUMNS / 2)
// A block's tiles' first columns, one after another; blocks of a cluster have as many, and what is behind the last column is nothing.
struct SiluWork {
  TiledPlace place;
  int next, column;
  __device__ __forceinline__ explicit SiluWork(const ProductSiluUp& p) : place(p.beside), next(blockIdx.x / SUM_BLOCKS) {}
  __device__ __forceinline__ bool more(const ProductSiluUp& p) {
    const int beside = place.beside ? SUM_BLOCKS : 1;
    if (next * beside * SILU_COLUMNS >= p.outs) return false;
    column = (next * beside + (place.beside ? place.rank : 0)) * SILU_COLUMNS;
    next += gridDim.x / SUM_BLOCKS;
    return true;
  }
};
__device__ __forceinline__ void copySiluUp(const ProductSiluUp& p, SumRing& ring) {
  const int chunks = p.k / SUM_INNER;
  SiluWork work(p);
  bool more = work.more(p);
  auto weights = [&](int chunk, int stage) { copyWeights(ring, work.place, stage, p.w, work.column, p.w + 1, work.column, chunk); };
  int ahead = 0;
  for (; more && ahead < TILED_STAGES && ahead < chunks; ahead++) weights(ahead, ahead);
  waitForPrevious();
  for (; more; more = work.more(p)) {
    for (int chunk = 0; chunk < chunks; chunk++) {
      if (--ahead < 0) {
        waitForStage(ring);
        weights(chunk, ring.stage);
      }
      work.place.rows(tiledStage(ring), &p.x, chunk * SUM_INNER, ring.full + 8 * ring.stage);
      ring.next();
    }
    for (int linear = 0; linear < 2; linear++)
      for (int at = 0; at < p.ranks[linear]; at += SUM_INNER) {
        const unsigned full = ring.full + 8 * ring.stage, piece = 64 * SUM_INNER * 2, b = tiledStage(ring) + SUM_A_BYTES;
        waitForStage(ring);
        barrierExpect(full, SUM_A_BYTES + 2 * piece);
        work.place.rows(tiledStage(ring), p.coefficients + linear, at, full);
        work.place.half(0, b, p.b + linear, work.column, at, full);
        work.place.half(1, b + piece, p.b + linear, work.column + 64, at, full);
        ring.next();
      }
  }
}
__device__ __forceinline__ void storeSiluUp(const ProductSiluUp& p, const float (&c)[112], const SiluWork& work, int group) {
  const int lane = threadIdx.x & 31, column = work.column, row = work.place.row() + 64 * group + 16 * (threadIdx.x >> 5 & 3), q = lane & 3;
  if (row >= p.rows) return;
#pragma unroll
  for (int eight = 0; eight < SILU_COLUMNS / 8; eight += 2)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      unsigned w[2];
#pragma unroll
      for (int t = 0; t < 2; t++) {
        float v[2];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          const int i = 4 * (eight + t) + 2 * half + j, at = column + 8 * (eight + t) + 2 * q + j;
          float gate = c[i], up = c[56 + i];
          if (p.bias[0] && at < p.outs) gate += toFloat(p.bias[0][at]);
          if (p.bias[1] && at < p.outs) up += toFloat(p.bias[1][at]);
          v[j] = silu(gate) * up;
        }
        w[t] = pair(fromFloat(v[0]), fromFloat(v[1]));
      }
      // an even lane takes four outputs of the first eight, an odd one of the second
      const unsigned other = __shfl_xor_sync(0xffffffffu, q & 1 ? w[0] : w[1], 1);
      const int r = row + (lane >> 2) + 8 * half, at = column + 8 * (eight + (q & 1)) + (q & 2) * 2;
      if (r < p.rows && at < p.outs) *(uint2*)(p.out + (size_t)r * p.outs + at) = q & 1 ? make_uint2(other, w[1]) : make_uint2(w[0], other);
    }
}
extern "C" __global__ void __launch_bounds__(384, 1) product_silu_up(const __grid_constant__ ProductSiluUp p) {
  DYNAMIC_SHARED(memory);
  runTiled<SiluWork>(p, memory, copySiluUp, [&](float (&c)[112], SumRing& ring, const SiluWork& work, int group) {
    addTiled<TILED_COLUMNS, 0, false>(c, ring, p.k / SUM_INNER, group);
    addTiled<SILU_COLUMNS, 0, true>(c, ring, sumChunks(p.ranks[0]), group);
    addTiled<SILU_COLUMNS, SILU_COLUMNS, true>(c, ring, sumChunks(p.ranks[1]), group);
    storeSiluUp(p, c, work, group);
  });
}
#endif
