// Adapters of many tokens, of each token those alone that it chose: a chunk's tokens, each TOPK times, are sorted by their adapters into
// tiles of 16, which tensor cores multiply by one adapter's rows. Rows are A (Σr, in) or Bᵀ (Σr, out). A token's assignments to adapters are
// numbered from 0 in the adapters' order, and an adapter's lie in the order of their numbers, so none lies in a tile before an earlier one of
// its token.
#define TILE 16
struct GroupedTile {
  unsigned row, rank;          // the adapter's first row and its rank; NO_ROW behind a list's last tile
  unsigned short assignment[TILE];  // 4096 · its number, and the token from the chunk's first; NO_ASSIGNMENT where a tile is not full
};
#define NO_ROW 0xffffffffu
#define NO_ASSIGNMENT 0xffffu
__device__ __forceinline__ int tokenOf(unsigned assignment) { return assignment & 0xfff; }
__device__ __forceinline__ int numberOf(unsigned assignment) { return assignment >> 12; }

// The number of the assignment to a token's j-th adapter.
__device__ __forceinline__ int numberAmong(const int (&e)[TOPK], int j) {
  int number = 0;
#pragma unroll
  for (int other = 0; other < TOPK; other++) number += e[other] < e[j] || e[other] == e[j] && other < j;
  return number;
}

struct TokenGroups {
  const int* chosen;   // (TOPK, tokens)
  const int* offsets;  // (n + 1) rows of adapters
  GroupedTile* tile;   // (chunks, tiles)
};

// Sorts, in shared memory: tiles, a place for each adapter and number, eight sums. Grid (1, chunks, linears).
struct GroupTokens {
  TokenGroups linear[3];
  int tokens, chunk, tiles;  // a chunk has 2048 tokens at most
};
#define SORT_THREADS 1024
extern "C" __global__ void __launch_bounds__(SORT_THREADS) group_tokens(const __grid_constant__ GroupTokens p) {
  DYNAMIC_SHARED(sharedTiles);
  const TokenGroups& l = p.linear[blockIdx.z];
  const int from = blockIdx.y * p.chunk, thread = threadIdx.x;
  const int count = p.tokens - from < p.chunk ? p.tokens - from : p.chunk;
  GroupedTile* const tile = (GroupedTile*)sharedTiles;
  int(*const at)[TOPK] = (int(*)[TOPK])(tile + p.tiles);
  int* const ends = at[256];
  constexpr int EACH = 2048 / SORT_THREADS, PARTS = sizeof(GroupedTile) / 8;
  releaseNext();
  for (int i = thread; i < 256 * TOPK; i += SORT_THREADS) ((int*)at)[i] = 0;
  for (int i = thread; i < p.tiles * PARTS; i += SORT_THREADS) ((uint2*)tile)[i] = i % PARTS ? make_uint2(~0u, ~0u) : make_uint2(NO_ROW, 0);
  waitForPrevious();
  int e[EACH][TOPK], place[EACH][TOPK];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    const int token = thread + SORT_THREADS * i;
#pragma unroll
    for (int j = 0; j < TOPK; j++) e[i][j] = token < count ? l.chosen[(u64)j * p.tokens + from + token] : -1;
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < EACH; i++)
#pragma unroll
    for (int j = 0; j < TOPK; j++)
      if (e[i][j] >= 0) place[i][j] = atomicAdd(&at[e[i][j]][numberAmong(e[i], j)], 1);
  __syncthreads();
  int own = 0;
  if (thread < 256) {
#pragma unroll
    for (int j = 0; j < TOPK; j++) own += at[thread][j];
  }
  const int needed = (own + TILE - 1) / TILE;
  int first = needed;  // of the warp's threads to this one
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, first, d);
    if ((thread & 31) >= d) first += before;
  }
  if (thread < 256 && (thread & 31) == 31) ends[thread >> 5] = first;
  __syncthreads();
  if (needed) {
    first -= needed;
    for (int w = 0; w < thread >> 5; w++) first += ends[w];
    int next = first * TILE;
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      const int these = at[thread][j];
      at[thread][j] = next;
      next += these;
    }
    const int row = l.offsets[thread], rank = l.offsets[thread + 1] - row;
    for (int i = 0; i < needed; i++) *(uint2*)&tile[first + i] = make_uint2(row, rank);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < EACH; i++)
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      if (e[i][j] < 0) continue;
      const int number = numberAmong(e[i], j), to = at[e[i][j]][number] + place[i][j];
      tile[to / TILE].assignment[to % TILE] = number << 12 | thread + SORT_THREADS * i;
    }
  __syncthreads();
  uint2* const to = (uint2*)(l.tile + (u64)blockIdx.y * p.tiles);
  for (int i = thread; i < p.tiles * PARTS; i += SORT_THREADS) to[i] = ((uint2*)tile)[i];
}

