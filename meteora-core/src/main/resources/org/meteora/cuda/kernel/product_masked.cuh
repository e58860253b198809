// Products with an input x of which dropout keeps a part for the adapters, without writing that part: z and logits
// [dropout(x) Aᵀ | x Gᵀ], and the gradients of A and gates, [∂zᵀ dropout(x); ∂lᵀ x]. As product_sum.cuh, of one term; but a warpgroup
// brings its 64 rows of a into registers and drops there what is not kept. So x is read once for adapters and gates.
//
// What is kept comes from memory, a bit an element, in words of 16: kept[chunk][token][q] has of the 64 columns of a chunk 2q and 2q + 1
// of all eights, the even ones' bits in the low byte.
#if TOPK == 1 && defined(TENSOR_CORES) && (defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ON_CPU))
// In the last tile b's columns that take a as it is are multiplied beside the others, by places that these leave free at the tile's end.
struct ProductMasked {
  ProductSum sum;              // of one output, one term; y has the columns that are multiplied by what is kept
  const unsigned short* kept;  // (chunks of 64 columns, tokens, 4)
  int tokens;                  // of kept
  int masked, columns;         // b's columns that are multiplied by what is kept; all, 96 more at most
  float scale;                 // of the first
  int rows, stride;            // of a; of y
  T* y;                        // (rows, stride), or
  float* gradient;             // (columns, rows), where a is xᵀ
};

#ifndef ON_CPU
#define COLUMNS32(i) SUMS16(i)
#define COLUMNS64(i) COLUMNS32(i), SUMS16(i + 16)
#define COLUMNS96(i) COLUMNS64(i), SUMS16(i + 32)
#define COLUMNS128(i) COLUMNS96(i), SUMS16(i + 48)
#define COLUMNS160(i) COLUMNS128(i), SUMS16(i + 64)
#define COLUMNS192(i) COLUMNS160(i), SUMS16(i + 80)
#define COLUMNS224(i) COLUMNS192(i), SUMS16(i + 96)
#define COLUMNS256(i) COLUMNS224(i), SUMS16(i + 112)
#define MULTIPLY_MASKED(N, A0, A1, A2, A3, B, ROW_MAJOR)                                                                                      \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." SUM_TYPES " {" SUM_REGISTERS##N "}, {%" #A0 ",%" #A1 ",%" #A2 ",%" #A3 "}, %" #B \
               ", 1, 1, 1, %" #ROW_MAJOR ";"                                                                                                   \
               : COLUMNS##N(0)                                                                                                                    \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"((int)ROW_MAJOR_B))
// The first N columns of c += 16 columns of 64 rows of a, which lie in registers as mma wants them, · those of b.
template <int N, bool ROW_MAJOR_B>
__device__ __forceinline__ void multiplyMasked(float (&c)[128], const unsigned (&a)[4], u64 b) {
  if constexpr (N == 256) MULTIPLY_MASKED(256, 128, 129, 130, 131, 132, 133);
  if constexpr (N == 224) MULTIPLY_MASKED(224, 112, 113, 114, 115, 116, 117);
  if constexpr (N == 192) MULTIPLY_MASKED(192, 96, 97, 98, 99, 100, 101);
  if constexpr (N == 160) MULTIPLY_MASKED(160, 80, 81, 82, 83, 84, 85);
}
// 32 columns of c from the one at AT on, by a as it lies in shared memory, or its transpose.
template <int AT, bool TRANSPOSED, bool ROW_MAJOR_B>
__device__ __forceinline__ void multiplyWhole(float (&c)[128], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32." SUM_TYPES " {" SUM_REGISTERS32 "}, %16, %17, 1, 1, 1, %18, %19;"
               : SUMS16(AT / 2)
               : "l"(a), "l"(b), "n"((int)TRANSPOSED), "n"((int)ROW_MAJOR_B));
}
__device__ __forceinline__ void holdFactors(unsigned (&a)[4][4]) {
#pragma unroll
  for (int i = 0; i < 16; i++) asm volatile("" : "+r"(a[i / 4][i % 4]));
}
// As loadTransposed, but lane 4 g + q gets row g at columns 2q and 2q + 1.
__device__ __forceinline__ void loadMatrices(unsigned at, unsigned (&v)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(at) : "memory");
}
// Ones in the low half where bit 7 is set, in the high half where bit 15 is.
__device__ __forceinline__ unsigned halvesOf(unsigned v) {
  unsigned mask;
  asm("prmt.b32 %0, %1, %1, 0x9988;" : "=r"(mask) : "r"(v));
  return mask;
}
#endif

