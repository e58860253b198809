// Adapters of many tokens, of each token those alone that it chose: tokens are sorted by their adapters into tiles of 16, which
// tensor cores multiply by one adapter's rows. Rows are A (Σr, in) or Bᵀ (Σr, out). Tokens come in chunks; a token is in TOPK
// lists of its chunk, in the j-th by the adapter that it chose as j-th.
#define TILE 16

struct TokenGroups {
  const int* chosen;   // (TOPK, tokens)
  const int* offsets;  // (n + 1) rows of adapters
  int* order;          // (chunks, TOPK, tiles, TILE): tokens; -1 where a tile is not full
  uint2* tile;         // (chunks, TOPK, tiles): each one's first row and rank; NO_ROW behind the last
};
#define NO_ROW 0xffffffffu

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
  int* const order = l.order + (u64)list * p.tiles * TILE;
  uint2* const tile = l.tile + (u64)list * p.tiles;
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
    for (int i = 0; i < needed; i++) tile[first + i] = make_uint2(row, rank);
  }
  for (int i = own; i < needed * TILE; i++) order[first * TILE + i] = -1;
  for (int i = all + e; i < p.tiles; i += 256) tile[i] = make_uint2(NO_ROW, 0);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (mine[i] >= 0) order[atomicAdd(&at[mine[i]], 1)] = from + e + 256 * i;
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

