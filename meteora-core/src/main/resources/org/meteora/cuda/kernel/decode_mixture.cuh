// Where every adapter acts on every token: y += what they add, between a product and the kernel behind it, which then has no adapters
// to choose. B of all is read whatever the weights, so each block multiplies a piece of it for up to MAX_ROWS rows at once.
#define MIXED_OUTPUTS 64                    // of a block
#define MIXED_RANKS 256                     // at a time: a thread has one's coefficients, a warp multiplies 32 of them
#define MIXED_STRIDE (MIXED_RANKS + 8)      // of rows of coefficients: no two rows meet in the banks
#define MIXED_SUMS (MIXED_OUTPUTS + 8)      // of rows of a warp's sums, likewise
#define MIXED_ROOM (4 * MIXED_SUMS)         // of a row: coefficients, and then sums of four pairs of warps
struct MixedLinear {
  const T* b;             // Bᵀ (ranks, out)
  const int* adapter;     // (ranks) of which adapter each is
  const float* scales;    // (n)
  int outAt, zAt, ranks, out, vectors;
};
struct DecodeAddMixture {
  float* y;
  float* weights;         // (rows, n)
  const float* bias;      // (n): the weights are softmax(logits / T) + bias, and are left there; or null: they are there
  const float* invTemperature;
  int slots, ld, rows, n, logitsAt;
  int given;              // the weights are there before the step begins
  int resident;           // blocks that are on the multiprocessors while the product is at work, about
  MixedLinear linear[3];
};

// B of the blocks that come later goes to L2 while the product is at work.
__device__ __forceinline__ void fetchLaterB(const DecodeAddMixture& p) {
  const int block = blockIdx.z * gridDim.x + blockIdx.x;
  if (blockIdx.y > 0 || block >= p.resident) return;
  for (int later = block + p.resident; later < (int)(gridDim.x * gridDim.z); later += p.resident) {
    const MixedLinear& l = p.linear[later / gridDim.x];
    const int begin = later % gridDim.x * MIXED_OUTPUTS;
    if (begin < l.out)
      for (int rank = threadIdx.x; rank < l.ranks; rank += 256) prefetch(l.b + (u64)rank * l.out + begin);
  }
}

// The weights of the calling warp's rows, `warp` and every eighth behind it, into shared memory (rows, n); what one waits for, all do.
#define MIXED_PER_WARP ((MAX_ROWS + 7) / 8)
__device__ __forceinline__ void mixtures(const DecodeAddMixture& p, int firstRow, int rows, bool writes, float* mixture) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  float largest[MIXED_PER_WARP], sum[MIXED_PER_WARP];
#pragma unroll
  for (int i = 0; i < MIXED_PER_WARP; i++) {
    largest[i] = negInf();
    sum[i] = 0.f;
  }
  for (int e = lane; e < p.n; e += 32) {
    float v[MIXED_PER_WARP];
#pragma unroll
    for (int i = 0; i < MIXED_PER_WARP; i++) v[i] = 0.f;
    if (p.bias) {
      const float* y = p.y + (u64)firstRow * p.ld + p.logitsAt + e;
#pragma unroll 2
      for (int s = 0; s < p.slots; s++, y += (u64)p.rows * p.ld)
#pragma unroll
        for (int i = 0; i < MIXED_PER_WARP; i++)
          if (warp + 8 * i < rows) v[i] += __ldcg(y + (warp + 8 * i) * p.ld);
    } else {
#pragma unroll
      for (int i = 0; i < MIXED_PER_WARP; i++)
        if (warp + 8 * i < rows) v[i] = __ldcg(p.weights + (u64)(firstRow + warp + 8 * i) * p.n + e);
    }
#pragma unroll
    for (int i = 0; i < MIXED_PER_WARP; i++) {
      largest[i] = fmaxf(largest[i], v[i]);
      if (warp + 8 * i < rows) mixture[(warp + 8 * i) * p.n + e] = v[i];
    }
  }
  if (!p.bias) return;
  const float inverse = *p.invTemperature;
#pragma unroll
  for (int i = 0; i < MIXED_PER_WARP; i++) largest[i] = unordered(warpMax(ordered(largest[i])));
#pragma unroll
  for (int i = 0; i < MIXED_PER_WARP; i++)
    if (warp + 8 * i < rows)
      for (int e = lane; e < p.n; e += 32) {
        float& m = mixture[(warp + 8 * i) * p.n + e];
        m = __expf((m - largest[i]) * inverse);
        sum[i] += m;
      }
