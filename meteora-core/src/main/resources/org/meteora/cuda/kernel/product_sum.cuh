// Sums of products of many rows, y = a0 · b0 + a1 · b1 + …, on Hopper: a linear's base and its adapters in one pass over y, and up to
// three linears with one input in one launch. y has tiles of 128 × 256; a block multiplies one tile after another, two warpgroups 64
// rows each, by tensor cores out of shared memory, where a third brings 64 of the inner dimension at a time by the copy engine.
// Two blocks, with tiles beneath each other, share b: each copies half of it to both.
//
// Maps show matrices as they lie in memory, in pieces of 64 columns, swizzled as the tensor cores want them; what is outside is zero.
#if TOPK == 1 && defined(TENSOR_CORES) && (defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ON_CPU))
#define SUM_TERMS 6
#define SUM_ROWS 128
#define SUM_COLUMNS 256
#define SUM_INNER 64
#define SUM_STAGES 4
#define SUM_A_BYTES (SUM_ROWS * SUM_INNER * 2)
#define SUM_B_BYTES (SUM_COLUMNS * SUM_INNER * 2)
#define SUM_STAGE_BYTES (SUM_A_BYTES + SUM_B_BYTES)
#define SUM_TOGETHER 8  // pairs of tiles beneath each other that are worked on before those beside them

struct SumOutput {
  T* y;
  int ld, columns, terms, tiles;  // tiles beside each other
};
struct ProductSum {
  TensorMap a[SUM_TERMS], b[SUM_TERMS];  // one output's terms after another's
  int inner[SUM_TERMS];
  unsigned rowMajorB;  // a bit a term: b lies (inner, columns) in memory, and not its transpose
  int rows, outputs, pairs, dropped;  // dropped: so many terms of each output go through the dropout
  SumOutput output[3];
  Dropout dropout;  // of y's elements
};

#ifndef ON_CPU
#define SUM_BLOCKS 2
#define SUM_REGISTERS \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
      "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31," \
      "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
      "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63," \
      "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
      "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95," \
      "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
      "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127" \