// What is kept of a warpgroup's rows of a in a chunk of the inner dimension: of x's two rows of a lane, or, with a = xᵀ, of the sixteen
// tokens of which a lane has two columns.
template <bool TRANSPOSED>
struct KeptBits {
  const unsigned short* from;
  int tokens, first, second, select, shift;  // shift: to the bit of the first of a lane's two columns
  __device__ __forceinline__ KeptBits(const ProductMasked& p, int row, int group) : tokens(p.tokens) {
    const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    if (TRANSPOSED) {
      from = p.kept + (size_t)(row / 64 + group) * p.tokens * 4 + (g >> 1);
      first = 2 * q, second = 0;
      select = (g & 1) * 0x11 + 0x40, shift = 7 - 2 * warp;
    } else {
      from = p.kept + q;
      first = row + 64 * group + 16 * warp + g, second = first + 8;
      if (first >= tokens) first = tokens - 1;  // what comes of it goes nowhere
      if (second >= tokens) second = tokens - 1;
      select = 0, shift = 7;
    }
  }
  __device__ __forceinline__ void load(unsigned (&bits)[TRANSPOSED ? 16 : 2], int chunk) const {
    if (TRANSPOSED) {
#pragma unroll
      for (int i = 0; i < 16; i++) {
        const int token = 64 * chunk + first + 16 * (i / 4) + 8 * (i / 2 % 2) + i % 2;
        bits[i] = token < tokens ? from[4 * (size_t)token] : 0;
      }
    } else {
      const unsigned short* const its = from + (size_t)chunk * tokens * 4;
      bits[0] = its[4 * (size_t)first], bits[1] = its[4 * (size_t)second];
    }
  }
  // Of sixteen of the inner dimension, a's four registers: rows g, g + 8, g, g + 8 at columns 2q, 2q, 2q + 8, 2q + 8.
  __device__ __forceinline__ void drop(unsigned (&a)[4], const unsigned (&bits)[TRANSPOSED ? 16 : 2], int step) const {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (TRANSPOSED)
        a[i] &= halvesOf(__byte_perm(bits[4 * step + i / 2 * 2], bits[4 * step + i / 2 * 2 + 1], select) << shift >> i % 2);
      else
        a[i] &= halvesOf(bits[i % 2] << shift - 2 * step - i / 2);
  }
};

// c += all of a tile's chunks in [from, to); WHOLE: so many 32 columns at its end take a as it is, by b's columns from `others` on.
template <bool TRANSPOSED, int WHOLE>
__device__ __forceinline__ void addMasked(const ProductMasked& p, float (&c)[128], SumRing& ring, int row, int others, int from, int to, int group) {
  const int warp = threadIdx.x >> 5 & 3, lane = threadIdx.x & 31;
  const KeptBits<TRANSPOSED> kept(p, row, group);
  // where this lane's row of a matrix is, of sixteen of the inner dimension, before it is swizzled
  const int its = TRANSPOSED ? (lane & 7) + (lane >> 4) * 8 : 16 * warp + (lane & 7) + (lane >> 3 & 1) * 8;
  const unsigned at = its * 128, place = (TRANSPOSED ? 2 * warp + (lane >> 3 & 1) : lane >> 4) ^ its & 7;
  unsigned bits[TRANSPOSED ? 16 : 2];
  kept.load(bits, from);
#pragma unroll 1
  for (int chunk = from; chunk < to; chunk++) {
    barrierWait(ring.full + 8 * ring.stage, ring.phase);
    const unsigned a = ring.at + ring.stage * SUM_STAGE_BYTES + group * (SUM_A_BYTES / 2), b = ring.at + ring.stage * SUM_STAGE_BYTES + SUM_A_BYTES;
    unsigned v[4][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (TRANSPOSED)
        loadTransposed(a + i * (16 * 128) + at + (place << 4), v[i]);
      else
        loadMatrices(a + at + ((place ^ 2 * i) << 4), v[i]);
      kept.drop(v[i], bits, i);
    }
    if (chunk + 1 < to) kept.load(bits, chunk + 1);
    holdSum(c);
    holdFactors(v);
    beginSums();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const unsigned aAt = a + i * (TRANSPOSED ? 16 * 128 : 32), bAt = b + i * (TRANSPOSED ? 16 * 128 : 32);
      auto bOf = [&](int column) {
        return TRANSPOSED ? columnsAt(bAt + column / 64 * (SUM_B_BYTES / 4) + column % 64 * 2) : rowsAt(bAt + column * 128);
      };
      const u64 all = TRANSPOSED ? columnsAt(aAt) : rowsAt(aAt);
      multiplyMasked<256 - 32 * WHOLE, TRANSPOSED>(c, v[i], bOf(0));
      if constexpr (WHOLE > 0) multiplyWhole<256 - 32 * WHOLE, TRANSPOSED, TRANSPOSED>(c, all, bOf(others));
      if constexpr (WHOLE > 1) multiplyWhole<288 - 32 * WHOLE, TRANSPOSED, TRANSPOSED>(c, all, bOf(others + 32));
      if constexpr (WHOLE > 2) multiplyWhole<224, TRANSPOSED, TRANSPOSED>(c, all, bOf(others + 64));
    }
    closeSums();
    ring.last = ring.stage;
    giveBack<0>(c, ring);  // the other warpgroup multiplies while this one brings its next rows
    holdFactors(v);
    ring.next();
  }
}

