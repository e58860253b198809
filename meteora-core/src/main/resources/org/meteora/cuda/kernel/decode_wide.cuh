// What follows a product in a layer of a decode step of many rows: inputs of products are whole, and a warp that has chosen a row's adapters goes on with more of its outputs.
#define WIDE 4                       // outputs of a lane at a time
#define WIDE_WARP (32 * WIDE)        // and of a warp

// The sum over a block of WARPS warps, for all its threads.
template <int WARPS>
__device__ __forceinline__ float blockSum(float v) {
  __shared__ float parts[WARPS];
  v = warpSum(v);
  if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
  __syncthreads();
  v = 0;
#pragma unroll
  for (int i = 0; i < WARPS; i++) v += parts[i];
  return v;
}

// h (rows, hidden) float32 = the tokens' embeddings, and the first RMSNorm of it. Grid (rows), 256 threads.
struct DecodeEmbedNorm {
  const T* table;
  const int* tokens;
  const T* normWeight;
  float* h;
  T* out;
  int hidden, vocab;
  float eps;
};
extern "C" __global__ void __launch_bounds__(256) decode_embed_norm(const __grid_constant__ DecodeEmbedNorm p) {
  releaseNext();
  waitForPrevious();
  const int row = blockIdx.x, token = p.tokens[row];
  const bool is = token >= 0 && token < p.vocab;
  float* const h = p.h + (u64)row * p.hidden;
  float sum = 0;
  for (int o = threadIdx.x; o < p.hidden; o += 256) {
    const float v = is ? toFloat(p.table[(u64)token * p.hidden + o]) : 0.f;
    h[o] = v;
    sum += v * v;
  }
  const float factor = rsqrtf(blockSum<8>(sum) / p.hidden + p.eps);
  for (int o = threadIdx.x; o < p.hidden; o += 256)  // what this thread has written
    p.out[(u64)row * p.hidden + o] = fromFloat(h[o] * factor * toFloat(p.normWeight[o]));
}

// N neighbouring outputs of a row.
template <int N>
__device__ __forceinline__ void sumSlots(const ProductOutput& c, int row, int at, bool whole, int left, float (&sum)[N]) {
  const float* y = c.y + (u64)row * c.ld + at;
  loadFloats<N>(y, whole, left, sum);
#pragma unroll 3
  for (int s = 1; s < c.slots; s++) {
    float v[N];
    loadFloats<N>(y + (u64)s * c.rows * c.ld, whole, left, v);
#pragma unroll
    for (int i = 0; i < N; i++) sum[i] += v[i];
  }
}

// A row's adapters of L linears behind gates, for a warp: which, and weight · scale · z.
template <int L>
__device__ __forceinline__ void routeRow(const ProductOutput& c, int row, const RoutedLinear* const (&l)[L],
                                         const AdapterInfo (&known)[L], bool writes, Route (&chosen)[L],
                                         float (&z)[L][TOPK][MAX_RANK / 32]) {
  float logits[L][NREG];
  gather<0, L, 1>(c, row, nullptr, false, 0, l, nullptr, logits);
#pragma unroll
  for (int i = 0; i < L; i++) chosen[i] = route(c, *l[i], known[i], logits[i], row, writes);
  coefficients<L>(c, row, l, chosen, z);
}

