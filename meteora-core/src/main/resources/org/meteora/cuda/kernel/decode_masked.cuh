// Adapters of gate and up of a decode step of many rows in the masked form: where nearly all of them are chosen by some row, a
// linear's whole Bᵀ is read once and multiplied on the tensor cores by the rows' coefficients weight · scale · z, zeros for
// adapters not chosen. The choice is made, and the coefficients are written, while W is still multiplied.

// A row's logits and z of gate and up, from their product's slices, if they are not in y; its choice; its coefficients in T. A linear's coefficients
// are (rows, stride): all its ranks, and zeros behind them. Grid (rows), 512 threads.
struct MaskedLinear {
  const T* b;        // Bᵀ (ranks, out)
  const T* bias;     // (out) or null
  T* coefficients;   // (rows, stride)
  int outAt, out, ranks, stride;  // stride: ranks in whole 32
};
struct DecodeSumRoute {
  ProductOutput product;
  RoutedLinear linear[2];
  MaskedLinear masked[2];
  const float* parts;  // (slices, rows, columns)
  float* y;            // where the sums go in the first row of the product's y
  int columns, slices;
};
#if defined(TENSOR_CORES) && __CUDA_ARCH__ >= 900
extern "C" __global__ void __launch_bounds__(512) decode_sum_route(const __grid_constant__ DecodeSumRoute p) {
  releaseNext();
  waitForPrevious();
  const int row = blockIdx.x, lane = threadIdx.x & 31;
  for (int column = threadIdx.x; column < p.columns; column += 512) {
    const float* from = p.parts + (u64)row * p.columns + column;
    float sum = 0;
#pragma unroll 16
    for (int i = 0; i < p.slices; i++) sum += from[(u64)i * p.product.rows * p.columns];
    p.y[(u64)row * p.product.ld + column] = sum;
  }
  __syncthreads();
  const int warp = threadIdx.x >> 5;
  if (warp >= 2 || !p.linear[warp].n) return;
  const RoutedLinear* const linears[] = {&p.linear[warp]};
  const AdapterInfo known[] = {loadAdapterInfo(p.product, p.linear[warp])};
  Route chosen[1];
  float z[1][TOPK][MAX_RANK / 32];
  routeRow<1>(p.product, row, linears, known, true, chosen, z);
  const MaskedLinear& to = p.masked[warp];
  T* const coefficients = to.coefficients + (u64)row * to.stride;
  for (int r = lane; r < to.stride; r += 32) {
    float v = 0;
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      const int at = r - chosen[0].offset[j];
      const float low = __shfl_sync(0xffffffffu, z[0][j][0], at & 31), high = __shfl_sync(0xffffffffu, z[0][j][1], at & 31);
      if (at >= 0 && at < chosen[0].rank[j]) v += at < 32 ? low : high;
    }
    coefficients[r] = fromFloat(v);
  }
}

// A block has 64 outputs of all rows, a warp 16 of 64 rows at a time. In shared memory: 256 ranks of Bᵀ at its outputs.
#define MASKED_OUTS 64
#define MASKED_RANKS 256
__device__ __forceinline__ int maskedRanks(const MaskedLinear& l, int from) {
  return l.stride - from < MASKED_RANKS ? l.stride - from : MASKED_RANKS;
}

// Begins to copy ranks `from` to from + MASKED_RANKS at 64 outputs. 16 bytes of eight rows lie so that neither rows' nor columns'
// neighbours share banks.
__device__ __forceinline__ void copyMasked(const MaskedLinear& l, unsigned to, int from, int firstOut) {
  const int ranks = maskedRanks(l, from);
  for (int i = threadIdx.x; i < ranks * 8; i += 128) {
    const int r = i >> 3, c = i & 7, o = firstOut + c * 8;
    const bool is = from + r < l.ranks && o < l.out;
    copyAsync(to + r * 128 + ((c ^ (r >> 3 & 3) << 1) << 4), is, l.b + (is ? (u64)(from + r) * l.out + o : 0));
  }
}