// Sums to the gradient, whose rows are columns there, or those of columns that take a as it is to y.
template <bool TRANSPOSED, int WHOLE>
__device__ __forceinline__ void storeMasked(const ProductMasked& p, const float (&c)[128], const SumTile& tile, int group) {
  const int lane = threadIdx.x & 31, row = tile.row + 64 * group + 16 * (threadIdx.x >> 5 & 3) + (lane >> 2), q = 2 * (lane & 3);
#pragma unroll
  for (int i = TRANSPOSED ? 0 : 128 - 16 * WHOLE; i < 128; i += 2) {
    const bool others = i >= 128 - 16 * WHOLE;
    const int column = (others ? p.masked - (256 - 32 * WHOLE) : tile.column) + i / 4 * 8 + q, r = row + (i & 2) * 4;
    if (r >= p.rows) continue;
#pragma unroll
    for (int j = 0; j < 2; j++) {
      if (column + j >= (others ? p.columns : p.masked)) continue;
      if (TRANSPOSED)
        p.gradient[(size_t)(column + j) * p.rows + r] = c[i + j];
      else
        p.y[(size_t)r * p.stride + column + j] = fromFloat(c[i + j]);
    }
  }
}

template <bool TRANSPOSED, int WHOLE>
__device__ __forceinline__ void maskedTile(const ProductMasked& p, SumRing& ring, const SumWork& work, const SumTile& tile, unsigned staging, int rank, int group) {
  float c[128];
#pragma unroll
  for (int i = 0; i < 128; i++) c[i] = 0.f;
  addMasked<TRANSPOSED, WHOLE>(p, c, ring, tile.row, p.masked - tile.column, work.from, work.to, group);
  if (work.to < p.sum.chunks) {
    leaveSums(p.sum, c, partOf(work.cluster, rank, group), group);
    return;
  }
  if (work.from > 0)
    for (int other = work.cluster; work.share(p.sum, other) > (work.tile - work.whole) * p.sum.chunks; other--)
      addLeftSums(p.sum, c, partOf(other - 1, rank, group), group);
#pragma unroll
  for (int i = 0; i < 128 - 16 * WHOLE; i++) c[i] *= p.scale;
  storeMasked<TRANSPOSED, WHOLE>(p, c, tile, group);
  if (!TRANSPOSED) storeSums(&p.sum.output[0].y, c, staging, tile.row, tile.column, group);
}

template <bool TRANSPOSED>
__device__ __forceinline__ void productMasked(const ProductMasked& p) {
  DYNAMIC_SHARED(memory);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7, rank = rankOfBlock();
  const unsigned at = (shared32(memory) + 1023) & ~1023u, staging = at + SUM_STAGES * SUM_STAGE_BYTES;
  SumRing ring = makeRing(at, SUM_STAGES, staging + 4 * SUM_STORE_BYTES);
  const int beside = p.sum.output[0].tiles;
  if (group == 2) {
    fewRegisters();
    ring.phase = 1;
    if (warp == 8 && lane == 0) copySums<TRANSPOSED>(p.sum, ring, beside, rank);
  } else {
    manyRegisters();
    SumWork work(p.sum, beside * p.sum.pairs);
    ring.phase = 0;
    while (work.more(p.sum)) {
      const SumTile tile = sumTile(p.sum, work.tile, beside, rank);
      switch (tile.column + SUM_COLUMNS > p.masked ? (p.columns - p.masked + 31) / 32 : 0) {
        case 1: maskedTile<TRANSPOSED, 1>(p, ring, work, tile, staging, rank, group); break;
        case 2: maskedTile<TRANSPOSED, 2>(p, ring, work, tile, staging, rank, group); break;
        case 3: maskedTile<TRANSPOSED, 3>(p, ring, work, tile, staging, rank, group); break;
        default: maskedTile<TRANSPOSED, 0>(p, ring, work, tile, staging, rank, group);
      }
    }
    if (!TRANSPOSED && (threadIdx.x & 127) == 0) piecesLanded();
  }
  clusterArrive();
  clusterWait();
}
extern "C" __global__ void __launch_bounds__(384, 1) product_masked(const __grid_constant__ ProductMasked p) { productMasked<false>(p); }
extern "C" __global__ void __launch_bounds__(384, 1) product_masked_gradient(const __grid_constant__ ProductMasked p) { productMasked<true>(p); }
#endif
