// Sums of products of many rows, y = a0 · b0 + a1 · b1 + …, on Hopper: a linear's base and its adapters in one pass over y, and up to
// three linears with one input in one launch. y has tiles of 128 × 256; a block multiplies one tile after another, two warpgroups 64
// rows each, by tensor cores out of shared memory, where a third brings 64 of the inner dimension at a time by the copy engine.
// Two blocks, with tiles beneath each other, share b: each copies half of it to both. Results leave by the copy engine too, while the
// next tile is begun.
//
// Tiles that would fill the last round of clusters only in part are split: their chunks of the inner dimension, one tile's after another's,
// are dealt out evenly ("stream-K"). A cluster's share ends with the first chunks of a tile, which it multiplies first and leaves in global
// memory as they are in float32, and begins with the last chunks of another, which it multiplies last and adds the others' sums to, in a
// fixed order. So it waits only for clusters before it, which have begun earlier and wait for none behind them, however many run at once;
// and all work at the same places of the inner dimension at a time, out of L2: the first chunks, then as far from the end.
//
// Maps show matrices as they lie in memory, in pieces of 64 columns, swizzled as the tensor cores want them; what is outside is zero.
#if TOPK == 1 && defined(TENSOR_CORES) && (defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(ON_CPU))
#define SUM_TERMS 6
#define SUM_ROWS 128
#define SUM_COLUMNS 256
#define SUM_INNER 64
#define SUM_STAGES 4          // with dropout one less, whose place what it keeps takes
#define SUM_A_BYTES (SUM_ROWS * SUM_INNER * 2)
#define SUM_B_BYTES (SUM_COLUMNS * SUM_INNER * 2)
#define SUM_STAGE_BYTES (SUM_A_BYTES + SUM_B_BYTES)
#define SUM_STORE_BYTES (64 * 128)  // 64 rows of 64 columns; each warpgroup has two such
#define SUM_TOGETHER 8  // pairs of tiles beneath each other that are worked on before those beside them

struct SumOutput {
  TensorMap y;
  int columns, terms, tiles;  // tiles beside each other
};
struct ProductSum {
  TensorMap a[SUM_TERMS], b[SUM_TERMS];  // one output's terms after another's
  SumOutput output[3];
  int inner[SUM_TERMS];
  unsigned rowMajorB;  // a bit a term: b lies (inner, columns) in memory, and not its transpose
  int outputs, pairs;
  Dropout dropout;  // of the first term of each output, whose b is row-major
  int split, chunks;  // how many tiles are, the last ones; chunks of the longest tile, which all count as
  float4* parts;  // what clusters leave, a warpgroup's 64 × 256 after another's
  unsigned* ready;  // which of these are there; zeros before and after
};

