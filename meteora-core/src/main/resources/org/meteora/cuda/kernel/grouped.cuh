// Adapters of many tokens, of each token those alone that it chose: tokens are sorted by their adapters into tiles of 16, which
// tensor cores multiply by one adapter's rows. Rows are A (Σr, in) or Bᵀ (Σr, out). Tokens come in chunks; a token is in TOPK
// lists of its chunk, in the j-th by the adapter that it chose as j-th.
#define TILE 16
struct GroupedTile {
  unsigned row, rank;          // the adapter's first row and its rank; NO_ROW behind a list's last tile
  unsigned short token[TILE];  // from the chunk's first; where a tile is not full the one behind the chunk's last
};
#define NO_ROW 0xffffffffu

struct TokenGroups {
  const int* chosen;   // (TOPK, tokens)
  const int* offsets;  // (n + 1) rows of adapters
  GroupedTile* tile;   // (chunks, TOPK, tiles)
};

// Sorts. Grid (TOPK, chunks, linears).
struct GroupTokens {
  TokenGroups linear[3];
  int tokens, chunk, tiles;  // a chunk has 2048 tokens at most
};
extern "C" __global__ void __launch_bounds__(256) group_tokens(const __grid_constant__ GroupTokens p) {
  __shared__ int at[256], ends[8];
  const TokenGroups& l = p.linear[blockIdx.z];
  const int j = blockIdx.x, from = blockIdx.y * p.chunk, list = blockIdx.y * TOPK + j, e = threadIdx.x;
  const int count = p.tokens - from < p.chunk ? p.tokens - from : p.chunk;
  const int* const chosen = l.chosen + (u64)j * p.tokens + from;
  GroupedTile* const tile = l.tile + (u64)list * p.tiles;
  releaseNext();
  waitForPrevious();
  int mine[8];
#pragma unroll
  for (int i = 0; i < 8; i++) mine[i] = e + 256 * i < count ? chosen[e + 256 * i] : -1;
  at[e] = 0;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (mine[i] >= 0) atomicAdd(&at[mine[i]], 1);
  __syncthreads();
  const int own = at[e], needed = (own + TILE - 1) / TILE;
  int upTo = needed;  // of the warp's threads to this one
#pragma unroll
  for (int d = 1; d < 32; d *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, upTo, d);
    if ((e & 31) >= d) upTo += before;
  }
  if ((e & 31) == 31) ends[e >> 5] = upTo;
  __syncthreads();
  int first = upTo - needed, all = 0;
#pragma unroll
  for (int w = 0; w < 8; w++) {
    if (w < e >> 5) first += ends[w];
    all += ends[w];
  }
  at[e] = first * TILE;
  if (needed) {
    const int row = l.offsets[e], rank = l.offsets[e + 1] - row;
    for (int i = 0; i < needed; i++) *(uint2*)&tile[first + i] = make_uint2(row, rank);
  }
  for (int i = own; i < needed * TILE; i++) tile[first + i / TILE].token[i % TILE] = p.chunk;
  for (int i = all + e; i < p.tiles; i += 256) *(uint2*)&tile[i] = make_uint2(NO_ROW, 0);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (mine[i] >= 0) {
      const int place = atomicAdd(&at[mine[i]], 1);
      tile[place / TILE].token[place % TILE] = e + 256 * i;
    }
}

// Chooses; factors are weight · scale. Grid (tokens / 8, linears).
struct GroupedRoute {
  ScaledLinear linear;
  int* chosen;     // (TOPK, tokens)
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
#pragma unroll
  for (int j = 0; j < TOPK; j++) {
    const int e = index[j] < 0 ? 0 : index[j];
    const float factor = index[j] < 0 ? 0.f : weight[j] * l.linear.scales[e];
    if (lane == 0) {
      l.chosen[j * p.tokens + token] = e;
      l.factors[j * p.tokens + token] = factor;
    }
  }
}