#define SUMS4(i) "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3])
#define SUMS16(i) SUMS4(i), SUMS4(i + 4), SUMS4(i + 8), SUMS4(i + 12)
#define SUMS64(i) SUMS16(i), SUMS16(i + 16), SUMS16(i + 32), SUMS16(i + 48)
#if DTYPE == 2
#define SUM_TYPES "bf16.bf16"
#else
#define SUM_TYPES "f16.f16"
#endif
// c (64 × 256) += 16 columns of 64 rows of a · those of b, as it lies. Lane 4 g + q of warp w holds of every eight columns: row
// 16 w + g, then 16 w + g + 8, each at columns 2 q and 2 q + 1.
template <bool ROW_MAJOR_B>
__device__ __forceinline__ void multiplySum(float (&c)[128], u64 a, u64 b) {
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." SUM_TYPES " {" SUM_REGISTERS "}, %128, %129, 1, 1, 1, 0, %130;"
               : SUMS64(0), SUMS64(64)
               : "l"(a), "l"(b), "n"((int)ROW_MAJOR_B));
}
__device__ __forceinline__ void holdSum(float (&c)[128]) {
#pragma unroll
  for (int i = 0; i < 128; i++) asm volatile("" : "+f"(c[i])::"memory");
}
__device__ __forceinline__ void beginSums() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void closeSums() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT>
__device__ __forceinline__ void waitForSums() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }
__device__ __forceinline__ int rankOfBlock() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Of the cluster's block `rank`. Its release reaches the cluster's shared memory, where nothing was written; a wider one waits for
// all of the device's memory, which costs a third of the kernel's time.
__device__ __forceinline__ void arriveAt(unsigned b, int rank) {
  asm volatile("{\n .reg .b32 at;\n mapa.shared::cluster.u32 at, %0, %1;\n mbarrier.arrive.shared::cluster.b64 _, [at];\n}\n" ::"r"(b), "r"(rank) : "memory");
}
__device__ __forceinline__ void pieceToThis(unsigned to, const TensorMap* map, int column, int row, unsigned barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to), "l"(map),
               "r"(column), "r"(row), "r"(barrier)
               : "memory");
}
__device__ __forceinline__ void pieceToBoth(unsigned to, const TensorMap* map, int column, int row, unsigned barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "h"((unsigned short)3)
      : "memory");
}
__device__ __forceinline__ void fewRegisters() { asm volatile("setmaxnreg.dec.sync.aligned.u32 40;"); }
__device__ __forceinline__ void manyRegisters() { asm volatile("setmaxnreg.inc.sync.aligned.u32 232;"); }
// What follows begins behind it.
__device__ __forceinline__ void inOrder(u64& z, float* c) {
  asm volatile("" : "+l"(z), "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]));
}
#endif

// How the tensor cores find 64 or more rows of 64 columns in shared memory, and b (inner, columns), whose pieces of 64 columns lie one
// behind another.
__device__ __forceinline__ u64 rowsAt(unsigned at) { return (u64)(at >> 4 & 0x3fff) | 1ull << 16 | 64ull << 32 | 1ull << 62; }
__device__ __forceinline__ u64 columnsAt(unsigned at) {
  return (u64)(at >> 4 & 0x3fff) | (u64)(SUM_INNER * 128 >> 4) << 16 | 64ull << 32 | 1ull << 62;
}

struct SumTile {
  int output, term, row, column;  // the output's first term
};
__device__ __forceinline__ SumTile sumTile(const ProductSum& p, int at, int beside, int rank) {
  const int whole = SUM_TOGETHER * beside, first = at / whole * SUM_TOGETHER, in = at % whole;
  const int together = p.pairs - first < SUM_TOGETHER ? p.pairs - first : SUM_TOGETHER;
  int column = in / together, output = 0, term = 0;
  while (column >= p.output[output].tiles) {
    column -= p.output[output].tiles;
    term += p.output[output++].terms;
  }
  return {output, term, ((first + in % together) * SUM_BLOCKS + rank) * SUM_ROWS, column * SUM_COLUMNS};
}

// The ring of stages, which the copying warp and the warpgroups go through together.
struct SumRing {
  unsigned at, full, empty;
  int stage;
  unsigned phase;
  __device__ __forceinline__ void next() {
    if (++stage == SUM_STAGES) { stage = 0; phase ^= 1; }
  }
};

template <bool ROW_MAJOR_B>
__device__ __forceinline__ void addTerm(float (&c)[128], SumRing& ring, int chunks, int group) {
  const int lane = threadIdx.x & 127;
  int last = -1;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; chunk++) {
    barrierWait(ring.full + 8 * ring.stage, ring.phase);
    const unsigned b = ring.at + ring.stage * SUM_STAGE_BYTES + SUM_A_BYTES, a = b - SUM_A_BYTES + group * (64 * SUM_INNER * 2);
    holdSum(c);
    beginSums();
#pragma unroll
    for (int step = 0; step < SUM_INNER / 16; step++)
      multiplySum<ROW_MAJOR_B>(c, rowsAt(a + 32 * step), ROW_MAJOR_B ? columnsAt(b + 16 * 128 * step) : rowsAt(b + 32 * step));
    closeSums();
    holdSum(c);
    waitForSums<1>();  // the chunk before has been multiplied
    if (last >= 0 && lane < SUM_BLOCKS) arriveAt(ring.empty + 8 * last, lane);
    last = ring.stage;
    ring.next();
  }
  waitForSums<0>();
  holdSum(c);
  if (lane < SUM_BLOCKS) arriveAt(ring.empty + 8 * last, lane);
}
__device__ __forceinline__ void addTerms(const ProductSum& p, float (&c)[128], SumRing& ring, int from, int to, int group) {
  for (int term = from; term < to; term++) {
    const int chunks = (p.inner[term] + SUM_INNER - 1) / SUM_INNER;
    if (p.rowMajorB >> term & 1)
      addTerm<true>(c, ring, chunks, group);
    else
      addTerm<false>(c, ring, chunks, group);
  }
}

// As drop8 does of rows of so many columns: lanes q = 0 and 1 have the first four of eight, 2 and 3 the others; of the hashes that
// two lanes share even ones make row g's, odd ones row g + 8's.
__device__ __forceinline__ void dropSums(const Dropout& d, float (&c)[128], int row, int column, int columns) {
  const int q = threadIdx.x & 3;
  u64 z = d.seed + ((u64)(row + 8 * (q & 1)) * ((columns + 3) / 4) + column / 4 + (q >> 1)) * 0x9e3779b97f4a7c15ULL;
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const u64 bits = dropoutBits(z);
    const unsigned low = (unsigned)bits, high = (unsigned)(bits >> 32), other = __shfl_xor_sync(0xffffffffu, q & 1 ? low : high, 1);
    const unsigned upper = q & 1 ? other : low, lower = q & 1 ? high : other;
    c[4 * i] = (upper & 0xffff) < d.threshold ? 0.f : c[4 * i] * d.scale;
    c[4 * i + 1] = (upper >> 16) < d.threshold ? 0.f : c[4 * i + 1] * d.scale;
    c[4 * i + 2] = (lower & 0xffff) < d.threshold ? 0.f : c[4 * i + 2] * d.scale;
    c[4 * i + 3] = (lower >> 16) < d.threshold ? 0.f : c[4 * i + 3] * d.scale;
    z += 2 * 0x9e3779b97f4a7c15ULL;
    inOrder(z, c + 4 * i);
  }
}

