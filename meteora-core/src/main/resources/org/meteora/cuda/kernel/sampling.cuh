// The next token of each row: the largest logit, the lowest index of equals, or one drawn from the distribution. Banned
// tokens' logits become -infinity. Logits (slots, rows, vocab) are summed over slots into the first on the way. A logit that
// is no number counts as infinite; where the largest is, the row's token is NOT_FINITE. Grid (blocks, rows), then (1, rows).
#define NOT_FINITE -1
struct SamplingParameters {  // of each row
  u64 uniform[MAX_SEQUENCES];  // in units of 2^-64
  u64 topP[MAX_SEQUENCES];     // in units of 2^-64; 0: 1
  float scale[MAX_SEQUENCES];  // 2^25 · log2(e) / temperature; 0: the largest logit
  int topK[MAX_SEQUENCES];     // 0: all
  int bannedCount[MAX_SEQUENCES];
  // the first bannedCount are tokens that must not be chosen
  int bannedTokens[MAX_SEQUENCES][MAX_BANNED];
};
struct SampleTokens {
  float* logits;
  float* best;
  int* bestAt;
  int* tokens;
  int* lengths;  // negative: no sequence
  const SamplingParameters* sampling;
  unsigned* clear;        // counters of the step's products, for the next step
  int vocab, logitSlots, rows, blocks, clearCount;
};
__device__ __forceinline__ void better(float& v, int& at, float w, int b) {
  if (w > v || (w == v && b < at)) { v = w; at = b; }
}
template <int WARPS>
__device__ __forceinline__ void blockBest(float& v, int& at) {
  __shared__ float values[WARPS];
  __shared__ int places[WARPS];
#pragma unroll
  for (int d = 16; d > 0; d >>= 1)
    better(v, at, __shfl_xor_sync(0xffffffffu, v, d), __shfl_xor_sync(0xffffffffu, at, d));
  if ((threadIdx.x & 31) == 0) { values[threadIdx.x >> 5] = v; places[threadIdx.x >> 5] = at; }
  __syncthreads();
  if (threadIdx.x == 0)
    for (int w = 1; w < WARPS; w++) better(v, at, values[w], places[w]);
}
extern "C" __global__ void __launch_bounds__(256) sample_block_maxima(const __grid_constant__ SampleTokens p) {
  releaseNext();
  waitForPrevious();
  int row = blockIdx.y, each = (p.vocab + p.blocks - 1) / p.blocks;
  int begin = blockIdx.x * each, end = begin + each < p.vocab ? begin + each : p.vocab;
  if (threadIdx.x < p.sampling->bannedCount[row]) {
    int token = p.sampling->bannedTokens[row][threadIdx.x];
    if (token >= begin && token < end) p.logits[(u64)row * p.vocab + token] = negInf();
  }
  __syncthreads();
  float v = negInf();
  int at = 0x7fffffff;
  for (int i = begin + threadIdx.x; i < end; i += 256) {
    float* first = p.logits + (u64)row * p.vocab + i;
    float w = *first;
    for (int s = 1; s < p.logitSlots; s++) w += first[(u64)s * p.rows * p.vocab];
    if (p.logitSlots > 1) *first = w;
    if (w != w) w = -negInf();
    better(v, at, w, i);
  }
  blockBest<8>(v, at);
  if (threadIdx.x == 0) { p.best[row * p.blocks + blockIdx.x] = v; p.bestAt[row * p.blocks + blockIdx.x] = at; }
}

// Sampling. All sums are of integers, so that their order does not matter, and every rounding is written out: the host's
// Sampler does the same arithmetic and chooses the same token.
#define PICK 1024
#define NO_MASS 0xffffffffu
#define BINS 2048

// -log2 of a token's probability over the likeliest token's, in units of 2^-25; NO_MASS from 44 on.
__device__ __forceinline__ unsigned exponentOf(float largest, float logit, float scale) {
  float x = __fmul_rn(__fsub_rn(largest, logit), scale);
  return x < 1476395008.f ? (unsigned)x : NO_MASS;
}