// Where z lies: (lists, tiles, zStride / 8, TILE, 8), zeros where a tile is not full, or with byRow (tokens, zStride) of all
// adapters, one's z where its rows lie among all.
struct GroupedColumns {
  int zStride, byRow;
};
// z = factor · (x · rowsᵀ) of the chosen adapters. Grid (tiles · lists, ranks / 8, linears): a block has a tile's 8 ranks, its
// warps have parts of k. Tiles of all lists at about the same place come together: they have the same adapters.
struct GroupedZ {
  TokenGroups groups;
  const T* x;     // (tokens, k)
  const T* rows;  // (Σr, k)
  const float* factors;  // (TOPK, tokens), or null
  T* z;                  // with byRow an adapter's ranks are whole eights
  int k;  // in whole 32
};
struct GroupZ {
  GroupedZ linear[3];
  GroupedColumns columns;
  int tokens, chunk, tiles, lists;
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
#define GROUP_THREADS 512
// z of a list's tile, one of its tokens and a rank.
__device__ __forceinline__ T* columnsOf(const GroupedColumns& p, T* z, u64 tile, int i, int token, unsigned row, unsigned rank) {
  return z + (p.byRow ? (u64)token * p.zStride + row + rank : ((tile * (p.zStride / 8) + rank / 8) * TILE + i) * 8 + rank % 8);
}
#ifdef TENSOR_CORES
template <int N>
__device__ __forceinline__ void groupedProduct(const T* x0, const T* x1, bool is0, bool is1, const T* rows, float* c) {
  uint4 a[N], b[N], w[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    a[i] = loadIf(is0, x0 + 256 * i);
    b[i] = loadIf(is1, x1 + 256 * i);
    w[i] = loadStream(rows + 256 * i);
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    mma(c, a[i].x, b[i].x, a[i].y, b[i].y, w[i].x, w[i].y);
    mma(c, a[i].z, b[i].z, a[i].w, b[i].w, w[i].z, w[i].w);
  }
}
extern "C" __global__ void __launch_bounds__(256) group_z(const __grid_constant__ GroupZ p) {
  __shared__ float parts[8][TILE][8];
  waitForPrevious();
  const int lists = p.lists, list = blockIdx.x % lists, r = blockIdx.y * 8;
  const GroupedZ& l = p.linear[blockIdx.z];
  const u64 at = (u64)list * p.tiles + blockIdx.x / lists;
  const GroupedTile& tile = l.groups.tile[at];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, j = list % TOPK, from = list / TOPK * p.chunk;
  const uint2 its = *(const uint2*)&tile;
  const int t0 = tile.token[g], t1 = tile.token[g + 8], first = its.x, rank = its.y;
  if (r >= rank) return;
  const bool is0 = t0 < p.chunk, is1 = t1 < p.chunk;
  const T* x0 = l.x + (u64)(from + t0) * l.k + 8 * q;
  const T* x1 = l.x + (u64)(from + t1) * l.k + 8 * q;
  const T* rows = l.rows + (u64)(first + (r + g < rank ? r + g : r)) * l.k + 8 * q;
  float c[4] = {0, 0, 0, 0};
  // of 32 columns a lane has those from 8 q on: any order will do that x and the rows have in common
  int column = warp * 32;
  for (; column + 768 < l.k; column += 1024) groupedProduct<4>(x0 + column, x1 + column, is0, is1, rows + column, c);
  for (; column < l.k; column += 256) groupedProduct<1>(x0 + column, x1 + column, is0, is1, rows + column, c);
  parts[warp][g][2 * q] = c[0];
  parts[warp][g][2 * q + 1] = c[1];
  parts[warp][g + 8][2 * q] = c[2];
  parts[warp][g + 8][2 * q + 1] = c[3];
  __syncthreads();
  const int row = threadIdx.x >> 3, i = threadIdx.x & 7;
  if (row >= TILE) return;
  const int token = tile.token[row];
  const bool is = token < p.chunk;
  if (!is && p.columns.byRow) return;
  float v = 0;
#pragma unroll
  for (int w = 0; w < 8; w++) v += parts[w][row][i];
  const float factor = is && l.factors ? l.factors[(u64)j * p.tokens + from + token] : 1.f;
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
  unsigned row, rank;
  int token[2];
  uint4 b;
  unsigned z[2];
};
template <bool BY_ROW>
struct TileSources {
  const GroupedTile* tile;    // the list's, in shared memory
  const unsigned char* rows;  // at the lane's columns
  const unsigned char* z;     // at the lane's ranks
  int tiles, chunk;
  unsigned rowBytes, zStride, g, q;
  __device__ __forceinline__ void factors(TileFactors& f, int i, unsigned r) const {
    const unsigned last = f.rank - 1, at = g + r;
    f.b = *(const uint4*)(rows + (f.row + (at < last ? at : last)) * rowBytes);
    if (BY_ROW) {
#pragma unroll
      for (int half = 0; half < 2; half++)
        f.z[half] = *(const unsigned*)(z + 2 * ((f.token[half] < chunk ? f.token[half] : 0) * zStride + f.row + r));
    } else {
      const unsigned char* const its = z + ((unsigned)i * zStride + r) * (2 * TILE);
      f.z[0] = *(const unsigned*)its;
      f.z[1] = *(const unsigned*)(its + 16 * (TILE / 2));
    }
  }
  __device__ __forceinline__ void fetch(TileFactors& f, int i) const {
    const uint2 its = i < tiles ? *(const uint2*)&tile[i] : make_uint2(NO_ROW, 0);
    f.row = its.x, f.rank = its.y;
    if (f.row == NO_ROW) return;
    f.token[0] = tile[i].token[g];
    f.token[1] = tile[i].token[g + 8];
    if (f.rank) factors(f, i, 0);
    else f.b = make_uint4(0, 0, 0, 0), f.z[0] = f.z[1] = 0;
  }
};
// A list's part of 32 columns of a chunk; sums (tokens and one that nobody wants, 32) of the lists before.
#define GROUP_AHEAD 4  // tiles of which a warp has one in hand and the others on their way
template <bool BY_ROW, bool FIRST, bool LAST>
__device__ __forceinline__ void addList(const TileSources<BY_ROW>& from, uint4* sums, uint4* y, unsigned stride, bool inside) {
  constexpr int WARPS = GROUP_THREADS / 32;
  int i = threadIdx.x >> 5;
  TileFactors ring[GROUP_AHEAD];
#pragma unroll
  for (int k = 0; k < GROUP_AHEAD - 1; k++) from.fetch(ring[k], i + k * WARPS);
  __syncthreads();  // the list before has been added by all warps
  while (true) {
#pragma unroll
    for (int k = 0; k < GROUP_AHEAD; k++) {
      TileFactors& f = ring[k];
      if (f.row == NO_ROW) return;
      from.fetch(ring[(k + GROUP_AHEAD - 1) % GROUP_AHEAD], i + (GROUP_AHEAD - 1) * WARPS);
      float c[4][4] = {};
#pragma unroll 1
      for (unsigned r = 8;; r += 8) {
        // column n of the i-th is 8 (n / 2) + 2 i + n % 2 of B's: a lane's sums are 8 side by side
        mma8(c[0], f.z[0], f.z[1], transposed(f.b.x));
        mma8(c[1], f.z[0], f.z[1], transposed(f.b.y));
        mma8(c[2], f.z[0], f.z[1], transposed(f.b.z));
        mma8(c[3], f.z[0], f.z[1], transposed(f.b.w));
        if (r >= f.rank) break;
        from.factors(f, i, r);
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int token = f.token[half];
        uint4 v = packed8(c, half);
        if (!FIRST) v = addEights(v, sums[4 * token]);
        if (!LAST) sums[4 * token] = v;
        else if (inside && token < from.chunk) y[token * stride] = v;
      }
      i += WARPS;
    }
  }
}

// A block goes through its columns, 32 at a time. In shared memory: the sums, 64 bytes a token; all lists' tiles.
template <bool BY_ROW>
__device__ __forceinline__ void groupAdd(const GroupAdd& p) {
  DYNAMIC_SHARED(sharedSums);
  const int lists = TOPK * p.together, tiles = p.tiles, ofLinear = TOPK * tiles;
  const unsigned lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, from = blockIdx.y * p.chunk;
  uint4* const sums = (uint4*)sharedSums + q;
  GroupedTile* const tile = (GroupedTile*)(sharedSums + (lists > 1 ? 64 * (p.chunk + 1) : 0));
  // Blocks side by side have columns side by side: what each reads and writes of a row is less than the memory's pages.
  int before = 0, m = 0;  // parts of 32 columns of the sums before
  bool other = true;
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
        const uint2* const its = (const uint2*)(linears[i].groups.tile + (u64)blockIdx.y * ofLinear);
        for (int k = threadIdx.x; k < ofLinear * PARTS; k += GROUP_THREADS) ((uint2*)(tile + i * ofLinear))[k] = its[k];
      }
      other = false;
      __syncthreads();
    }
    const unsigned out = linears[0].out, column = (part - before) * 32, at = column + 8 * q;
    const bool inside = column + 8 * q < out;
    uint4* const y = (uint4*)(linears[0].y + (u64)from * out + column) + q;
    TileSources<BY_ROW> sources{nullptr, nullptr, nullptr, tiles, p.chunk, 2 * out, (unsigned)p.columns.zStride, g, q};