#ifndef ON_CPU
#define SUM_BLOCKS 2
#define SUM_REGISTERS32 \
      "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define SUM_REGISTERS64 SUM_REGISTERS32 \
      ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define SUM_REGISTERS96 SUM_REGISTERS64 \
      ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define SUM_REGISTERS128 SUM_REGISTERS96 \
      ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define SUM_REGISTERS160 SUM_REGISTERS128 \
      ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define SUM_REGISTERS192 SUM_REGISTERS160 \
      ",%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define SUM_REGISTERS224 SUM_REGISTERS192 \
      ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define SUM_REGISTERS256 SUM_REGISTERS224 \
      ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
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
  asm volatile("wgmma.mma_async.sync.aligned.m64n256k16.f32." SUM_TYPES " {" SUM_REGISTERS256 "}, %128, %129, 1, 1, 1, 0, %130;"
               : SUMS64(0), SUMS64(64)
               : "l"(a), "l"(b), "n"((int)ROW_MAJOR_B));
}
template <int N>
__device__ __forceinline__ void holdSum(float (&c)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(c[i])::"memory");
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
// A piece of 64 columns from shared memory; all pieces but the last N that this thread sent have been read, or, with landed, are there.
__device__ __forceinline__ void pieceFrom(unsigned from, const TensorMap* map, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map), "r"(column), "r"(row), "r"(from) : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
template <int N>
__device__ __forceinline__ void piecesRead() { asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory"); }
__device__ __forceinline__ void piecesLanded() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
__device__ __forceinline__ void syncGroup(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }
// Four matrices of 8 × 8 to shared memory: lane 8 m + r says where row r of matrix m goes; lane 4 g + q has columns 2q and 2q + 1 of
// row g of each.
__device__ __forceinline__ void storeMatrices(unsigned at, unsigned a, unsigned b, unsigned c, unsigned d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
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

__device__ __forceinline__ int sumChunks(int inner) { return (inner + SUM_INNER - 1) / SUM_INNER; }

// What a cluster multiplies, one after another: tiles, then its share of the split ones from its end to its beginning.
struct SumWork {
  int cluster, clusters, whole;  // tiles that are not split
  int next, left;                // of these; where what is left of the share ends
  int tile, from, to;            // at hand: so many chunks of a tile's terms one after another
  __device__ __forceinline__ int share(const ProductSum& p, int cluster) const { return p.split * p.chunks * cluster / clusters; }
  __device__ __forceinline__ SumWork(const ProductSum& p, int tiles)
      : cluster(blockIdx.x / SUM_BLOCKS), clusters(gridDim.x / SUM_BLOCKS), whole(tiles - p.split), next(cluster), left(share(p, cluster + 1)) {}
  __device__ __forceinline__ bool more(const ProductSum& p) {
    if (next < whole) {
      tile = next, from = 0, to = p.chunks;
      next += clusters;
      return true;
    }
    const int begin = share(p, cluster);
    if (left <= begin) return false;
    const int split = (left - 1) / p.chunks, first = split * p.chunks;
    tile = whole + split, from = begin > first ? begin - first : 0, to = left - first;
    left = first + from;
    return true;
  }
};

// The ring of stages, which the copying warp and the warpgroups go through together.
struct SumRing {
  unsigned at, full, empty;
  int stages, stage, last;  // last: the stage that is being multiplied; -1
  unsigned phase;
  __device__ __forceinline__ void next() {
    if (++stage == stages) { stage = 0; phase ^= 1; }
  }
};
// A ring of so many stages, whose barriers lie behind each other, when both blocks of a cluster have made theirs.
__device__ __forceinline__ SumRing makeRing(unsigned at, int stages, unsigned barriers) {
  SumRing ring;
  ring.at = at, ring.full = barriers, ring.empty = barriers + 8 * stages;
  ring.stages = stages, ring.stage = 0, ring.last = -1;
  if (threadIdx.x == 0) {
    for (int s = 0; s < stages; s++) { barrierInit(ring.full + 8 * s, 1); barrierInit(ring.empty + 8 * s, 2 * SUM_BLOCKS); }
    barriersMade();
  }
  clusterArrive();
  clusterWait();
  return ring;
}

// c += so many sixteens of the inner dimension of the stage's a and b.
template <bool ROW_MAJOR_B, int SIXTEENS>
__device__ __forceinline__ void multiplyStage(float (&c)[128], const SumRing& ring, int group) {
  barrierWait(ring.full + 8 * ring.stage, ring.phase);
  const unsigned b = ring.at + ring.stage * SUM_STAGE_BYTES + SUM_A_BYTES, a = b - SUM_A_BYTES + group * (64 * SUM_INNER * 2);
  holdSum(c);
  beginSums();
#pragma unroll
  for (int step = 0; step < SIXTEENS; step++)
    multiplySum<ROW_MAJOR_B>(c, rowsAt(a + 32 * step), ROW_MAJOR_B ? columnsAt(b + 16 * 128 * step) : rowsAt(b + 32 * step));
  closeSums();
  holdSum(c);
}
// All but the LEFT last stages have been multiplied: the one before is given back.
template <int LEFT, int N>
__device__ __forceinline__ void giveBack(float (&c)[N], SumRing& ring) {
  const int lane = threadIdx.x & 127;
  waitForSums<LEFT>();
  if (LEFT == 0) holdSum(c);
  if (ring.last >= 0 && lane < SUM_BLOCKS) arriveAt(ring.empty + 8 * ring.last, lane);
  ring.last = LEFT ? ring.stage : -1;
}
// Those of a term's chunks that are in [from, to), which then count from the next term's first.
template <bool ROW_MAJOR_B>
__device__ __forceinline__ void addTerm(float (&c)[128], SumRing& ring, int inner, int& from, int& to, int group) {
  const bool half = (inner - 1) % SUM_INNER < SUM_INNER / 2;  // so much of the last chunk is there at most
  const int chunks = sumChunks(inner), whole = chunks - half, end = to < whole ? to : whole;
#pragma unroll 1
  for (int chunk = from > 0 ? from : 0; chunk < end; chunk++) {
    multiplyStage<ROW_MAJOR_B, SUM_INNER / 16>(c, ring, group);
    giveBack<1>(c, ring);
    ring.next();
  }
  if (half && from < chunks && to >= chunks) {
    multiplyStage<ROW_MAJOR_B, SUM_INNER / 32>(c, ring, group);
    giveBack<1>(c, ring);
    ring.next();
  }
  from -= chunks, to -= chunks;
}
__device__ __forceinline__ void addTerms(const ProductSum& p, float (&c)[128], SumRing& ring, int term, int end, int from, int to, int group) {
  for (; term < end; term++)
    if (p.rowMajorB >> term & 1)
      addTerm<true>(c, ring, p.inner[term], from, to, group);
    else
      addTerm<false>(c, ring, p.inner[term], from, to, group);
  giveBack<0>(c, ring);
}

// What drop8 keeps of a tile, a bit each: of row r 64 for the columns 2q and 2q + 1 of all eights, at kept[4 r + q]. By three warps,
// which have nothing else to do.
__device__ __forceinline__ void drawKept(const Dropout& d, u64* kept, int row, int column, int columns) {
  for (int i = threadIdx.x - 9 * 32; i < 2 * SUM_ROWS; i += 3 * 32) {
    u64 z = d.seed + ((u64)(row + i / 2) * ((columns + 3) / 4) + column / 4 + i % 2) * 0x9e3779b97f4a7c15ULL, even = 0, odd = 0;
    for (int eight = 0; eight < SUM_COLUMNS / 8; eight++) {
      const u64 bits = dropoutBits(z);
      const unsigned low = (unsigned)bits, high = (unsigned)(bits >> 32);
      even = even >> 2 | (u64)((low & 0xffff) >= d.threshold) << 62 | (u64)((low >> 16) >= d.threshold) << 63;
      odd = odd >> 2 | (u64)((high & 0xffff) >= d.threshold) << 62 | (u64)((high >> 16) >= d.threshold) << 63;
      z += 2 * 0x9e3779b97f4a7c15ULL;
    }
    kept[2 * i] = even;
    kept[2 * i + 1] = odd;
  }
}
__device__ __forceinline__ void dropSums(const Dropout& d, float (&c)[128], u64 upper, u64 lower) {
#pragma unroll
  for (int i = 0; i < 128; i++) {
    const int bit = i / 4 * 2 + i % 2;
    const unsigned word = i & 2 ? bit < 32 ? (unsigned)lower : (unsigned)(lower >> 32) : bit < 32 ? (unsigned)upper : (unsigned)(upper >> 32);
    c[i] = word >> bit % 32 & 1 ? c[i] * d.scale : 0.f;
  }
}

// Of a warpgroup of a cluster, which leaves one part at most: only the last tile of a share can go on in the next.
__device__ __forceinline__ int partOf(int cluster, int rank, int group) { return (cluster * SUM_BLOCKS + rank) * 2 + group; }
__device__ __forceinline__ void leaveSums(const ProductSum& p, const float (&c)[128], int part, int group) {
  const int thread = threadIdx.x & 127;
  float4* const to = p.parts + (size_t)part * (64 * SUM_COLUMNS / 4) + thread;
#pragma unroll
  for (int i = 0; i < 32; i++) to[128 * i] = {c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]};
  syncGroup(group);
  if (thread == 0) {
    __threadfence();
    *(volatile unsigned*)(p.ready + part) = 1;
  }
}
__device__ __forceinline__ void addLeftSums(const ProductSum& p, float (&c)[128], int part, int group) {
  const int thread = threadIdx.x & 127;
  if (thread == 0) {
    while (!loadAcquire(p.ready + part)) waitABit();
    p.ready[part] = 0;  // for the next launch
  }
  syncGroup(group);
  const float4* const from = p.parts + (size_t)part * (64 * SUM_COLUMNS / 4) + thread;
#pragma unroll
  for (int i = 0; i < 32; i++) {
    const float4 v = from[128 * i];
    c[4 * i] += v.x, c[4 * i + 1] += v.y, c[4 * i + 2] += v.z, c[4 * i + 3] += v.w;
  }
}

// 64 columns at a time: a warpgroup writes one piece while the one before leaves.
__device__ __forceinline__ void storeSums(const TensorMap* y, const float (&c)[128], unsigned staging, int row, int column, int group) {
  const int thread = threadIdx.x & 127, lane = thread & 31;
  const int r = thread / 32 * 16 + (lane & 7) + (lane >> 3 & 1) * 8, high = lane >> 4;
#pragma unroll
  for (int piece = 0; piece < SUM_COLUMNS / 64; piece++) {
    const unsigned at = staging + (2 * group + piece % 2) * SUM_STORE_BYTES;
    if (thread == 0) piecesRead<1>();
    syncGroup(group);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float* const f = c + 32 * piece + 8 * i;
      unsigned v[4];
#pragma unroll
      for (int j = 0; j < 4; j++) v[j] = pair(fromFloat(f[2 * j]), fromFloat(f[2 * j + 1]));
      storeMatrices(at + r * 128 + ((2 * i + high ^ r & 7) << 4), v[0], v[1], v[2], v[3]);
    }
    writtenForCopies();
    syncGroup(group);
    if (thread == 0) pieceFrom(at, y, column + 64 * piece, row + 64 * group);
  }
}

