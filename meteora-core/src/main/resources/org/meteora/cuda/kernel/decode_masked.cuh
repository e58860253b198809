// Adapters of gate and up of a decode step of many rows in the masked form: where nearly all of them are chosen by some row, a
// linear's whole Bᵀ is read once and multiplied on the tensor cores by the rows' coefficients weight · scale · z, zeros for
// adapters not chosen. The choice is made, and the coefficients are written, while W is still multiplied.

// A row's logits and z of gate and up, from their product's slices, if they are not in y; its choice; its coefficients in T. Where the product counts
// them (gateTiles) before it ends: with two warps, and nothing to sum. A linear's coefficients
// lie as mma wants them, (rows / 16, stride / 16, 32 lanes, 8), or (rows, stride): of all its ranks, and zeros behind them. Grid (rows), 512 threads.
struct MaskedLinear {
  const T* b;        // Bᵀ (ranks, out)
  const T* bias;     // (out) or null
  T* coefficients;   // of rows in whole 16
  int outAt, out, ranks, stride;  // stride: ranks in whole 32
};
struct DecodeSumRoute {
  ProductOutput product;
  RoutedLinear linear[2];
  MaskedLinear masked[2];
  const float* parts;  // (slices, rows, columns)
  float* y;            // where the sums go in the first row of the product's y
  int columns, slices;
  int byRow;  // how coefficients lie
};
#if defined(TENSOR_CORES) && __CUDA_ARCH__ >= 900
extern "C" __global__ void __launch_bounds__(512) decode_sum_route(const __grid_constant__ DecodeSumRoute p) {
  releaseNext();
  const int row = blockIdx.x, lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const bool early = p.product.gateTiles > 0, routes = warp < 2 && p.linear[warp & 1].n;
  const RoutedLinear* const linears[] = {&p.linear[warp & 1]};
  const AdapterInfo known[] = {loadAdapterInfo(p.product, p.linear[warp & 1])};
  if (early) {  // the logits and all z are there before the product ends
    if (lane == 0)
      while ((int)(loadAcquire(p.product.gateTilesDone) - (unsigned)p.product.gateTiles) < 0) waitABit();
    __syncwarp();
  } else {
    waitForPrevious();
  }
  for (int column = threadIdx.x; column < p.columns; column += 512) {
    const float* from = p.parts + (u64)row * p.columns + column;
    float sum = 0;
#pragma unroll 16
    for (int i = 0; i < p.slices; i++) sum += from[(u64)i * p.product.rows * p.columns];
    p.y[(u64)row * p.product.ld + column] = sum;
  }
  __syncthreads();
  if (!routes) return;
  Route chosen[1];
  float z[1][TOPK][MAX_RANK / 32];
  routeRow<1>(p.product, row, linears, known, true, chosen, z);
  const MaskedLinear& to = p.masked[warp];
  T* const coefficients = to.coefficients + (u64)(row >> 4) * 16 * to.stride + (row & 7) * 32 + (row >> 3 & 1) * 2;
  for (int r = lane; r < to.stride; r += 32) {
    float v = 0;
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      const int at = r - chosen[0].offset[j];
      const float low = __shfl_sync(0xffffffffu, z[0][j][0], at & 31), high = __shfl_sync(0xffffffffu, z[0][j][1], at & 31);
      if (at >= 0 && at < chosen[0].rank[j]) v += at < 32 ? low : high;
    }
    (p.byRow ? to.coefficients + (u64)row * to.stride : coefficients)[p.byRow ? r : (r >> 4) * 256 + (r >> 1 & 3) * 8 + (r >> 3 & 1) * 4 + (r & 1)] = fromFloat(v);
  }
  if (early) waitForPrevious();  // who waits for this waits for the product
}

// A block has 64 outputs of gate and of up, and B of up to 256 ranks of theirs in shared memory; a warp 32 rows and 8 NT of the outputs
// at a time.
#define MASKED_OUTS 64
#define MASKED_RANKS 256
__device__ __forceinline__ int maskedRanks(const MaskedLinear& l, int from) {
  return l.stride - from < MASKED_RANKS ? l.stride - from : MASKED_RANKS;
}

// Begins to copy ranks `from` to from + MASKED_RANKS. 16 bytes of eight ranks lie so that they share no banks.
__device__ __forceinline__ void copyMasked(const MaskedLinear& l, unsigned to, int from, int firstOut) {
  const int ranks = maskedRanks(l, from);
  for (int i = threadIdx.x; i < ranks * 8; i += 256) {
    const int r = i >> 3, c = i & 7, o = firstOut + c * 8;
    const bool is = from + r < l.ranks && o < l.out;
    copyAsync(to + r * 128 + ((c ^ (r & 7)) << 4), is, l.b + (is ? (u64)(from + r) * l.out + o : 0));
  }
}

