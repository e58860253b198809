// Where every adapter acts on every token: y += what they add, between a product and the kernel behind it, which then has no adapters
// to choose. B of all is read whatever the weights, so each block multiplies a piece of it for up to MAX_ROWS rows at once.
#define MIXED_OUTPUTS 64                    // of a block
#define MIXED_RANKS 256                     // at a time: a thread has one's coefficients, a warp multiplies 32 of them
#define MIXED_STRIDE (MIXED_RANKS + 8)      // of rows of coefficients: no two rows meet in the banks
#define MIXED_SUMS (MIXED_OUTPUTS + 8)      // of rows of a warp's sums, likewise
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

// A row's weights, by one warp, into shared memory.
__device__ __forceinline__ void mixtureOf(const DecodeAddMixture& p, int row, bool writes, float* mixture) {
  const int lane = threadIdx.x & 31;
  float* const weights = p.weights + (u64)row * p.n;
  if (!p.bias) {
    for (int e = lane; e < p.n; e += 32) mixture[e] = __ldcg(weights + e);
    return;
  }
  float largest = negInf(), sum = 0;
  for (int e = lane; e < p.n; e += 32) {
    float v = 0;
#pragma unroll 4
    for (int s = 0; s < p.slots; s++) v += __ldcg(p.y + ((u64)s * p.rows + row) * p.ld + p.logitsAt + e);
    mixture[e] = v;
    largest = fmaxf(largest, v);
  }
  largest = unordered(warpMax(ordered(largest)));
  const float inverse = *p.invTemperature;
  for (int e = lane; e < p.n; e += 32) {
    mixture[e] = __expf((mixture[e] - largest) * inverse);
    sum += mixture[e];
  }
  sum = warpSum(sum);
  for (int e = lane; e < p.n; e += 32) {
    mixture[e] = __fdividef(mixture[e], sum) + p.bias[e];
    if (writes) weights[e] = mixture[e];
  }
}

// weight · scale · z of the calling thread's rank; nothing of it waits for the previous kernel but z.
__device__ __forceinline__ void mixedCoefficients(const DecodeAddMixture& p, const MixedLinear& l, int first, int firstRow, int rows,
                                                  int adapter, float scale, const float* mixture, float* coefficients) {
  const bool is = first + (int)threadIdx.x < l.ranks;
  const float* const z = p.y + (u64)firstRow * p.ld + l.zAt + first + threadIdx.x;
  const unsigned slot = (unsigned)p.rows * p.ld;
  for (int begin = 0; begin < rows; begin += 4) {
    float v[4];
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] = 0.f;
#pragma unroll 2
    for (int s = 0; s < p.slots; s++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (is && begin + i < rows) v[i] += __ldcg(z + s * slot + (unsigned)((begin + i) * p.ld));
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (begin + i < rows)
        coefficients[(begin + i) * MIXED_STRIDE + threadIdx.x] = is ? v[i] * scale * mixture[(begin + i) * p.n + adapter] : 0.f;
  }
}

// Grid (⌈outputs of the widest linear / 64⌉, ⌈rows / MAX_ROWS⌉, linears), 256 threads; shared memory for a group of rows: coefficients and
// weights, and then the warps' sums.
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
  float* const mixture = coefficients + rows * MIXED_STRIDE;
#ifdef TENSOR_CORES
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  // tile t's column g is output 8 g + t, so that a lane reads eight outputs of a rank at once
  const T* const own = l.b + begin + g * 8;
  const bool tensor = l.vectors, inside = tensor && begin + g * 8 < l.out;
  float c[8][4];
#pragma unroll
  for (int t = 0; t < 8; t++) c[t][0] = c[t][1] = c[t][2] = c[t][3] = 0.f;
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
      if (!p.given) waitForPrevious();
      for (int row = warp; row < rows; row += 8) mixtureOf(p, firstRow + row, writes, mixture + row * p.n);
      waitForPrevious();
      __syncthreads();
      if (begin >= l.out) return;
#pragma unroll
      for (int i = 0; i < MIXED_OUTPUTS * MAX_ROWS / 256; i++) {
        const int at = threadIdx.x + i * 256, row = at / MIXED_OUTPUTS, o = at % MIXED_OUTPUTS;
        sum[i] = row < rows && begin + o < l.out ? __ldcg(p.y + (u64)(firstRow + row) * p.ld + l.outAt + begin + o) : 0.f;
      }
    }
    mixedCoefficients(p, l, first, firstRow, rows, adapter, scale, mixture, coefficients);
    __syncthreads();
    if (tensor) {
#ifdef TENSOR_CORES
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
#ifdef TENSOR_CORES
  // the sums of two warps meet in one place, so that a block is small enough to wait beside the product's
  float* const ofWarps = (float*)room + (u64)(warp & 3) * rows * MIXED_SUMS;
  if (tensor) {
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
  }
#endif
#pragma unroll
  for (int i = 0; i < MIXED_OUTPUTS * MAX_ROWS / 256; i++) {
    const int at = threadIdx.x + i * 256, row = at / MIXED_OUTPUTS, o = at % MIXED_OUTPUTS;
    if (row >= rows || begin + o >= l.out) continue;
#ifdef TENSOR_CORES
    if (tensor)
#pragma unroll
      for (int w = 0; w < 4; w++) sum[i] += ((const float*)room)[((u64)w * rows + row) * MIXED_SUMS + (o & 7) * 8 + (o >> 3)];
#endif
    p.y[(u64)(firstRow + row) * p.ld + l.outAt + begin + o] = sum[i];
  }
}