// A warp's results: of row g, then row g + 8, outputs 16 q + 8 i + j of 64 are v[j][i], v[j][2 + i].
struct MaskedSums {
  float v[8][4];
};
// A lane's coefficients of up to MASKED_RANKS ranks, of row g and of the row 8 behind. Of 32 ranks it has those from 8 q to
// 8 q + 7: any order will do.
struct MaskedCoefficients {
  uint4 a[MASKED_RANKS / 32], b[MASKED_RANKS / 32];
};
__device__ __forceinline__ void loadCoefficients(const MaskedLinear& l, int from, int row, int rows, MaskedCoefficients& c) {
  const int steps = maskedRanks(l, from) / 32;
  const T* const p = l.coefficients + (u64)row * l.stride + from + (threadIdx.x & 3) * 8;
#pragma unroll
  for (int s = 0; s < MASKED_RANKS / 32; s++) {
    c.a[s] = loadIf(s < steps && row < rows, p + s * 32);
    c.b[s] = loadIf(s < steps && row + 8 < rows, p + (u64)8 * l.stride + s * 32);
  }
}
// += coefficients · Bᵀ of the ranks that are in shared memory.
__device__ __forceinline__ void addMasked(const MaskedLinear& l, unsigned at, int from, const MaskedCoefficients& c, MaskedSums& sums) {
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, steps = maskedRanks(l, from) / 32;
#pragma unroll
  for (int s = 0; s < MASKED_RANKS / 32; s++)
    if (s < steps) {
      uint4 w[8];
#pragma unroll
      for (int i = 0; i < 8; i++) w[i] = loadShared(at + (s * 32 + q * 8 + i) * 128 + ((g ^ q << 1) << 4));
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int take = j & 1 ? 0x7632 : 0x5410;
        unsigned v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) v[i] = __byte_perm((&w[2 * i].x)[j / 2], (&w[2 * i + 1].x)[j / 2], take);
        mma(sums.v[j], c.a[s].x, c.b[s].x, c.a[s].y, c.b[s].y, v[0], v[1]);
        mma(sums.v[j], c.a[s].z, c.b[s].z, c.a[s].w, c.b[s].w, v[2], v[3]);
      }
    }
}

// Outputs 16 q + 8 i, + 1, … + 7 of a row of y and of the row 8 behind, or zeros.
__device__ __forceinline__ void loadSums(const MaskedLinear& l, const float* y, int ld, int row, int rows, int firstOut, MaskedSums& sums) {
  const int o = firstOut + (threadIdx.x & 3) * 16;
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int at = o + 8 * i + 4 * h;
        float4 u = make_float4(0, 0, 0, 0);
        if (row + 8 * half < rows && at < l.out) u = *(const float4*)(y + (u64)(row + 8 * half) * ld + l.outAt + at);
        sums.v[4 * h][2 * half + i] = u.x;
        sums.v[4 * h + 1][2 * half + i] = u.y;
        sums.v[4 * h + 2][2 * half + i] = u.z;
        sums.v[4 * h + 3][2 * half + i] = u.w;
      }
}
__device__ __forceinline__ float biasAt(const MaskedLinear& l, int o) { return l.bias && o < l.out ? toFloat(l.bias[o]) : 0.f; }

// act (rows, inter) = silu(gate) · up, both with their adapters. Grid (⌈inter / 64⌉), 128 threads.
struct DecodeMaskedSiluUp {
  MaskedLinear gate, up;
  const float* y;  // (rows, ld)
  T* out;
  int rows, ld;
};
extern "C" __global__ void __launch_bounds__(128) decode_masked_silu_up(const __grid_constant__ DecodeMaskedSiluUp p) {
  DYNAMIC_SHARED(memory);
  const unsigned ofGate = shared32(memory), ofUp = ofGate + maskedRanks(p.gate, 0) * MASKED_OUTS * 2;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, firstOut = blockIdx.x * MASKED_OUTS;
  const int ranks = p.gate.stride > p.up.stride ? p.gate.stride : p.up.stride;
  bool copied = false;
  releaseNext();
  copyMasked(p.gate, ofGate, 0, firstOut);
  copyMasked(p.up, ofUp, 0, firstOut);
  waitForPrevious();
  for (int first = 0; first < p.rows; first += 64) {
    const int row = first + warp * 16 + g;
    MaskedSums gate, up;
    for (int from = 0; from == 0 || from < ranks; from += MASKED_RANKS) {
      const bool copies = !copied || ranks > MASKED_RANKS;
      if (copies && copied) {
        __syncthreads();
        copyMasked(p.gate, ofGate, from, firstOut);
        copyMasked(p.up, ofUp, from, firstOut);
      }
      if (from == 0) {
        loadSums(p.gate, p.y, p.ld, row, p.rows, firstOut, gate);
        loadSums(p.up, p.y, p.ld, row, p.rows, firstOut, up);
      }
      MaskedCoefficients c;
      loadCoefficients(p.gate, from, row, p.rows, c);
      if (copies) {
        copiesDone();
        __syncthreads();
      }
      copied = true;
      if (first + warp * 16 >= p.rows) continue;
      addMasked(p.gate, ofGate, from, c, gate);
      loadCoefficients(p.up, from, row, p.rows, c);
      addMasked(p.up, ofUp, from, c, up);
    }
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int o = firstOut + q * 16 + i * 8;
        float v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) {
          const float a = gate.v[j][2 * half + i] + biasAt(p.gate, o + j), b = up.v[j][2 * half + i] + biasAt(p.up, o + j);
          v[j] = a / (1.f + __expf(-a)) * b;
        }
        if (row + 8 * half < p.rows && o < p.gate.out) store8(p.out + (u64)(row + 8 * half) * p.gate.out, o, p.gate.out, true, v);
      }
  }
}
#endif