#pragma unroll
  for (int i = 0; i < MIXED_PER_WARP; i++) sum[i] = warpSum(sum[i]);
#pragma unroll
  for (int i = 0; i < MIXED_PER_WARP; i++)
    if (warp + 8 * i < rows)
      for (int e = lane; e < p.n; e += 32) {
        float& m = mixture[(warp + 8 * i) * p.n + e];
        m = __fdividef(m, sum[i]) + p.bias[e];
        if (writes) p.weights[(u64)(firstRow + warp + 8 * i) * p.n + e] = m;
      }
}

// z of the calling thread's rank, of all rows.
__device__ __forceinline__ void mixedZ(const DecodeAddMixture& p, const MixedLinear& l, int first, int firstRow, int rows, float (&v)[MAX_ROWS]) {
  const bool is = first + (int)threadIdx.x < l.ranks;
  const float* z = p.y + (u64)firstRow * p.ld + l.zAt + first + threadIdx.x;
#pragma unroll
  for (int i = 0; i < MAX_ROWS; i++) v[i] = 0.f;
#pragma unroll
  for (int begin = 0; begin < MAX_ROWS; begin += 8) {
    if (begin >= rows) break;
    const float* of = z + (unsigned)(begin * p.ld);
#pragma unroll 2
    for (int s = 0; s < p.slots; s++, of += (u64)p.rows * p.ld) {
      float w[8];
#pragma unroll
      for (int i = 0; i < 8; i++) w[i] = is && begin + i < rows ? __ldcg(of + (unsigned)(i * p.ld)) : 0.f;
#pragma unroll
      for (int i = 0; i < 8; i++) v[begin + i] += w[i];
    }
  }
}

// Grid (⌈outputs of the widest linear / 64⌉, ⌈rows / MAX_ROWS⌉, linears), 256 threads; shared memory for a group of rows: coefficients,
// and in their place the warps' sums; weights.
extern "C" __global__ void __launch_bounds__(256, 2) decode_add_mixture(const __grid_constant__ DecodeAddMixture p) {
  DYNAMIC_SHARED(room);
  releaseNext();
  const MixedLinear& l = p.linear[blockIdx.z];
  const int begin = blockIdx.x * MIXED_OUTPUTS, firstRow = blockIdx.y * MAX_ROWS;
  const int rows = p.rows - firstRow < MAX_ROWS ? p.rows - firstRow : MAX_ROWS;
  const bool writes = blockIdx.x == 0 && blockIdx.z == 0;
  if (begin >= l.out && !writes) return;
  const int warp = threadIdx.x >> 5;
  float* const coefficients = (float*)room;
  float* const mixture = coefficients + rows * MIXED_ROOM;
#ifdef TENSOR_CORES
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  // tile t's column g is output 8 g + t, so that a lane reads eight outputs of a rank at once
  const T* const own = l.b + begin + g * 8;
  const bool tensor = l.vectors, inside = tensor && begin + g * 8 < l.out;
  // the sums of two warps meet in one place, so that a block is small enough to wait beside the product's
  float* const ofWarps = (float*)room + (u64)(warp & 3) * rows * MIXED_SUMS;
#else
  const bool tensor = false;
#endif
  float sum[MIXED_OUTPUTS * MAX_ROWS / 256];
  for (int first = 0; first < l.ranks || first == 0; first += MIXED_RANKS) {
    const int mine = first + threadIdx.x, adapter = mine < l.ranks ? l.adapter[mine] : 0;
    const float scale = mine < l.ranks ? l.scales[adapter] : 0.f;
#ifdef TENSOR_CORES
    uint4 b[2][4];  // of two runs of 16 ranks, those that this lane multiplies
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const int rank = first + warp * 32 + (i >> 2) * 16 + 2 * q + (i & 1) + (i & 2) * 4;
      b[i >> 2][i & 3] = loadIf(inside && rank < l.ranks, own + (u64)rank * l.out);
    }
#endif
    if (first == 0) {
      fetchLaterB(p);
      if (p.given) mixtures(p, firstRow, rows, writes, mixture);
      waitForPrevious();
#pragma unroll
      for (int i = 0; i < MIXED_OUTPUTS * MAX_ROWS / 256; i++) {
        const int at = threadIdx.x + i * 256, row = at / MIXED_OUTPUTS, o = at % MIXED_OUTPUTS;
        sum[i] = row < rows && begin + o < l.out ? __ldcg(p.y + (u64)(firstRow + row) * p.ld + l.outAt + begin + o) : 0.f;
      }
    }
    float z[MAX_ROWS];  // on their way while the weights are made
    mixedZ(p, l, first, firstRow, begin < l.out ? rows : 0, z);
    if (first == 0) {
      if (!p.given) mixtures(p, firstRow, rows, writes, mixture);
      __syncthreads();
      if (begin >= l.out) return;
    }
#pragma unroll
    for (int i = 0; i < MAX_ROWS; i++)
      if (i < rows) coefficients[i * MIXED_STRIDE + threadIdx.x] = mine < l.ranks ? z[i] * scale * mixture[i * p.n + adapter] : 0.f;
    __syncthreads();
    if (tensor) {
#ifdef TENSOR_CORES
      float c[8][4];
#pragma unroll
      for (int t = 0; t < 8; t++) c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0.f;
#pragma unroll
      for (int run = 0; run < 2; run++) {
        unsigned high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = g + (i & 1) * 8, at = warp * 32 + run * 16 + 2 * q + (i >> 1) * 8;
          float2 v = make_float2(0.f, 0.f);
          if (row < rows) v = *(const float2*)(coefficients + row * MIXED_STRIDE + at);
          twoParts(v.x, v.y, high[i], low[i]);
        }
#pragma unroll
        for (int t = 0; t < 8; t++) {
          const unsigned select = t & 1 ? 0x7632 : 0x5410;
          unsigned pairs[2];
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const uint4 &a = b[run][2 * half], &d = b[run][2 * half + 1];
            pairs[half] = t < 2 ? __byte_perm(a.x, d.x, select) : t < 4 ? __byte_perm(a.y, d.y, select)
                        : t < 6 ? __byte_perm(a.z, d.z, select) : __byte_perm(a.w, d.w, select);
          }
          mma(c[t], high[0], high[1], high[2], high[3], pairs[0], pairs[1]);
          mma(c[t], low[0], low[1], low[2], low[3], pairs[0], pairs[1]);
        }
      }
      __syncthreads();  // the coefficients have been read