// h (rows, hidden) float32 += a linear with its adapters; out = the next RMSNorm of h. Grid (rows), 512 threads.
struct DecodeRouteAddResidualNorm {
  ProductOutput product;
  RoutedLinear linear;
  float* h;
  const T* normWeight;
  T* out;
  int hidden;
  float eps;
};
#define NORM_KEPT 2  // of a lane's runs of outputs, those that wait in registers for what is chosen and for the norm
extern "C" __global__ void __launch_bounds__(512) decode_route_add_residual_norm(const __grid_constant__ DecodeRouteAddResidualNorm p) {
  releaseNext();
  const int row = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, first = warp * WIDE_WARP + lane * WIDE;
  const RoutedLinear& l = p.linear;
  const RoutedLinear* const linears[] = {&l};
  const bool whole = l.vectors;
  const AdapterInfo known[] = {loadAdapterInfo(p.product, l)};
  Packed<WIDE> weight[NORM_KEPT];
#pragma unroll
  for (int i = 0; i < NORM_KEPT; i++) {
    const int o = first + i * 16 * WIDE_WARP;
    weight[i] = loadPacked<WIDE>(p.normWeight + o, whole, p.hidden - o);
  }
  waitForPrevious();
  float* const residual = p.h + (u64)row * p.hidden;
  float sum[NORM_KEPT][WIDE], h[NORM_KEPT][WIDE];
#pragma unroll
  for (int i = 0; i < NORM_KEPT; i++) {
    const int o = first + i * 16 * WIDE_WARP, left = p.hidden - o;
    sumSlots<WIDE>(p.product, row, l.outAt + o, whole, left, sum[i]);
    loadFloats<WIDE>(residual + o, whole, left, h[i]);
  }
  Route chosen[1];
  float z[1][TOPK][MAX_RANK / 32];
  if (l.n) routeRow<1>(p.product, row, linears, known, warp == 0, chosen, z);
  float squares = 0;
  auto add = [&](int o, float (&sum)[WIDE], float (&h)[WIDE]) {  // by whole warps
    const int left = p.hidden - o;
    addBias<WIDE>(l, o, left, sum);
    if (l.n) addRouted<WIDE>(l, chosen[0], z[0], prefetchB<WIDE>(l, chosen[0], o, whole, left), o, whole, left, sum);
#pragma unroll
    for (int i = 0; i < WIDE; i++) {
      h[i] += sum[i];
      squares += i < left ? h[i] * h[i] : 0.f;
    }
    storeFloats<WIDE>(residual + o, whole, left, h);
  };
#pragma unroll
  for (int i = 0; i < NORM_KEPT; i++) add(first + i * 16 * WIDE_WARP, sum[i], h[i]);
  for (int o = first + NORM_KEPT * 16 * WIDE_WARP; o - lane * WIDE < p.hidden; o += 16 * WIDE_WARP) {
    float more[WIDE], before[WIDE];
    sumSlots<WIDE>(p.product, row, l.outAt + o, whole, p.hidden - o, more);
    loadFloats<WIDE>(residual + o, whole, p.hidden - o, before);
    add(o, more, before);
  }
  const float factor = rsqrtf(blockSum<16>(squares) / p.hidden + p.eps);
  auto normalize = [&](int o, const Packed<WIDE>& weight, float (&h)[WIDE]) {
#pragma unroll
    for (int i = 0; i < WIDE; i++) h[i] *= factor * unpacked<WIDE>(weight, i);
    storePacked<WIDE>(p.out + (u64)row * p.hidden + o, whole, p.hidden - o, h);
  };
#pragma unroll
  for (int i = 0; i < NORM_KEPT; i++) normalize(first + i * 16 * WIDE_WARP, weight[i], h[i]);
  for (int o = first + NORM_KEPT * 16 * WIDE_WARP; o - lane * WIDE < p.hidden; o += 16 * WIDE_WARP) {
    float after[WIDE];
    loadFloats<WIDE>(residual + o, whole, p.hidden - o, after);  // what this thread has written
    normalize(o, loadPacked<WIDE>(p.normWeight + o, whole, p.hidden - o), after);
  }
}