// 2^-exponent in units of 2^-44.
__device__ __forceinline__ u64 massOf(unsigned exponent) {
  float t = __fmul_rn((float)(exponent & 0x1ffffff), 2.98023223876953125e-8f);
  float v = 0.000114919952f;
  v = __fadd_rn(__fmul_rn(v, t), -0.00129163684f);
  v = __fadd_rn(__fmul_rn(v, t), 0.00959703512f);
  v = __fadd_rn(__fmul_rn(v, t), -0.0554992296f);
  v = __fadd_rn(__fmul_rn(v, t), 0.24022609f);
  v = __fadd_rn(__fmul_rn(v, t), -0.693147182f);
  v = __fadd_rn(__fmul_rn(v, t), 1.f);
  return (u64)__fmul_rn(v, __uint_as_float((127 + 44 - (exponent >> 25)) << 23));
}

__device__ __forceinline__ u64 warpScan(u64 v) {
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    u64 o = __shfl_up_sync(0xffffffffu, v, d);
    if ((threadIdx.x & 31) >= d) v += o;
  }
  return v;
}

// Calls f with the exponents of logits[from … to), `threads` apart, several loads in flight.
template <typename F>
__device__ __forceinline__ void exponents(const float* logits, int from, int to, int threads, float largest, float scale, F f) {
  for (int base = from; base < to; base += 8 * threads) {
    float v[8];
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = base + j * threads < to ? logits[base + j * threads] : negInf();
#pragma unroll
    for (int j = 0; j < 8; j++) f(exponentOf(largest, v[j], scale));
  }
}

struct SamplingState {
  u64 bins[BINS];
  u64 parts[PICK / 32];
  int ties[PICK / 32];
  u64 sum;
  int at, tiesLeft;
};

// The smallest exponent so that all up to it have `target` tokens (or so much mass), and what those below it have; false
// when all together have less. Three passes over the logits, each looking at ten or eleven bits of the exponents.
__device__ __forceinline__ bool smallestReaching(u64 target, bool ofMass, const float* logits, int vocab, float largest,
                                                 float scale, SamplingState& s, unsigned& exponent, u64& below) {
  exponent = 0;
  below = 0;
  for (int shift = 20; shift >= 0; shift -= 10) {
    for (int i = threadIdx.x; i < BINS; i += PICK) s.bins[i] = 0;
    __syncthreads();
    exponents(logits, threadIdx.x, vocab, PICK, largest, scale, [&](unsigned e) {
      if (e != NO_MASS && (shift == 20 || e >> (shift + 10) == exponent >> (shift + 10)))
        atomicAdd(&s.bins[shift == 20 ? e >> 20 : (e >> shift) & 1023], ofMass ? massOf(e) : 1ull);
    });
    __syncthreads();
    if (threadIdx.x < 32) {
      const u64* mine = s.bins + threadIdx.x * (BINS / 32);
      u64 own = 0;
      for (int i = 0; i < BINS / 32; i++) own += mine[i];
      u64 upTo = below + warpScan(own);
      unsigned reached = __ballot_sync(0xffffffffu, upTo >= target);
      if (threadIdx.x == 0 && !reached) s.at = -1;
      if (reached && threadIdx.x == __ffs(reached) - 1) {
        int i = 0;
        for (upTo -= own; upTo + mine[i] < target; i++) upTo += mine[i];
        s.at = threadIdx.x * (BINS / 32) + i;
        s.sum = upTo;
      }
    }
    __syncthreads();
    if (s.at < 0) return false;
    exponent |= (unsigned)s.at << shift;
    below = s.sum;
  }
  return true;
}