#pragma unroll
      for (int turn = 0; turn < 2; turn++) {
        if (warp >> 2 == turn)
#pragma unroll
          for (int i = 0; i < 2; i++)
            if (g + 8 * i < rows)
#pragma unroll
              for (int t = 0; t < 8; t++) {
                float2* const to = (float2*)(ofWarps + (g + 8 * i) * MIXED_SUMS + t * 8 + 2 * q);
                const float2 before = turn ? *to : make_float2(0.f, 0.f);
                *to = make_float2(before.x + c[t][2 * i], before.y + c[t][2 * i + 1]);
              }
        __syncthreads();
      }
#pragma unroll
      for (int i = 0; i < MIXED_OUTPUTS * MAX_ROWS / 256; i++) {
        const int at = threadIdx.x + i * 256, row = at / MIXED_OUTPUTS, o = at % MIXED_OUTPUTS;
        if (row < rows)
#pragma unroll
          for (int w = 0; w < 4; w++) sum[i] += ((const float*)room)[((u64)w * rows + row) * MIXED_SUMS + (o & 7) * 8 + (o >> 3)];
      }
#endif
    } else {
      const int ranks = l.ranks - first < MIXED_RANKS ? l.ranks - first : MIXED_RANKS;
#pragma unroll
      for (int i = 0; i < MIXED_OUTPUTS * MAX_ROWS / 256; i++) {
        const int at = threadIdx.x + i * 256, row = at / MIXED_OUTPUTS, o = begin + at % MIXED_OUTPUTS;
        if (row >= rows || o >= l.out) continue;
        const T* const b = l.b + (u64)first * l.out + o;
#pragma unroll 4
        for (int r = 0; r < ranks; r++) sum[i] += coefficients[row * MIXED_STRIDE + r] * toFloat(b[(u64)r * l.out]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < MIXED_OUTPUTS * MAX_ROWS / 256; i++) {
    const int at = threadIdx.x + i * 256, row = at / MIXED_OUTPUTS, o = at % MIXED_OUTPUTS;
    if (row < rows && begin + o < l.out) p.y[(u64)(firstRow + row) * p.ld + l.outAt + begin + o] = sum[i];
  }
}