// act (rows, inter) = silu(gate) · up, both with their adapters. Grid (any, rows), 128 threads.
extern "C" __global__ void __launch_bounds__(128) decode_route_silu_up_wide(const __grid_constant__ DecodeRouteSiluUp p) {
  releaseNext();
  const int row = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const RoutedLinear* const linears[] = {&p.gate, &p.up};
  const bool whole = p.gate.vectors && p.up.vectors;
  const bool adapted = p.gate.n | p.up.n;  // one of them without adapters chooses nothing
  const AdapterInfo known[] = {loadAdapterInfo(p.product, p.gate), loadAdapterInfo(p.product, p.up)};
  waitForPrevious();
  Route chosen[2];
  float z[2][TOPK][MAX_RANK / 32];
  if (adapted) routeRow<2>(p.product, row, linears, known, blockIdx.x == 0 && warp == 0, chosen, z);
  for (int begin = (blockIdx.x * 4 + warp) * WIDE_WARP; begin < p.inter; begin += gridDim.x * 4 * WIDE_WARP) {
    const int o = begin + lane * WIDE, left = p.inter - o;
    PrefetchedB<WIDE> a, b;
    float gate[WIDE], up[WIDE];
    if (adapted) {
      a = prefetchB<WIDE>(p.gate, chosen[0], o, whole, left);
      b = prefetchB<WIDE>(p.up, chosen[1], o, whole, left);
    }
    sumSlots<WIDE>(p.product, row, p.gate.outAt + o, whole, left, gate);
    sumSlots<WIDE>(p.product, row, p.up.outAt + o, whole, left, up);
    addBias<WIDE>(p.gate, o, left, gate);
    addBias<WIDE>(p.up, o, left, up);
    if (adapted) {
      addRouted<WIDE>(p.gate, chosen[0], z[0], a, o, whole, left, gate);
      addRouted<WIDE>(p.up, chosen[1], z[1], b, o, whole, left, up);
    }
#pragma unroll
    for (int i = 0; i < WIDE; i++) gate[i] = silu(gate[i]) * up[i];
    storePacked<WIDE>(p.out + (u64)row * p.inter + o, whole, left, gate);
  }
}

#ifdef TENSOR_CORES
// parts (slices, rows, columns) = x (rows, k) · w (columns, k)ᵀ, over a slice of k each: a product of so few columns that
// only many slices of k keep a GPU busy. k is a multiple of 32. Any order of k will do, so each lane takes 16 contiguous
// bytes. Grid (slices, ⌈rows / 64⌉, ⌈columns / 256⌉), 512 threads, a warp 16 rows and 64 columns.
struct DecodeFewColumns {
  const T* x;
  const T* w;
  float* parts;
  int rows, columns, k, slice;
};
extern "C" __global__ void __launch_bounds__(512) decode_few_columns(const __grid_constant__ DecodeFewColumns p) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int firstRow = blockIdx.y * 64 + (warp & 3) * 16, firstColumn = blockIdx.z * 256 + (warp >> 2) * 64;
  if (firstRow >= p.rows || firstColumn >= p.columns) return;
  const int row = firstRow + g, begin = blockIdx.x * p.slice, end = begin + p.slice < p.k ? begin + p.slice : p.k;
  const T* const x = p.x + (u64)row * p.k + q * 8;
  const T* const w = p.w + (u64)(firstColumn + g) * p.k + q * 8;
  float c[8][4];
#pragma unroll
  for (int t = 0; t < 8; t++) c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0.f;
#pragma unroll 1
  for (int at = begin; at < end; at += 32) {
    const uint4 a = loadIf(row < p.rows, x + at), b = loadIf(row + 8 < p.rows, x + (u64)8 * p.k + at);
    uint4 v[8];
#pragma unroll
    for (int t = 0; t < 8; t++) v[t] = loadIf(firstColumn + 8 * t + g < p.columns, w + (u64)8 * t * p.k + at);
#pragma unroll
    for (int t = 0; t < 8; t++) {
      mma(c[t], a.x, b.x, a.y, b.y, v[t].x, v[t].y);
      mma(c[t], a.z, b.z, a.w, b.w, v[t].z, v[t].w);
    }
  }
#pragma unroll
  for (int t = 0; t < 8; t++)
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = row + (i >> 1) * 8, column = firstColumn + 8 * t + 2 * q + (i & 1);
      if (r < p.rows && column < p.columns) p.parts[((u64)blockIdx.x * p.rows + r) * p.columns + column] = c[t][i];
    }
}