// Where z lies: (TOPK, tokens, zStride), or with byRow (tokens, zStride) of all adapters, one's z where its rows lie among all.
struct GroupedColumns {
  long long zList;  // elements from one list's z to the next one's; byRow: 0
  int zStride, byRow;
};
// z = factor · (x · rowsᵀ) of the chosen adapters. Grid (tiles, ranks / 8, linears · lists): a block has a tile's 8 ranks, its
// warps have parts of k.
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
  int tokens, tiles, lists;
};
// y (tokens, out) = z · rows of the chosen adapters, or the sum of several linears'. Grid (out / 32, chunks, linears / together).
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
  int together;             // so many linears, with one y
  int chunk, tiles, ahead;  // as many blocks behind this one another comes to its place
};
#define GROUP_THREADS 1024
// A tile's z: of a token, its adapter's first rank.
__device__ __forceinline__ T* columnsOf(const GroupedColumns& p, T* z, int list, int token, unsigned row) {
  return z + list % TOPK * p.zList + (u64)token * p.zStride + (u64)row * p.byRow;
}
#ifdef TENSOR_CORES
template <int N>
__device__ __forceinline__ void groupedProduct(const T* x0, const T* x1, const T* rows, float* c) {
  uint4 a[N], b[N], w[N];
#pragma unroll
  for (int i = 0; i < N; i++) {
    a[i] = loadStream(x0 + 256 * i);
    b[i] = loadStream(x1 + 256 * i);
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
  const int lists = p.lists, list = blockIdx.z % lists, tile = blockIdx.x, r = blockIdx.y * 8;
  const GroupedZ& l = p.linear[blockIdx.z / lists];
  const uint2 its = l.groups.tile[(u64)list * p.tiles + tile];
  const int first = its.x, rank = its.y;
  if (r >= rank) return;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, q = lane & 3, j = list % TOPK;
  const int* const order = l.groups.order + ((u64)list * p.tiles + tile) * TILE;
  // what is missing is read from elsewhere, and not written
  const int t0 = order[g], t1 = order[g + 8], any = order[0];
  const T* x0 = l.x + (u64)(t0 < 0 ? any : t0) * l.k + 8 * q;
  const T* x1 = l.x + (u64)(t1 < 0 ? any : t1) * l.k + 8 * q;
  const T* rows = l.rows + (u64)(first + (r + g < rank ? r + g : r)) * l.k + 8 * q;
  float c[4] = {0, 0, 0, 0};
  // of 32 columns a lane has those from 8 q on: any order will do that x and the rows have in common
  int at = warp * 32;
  for (; at + 768 < l.k; at += 1024) groupedProduct<4>(x0 + at, x1 + at, rows + at, c);
  for (; at < l.k; at += 256) groupedProduct<1>(x0 + at, x1 + at, rows + at, c);
  parts[warp][g][2 * q] = c[0];
  parts[warp][g][2 * q + 1] = c[1];
  parts[warp][g + 8][2 * q] = c[2];
  parts[warp][g + 8][2 * q + 1] = c[3];
  __syncthreads();
  const int row = threadIdx.x >> 3, i = threadIdx.x & 7;
  if (row >= TILE) return;
  const int token = order[row];
  if (token < 0) return;
  float v = 0;
#pragma unroll
  for (int w = 0; w < 8; w++) v += parts[w][row][i];
  const float factor = l.factors ? l.factors[(u64)j * p.tokens + token] : 1.f;
  columnsOf(p.columns, l.z, j, token, first)[r + i] = fromFloat(r + i < rank ? v * factor : 0.f);
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

// A block has 32 columns of a chunk. In shared memory: the sums of the lists before, 64 bytes a token; all lists' tiles.
struct GroupedTile {
  unsigned row, rank;
  unsigned short token[TILE];  // from the chunk's first; NO_TOKEN
};
#define NO_TOKEN 0xffff

// Of a tile a lane has, for 8 ranks, ranks 2q and 2q + 1 at 8 columns of B, and of z at rows g and g + 8. What is outside, ranks or
// columns, is read from inside: z has zeros there, or nobody wants it.
struct TileFactors {
  uint4 b0, b1;
  unsigned z0, z1;
};
struct TileSources {
  const unsigned char* rows;  // at the lane's columns
  const unsigned char* z;     // at the lane's ranks
  unsigned rowBytes, zBytes, zRowBytes, mine;
  __device__ __forceinline__ TileFactors factors(uint2 its, unsigned r, int t0, int t1) const {
    const unsigned last = its.y - 1, at = mine + r;
    const unsigned char* const b = rows + (its.x + (at < last ? at : last)) * rowBytes;
    TileFactors f;
    f.b0 = *(const uint4*)b;
    f.b1 = *(const uint4*)(b + (at < last ? rowBytes : 0));
    const unsigned column = its.x * zRowBytes + 2 * r;
    f.z0 = *(const unsigned*)(z + ((t0 == NO_TOKEN ? 0 : t0) * zBytes + column));
    f.z1 = *(const unsigned*)(z + ((t1 == NO_TOKEN ? 0 : t1) * zBytes + column));
    return f;
  }
};

extern "C" __global__ void __launch_bounds__(GROUP_THREADS, 1) group_add(const __grid_constant__ GroupAdd p) {
  DYNAMIC_SHARED(sharedSums);
  const GroupedRows* const linears = p.linear + blockIdx.z * p.together;
  const GroupedRows& l = linears[0];
  const int lists = TOPK * p.together;
  const unsigned out = l.out, column = blockIdx.x * 32, from = blockIdx.y * p.chunk;
  if (column >= out) return;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, tiles = p.tiles;
  const unsigned select = g & 1 ? 0x7632 : 0x5410, at = column + 8 * (g >> 1);
  const bool inside = column + 8 * q < out;
  uint4* const y = (uint4*)(l.y + (u64)from * out + column) + q;
  uint4* const sums = (uint4*)sharedSums + q;
  GroupedTile* const tile = (GroupedTile*)(sharedSums + p.chunk * (lists > 1 ? 64 : 0));
  const unsigned next = (column + 32 * p.ahead < out ? column + 32 * p.ahead : column);
  for (int m = 0; m < p.together; m++)
    for (int i = threadIdx.x; i < TOPK * tiles * TILE; i += GROUP_THREADS) {
      const GroupedRows& of = linears[m];
      GroupedTile& to = tile[m * TOPK * tiles + i / TILE];
      const uint2 one = of.groups.tile[(u64)blockIdx.y * TOPK * tiles + i / TILE];
      if (i % TILE == 0) *(uint2*)&to = one;
      if (one.x == NO_ROW) continue;
      const int token = of.groups.order[(u64)blockIdx.y * TOPK * tiles * TILE + i];
      to.token[i % TILE] = token < 0 ? NO_TOKEN : token - (int)from;
      // for the block that comes here next
      if (i % TILE < 8 && i % TILE < one.y) prefetch(of.rows + (u64)(one.x + i % TILE) * out + next);
    }
  TileSources sources{0, 0, 2 * out, 2u * p.columns.zStride, 2u * p.columns.byRow, 2u * q};
#pragma unroll 1
  for (int j = 0; j < lists; j++) {
    __syncthreads();
    const GroupedRows& of = linears[j / TOPK];
    sources.rows = (const unsigned char*)(of.rows + (at < out ? at : out - 8));
    sources.z = (const unsigned char*)columnsOf(p.columns, (T*)of.z, j, from, 0) + 4 * q;
    int i = j * tiles + warp;
    const int end = (j + 1) * tiles;
    uint2 now = i < end ? *(const uint2*)&tile[i] : make_uint2(NO_ROW, 0);
    if (now.x == NO_ROW) continue;
    int t0 = tile[i].token[g], t1 = tile[i].token[g + 8];
    TileFactors f = {};
    if (now.y) f = sources.factors(now, 0, t0, t1);
    while (true) {
      // the next tile's are on their way while this one's are multiplied
      i += GROUP_THREADS / 32;
      const uint2 after = i < end ? *(const uint2*)&tile[i] : make_uint2(NO_ROW, 0);
      int n0 = NO_TOKEN, n1 = NO_TOKEN;
      TileFactors ahead = {};
      if (after.x != NO_ROW) {
        n0 = tile[i].token[g], n1 = tile[i].token[g + 8];
        if (after.y) ahead = sources.factors(after, 0, n0, n1);
      }
      float c[4][4] = {};
#pragma unroll 1
      for (unsigned r = 8;; r += 8) {
        mma8(c[0], f.z0, f.z1, __byte_perm(f.b0.x, f.b1.x, select));
        mma8(c[1], f.z0, f.z1, __byte_perm(f.b0.y, f.b1.y, select));
        mma8(c[2], f.z0, f.z1, __byte_perm(f.b0.z, f.b1.z, select));
        mma8(c[3], f.z0, f.z1, __byte_perm(f.b0.w, f.b1.w, select));
        if (r >= now.y) break;
        f = sources.factors(now, r, t0, t1);
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int token = half ? t1 : t0;
        if (token == NO_TOKEN) continue;
        uint4 v = packed8(c, half);
        if (j) v = addEights(v, sums[4 * token]);
        if (j < lists - 1)
          sums[4 * token] = v;
        else if (inside)
          y[(unsigned)token * (out / 8)] = v;
      }
      if (after.x == NO_ROW) break;
      f = ahead;
      now = after;
      t0 = n0;
      t1 = n1;
    }
  }
}
#else
// Plainly, for who has no tensor cores.
extern "C" __global__ void __launch_bounds__(256) group_z(const __grid_constant__ GroupZ p) {
  const int list = blockIdx.z % p.lists, token = threadIdx.x >> 3, r = blockIdx.y * 8 + (threadIdx.x & 7);
  const GroupedZ& l = p.linear[blockIdx.z / p.lists];
  const u64 tile = (u64)list * p.tiles + blockIdx.x;
  const uint2 its = l.groups.tile[tile];
  const int t = its.x == NO_ROW || r >= (int)its.y || token >= TILE ? -1 : l.groups.order[tile * TILE + token];
  if (t < 0) return;
  float v = 0;
  for (int i = 0; i < l.k; i++) v += toFloat(l.x[(u64)t * l.k + i]) * toFloat(l.rows[(u64)(its.x + r) * l.k + i]);
  const float factor = l.factors ? l.factors[(u64)(list % TOPK) * p.tokens + t] : 1.f;
  columnsOf(p.columns, l.z, list, t, its.x)[r] = fromFloat(v * factor);
}
extern "C" __global__ void __launch_bounds__(GROUP_THREADS) group_add(const __grid_constant__ GroupAdd p) {
  const GroupedRows* const linears = p.linear + blockIdx.z * p.together;
  const int out = linears[0].out, from = blockIdx.y * p.chunk;
  for (int j = 0; j < TOPK * p.together; j++) {
    const GroupedRows& of = linears[j / TOPK];
    const u64 first = ((u64)blockIdx.y * TOPK + j % TOPK) * p.tiles;
    __syncthreads();
    for (int i = threadIdx.x; i < p.tiles * TILE * 32; i += GROUP_THREADS) {
      const uint2 its = of.groups.tile[first + i / 32 / TILE];
      const int column = blockIdx.x * 32 + i % 32, token = its.x == NO_ROW ? -1 : of.groups.order[first * TILE + i / 32];
      if (token < 0 || column >= out) continue;
      const T* const z = columnsOf(p.columns, (T*)of.z, j, token, its.x);
      float v = j ? toFloat(linears[0].y[(u64)token * out + column]) : 0.f;
      for (unsigned r = 0; r < its.y; r++) v += toFloat(z[r]) * toFloat(of.rows[(u64)(its.x + r) * out + column]);
      linears[0].y[(u64)token * out + column] = fromFloat(v);
    }
  }
}
#endif