// A warp's sums: of two tiles of 16 rows, NT of 8 outputs, as mma has them.
template <int NT>
struct MaskedSums {
  float v[2][NT][4];
};
// What the product has left, or zeros.
template <int NT>
__device__ __forceinline__ void loadSums(const MaskedLinear& l, const float* y, int ld, int row, int rows, int o, MaskedSums<NT>& sums) {
  const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
  for (int m = 0; m < 2; m++)
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const int r = row + m * 16 + half * 8 + g, at = o + n * 8;
        float2 u = make_float2(0, 0);
        if (r < rows && at < l.out) u = *(const float2*)(y + (u64)r * ld + l.outAt + at + 2 * q);
        sums.v[m][n][2 * half] = u.x;
        sums.v[m][n][2 * half + 1] = u.y;
      }
}
// += coefficients · Bᵀ of the ranks that are in shared memory, from output `out` of the block on.
template <int NT>
__device__ __forceinline__ void addMasked(const MaskedLinear& l, unsigned at, int from, int row, int rows, int out, MaskedSums<NT>& sums) {
  constexpr int AHEAD = NT > 2 ? 3 : 4;  // steps whose coefficients are on their way or multiplied: what registers there are
  const int lane = threadIdx.x & 31, steps = maskedRanks(l, from) / 16;
  const T* const first = l.coefficients + ((u64)(row >> 4) * (l.stride >> 4) + (from >> 4)) * 256 + lane * 8;
  const T* const second = first + (u64)(l.stride >> 4) * 256;
  uint4 a[AHEAD][2];
  auto load = [&](int s) {
    a[s % AHEAD][0] = a[s % AHEAD][1] = make_uint4(0, 0, 0, 0);
    if (s < steps) {
      a[s % AHEAD][0] = *(const uint4*)(first + s * 256);
      if (row + 16 < rows) a[s % AHEAD][1] = *(const uint4*)(second + s * 256);
    }
  };
#pragma unroll
  for (int s = 0; s < AHEAD - 1; s++) load(s);
#pragma unroll
  for (int s = 0; s < MASKED_RANKS / 16; s++) {
    if (s >= steps) break;
    load(s + AHEAD - 1);
    const int rank = s * 16 + (lane & 15), column = out / 8 + (lane >> 4);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      unsigned b[4];
      loadTransposed(at + rank * 128 + (((column + n) ^ (rank & 7)) << 4), b);
#pragma unroll
      for (int m = 0; m < 2; m++) {
        const uint4& x = a[s % AHEAD][m];
        mma(sums.v[m][n], x.x, x.y, x.z, x.w, b[0], b[1]);
        mma(sums.v[m][n + 1], x.x, x.y, x.z, x.w, b[2], b[3]);
      }
    }
  }
}
__device__ __forceinline__ float biasAt(const MaskedLinear& l, int o) { return l.bias && o < l.out ? toFloat(l.bias[o]) : 0.f; }

// act (rows, inter) = silu(gate) · up, both with their adapters. Grid (⌈inter / 64⌉), 256 threads.
struct DecodeMaskedSiluUp {
  MaskedLinear gate, up;
  const float* y;  // (rows, ld)
  T* out;
  int rows, ld;
};
template <int NT>
__device__ __forceinline__ void maskedSiluUp(const DecodeMaskedSiluUp& p) {
  DYNAMIC_SHARED(memory);
  constexpr int DOWN = NT;  // warps under each other; beside them are 8 / DOWN
  const unsigned ofGate = shared32(memory), ofUp = ofGate + maskedRanks(p.gate, 0) * MASKED_OUTS * 2;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, firstOut = blockIdx.x * MASKED_OUTS;
  const int ranks = p.gate.stride > p.up.stride ? p.gate.stride : p.up.stride, out = warp / DOWN * NT * 8, o = firstOut + out;
  bool copied = false;
  releaseNext();
  copyMasked(p.gate, ofGate, 0, firstOut);
  copyMasked(p.up, ofUp, 0, firstOut);
  waitForPrevious();
  for (int first = 0; first < p.rows; first += DOWN * 32) {
    const int row = first + warp % DOWN * 32;
    MaskedSums<NT> gate, up;
    for (int from = 0; from == 0 || from < ranks; from += MASKED_RANKS) {
      const bool copies = !copied || ranks > MASKED_RANKS;
      if (copies && copied) {
        __syncthreads();
        copyMasked(p.gate, ofGate, from, firstOut);
        copyMasked(p.up, ofUp, from, firstOut);
      }
      if (from == 0) {
        loadSums<NT>(p.gate, p.y, p.ld, row, p.rows, o, gate);
        loadSums<NT>(p.up, p.y, p.ld, row, p.rows, o, up);
      }
      if (copies) {
        copiesDone();
        __syncthreads();
      }
      copied = true;
      if (row >= p.rows) continue;
      addMasked<NT>(p.gate, ofGate, from, row, p.rows, out, gate);
      addMasked<NT>(p.up, ofUp, from, row, p.rows, out, up);
    }
    if (row >= p.rows) continue;
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < NT; n += 2) {
          unsigned w[2];
#pragma unroll
          for (int t = 0; t < 2; t++) {
            float v[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
              const int at = o + (n + t) * 8 + 2 * q + j;
              const float a = gate.v[m][n + t][2 * half + j] + biasAt(p.gate, at), b = up.v[m][n + t][2 * half + j] + biasAt(p.up, at);
              v[j] = silu(a) * b;
            }
            w[t] = pair(fromFloat(v[0]), fromFloat(v[1]));
          }
          // an even lane takes four outputs of the first tile, an odd one of the second
          const unsigned other = __shfl_xor_sync(0xffffffffu, q & 1 ? w[0] : w[1], 1);
          const int r = row + m * 16 + half * 8 + g, at = o + (n + (q & 1)) * 8 + (q & 2) * 2;
          if (r < p.rows && at < p.gate.out)
            *(uint2*)(p.out + (u64)r * p.gate.out + at) = q & 1 ? make_uint2(other, w[1]) : make_uint2(w[0], other);
        }
  }
}
extern "C" __global__ void __launch_bounds__(256, 2) decode_masked_silu_up64(const __grid_constant__ DecodeMaskedSiluUp p) { maskedSiluUp<2>(p); }
extern "C" __global__ void __launch_bounds__(256, 2) decode_masked_silu_up128(const __grid_constant__ DecodeMaskedSiluUp p) { maskedSiluUp<4>(p); }
#endif