#pragma unroll 1
    for (int j = 0; j < lists; j++) {
      const GroupedRows& of = linears[j / TOPK];
      sources.tile = tile + j * tiles;
      sources.rows = (const unsigned char*)(of.rows + (at < out ? at : out - 8));
      sources.z = (const unsigned char*)(of.z + (BY_ROW ? (u64)from * p.columns.zStride + 2 * q
                                                        : ((u64)blockIdx.y * TOPK + j % TOPK) * tiles * TILE * p.columns.zStride + 2 * lane));
      if (lists == 1) addList<BY_ROW, true, true>(sources, sums, y, out / 8, inside);
      else if (j == 0) addList<BY_ROW, true, false>(sources, sums, y, out / 8, inside);
      else if (j < lists - 1) addList<BY_ROW, false, false>(sources, sums, y, out / 8, inside);
      else addList<BY_ROW, false, true>(sources, sums, y, out / 8, inside);
    }
  }
}
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1) group_add(const __grid_constant__ GroupAdd p) { groupAdd<false>(p); }
extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1) group_add_by_row(const __grid_constant__ GroupAdd p) { groupAdd<true>(p); }
#else
// Plainly, for who has no tensor cores.
extern "C" __global__ void __launch_bounds__(256) group_z(const __grid_constant__ GroupZ p) {
  const int list = blockIdx.x % p.lists, i = threadIdx.x >> 3, r = blockIdx.y * 8 + (threadIdx.x & 7);
  const GroupedZ& l = p.linear[blockIdx.z];
  const u64 at = (u64)list * p.tiles + blockIdx.x / p.lists;
  const GroupedTile& its = l.groups.tile[at];
  if (its.row == NO_ROW || r >= (int)its.rank || i >= TILE || its.token[i] == p.chunk) return;
  const int token = list / TOPK * p.chunk + its.token[i];
  float v = 0;
  for (int c = 0; c < l.k; c++) v += toFloat(l.x[(u64)token * l.k + c]) * toFloat(l.rows[(u64)(its.row + r) * l.k + c]);
  const float factor = l.factors ? l.factors[(u64)(list % TOPK) * p.tokens + token] : 1.f;
  *columnsOf(p.columns, l.z, at, i, token, its.row, r) = fromFloat(v * factor);
}
__device__ __forceinline__ void plainGroupAdd(const GroupAdd& p) {
  for (int m = 0; m < p.linears; m += p.together) {
    const int out = p.linear[m].out;
    for (int j = 0; j < TOPK * p.together; j++) {
      const GroupedRows& of = p.linear[m + j / TOPK];
      const u64 first = ((u64)blockIdx.y * TOPK + j % TOPK) * p.tiles;
      __syncthreads();
      for (int i = threadIdx.x; i < p.tiles * TILE; i += GROUP_THREADS) {
        const GroupedTile& its = of.groups.tile[first + i / TILE];
        if (its.row == NO_ROW || its.token[i % TILE] == p.chunk) continue;
        const int token = blockIdx.y * p.chunk + its.token[i % TILE];
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