// Chooses; factors are weight · scale. Grid (tokens / 8, linears).
struct GroupedRoute {
  ScaledLinear linear;
  int* chosen;     // (TOPK, tokens), of each token in the adapters' order
  float* factors;  // (TOPK, tokens)
};
struct PrefillRoute {
  const T* rows;  // (tokens, stride): the logits of each linear's gates
  long long tokens, stride;
  const T* x;
  int k;
  float invTemperature;
  GroupedRoute linear[3];
};
extern "C" __global__ void __launch_bounds__(256) prefill_route(const __grid_constant__ PrefillRoute p) {
  releaseNext();
  const GroupedRoute& l = p.linear[blockIdx.y];
  const int lane = threadIdx.x & 31;
  const long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.tokens) return;
  int index[TOPK];
  float weight[TOPK];
  choose(p, l.linear, token, index, weight);
  int e[TOPK];
#pragma unroll
  for (int j = 0; j < TOPK; j++) e[j] = index[j] < 0 ? 0 : index[j];
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    const float factor = index[j] < 0 ? 0.f : weight[j] * l.linear.scales[e[j]];
    const int number = numberAmong(e, j);
    if (lane == 0) {
      l.chosen[number * p.tokens + token] = e[j];
      l.factors[number * p.tokens + token] = factor;
    }
  }
}