#if __CUDA_ARCH__ >= 900
// The same by way of shared memory, through which a block's warps share x and w, and with several copies on their way while
// one is multiplied. Grid (slices, ⌈rows / 64⌉, ⌈columns / 128⌉), 256 threads, a warp 32 rows and 32 columns.
#define FEW_STAGES 4
#define FEW_STAGE_BYTES ((64 + 128) * 128)  // rows of x and of w, 64 columns of each
extern "C" __global__ void __launch_bounds__(256) decode_few_columns_staged(const __grid_constant__ DecodeFewColumns p) {
  DYNAMIC_SHARED(memory);
  const unsigned base = shared32(memory);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int firstRow = blockIdx.y * 64, firstColumn = blockIdx.z * 128, ofRows = (warp & 1) * 32, ofColumns = (warp >> 1) * 32;
  const int begin = blockIdx.x * p.slice, end = begin + p.slice < p.k ? begin + p.slice : p.k, chunks = (end - begin + 63) / 64;
  // 16 bytes of neighbouring rows lie so that they share no banks.
  auto copy = [&](int chunk) {
    const int at = begin + chunk * 64 + (threadIdx.x & 7) * 8;
#pragma unroll
    for (int i = 0; i < 6; i++) {
      const int r = i * 32 + (threadIdx.x >> 3), row = i < 2 ? firstRow + r : firstColumn + r - 64;
      const bool is = row < (i < 2 ? p.rows : p.columns) && at < end;
      copyAsync(base + chunk % FEW_STAGES * FEW_STAGE_BYTES + r * 128 + (((threadIdx.x & 7) ^ (r & 1) << 2) << 4), is,
                (i < 2 ? p.x : p.w) + (is ? (u64)row * p.k + at : 0));
    }
  };
  float c[2][4][4];
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int t = 0; t < 4; t++) c[m][t][0] = c[m][t][1] = c[m][t][2] = c[m][t][3] = 0.f;
  for (int i = 0; i < FEW_STAGES - 1; i++) {
    if (i < chunks) copy(i);
    closeGroup();
  }
  for (int chunk = 0; chunk < chunks; chunk++) {
    waitForGroups<FEW_STAGES - 2>();
    __syncthreads();  // the chunk is there for all, and the one before has been read
    if (chunk + FEW_STAGES - 1 < chunks) copy(chunk + FEW_STAGES - 1);
    closeGroup();
    const unsigned x = base + chunk % FEW_STAGES * FEW_STAGE_BYTES + (ofRows + g) * 128, w = x + (64 + ofColumns - ofRows) * 128;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const unsigned at = ((q + 4 * h) ^ (g & 1) << 2) << 4;
      uint4 a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        a[i] = loadShared(x + i * 8 * 128 + at);
        b[i] = loadShared(w + i * 8 * 128 + at);
      }
#pragma unroll
      for (int m = 0; m < 2; m++)
#pragma unroll
        for (int t = 0; t < 4; t++) {
          mma(c[m][t], a[2 * m].x, a[2 * m + 1].x, a[2 * m].y, a[2 * m + 1].y, b[t].x, b[t].y);
          mma(c[m][t], a[2 * m].z, a[2 * m + 1].z, a[2 * m].w, a[2 * m + 1].w, b[t].z, b[t].w);
        }
    }
  }
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int t = 0; t < 4; t++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int r = firstRow + ofRows + m * 16 + g + (i >> 1) * 8, column = firstColumn + ofColumns + 8 * t + 2 * q + (i & 1);
        if (r < p.rows && column < p.columns) p.parts[((u64)blockIdx.x * p.rows + r) * p.columns + column] = c[m][t][i];
      }
}
#endif

// y (rows, ld) = the sum of its parts (slices, rows, columns). Grid (⌈columns / 128⌉, rows), 128 threads.
struct DecodeSumParts {
  const float* parts;
  float* y;
  int rows, columns, slices, ld;
};
extern "C" __global__ void __launch_bounds__(128) decode_sum_parts(const __grid_constant__ DecodeSumParts p) {
  const int row = blockIdx.y, column = blockIdx.x * 128 + threadIdx.x;
  if (column >= p.columns) return;
  float sum = 0;
#pragma unroll 8
  for (int i = 0; i < p.slices; i++) sum += p.parts[((u64)i * p.rows + row) * p.columns + column];
  p.y[(u64)row * p.ld + column] = sum;
}
#endif