// The copying thread: pieces of a and b for all that the cluster multiplies. With transposed a its rows lie beside each other in memory.
template <bool TRANSPOSED>
__device__ __forceinline__ void copySums(const ProductSum& p, SumRing& ring, int beside, int rank) {
  SumWork work(p, beside * p.pairs);
  while (work.more(p)) {
    const SumTile tile = sumTile(p, work.tile, beside, rank);
    int before = 0;  // chunks of terms
    for (int term = tile.term; term < tile.term + p.output[tile.output].terms; before += sumChunks(p.inner[term++])) {
      const int from = work.from - before, to = work.to - before, chunks = sumChunks(p.inner[term]);
      for (int k = (from > 0 ? from : 0) * SUM_INNER; k < (to < chunks ? to : chunks) * SUM_INNER; k += SUM_INNER) {
        const unsigned full = ring.full + 8 * ring.stage, a = ring.at + ring.stage * SUM_STAGE_BYTES;
        barrierWait(ring.empty + 8 * ring.stage, ring.phase);
        barrierExpect(full, SUM_STAGE_BYTES);
        if (TRANSPOSED) {
          pieceToThis(a, p.a + term, tile.row, k, full);
          pieceToThis(a + SUM_A_BYTES / 2, p.a + term, tile.row + 64, k, full);
        } else
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
  }
}

template <bool DROPS>
__device__ __forceinline__ void productSum(const ProductSum& p) {
  DYNAMIC_SHARED(memory);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, group = threadIdx.x >> 7, rank = rankOfBlock();
  constexpr int STAGES = SUM_STAGES - DROPS;
  const unsigned ringAt = (shared32(memory) + 1023) & ~1023u, staging = ringAt + STAGES * SUM_STAGE_BYTES, keptAt = staging + 4 * SUM_STORE_BYTES;
  u64* const kept = (u64*)(memory + (keptAt - shared32(memory)));
  const unsigned drawn = keptAt + (DROPS ? SUM_ROWS * 32 : 0), taken = drawn + 8;
  if (threadIdx.x == 0) {
    barrierInit(drawn, 3);
    barrierInit(taken, 8);
  }
  SumRing ring = makeRing(ringAt, STAGES, taken + 8);
  int beside = 0;
  for (int i = 0; i < p.outputs; i++) beside += p.output[i].tiles;
  if (group == 2) {
    fewRegisters();
    ring.phase = 1;
    if (warp == 8 && lane == 0)
      copySums<false>(p, ring, beside, rank);
    else if (DROPS && warp > 8) {
      SumWork work(p, beside * p.pairs);
      unsigned phase = 1;
      while (work.more(p)) {
        const SumTile tile = sumTile(p, work.tile, beside, rank);
        if (work.from >= sumChunks(p.inner[tile.term])) continue;
        barrierWait(taken, phase);
        phase ^= 1;
        drawKept(p.dropout, kept, tile.row, tile.column, p.output[tile.output].columns);
        __syncwarp();
        if (lane == 0) barrierArrive(drawn);
      }
    }
  } else {
    manyRegisters();
    SumWork work(p, beside * p.pairs);
    ring.phase = 0;
    unsigned phase = 0;
    float c[128];
    while (work.more(p)) {
      const SumTile tile = sumTile(p, work.tile, beside, rank);
      const SumOutput& output = p.output[tile.output];
      const int end = tile.term + output.terms;
      int term = tile.term, from = work.from, to = work.to;
#pragma unroll
      for (int i = 0; i < 128; i++) c[i] = 0.f;
      if (DROPS && from < sumChunks(p.inner[term])) {  // what is dropped of parts is of their sum too
        addTerm<true>(c, ring, p.inner[term++], from, to, group);
        giveBack<0>(c, ring);
        barrierWait(drawn, phase);
        phase ^= 1;
        const int row = (warp & 7) * 16 + (lane >> 2);
        const u64 upper = kept[4 * row + (lane & 3)], lower = kept[4 * (row + 8) + (lane & 3)];
        __syncwarp();
        if (lane == 0) barrierArrive(taken);
        dropSums(p.dropout, c, upper, lower);
      }
      addTerms(p, c, ring, term, end, from, to, group);
      if (work.to < p.chunks) {
        leaveSums(p, c, partOf(work.cluster, rank, group), group);
        continue;
      }
      const int begin = (work.tile - work.whole) * p.chunks;
      if (work.from > 0)
        for (int other = work.cluster; work.share(p, other) > begin; other--) addLeftSums(p, c, partOf(other - 1, rank, group), group);
      storeSums(&output.y, c, staging, tile.row, tile.column, group);
    }
    if ((threadIdx.x & 127) == 0) piecesLanded();
  }
  // no block ends while the other still writes to its shared memory
  clusterArrive();
  clusterWait();
}
extern "C" __global__ void __launch_bounds__(384, 1) product_sum(const __grid_constant__ ProductSum p) { productSum<false>(p); }
extern "C" __global__ void __launch_bounds__(384, 1) product_sum_dropped(const __grid_constant__ ProductSum p) { productSum<true>(p); }
#endif