// Where z lies: (chunks, tiles, zStride / 8, TILE, 8), zeros where a tile is not full, or with byRow (tokens, zStride) of all
// adapters, one's z where its rows lie among all.
struct GroupedColumns {
  int zStride, byRow;
};
// z = factor · (x · rowsᵀ) of the chosen adapters. Grid (tiles · chunks, ranks / 8, linears): a block, of four or eight warps, has a
// tile's 8 ranks, its warps have parts of k.
struct GroupedZ {
  TokenGroups groups;
  const T* x;     // (tokens, k)
  const T* rows;  // (Σr, k)
  const float* factors;  // (TOPK, tokens), of assignments, or null
  T* z;                  // with byRow an adapter's ranks are whole eights
  int k;  // in whole 32
};
struct GroupZ {
  GroupedZ linear[3];
  GroupedColumns columns;
  int tokens, chunk, tiles, chunks;
};
// y (tokens, out) = z · rows of the chosen adapters, or the sum of several linears'. Grid (any number of blocks, which share all
// columns, chunks).
struct GroupedRows {
  TokenGroups groups;
  const T* rows;  // (Σr, out)
  const T* z;
  T* y;           // (tokens, out)
  int out;        // in whole 8
};
struct GroupAdd {
  GroupedRows linear[3];
  GroupedColumns columns;
  int linears, together;  // so many linears have one y
  int chunk, tiles;
};
#define GROUP_THREADS 640
// z of a tile, one of its assignments and a rank.
__device__ __forceinline__ T* columnsOf(const GroupedColumns& p, T* z, u64 tile, int i, int token, unsigned row, unsigned rank) {
  return z + (p.byRow ? (u64)token * p.zStride + row + rank : ((tile * (p.zStride / 8) + rank / 8) * TILE + i) * 8 + rank % 8);
}
#ifdef TENSOR_CORES
template <int N>
__device__ __forceinline__ void groupedProduct(const T* x0, const T* x1, bool is0, bool is1, const T* rows, int step, float* c) {
  uint4 a[N], b[N], w[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    a[i] = loadIf(is0, x0 + step * i);
    b[i] = loadIf(is1, x1 + step * i);
    w[i] = loadStream(rows + step * i);
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    mma(c, a[i].x, b[i].x, a[i].y, b[i].y, w[i].x, w[i].y);
    mma(c, a[i].z, b[i].z, a[i].w, b[i].w, w[i].z, w[i].w);
  }
}
extern "C" __global__ void __launch_bounds__(256, 5) group_z(const __grid_constant__ GroupZ p) {
  __shared__ float parts[8][TILE][8];
  waitForPrevious();
  releaseNext();  // not before: group_add reads tiles without waiting for this
  const int chunk = blockIdx.x % p.chunks, r = blockIdx.y * 8, from = chunk * p.chunk;
  const GroupedZ& l = p.linear[blockIdx.z];
  const u64 at = (u64)chunk * p.tiles + blockIdx.x / p.chunks;
  const GroupedTile& tile = l.groups.tile[at];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3;
  const uint2 its = *(const uint2*)&tile;
  const unsigned a0 = tile.assignment[g], a1 = tile.assignment[g + 8];
  const int first = its.x, rank = its.y, t0 = tokenOf(a0), t1 = tokenOf(a1);
  if (r >= rank) return;
  const bool is0 = a0 != NO_ASSIGNMENT, is1 = a1 != NO_ASSIGNMENT;
  const T* x0 = l.x + (u64)(from + t0) * l.k + 8 * q;
  const T* x1 = l.x + (u64)(from + t1) * l.k + 8 * q;
  const T* rows = l.rows + (u64)(first + (r + g < rank ? r + g : r)) * l.k + 8 * q;
  float c[4] = {0, 0, 0, 0};
  // of 32 columns a lane has those from 8 q on: any order will do that x and the rows have in common
  const int step = blockDim.x;
  int column = warp * 32;
  for (; column + 3 * step < l.k; column += 4 * step) groupedProduct<4>(x0 + column, x1 + column, is0, is1, rows + column, step, c);
  for (; column < l.k; column += step) groupedProduct<1>(x0 + column, x1 + column, is0, is1, rows + column, step, c);
  parts[warp][g][2 * q] = c[0];
  parts[warp][g][2 * q + 1] = c[1];
  parts[warp][g + 8][2 * q] = c[2];
  parts[warp][g + 8][2 * q + 1] = c[3];
  __syncthreads();
  const int row = threadIdx.x >> 3, i = threadIdx.x & 7;
  if (row >= TILE) return;
  const unsigned assignment = tile.assignment[row];
  const int token = tokenOf(assignment);
  const bool is = assignment != NO_ASSIGNMENT;
  if (!is && p.columns.byRow) return;
  float v = 0;
  for (int w = 0; w < step / 32; w++) v += parts[w][row][i];
  const float factor = is && l.factors ? l.factors[(u64)numberOf(assignment) * p.tokens + from + token] : 1.f;
  *columnsOf(p.columns, l.z, at, row, from + token, first, r + i) = fromFloat(r + i < rank ? v * factor : 0.f);
}

__device__ __forceinline__ uint4 packed8(const float (*c)[4], int half) {
  unsigned v[4];
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = pair(fromFloat(c[i][2 * half]), fromFloat(c[i][2 * half + 1]));
  return make_uint4(v[0], v[1], v[2], v[3]);
}
__device__ __forceinline__ uint4 addEights(uint4 a, uint4 b) {
  return make_uint4(addPairs(a.x, b.x), addPairs(a.y, b.y), addPairs(a.z, b.z), addPairs(a.w, b.w));
}