// Draws among the tokens with exponents below `limit` and the first `ties` of those with `limit` itself: the token at which
// the mass, summed in the order of the tokens, goes beyond `point`. Each round finds the one of 32 parts in which it lies.
__device__ __forceinline__ int draw(u64 point, unsigned limit, int ties, const float* logits, int vocab, float largest,
                                    float scale, SamplingState& s) {
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const u64 tieMass = limit == NO_MASS ? 0 : massOf(limit);
  int begin = 0, end = vocab;
  while (end - begin > 128) {
    int each = ((end - begin + PICK / 32 - 1) / (PICK / 32) + 31) & ~31;
    int from = begin + warp * each, to = from + each < end ? from + each : end;
    u64 mass = 0;
    int equal = 0;
    exponents(logits, from + lane, to, 32, largest, scale, [&](unsigned e) {
      if (e < limit) mass += massOf(e);
      equal += e == limit && e != NO_MASS;
    });
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) {
      mass += __shfl_xor_sync(0xffffffffu, mass, d);
      equal += __shfl_xor_sync(0xffffffffu, equal, d);
    }
    if (lane == 0) { s.parts[warp] = mass; s.ties[warp] = equal; }
    __syncthreads();
    if (threadIdx.x == 0) {
      int part = 0, left = ties;
      for (;; part++) {
        int kept = s.ties[part] < left ? s.ties[part] : left;
        u64 all = s.parts[part] + kept * tieMass;
        if (point < all || part == PICK / 32 - 1) break;
        point -= all;
        left -= kept;
      }
      s.at = part;
      s.sum = point;
      s.tiesLeft = left;
    }
    __syncthreads();
    begin += s.at * each;
    end = begin + each < end ? begin + each : end;
    point = s.sum;
    ties = s.tiesLeft;
    __syncthreads();
  }
  for (; begin < end; begin += 32) {
    unsigned e = begin + lane < end ? exponentOf(largest, logits[begin + lane], scale) : NO_MASS;
    unsigned equal = __ballot_sync(0xffffffffu, e == limit && e != NO_MASS);
    bool kept = e < limit || (e == limit && e != NO_MASS && __popc(equal & ((1u << lane) - 1)) < ties);
    u64 upTo = warpScan(kept ? massOf(e) : 0);
    unsigned beyond = __ballot_sync(0xffffffffu, upTo > point);
    if (beyond) return begin + __ffs(beyond) - 1;
    point -= __shfl_sync(0xffffffffu, upTo, 31);
    ties -= __popc(equal) < ties ? __popc(equal) : ties;
  }
  return -1;
}

// One token by Hugging Face's warpers: temperature, top-k with the ties of the last, top-p.
__device__ __forceinline__ int sample(const SamplingParameters& w, const float* logits, int row, int vocab, float largest, SamplingState& s) {
  const float scale = w.scale[row];
  unsigned limit = NO_MASS;
  int ties = 0x7fffffff;
  u64 below;
  unsigned exponent;
  if (w.topK[row] > 0 && smallestReaching(w.topK[row], false, logits, vocab, largest, scale, s, exponent, below)) limit = exponent;
  u64 total = 0;
  exponents(logits, threadIdx.x, vocab, PICK, largest, scale, [&](unsigned e) {
    if (e <= limit && e != NO_MASS) total += massOf(e);
  });
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) total += __shfl_xor_sync(0xffffffffu, total, d);
  if ((threadIdx.x & 31) == 0) s.parts[threadIdx.x >> 5] = total;
  __syncthreads();
  total = 0;
  for (int i = 0; i < PICK / 32; i++) total += s.parts[i];
  __syncthreads();
  if (total == 0) return -1;
  if (w.topP[row]) {
    u64 target = __umul64hi(w.topP[row], total);
    if (target == 0) target = 1;
    smallestReaching(target, true, logits, vocab, largest, scale, s, limit, below);
    u64 each = massOf(limit);
    ties = (int)((target - below + each - 1) / each);
    total = below + ties * each;
  }
  return draw(__umul64hi(w.uniform[row], total), limit, ties, logits, vocab, largest, scale, s);
}

extern "C" __global__ void __launch_bounds__(PICK) sample_tokens(const __grid_constant__ SampleTokens p) {
  __shared__ SamplingState picking;
  __shared__ float largest;
  releaseNext();
  waitForPrevious();
  int row = blockIdx.x;
  for (int i = threadIdx.x; row == 0 && i < p.clearCount; i += PICK) p.clear[i] = 0;
  float v = negInf();
  int at = 0x7fffffff;
  for (int i = threadIdx.x; i < p.blocks; i += PICK) better(v, at, p.best[row * p.blocks + i], p.bestAt[row * p.blocks + i]);
  blockBest<PICK / 32>(v, at);
  if (threadIdx.x == 0) largest = v;
  __syncthreads();
  const bool finite = largest < -negInf();
  if (finite && p.sampling->scale[row] > 0) {
    int drawn = sample(*p.sampling, p.logits + (u64)row * p.vocab, row, p.vocab, largest, picking);
    if (drawn >= 0) at = drawn;
  }
  if (threadIdx.x == 0) {
    const bool live = p.lengths[row] >= 0;
    p.tokens[row] = live && !finite ? NOT_FINITE : at == 0x7fffffff ? 0 : at;
    if (live) p.lengths[row]++;
  }
}
