// Matrix-vector products.
// y (rows, ld) = x (rows, k) · [W0; W1; …]ᵀ, rows ≤ 16. With sumsq, x is an RMSNorm's input times its weight, not yet
// divided: the results are multiplied by rsqrt(mean(square) + eps), from `partials` sums of squares per row.
struct ProductSegment {
  const T* w;
  int end;  // one past the segment's last row in the list
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
  int firstGateTile, gateTiles;  // tiles that are multiplied first
  unsigned* gateTilesDone;     // counts those that y has, of each slice
  ProductSegment segment[MAX_SEGMENTS];
};

__device__ __forceinline__ const T* weightRow(const Product& p, int row) {
  int s = 0, begin = 0;
  while (row >= p.segment[s].end) { begin = p.segment[s].end; s++; }
  return p.segment[s].w + (u64)(row - begin) * p.k;
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
// one. The gates' tiles go round the blocks and come first; a block has them whole, so that their sums have one contributor.
// The other tiles follow in one run, which may begin and end inside a tile.
struct Units {
  int member, members, chunks, gateUnits, first, count;
  int at, tile, chunk;

  __device__ __forceinline__ Units(const Product& p, int chunks, int member, int members)
      : member(member), members(members), chunks(chunks), at(0), tile(0), chunk(0) {
    const long long all = (long long)p.tiles * chunks;
    const int from = (int)(all * member / members), each = p.gateTiles / members, rest = p.gateTiles % members;
    count = (int)(all * (member + 1) / members) - from;
    gateUnits = (each + (member < rest)) * chunks;
    first = from - (member * each + (member < rest ? member : rest)) * chunks;
  }
  __device__ __forceinline__ bool isGate() const { return at < gateUnits; }
  // Sets tile and chunk to those of unit `at`; whether the tile is another than that of the unit before.
  __device__ __forceinline__ bool enter(const Product& p) {
    if (at > 0 && chunk + 1 < chunks) {
      chunk++;
      return false;
    }
    if (at < gateUnits) {
      tile = p.firstGateTile + member + at / chunks * members;
      chunk = 0;
    } else {
      const int unit = first + at - gateUnits;
      tile = unit / chunks;
      chunk = unit - tile * chunks;
      if (tile >= p.firstGateTile) tile += p.gateTiles;
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
// does not matter. Who waits for the gates' tiles can choose adapters and fetch their B while the rest is multiplied.
//
// A tensor map describes one matrix to the copy engine, so no tile has rows of two; rows and columns beyond the matrix
// arrive as zeros. A map shows row, column / d, column % d, where d is the largest power of two that divides k, at most 256.
#ifndef CHUNK
#define CHUNK 1024
#endif
#define STEPS (CHUNK / 256)  // of 32 columns, for each of eight warps
#define TILE 16
#define STAGE_BYTES (TILE * CHUNK * 2)

struct __align__(64) TensorMap { u64 opaque[16]; };
#ifndef ON_CPU
__device__ __forceinline__ void barrierInit(unsigned b, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(count));
}
__device__ __forceinline__ void barriersMade() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// What threads wrote to shared memory is there for the copy engine.
__device__ __forceinline__ void writtenForCopies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
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
__device__ __forceinline__ void tensorCopy(unsigned to, const TensorMap* map, int c1, int c2, unsigned barrier, u64 policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}],"
      " [%5], %6;" ::"r"(to),
      "l"(map), "r"(0), "r"(c1), "r"(c2), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void fetchMap(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
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
__device__ __forceinline__ u64 readOften() {
  u64 policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
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
#if SCORES == SCORES_STANDARDIZED
// Of a slice of a row of x in shared memory, by one warp: the sum of what f · x is more than f · x[0], and the sum of its squares.
__device__ __forceinline__ void leaveSpread(const Product& p, unsigned at, int row, int begin, int columns, float f, float* to) {
  const int lane = threadIdx.x & 31, left = p.k - begin;
  const float origin = toFloat(p.x[(u64)row * p.k]);
  float sum = 0, squares = 0;
  for (int c = lane * 8; c < columns && c < left; c += 256) {
    float v[8];
    unpack16B(loadShared(at + c * 2), v);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const float d = v[i] - origin;
      sum += d;
      squares += d * d;
    }
  }
  sum = warpSum(sum);
  squares = warpSum(squares);
  if (lane == 0) {
    to[0] = f * sum;
    to[1] = f * f * squares;
  }
}
#endif
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
#if SCORES == SCORES_STANDARDIZED
  // who routes by these scores has the input's spread with the gates' logits, of which this block has a tile
  if (p.gateTiles && member == 0)
    for (int m = warp; m < p.rows; m += 8)
      leaveSpread(p, xAt + m * xStride, m, chunk0 * CHUNK, chunks * CHUNK, factor[m], p.y + ((u64)slice * p.rows + m) * p.ld + p.ld - 2);
#endif

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
      if (p.gateTilesDone && units.isGate()) {
        __threadfence();
        syncConsumers();
        if (threadIdx.x == 0) atomicAdd(p.gateTilesDone, 1u);
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