// Of a tile a lane has, for 8 ranks, rank g at 8 columns of B, and of z at rows g and g + 8 ranks 2q and 2q + 1. Ranks and columns that
// are outside are read from inside: z has zeros there, or nobody wants them. Lanes side by side have columns side by side: were it
// ranks, 16 bytes of each, their reads of the cache's lines would meet in the same banks.
struct TileFactors {
  unsigned rank, assignments;  // of rows g and g + 8
  uint4 b;
  unsigned z[2];
};
__device__ __forceinline__ unsigned assignmentAt(unsigned assignments, int half) { return half ? assignments >> 16 : assignments & 0xffff; }
template <bool BY_ROW>
struct TileSources {
  const GroupedTile* tile;    // in shared memory
  const unsigned char* rows;  // at the lane's columns
  const unsigned char* z;     // at the lane's ranks
  int tiles;                  // that have assignments
  unsigned rowBytes, zStride, g, q;
  __device__ __forceinline__ void factors(TileFactors& f, int i, unsigned r) const {
    const unsigned row = tile[i].row, last = f.rank - 1, at = g + r;
    f.b = loadNeighbours(rows + (row + (at < last ? at : last)) * rowBytes);
    if (BY_ROW) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const unsigned assignment = assignmentAt(f.assignments, half);
        f.z[half] = *(const unsigned*)(z + 2 * ((assignment == NO_ASSIGNMENT ? 0 : tokenOf(assignment)) * zStride + row + r));
      }
    } else {
      const unsigned char* const its = z + ((unsigned)i * zStride + r) * (2 * TILE);
      f.z[0] = *(const unsigned*)its;
      f.z[1] = *(const unsigned*)(its + 16 * (TILE / 2));
    }
  }
  __device__ __forceinline__ void fetch(TileFactors& f, int i) const {
    f.assignments = NO_ASSIGNMENT << 16 | NO_ASSIGNMENT;
    f.rank = 0;
    if (i < tiles) {
      f.rank = tile[i].rank;
      f.assignments = (unsigned)tile[i].assignment[g + 8] << 16 | tile[i].assignment[g];
    }
    if (f.rank) factors(f, i, 0);
    else f.b = make_uint4(0, 0, 0, 0), f.z[0] = f.z[1] = 0;
  }
};
// Warps arrive when they have added their round's first assignments, and wait, so many rounds later, until all have arrived: on two barriers,
// one after the other.
struct Rounds {
  unsigned barriers, count;
#if __CUDA_ARCH__ >= 900
  __device__ __forceinline__ void arrive() {
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrierArrive(barriers + 8 * (count & 1));
    count++;
  }
  __device__ __forceinline__ void wait(int roundsAgo) const {
    const unsigned round = count - roundsAgo;
    barrierWait(barriers + 8 * (round & 1), round >> 1 & 1);
  }
#else
  __device__ __forceinline__ void arrive() {}
  __device__ __forceinline__ void wait(int) const { __syncthreads(); }
#endif
};
// Where a lane's part of 32 columns goes: a token's first assignment of the first of several linears is written to its sum (64 bytes a token),
// its last one of the last linear, with the sum, to y.
struct SumPlaces {
  uint4* sums;
  uint4* y;
  unsigned stride;
  bool inside, first, last;
};
struct TileSums {
  uint4 v[2];
  unsigned assignments;
  __device__ __forceinline__ void add(int number, const SumPlaces& to) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const unsigned assignment = assignmentAt(assignments, half);
      if (numberOf(assignment) != number) continue;
      const int token = tokenOf(assignment);
      uint4 sum = v[half];
      if (!to.first || number > 0) sum = addEights(sum, to.sums[4 * token]);
      if (!to.last || number < TOPK - 1) to.sums[4 * token] = sum;
      else if (to.inside) storeStream(to.y + token * to.stride, sum);
    }
  }
  __device__ __forceinline__ void addOthers(const SumPlaces& to) const {
    add(1, to);
#pragma unroll 1
    for (int number = 2; number < TOPK; number++) {
      __syncthreads();
      add(number, to);
    }
  }
};
// A linear's part of 32 columns of a chunk. In each round a warp has a tile. A token's earlier assignments lie in earlier rounds or in the
// same, so all but first ones wait until all warps have added the round's first ones.
#define GROUP_AHEAD 4  // tiles of which a warp has one in hand and the others on their way
template <bool BY_ROW>
__device__ __forceinline__ void addLinear(const TileSources<BY_ROW>& from, Rounds& rounds, const SumPlaces& to) {
  constexpr int WARPS = GROUP_THREADS / 32;
  const int warp = threadIdx.x >> 5;
  TileFactors ring[GROUP_AHEAD];
#pragma unroll
  for (int k = 0; k < GROUP_AHEAD - 1; k++) from.fetch(ring[k], warp + k * WARPS);
  __syncthreads();  // what was summed before has been read by all warps
  TileSums before;
  for (int begin = 0;;) {
#pragma unroll
    for (int k = 0; k < GROUP_AHEAD; k++, begin += WARPS) {
      if (begin >= from.tiles) {
        if (TOPK > 1) {
          rounds.wait(1);
          before.addOthers(to);
        }
        return;
      }
      TileFactors& f = ring[k];
      from.fetch(ring[(k + GROUP_AHEAD - 1) % GROUP_AHEAD], begin + warp + (GROUP_AHEAD - 1) * WARPS);
      float c[4][4] = {};
#pragma unroll 1
      for (unsigned r = 8;; r += 8) {
        // column n of the i-th is 8 (n / 2) + 2 i + n % 2 of B's: a lane's sums are 8 side by side
        mma8(c[0], f.z[0], f.z[1], transposed(f.b.x));
        mma8(c[1], f.z[0], f.z[1], transposed(f.b.y));
        mma8(c[2], f.z[0], f.z[1], transposed(f.b.z));
        mma8(c[3], f.z[0], f.z[1], transposed(f.b.w));
        if (r >= f.rank) break;
        from.factors(f, begin + warp, r);
      }
      const TileSums its = {{packed8(c, 0), packed8(c, 1)}, f.assignments};
      its.add(0, to);
      if (TOPK > 1) {
        rounds.arrive();
        if (begin > 0) {
          rounds.wait(2);
          before.addOthers(to);
        }
        before = its;
      }
    }
  }
}