// A quad's four lanes exchange what they have of 32 columns, so that each stores eight of its own.
__device__ __forceinline__ void storeSums(const SumOutput& o, float (&c)[128], int row, int column, int rows) {
  const int q = threadIdx.x & 3;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 8; i++) {
      unsigned v[4];
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = pair(fromFloat(c[16 * i + 4 * j + 2 * half]), fromFloat(c[16 * i + 4 * j + 2 * half + 1]));
      const unsigned a = __shfl_xor_sync(0xffffffffu, q & 1 ? v[0] : v[1], 1), b = __shfl_xor_sync(0xffffffffu, q & 1 ? v[2] : v[3], 1);
      if (q & 1) v[0] = a, v[2] = b;
      else v[1] = a, v[3] = b;
      const unsigned d = __shfl_xor_sync(0xffffffffu, q & 2 ? v[0] : v[2], 2), e = __shfl_xor_sync(0xffffffffu, q & 2 ? v[1] : v[3], 2);
      if (q & 2) v[0] = d, v[1] = e;
      else v[2] = d, v[3] = e;
      const int r = row + 8 * half, at = column + 32 * i + 8 * q;
      if (r < rows && at < o.columns) *(uint4*)(o.y + (u64)r * o.ld + at) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

template <bool DROPS>
__device__ __forceinline__ void productSum(const ProductSum& p) {
  DYNAMIC_SHARED(memory);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7, rank = rankOfBlock();
  SumRing ring;
  ring.at = (shared32(memory) + 1023) & ~1023u;
  ring.full = ring.at + SUM_STAGES * SUM_STAGE_BYTES, ring.empty = ring.full + 8 * SUM_STAGES;
  ring.stage = 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < SUM_STAGES; s++) { barrierInit(ring.full + 8 * s, 1); barrierInit(ring.empty + 8 * s, 2 * SUM_BLOCKS); }
    barriersMade();
  }
  clusterArrive();
  clusterWait();
  int beside = 0;
  for (int i = 0; i < p.outputs; i++) beside += p.output[i].tiles;
  const int tiles = beside * p.pairs, first = blockIdx.x / SUM_BLOCKS, every = gridDim.x / SUM_BLOCKS;
  if (group == 2) {
    fewRegisters();
    ring.phase = 1;
    if (warp == 8 && lane == 0)
      for (int at = first; at < tiles; at += every) {
        const SumTile tile = sumTile(p, at, beside, rank);
        for (int term = tile.term; term < tile.term + p.output[tile.output].terms; term++)
          for (int k = 0; k < p.inner[term]; k += SUM_INNER) {
            const unsigned full = ring.full + 8 * ring.stage, a = ring.at + ring.stage * SUM_STAGE_BYTES;
            barrierWait(ring.empty + 8 * ring.stage, ring.phase);
            barrierExpect(full, SUM_STAGE_BYTES);
            pieceToThis(a, p.a + term, k, tile.row, full);
            for (int half = rank; half < 2; half += SUM_BLOCKS) {
              const unsigned b = a + SUM_A_BYTES + half * (SUM_B_BYTES / 2);
              const int column = tile.column + half * (SUM_COLUMNS / 2);
              if (p.rowMajorB >> term & 1) {
                pieceToBoth(b, p.b + term, column, k, full);
                pieceToBoth(b + SUM_B_BYTES / 4, p.b + term, column + 64, k, full);
              } else
                pieceToBoth(b, p.b + term, k, column, full);
            }
            ring.next();
          }
      }
  } else {
    manyRegisters();
    ring.phase = 0;
    float c[128];
    for (int at = first; at < tiles; at += every) {
      const SumTile tile = sumTile(p, at, beside, rank);
      const SumOutput& output = p.output[tile.output];
      const int row = tile.row + (warp & 7) * 16 + (lane >> 2), end = tile.term + output.terms;
#pragma unroll
      for (int i = 0; i < 128; i++) c[i] = 0.f;
      if (DROPS) {
        addTerms(p, c, ring, tile.term, tile.term + p.dropped, group);
        dropSums(p.dropout, c, row, tile.column, output.columns);
        addTerms(p, c, ring, tile.term + p.dropped, end, group);
      } else
        addTerms(p, c, ring, tile.term, end, group);
      storeSums(output, c, row, tile.column, p.rows);
    }
  }
  // no block ends while the other still writes to its shared memory
  clusterArrive();
  clusterWait();
}
extern "C" __global__ void __launch_bounds__(384, 1) product_sum(const __grid_constant__ ProductSum p) { productSum<false>(p); }
extern "C" __global__ void __launch_bounds__(384, 1) product_sum_dropped(const __grid_constant__ ProductSum p) { productSum<true>(p); }
#endif