// A block goes through its columns, 32 at a time. In shared memory: the sums, 64 bytes a token; barriers; tiles, and how many there are.
template <bool BY_ROW>
__device__ __forceinline__ void groupAdd(const GroupAdd& p) {
  DYNAMIC_SHARED(sharedSums);
  const int tiles = p.tiles;
  const unsigned lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, from = blockIdx.y * p.chunk;
  uint4* const sums = (uint4*)sharedSums + q;
  unsigned char* const behind = sharedSums + (TOPK * p.together > 1 ? 64 * p.chunk : 0);
  GroupedTile* const tile = (GroupedTile*)(behind + 16);
  int* const counts = (int*)(tile + p.together * tiles);
  Rounds rounds{shared32(behind), 0};
#if __CUDA_ARCH__ >= 900
  if (threadIdx.x == 0) {
    barrierInit(rounds.barriers, GROUP_THREADS / 32);
    barrierInit(rounds.barriers + 8, GROUP_THREADS / 32);
    barriersMade();
  }
#endif
  // Blocks side by side have columns side by side: what each reads and writes of a row is less than the memory's pages.
  int before = 0, m = 0;  // parts of 32 columns of the sums before
  bool other = true, begun = false;
  for (int part = blockIdx.x;; part += gridDim.x) {
    while (m < p.linears && part - before >= (p.linear[m].out + 31) / 32) {
      before += (p.linear[m].out + 31) / 32;
      m += p.together;
      other = true;
    }
    if (m >= p.linears) return;
    const GroupedRows* const linears = p.linear + m;
    if (other) {
      __syncthreads();
      constexpr int PARTS = sizeof(GroupedTile) / 8;
      for (int i = 0; i < p.together; i++) {
        const GroupedTile* const its = linears[i].groups.tile + (u64)blockIdx.y * tiles;
        for (int k = threadIdx.x; k < tiles * PARTS; k += GROUP_THREADS) {
          const uint2 v = ((const uint2*)its)[k];
          ((uint2*)(tile + i * tiles))[k] = v;
          const int at = k / PARTS;
          if (k % PARTS == 0 && v.x != NO_ROW && (at == tiles - 1 || its[at + 1].row == NO_ROW)) counts[i] = at + 1;
        }
      }
      if (!begun) waitForPrevious();
      other = false;
      begun = true;
      __syncthreads();
    }
    const unsigned out = linears[0].out, column = (part - before) * 32, at = column + 8 * q;
    uint4* const y = (uint4*)(linears[0].y + (u64)from * out + column) + q;
    TileSources<BY_ROW> sources{nullptr, nullptr, nullptr, 0, 2 * out, (unsigned)p.columns.zStride, g, q};
#pragma unroll 1
    for (int j = 0; j < p.together; j++) {
      const GroupedRows& of = linears[j];
      sources.tile = tile + j * tiles;
      sources.tiles = counts[j];
      sources.rows = (const unsigned char*)(of.rows + (at < out ? at : out - 8));
      sources.z = (const unsigned char*)(of.z + (BY_ROW ? (u64)from * p.columns.zStride + 2 * q
                                                        : (u64)blockIdx.y * tiles * TILE * p.columns.zStride + 2 * lane));
      addLinear(sources, rounds, {sums, y, out / 8, at < out, !BY_ROW || j == 0, !BY_ROW || j == p.together - 1});
    }
  }
}
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1) group_add(const __grid_constant__ GroupAdd p) { groupAdd<false>(p); }
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1) group_add_by_row(const __grid_constant__ GroupAdd p) { groupAdd<true>(p); }
#else
// Plainly, for who has no tensor cores.
extern "C" __global__ void __launch_bounds__(256) group_z(const __grid_constant__ GroupZ p) {
  const int chunk = blockIdx.x % p.chunks, i = threadIdx.x >> 3, r = blockIdx.y * 8 + (threadIdx.x & 7);
  const GroupedZ& l = p.linear[blockIdx.z];
  const u64 at = (u64)chunk * p.tiles + blockIdx.x / p.chunks;
  const GroupedTile& its = l.groups.tile[at];
  if (its.row == NO_ROW || r >= (int)its.rank || i >= TILE || its.assignment[i] == NO_ASSIGNMENT) return;
  const int token = chunk * p.chunk + tokenOf(its.assignment[i]);
  float v = 0;
  for (int c = 0; c < l.k; c++) v += toFloat(l.x[(u64)token * l.k + c]) * toFloat(l.rows[(u64)(its.row + r) * l.k + c]);
  const float factor = l.factors ? l.factors[(u64)numberOf(its.assignment[i]) * p.tokens + token] : 1.f;
  *columnsOf(p.columns, l.z, at, i, token, its.row, r) = fromFloat(v * factor);
}
__device__ __forceinline__ void plainGroupAdd(const GroupAdd& p) {
  for (int m = 0; m < p.linears; m += p.together) {
    const int out = p.linear[m].out;
    for (int j = 0; j < TOPK * p.together; j++) {
      const GroupedRows& of = p.linear[m + j / TOPK];
      const u64 first = (u64)blockIdx.y * p.tiles;
      __syncthreads();
      for (int i = threadIdx.x; i < p.tiles * TILE; i += GROUP_THREADS) {
        const GroupedTile& its = of.groups.tile[first + i / TILE];
        if (its.row == NO_ROW || its.assignment[i % TILE] == NO_ASSIGNMENT || numberOf(its.assignment[i % TILE]) != j % TOPK) continue;
        const int token = blockIdx.y * p.chunk + tokenOf(its.assignment[i % TILE]);
        for (int column = blockIdx.x; column < out; column += gridDim.x) {
          T& y = p.linear[m].y[(u64)token * out + column];
          float v = j ? toFloat(y) : 0.f;
          for (unsigned r = 0; r < its.rank; r++) {
            const T z = *columnsOf(p.columns, (T*)of.z, first + i / TILE, i % TILE, token, its.row, r);
            v += toFloat(z) * toFloat(of.rows[(u64)(its.row + r) * out + column]);
          }
          y = fromFloat(v);
        }
      }
    }
  }
}
extern "C" __global__ void __launch_bounds__(GROUP_THREADS) group_add(const __grid_constant__ GroupAdd p) { plainGroupAdd(p); }
extern "C" __global__ void __launch_bounds__(GROUP_THREADS) group_add_by_row(const __grid_constant__ GroupAdd p) { plainGroupAdd(p); }
#endif
