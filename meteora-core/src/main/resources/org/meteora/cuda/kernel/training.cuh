// What a training step does between its matrix products, forward and backward. Tokens lie one after another without padding;
// only attention has rows (batch, seq) that are padded on the right.

// Inverted dropout: an element's fate follows from the seed and its place, so that the backward pass draws the same again.
// threshold 0: nothing is dropped. 16 bits of a hash decide for an element, four of a row share one.
struct Dropout {
  u64 seed;
  unsigned threshold;
  float scale;
};
__device__ __forceinline__ u64 dropoutBits(u64 z) {
  z = (z ^ (z >> 33)) * 0xff51afd7ed558ccdULL;
  z = (z ^ (z >> 33)) * 0xc4ceb9fe1a85ec53ULL;
  return z ^ (z >> 33);
}
// Eight elements of a row from column `at` on, a multiple of 8.
__device__ __forceinline__ void drop8(const Dropout& d, long long row, int at, int columns, float* f) {
  const u64 first = (u64)row * ((columns + 3) / 4) + at / 4;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const u64 bits = dropoutBits(d.seed + (first + half) * 0x9e3779b97f4a7c15ULL);
#pragma unroll
    for (int i = 0; i < 4; i++)
      f[4 * half + i] = (unsigned)(bits >> 16 * i & 0xffff) < d.threshold ? 0.f : f[4 * half + i] * d.scale;
  }
}

// Which of eight elements drop8 keeps, of all that a warp has, whose lanes have eights beside each other of one row: a bit each, as
// product_masked.cuh wants them. Columns are whole 256.
__device__ __forceinline__ void keep8(const Dropout& d, long long row, int at, int columns, u64* kept, long long rows) {
  float f[8] = {1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f, 1.f};
  drop8(d, row, at, columns, f);
  const int lane = threadIdx.x & 31;
  u64 bits = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) bits |= (u64)(__ballot_sync(0xffffffffu, f[i] != 0.f) >> lane / 8 * 8 & 0xff) << 8 * i;
  if (lane % 8 == 0) kept[at / 64 * rows + row] = bits;
}

struct Norm {
  const T* weight;  // (hidden)
  int hidden;
  float eps;
};
// out = rmsnorm(h) · weight, with a delta of h + delta, which goes to sum; dropped = dropout(out) where asked for, or what it keeps. One
// block a row of 256 threads.
struct TrainingNorm {
  const T* h;
  const T* delta;
  T* sum;
  T* out;
  T* dropped;
  u64* kept;
  Norm norm;
  Dropout dropout;
};
extern "C" __global__ void __launch_bounds__(256) training_norm(const __grid_constant__ TrainingNorm p) {
  __shared__ float sums[8];
  const int hidden = p.norm.hidden;
  const long long row = (long long)blockIdx.x * hidden;
  const bool aligned = hidden % 8 == 0;
  const T* normed = p.delta ? p.sum + row : p.h + row;
  const float factor = rowNormFactor(p, hidden, p.norm.eps, row, aligned, sums);
  for (int at = threadIdx.x * 8; at < hidden; at += 2048) {  // what this thread has seen before
    float f[8];
    normed8(normed, p.norm.weight, at, hidden, aligned, factor, f);
    store8(p.out + row, at, hidden, aligned, f);
    if (p.dropped) {
#pragma unroll
      for (int i = 0; i < 8; i++) f[i] = toFloat(fromFloat(f[i]));
      drop8(p.dropout, blockIdx.x, at, hidden, f);
      store8(p.dropped + row, at, hidden, aligned, f);
    }
    if (p.kept) keep8(p.dropout, blockIdx.x, at, hidden, p.kept, gridDim.x);
  }
}

// The gradient of a norm's input x: out = residual + ∂x, from the gradient of its result, slope, plus that of the dropped
// result, droppedSlope (or null), through the mask. out may be the residual, which may be null. One block a row.
struct TrainingNormBackward {
  const T* x;
  const T* slope;
  const T* droppedSlope;
  const T* residual;
  T* out;
  Norm norm;
  Dropout dropout;
};
__device__ __forceinline__ void slope8(const T* slope, const T* dropped, const Dropout& dropout, long long row, int at,
                                       int columns, bool aligned, float* f) {
  load8(slope + row * columns, at, columns, aligned, f);
  if (dropped) {
    float d[8];
    load8(dropped + row * columns, at, columns, aligned, d);
    drop8(dropout, row, at, columns, d);
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] += d[i];
  }
}
extern "C" __global__ void __launch_bounds__(256) training_norm_backward(const __grid_constant__ TrainingNormBackward p) {
  __shared__ float sums[16];
  const int hidden = p.norm.hidden;
  const long long row = (long long)blockIdx.x * hidden;
  const bool aligned = hidden % 8 == 0;
  float squares = 0, dot = 0;
  for (int at = threadIdx.x * 8; at < hidden; at += 2048) {
    float x[8], w[8], s[8];
    load8(p.x + row, at, hidden, aligned, x);
    load8(p.norm.weight, at, hidden, aligned, w);
    slope8(p.slope, p.droppedSlope, p.dropout, blockIdx.x, at, hidden, aligned, s);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      squares += x[i] * x[i];
      dot += at + i < hidden ? x[i] * w[i] * s[i] : 0.f;
    }
  }
  squares = blockSum(squares, sums);
  dot = blockSum(dot, sums + 8);
  const float factor = rsqrtf(squares / hidden + p.norm.eps), back = factor * factor * factor * dot / hidden;
  for (int at = threadIdx.x * 8; at < hidden; at += 2048) {
    float x[8], w[8], s[8], r[8];
    load8(p.x + row, at, hidden, aligned, x);
    load8(p.norm.weight, at, hidden, aligned, w);
    slope8(p.slope, p.droppedSlope, p.dropout, blockIdx.x, at, hidden, aligned, s);
#pragma unroll
    for (int i = 0; i < 8; i++) s[i] = factor * w[i] * s[i] - back * x[i];
    if (p.residual) {
      load8(p.residual + row, at, hidden, aligned, r);
#pragma unroll
      for (int i = 0; i < 8; i++) s[i] += r[i];
    }
    store8(p.out + row, at, hidden, aligned, s);
  }
}

// out = a + b, elementwise; out may be one of them.
struct TrainingAdd {
  const T* a;
  const T* b;
  T* out;
  long long count;
  int vectors;
};
extern "C" __global__ void __launch_bounds__(256) training_add(const __grid_constant__ TrainingAdd p) {
  const long long at = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
  if (at >= p.count) return;
  const int n = p.count - at < 8 ? (int)(p.count - at) : 8;
  float a[8], b[8];
  load8(p.a + at, 0, n, p.vectors, a);
  load8(p.b + at, 0, n, p.vectors, b);
#pragma unroll
  for (int i = 0; i < 8; i++) a[i] += b[i];
  store8(p.out + at, 0, n, p.vectors, a);
}

// y = dropout(x), or y += dropout(x): rows of columns; or what dropout keeps alone. One thread: 8 elements of a row.
struct TrainingDrop {
  const T* x;
  T* y;
  u64* kept;
  Dropout dropout;
  long long rows;
  int columns, add;
};
extern "C" __global__ void __launch_bounds__(256) training_drop(const __grid_constant__ TrainingDrop p) {
  const auto [row, at, aligned] = rowPiece(p.columns);
  if (row >= p.rows) return;
  if (p.kept) {
    keep8(p.dropout, row, at, p.columns, p.kept, p.rows);
    return;
  }
  float f[8], y[8];
  load8(p.x + row * p.columns, at, p.columns, aligned, f);
  drop8(p.dropout, row, at, p.columns, f);
  if (p.add) {
    load8(p.y + row * p.columns, at, p.columns, aligned, y);
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] += y[i];
  }
  store8(p.y + row * p.columns, at, p.columns, aligned, f);
}

// Every row of y becomes the bias. One thread: 8 elements of a row.
struct TrainingBias {
  const T* bias;
  T* y;
  long long rows;
  int columns;
};
extern "C" __global__ void __launch_bounds__(256) training_bias(const __grid_constant__ TrainingBias p) {
  const auto [row, at, aligned] = rowPiece(p.columns);
  if (row >= p.rows) return;
  float f[8];
  load8(p.bias, at, p.columns, aligned, f);
  store8(p.y + row * p.columns, at, p.columns, aligned, f);
}

// out = silu(gate) · up; dropped = dropout(out) where asked for, or what it keeps. One thread: 8 elements of a row.
struct TrainingSilu {
  const T* gate;
  const T* up;
  T* out;
  T* dropped;
  u64* kept;
  Dropout dropout;
  long long rows;
  int columns;
};
extern "C" __global__ void __launch_bounds__(256) training_silu(const __grid_constant__ TrainingSilu p) {
  const auto [row, at, aligned] = rowPiece(p.columns);
  if (row >= p.rows) return;
  float g[8], u[8];
  load8(p.gate + row * p.columns, at, p.columns, aligned, g);
  load8(p.up + row * p.columns, at, p.columns, aligned, u);
#pragma unroll
  for (int i = 0; i < 8; i++) g[i] = silu(g[i]) * u[i];
  store8(p.out + row * p.columns, at, p.columns, aligned, g);
  if (p.dropped) {
#pragma unroll
    for (int i = 0; i < 8; i++) g[i] = toFloat(fromFloat(g[i]));
    drop8(p.dropout, row, at, p.columns, g);
    store8(p.dropped + row * p.columns, at, p.columns, aligned, g);
  }
  if (p.kept) keep8(p.dropout, row, at, p.columns, p.kept, p.rows);
}

// gate and up become their gradients, from that of silu(gate) · up, slope, and that of its dropped form (or null).
struct TrainingSiluBackward {
  T* gate;
  T* up;
  const T* slope;
  const T* droppedSlope;
  Dropout dropout;
  long long rows;
  int columns;
};
extern "C" __global__ void __launch_bounds__(256) training_silu_backward(const __grid_constant__ TrainingSiluBackward p) {
  const auto [row, at, aligned] = rowPiece(p.columns);
  if (row >= p.rows) return;
  float g[8], u[8], s[8];
  load8(p.gate + row * p.columns, at, p.columns, aligned, g);
  load8(p.up + row * p.columns, at, p.columns, aligned, u);
  slope8(p.slope, p.droppedSlope, p.dropout, row, at, p.columns, aligned, s);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const float sigmoid = 1.f / (1.f + __expf(-g[i]));
    const float ofUp = s[i] * g[i] * sigmoid;
    g[i] = s[i] * u[i] * sigmoid * (1.f + g[i] * (1.f - sigmoid));
    u[i] = ofUp;
  }
  store8(p.gate + row * p.columns, at, p.columns, aligned, g);
  store8(p.up + row * p.columns, at, p.columns, aligned, u);
}

// Of q, k and v: (batch, heads, seq, headDim), strides in elements.
struct AttentionRows {
  T* addresses[3];
  long long rowStrides[3], headStrides[3], tokenStrides[3];
};

// Between tokens one after another (token, head, headDim) and attention's rows: q of `heads`, k and v of `kvHeads` heads. Token
// `slots[token]` is row slot / seq, position slot % seq; without slots the token itself. Into attention (back 0) q and k are
// rotated, out of it (back 1) they are turned back; `rotate` 0: neither. Cosines
// and sines (seq, headDim), the first half of a head's sines negated. One thread: 8 pairs of a head, or one.
struct TrainingHeads {
  T* flat[3];
  AttentionRows rows;
  const T* cosines;
  const T* sines;
  const int* slots;
  long long tokens;
  int seq, heads, kvHeads, headDim, back, rotate, vectors;
};
template <int N>
__device__ __forceinline__ void trainingHead(const TrainingHeads& p, long long token, int head, int i) {
  const int half = p.headDim / 2, which = head < p.heads ? 0 : head < p.heads + p.kvHeads ? 1 : 2;
  if (which) head -= which == 1 ? p.heads : p.heads + p.kvHeads;
  const long long slot = p.slots ? p.slots[token] : token;
  T* flat = p.flat[which] + (token * (which ? p.kvHeads : p.heads) + head) * p.headDim + i;
  const AttentionRows& r = p.rows;
  T* row = r.addresses[which] + slot / p.seq * r.rowStrides[which] + head * r.headStrides[which] +
           slot % p.seq * r.tokenStrides[which] + i;
  const T* from = p.back ? row : flat;
  T* to = p.back ? flat : row;
  float a[8], b[8], c[8], s[8];
  load8(from, 0, N, N == 8, a);
  load8(from + half, 0, N, N == 8, b);
  if (which < 2 && p.rotate) {
    const long long angle = slot % p.seq * p.headDim + i;
    load8(p.cosines + angle, 0, N, N == 8, c);
    load8(p.sines + angle + half, 0, N, N == 8, s);
#pragma unroll
    for (int j = 0; j < N; j++) {
      const float x = a[j], y = b[j], sine = p.back ? -s[j] : s[j];
      a[j] = x * c[j] - y * sine;
      b[j] = y * c[j] + x * sine;
    }
  }
  store8(to, 0, N, N == 8, a);
  store8(to + half, 0, N, N == 8, b);
}
extern "C" __global__ void __launch_bounds__(256) training_heads(const __grid_constant__ TrainingHeads p) {
  const int pairs = p.vectors ? p.headDim / 16 : p.headDim / 2, heads = p.heads + 2 * p.kvHeads;
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x, token = at / (pairs * heads);
  if (token >= p.tokens) return;
  const int rest = (int)(at % (pairs * heads));
  if (p.vectors)
    trainingHead<8>(p, token, rest / pairs, rest % pairs * 8);
  else
    trainingHead<1>(p, token, rest / pairs, rest % pairs);
}

// One gated linear in rows of [z of all linears | logits of all their gates | zeros], and its columns among all linears' ranks.
struct TrainingLinear {
  const int* offsets;    // (n + 1) first ranks of the adapters
  const float* scales;   // (n)
  int zAt, logitsAt, n, ranks;
};
// Linears with one input, and who chooses.
struct TrainingRouted {
  const T* rows;         // (tokens, stride)
  const int* fixed;      // (tokens), or null: adapter 0
  const int* targets;    // (tokens), -1: none; or null
  long long tokens;
  int stride, ranks, linears, gated, used;  // used: columns of a row that are no padding
  TrainingLinear linear[3];
};
// Who acts on a token, and with what weight: the gate's top k, or without a gate the adapter `fixed`.
__device__ __forceinline__ void trainingChoice(const TrainingLinear& l, const T* row, int gated, int fixed, float* logits, int* index,
                                               float* weight) {
  if (gated) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < NREG; i++) logits[i] = lane + 32 * i < l.n ? toFloat(row[l.logitsAt + lane + 32 * i]) : 0.f;
    gateTopK(logits, l.n, 1.f, index, weight);
  } else {
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      index[j] = j == 0 ? fixed : -1;
      weight[j] = j == 0 ? 1.f : 0.f;
    }
  }
}
__device__ __forceinline__ float warpMaximum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}
// Of the softmax over all logits: the largest, and the sum of the exponentials over it.
__device__ __forceinline__ float trainingSoftmax(const float* logits, int n, float& largest) {
  const int lane = threadIdx.x & 31;
  float m = negInf(), sum = 0;
#pragma unroll
  for (int i = 0; i < NREG; i++)
    if (lane + 32 * i < n) m = fmaxf(m, logits[i]);
  largest = m = warpMaximum(m);
#pragma unroll
  for (int i = 0; i < NREG; i++)
    if (lane + 32 * i < n) sum += expf(logits[i] - m);
  return warpSum(sum);
}

// to = factor · from for the chosen adapters' ranks, 0 for the others, by a warp.
__device__ __forceinline__ void scaleChosen(const T* from, T* to, int ranks, bool aligned, const int* begin, const int* end,
                                            const float* factor) {
  for (int at = (threadIdx.x & 31) * 8; at < ranks; at += 256) {
    float f[8] = {0, 0, 0, 0, 0, 0, 0, 0};
    bool any = false;
#pragma unroll
    for (int j = 0; j < TOPK; j++) any |= begin[j] < at + 8 && end[j] > at;
    if (any) {
      load8(from, at, ranks, aligned, f);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float own = factorOf(at + i, begin, end, factor);
        f[i] = own == 0.f ? 0.f : own * f[i];
      }
    }
    store8(to, at, ranks, aligned, f);
  }
}

// c = weight · scale · z for the chosen adapters' ranks, 0 for the others; and, where targets are given, each token's sum of the
// gates' cross-entropies, how many of them have the target first, and all adapters' weights over all gates. A warp a token.
struct TrainingRoute {
  TrainingRouted of;
  T* c;                  // (tokens, ranks), ranks of all linears; or null
  float* votes;          // (tokens, n)
  float* loss;           // (tokens)
  float* right;          // (tokens)
  int* chosen;           // (linears, TOPK, tokens): who acts, somebody everywhere, since k is at most n; or null
};
extern "C" __global__ void __launch_bounds__(256) training_route(const __grid_constant__ TrainingRoute p) {
  const int lane = threadIdx.x & 31;
  const long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.of.tokens) return;
  const T* row = p.of.rows + token * p.of.stride;
  const int target = p.of.targets ? p.of.targets[token] : -1;
  float loss = 0, right = 0;
  for (int k = 0; k < p.of.linears; k++) {
    const TrainingLinear& l = p.of.linear[k];
    const bool aligned = (p.of.stride | p.of.ranks | l.zAt | l.ranks) % 8 == 0;
    float logits[NREG], weight[TOPK], factor[TOPK];
    int index[TOPK], begin[TOPK], end[TOPK];
    trainingChoice(l, row, p.of.gated, p.of.fixed ? p.of.fixed[token] : 0, logits, index, weight);
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      begin[j] = index[j] < 0 ? 0 : l.offsets[index[j]];
      end[j] = index[j] < 0 ? 0 : l.offsets[index[j] + 1];
      factor[j] = index[j] < 0 ? 0.f : weight[j] * l.scales[index[j]];
      if (p.chosen && lane == 0) p.chosen[((long long)k * TOPK + j) * p.of.tokens + token] = index[j];
    }
    if (p.c) scaleChosen(row + l.zAt, p.c + token * p.of.ranks + l.zAt, l.ranks, aligned, begin, end, factor);
    if (p.of.gated && p.votes) {
#pragma unroll
      for (int i = 0; i < NREG; i++)
#pragma unroll
        for (int j = 0; j < TOPK; j++)
          if (index[j] == lane + 32 * i) p.votes[token * l.n + lane + 32 * i] += weight[j];
    }
    if (p.of.gated && target >= 0) {
      float largest;
      const float sum = trainingSoftmax(logits, l.n, largest);
      loss += logf(sum) + largest - toFloat(row[l.logitsAt + target]);
      right += index[0] == target;
    }
  }
  if (lane == 0 && p.of.gated && target >= 0 && p.loss) {
    p.loss[token] += loss;
    p.right[token] += right;
  }
}

// Backward of training_route, from the gradient of c: that of z and of the logits, in rows of the same form, with that of the
// gates' loss, gateWeight · (softmax − target). Makes c again, for B's gradient. A warp a token.
struct TrainingRouteBackward {
  TrainingRouted of;
  const T* slope;        // (tokens, ranks): ∂c
  T* c;                  // (tokens, ranks)
  T* out;                // (tokens, stride)
  int* chosen;           // as training_route's
  float gateWeight;
};
extern "C" __global__ void __launch_bounds__(256) training_route_backward(const __grid_constant__ TrainingRouteBackward p) {
  const int lane = threadIdx.x & 31;
  const long long token = (long long)blockIdx.x * 8 + (threadIdx.x >> 5);
  if (token >= p.of.tokens) return;
  const T* row = p.of.rows + token * p.of.stride;
  const T* slope = p.slope + token * p.of.ranks;
  T* out = p.out + token * p.of.stride;
  const int target = p.of.targets ? p.of.targets[token] : -1;
  for (int k = 0; k < p.of.linears; k++) {
    const TrainingLinear& l = p.of.linear[k];
    const bool aligned = (p.of.stride | p.of.ranks | l.zAt | l.ranks) % 8 == 0;
    float logits[NREG], weight[TOPK], factor[TOPK], ofWeight[TOPK];
    int index[TOPK], begin[TOPK], end[TOPK];
    trainingChoice(l, row, p.of.gated, p.of.fixed ? p.of.fixed[token] : 0, logits, index, weight);
    float mean = 0;
#pragma unroll
    for (int j = 0; j < TOPK; j++) {
      begin[j] = index[j] < 0 ? 0 : l.offsets[index[j]];
      end[j] = index[j] < 0 ? 0 : l.offsets[index[j] + 1];
      const float scale = index[j] < 0 ? 0.f : l.scales[index[j]];
      factor[j] = weight[j] * scale;
      if (p.chosen && lane == 0) p.chosen[((long long)k * TOPK + j) * p.of.tokens + token] = index[j];
      float dot = 0;
      if (p.of.gated)
        for (int r = begin[j] + lane; r < end[j]; r += 32) dot += toFloat(row[l.zAt + r]) * toFloat(slope[l.zAt + r]);
      ofWeight[j] = scale * warpSum(dot);
      mean += weight[j] * ofWeight[j];
    }
    scaleChosen(row + l.zAt, p.c + token * p.of.ranks + l.zAt, l.ranks, aligned, begin, end, factor);
    scaleChosen(slope + l.zAt, out + l.zAt, l.ranks, aligned, begin, end, factor);
    if (!p.of.gated) continue;
    float largest = 0, sum = 1;
    if (target >= 0) sum = trainingSoftmax(logits, l.n, largest);
#pragma unroll
    for (int i = 0; i < NREG; i++) {
      const int adapter = lane + 32 * i;
      float v = 0;
#pragma unroll
      for (int j = 0; j < TOPK; j++)
        if (index[j] == adapter) v = weight[j] * (ofWeight[j] - mean);
      if (target >= 0) v += p.gateWeight * (expf(logits[i] - largest) / sum - (adapter == target ? 1.f : 0.f));
      if (adapter < l.n) out[l.logitsAt + adapter] = fromFloat(v);
    }
  }
  for (int at = p.of.used + lane; at < p.of.stride; at += 32) out[at] = fromFloat(0.f);
}

// Tokens by the adapters that they chose, in an order that is always the same: sums over them come out the same each time. (The
// tiles of group_tokens are for products of single tokens, which do not mind.)
struct ChosenTokens {
  const int* chosen;     // (TOPK, tokens)
  int* order;            // (TOPK · tokens): the first adapter's tokens, the next one's, …, each in the order of `chosen`
  int* begins;           // (n + 1) first places of the adapters in it, and where it ends
};
// Grid (n, linears): a block writes its adapter's. Each of its warps looks through a stretch of `chosen`, twice: to count, also
// what belongs to adapters before, and to write.
struct TrainingLists {
  ChosenTokens linear[3];
  int tokens;
};
__device__ __forceinline__ int warpSum(int v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
// `act` on every entry of a warp's stretch, 32 at a time, -1 behind its end; loads of 512 are in flight together.
template <typename Act>
__device__ __forceinline__ void ofStretch(const int* chosen, int from, int end, Act act) {
  for (int i = from + (int)(threadIdx.x & 31); from < end; from += 512, i += 512) {
    int v[16];
#pragma unroll
    for (int k = 0; k < 16; k++) v[k] = i + 32 * k < end ? __ldg(chosen + i + 32 * k) : -1;
#pragma unroll
    for (int k = 0; k < 16; k++)
      if (from + 32 * k < end) act(v[k], i + 32 * k);
  }
}
extern "C" __global__ void __launch_bounds__(256) training_lists(const __grid_constant__ TrainingLists p) {
  __shared__ int before[8], own[8];
  const ChosenTokens& l = p.linear[blockIdx.y];
  const int adapter = blockIdx.x, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, count = TOPK * p.tokens;
  const int stretch = (count + 255) / 256 * 32, from = warp * stretch, end = from + stretch < count ? from + stretch : count;
  int less = 0, mine = 0;
  ofStretch(l.chosen, from, end, [&](int v, int) {
    less += (unsigned)v < (unsigned)adapter;  // nobody, -1, is none of them
    mine += v == adapter;
  });
  less = warpSum(less);
  mine = warpSum(mine);
  if (lane == 0) {
    before[warp] = less;
    own[warp] = mine;
  }
  __syncthreads();
  int begin = 0, all = 0, at = 0;
#pragma unroll
  for (int w = 0; w < 8; w++) {
    begin += before[w];
    all += own[w];
    if (w < warp) at += own[w];
  }
  at += begin;
  if (threadIdx.x == 0) {
    l.begins[adapter] = begin;
    if (adapter + 1 == gridDim.x) l.begins[adapter + 1] = begin + all;
  }
  ofStretch(l.chosen, from, end, [&](int v, int i) {
    const unsigned who = __ballot_sync(0xffffffffu, v == adapter);
    if (v == adapter) l.order[at + __popc(who & ((1u << lane) - 1))] = i % p.tokens;
    at += __popc(who);
  });
}

// The gradient of an adapter's A or B, wideᵀ · narrow over the tokens that chose it: of wide (tokens, columns) and its ranks of narrow
// (tokens, stride). Ranks and strides are whole eights, as are columns.
struct ChosenGradient {
  ChosenTokens tokens;
  const int* offsets;    // (n + 1)
  const T* wide;
  const T* narrow;       // at the linear's first rank
  float* to;             // rank r of column w at w · columnStep + r · rankStep
  long long columnStep, rankStep;
  int columns, stride, add;  // add: to what is there; else written, zeros where nobody chose the adapter
};
// Grid (n, linears · eights, ⌈columns / 256⌉), 128 threads: a block has eight ranks of an adapter and 256 columns. Neighbouring blocks
// read the same columns of wide, and write places that alternate in one piece of `to`: both stay in L2 meanwhile.
struct TrainingChosenGradients {
  ChosenGradient linear[3];
  int eights;            // of the largest rank
};
#define GRADIENT_COLUMNS 256
#define GRADIENT_STAGES 4
#define GRADIENT_ROW (GRADIENT_COLUMNS * 2)
#define GRADIENT_STAGE (TILE * (GRADIENT_ROW + 16))              // bytes: a tile's rows of wide, then of narrow
#define GRADIENT_SHARED (GRADIENT_STAGES * GRADIENT_STAGE + 1024)  // and 128 tokens, twice
#ifdef TENSOR_CORES
extern "C" __global__ void __launch_bounds__(128, 6) training_chosen_gradients(const __grid_constant__ TrainingChosenGradients p) {
  DYNAMIC_SHARED(memory);
  const ChosenGradient& l = p.linear[blockIdx.y / p.eights];
  const int adapter = blockIdx.x, eight = blockIdx.y % p.eights * 8, first = blockIdx.z * GRADIENT_COLUMNS;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int row = l.offsets[adapter], after = l.offsets[adapter + 1], begin = l.tokens.begins[adapter], end = l.tokens.begins[adapter + 1];
  const int rank = row + eight, count = end - begin, tiles = (count + TILE - 1) / TILE;
  if (rank >= after || first >= l.columns || (l.add && count == 0)) return;

  // A warp copies four rows of a tile, 16 bytes of neighbouring rows so that they share no banks. Where a tile is not full there are
  // the last token's, and zeros of narrow; columns that are outside are read from inside, and not written.
  const int* const order = l.tokens.order + begin;
  int* const list = (int*)(memory + GRADIENT_STAGES * GRADIENT_STAGE);
  auto tokenOf = [&](int block) {
    const int at = block * 128 + (int)threadIdx.x;
    return order[at < count ? at : count - 1];
  };
  const unsigned base = shared32(memory), swizzled = warp * 4 * GRADIENT_ROW + ((lane ^ (warp & 1) << 2) << 4);
  const int from = first + lane * 8 < l.columns ? first + lane * 8 : first;
  auto copy = [&](int tile) {
    const unsigned to = base + tile % GRADIENT_STAGES * GRADIENT_STAGE;
    const int* const its = list + tile % 16 * TILE + warp * 4;
    const uint4 token = *(const uint4*)its;
    const unsigned tokens[] = {token.x, token.y, token.z, token.w};
#pragma unroll
    for (int i = 0; i < 4; i++)
      copyAsync(((to + swizzled) ^ i << 4) + i * GRADIENT_ROW, true, l.wide + from + (u64)tokens[i] * (unsigned)l.columns);
    if (lane < 4)
      copyAsync(to + TILE * GRADIENT_ROW + (warp * 4 + lane) * 16, tile * TILE + warp * 4 + lane < count,
                l.narrow + rank + (u64)(unsigned)its[lane] * (unsigned)l.stride);
  };
  if (tiles) list[threadIdx.x] = tokenOf(0);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < GRADIENT_STAGES - 1; i++) {
    if (i < tiles) copy(i);
    closeGroup();
  }

  // A lane has ranks 2q and 2q + 1 at eight of its warp's columns. What is there is on its way while the tiles are.
  const int own = first + warp * 64, pieces = (l.columns - own) / 8;
  const bool together = l.rankStep == 1 && ((u64)l.columnStep | (u64)l.to / 4) % 2 == 0;
  const long long step = 8 * l.columnStep, rankStep = l.rankStep;
  float* const to = l.to + (own + g) * l.columnStep + (rank + 2 * q) * rankStep;
  float* at = to;
  float2 there[8];
  float c[4][4] = {};
#pragma unroll
  for (int i = 0; i < 8; i++, at += step) {
    there[i] = make_float2(0, 0);
    if (l.add && i < pieces) there[i] = together ? *(const float2*)at : make_float2(at[0], at[rankStep]);
  }
  const int of = (lane & 7) + (lane >> 4) * 8;  // the row of a tile of which this lane says where it lies
  const unsigned atWide = of * GRADIENT_ROW + (((warp * 8 + (lane >> 3 & 1)) ^ (of & 7)) << 4), atNarrow = TILE * GRADIENT_ROW + (lane & 15) * 16;
  int later = 0;
  for (int tile = 0; tile < tiles; tile++) {
    waitForGroups<GRADIENT_STAGES - 2>();
    __syncthreads();  // the tile is there for all, and the one before has been read
    const int block = tile / 8 + 1;  // of tokens, the next
    if (tile % 8 == 0 && block * 128 < count) later = tokenOf(block);
    if (tile % 8 == 4) list[block % 2 * 128 + threadIdx.x] = later;
    if (tile + GRADIENT_STAGES - 1 < tiles) copy(tile + GRADIENT_STAGES - 1);
    closeGroup();
    const unsigned stage = base + tile % GRADIENT_STAGES * GRADIENT_STAGE;
    unsigned b[4];
    loadTransposed(stage + atNarrow, b);  // two matrices, twice
#pragma unroll
    for (int m = 0; m < 4; m++) {
      unsigned a[4];
      loadTransposed((stage + atWide) ^ m << 5, a);
      mma(c[m], a[0], a[1], a[2], a[3], b[0], b[1]);
    }
  }
  at = to;
#pragma unroll
  for (int i = 0; i < 8; i++, at += step) {
    const float x = there[i].x + c[i / 2][i % 2 * 2], y = there[i].y + c[i / 2][i % 2 * 2 + 1];
    if (i >= pieces) break;
    if (together) {
      *(u64*)at = __float_as_uint(x) | (u64)__float_as_uint(y) << 32;  // as a float2 it would be cut in two
    } else {
      at[0] = x;
      at[rankStep] = y;
    }
  }
}
#else
// Plainly, for who has no tensor cores.
extern "C" __global__ void __launch_bounds__(128) training_chosen_gradients(const __grid_constant__ TrainingChosenGradients p) {
  const ChosenGradient& l = p.linear[blockIdx.y / p.eights];
  const int adapter = blockIdx.x, rank = l.offsets[adapter] + blockIdx.y % p.eights * 8;
  if (rank >= l.offsets[adapter + 1]) return;
  for (int i = threadIdx.x; i < GRADIENT_COLUMNS * 8; i += 128) {
    const int r = rank + i % 8, column = blockIdx.z * GRADIENT_COLUMNS + i / 8;
    if (column >= l.columns) return;
    float* const to = l.to + column * l.columnStep + r * l.rankStep;
    float sum = 0;
    for (int at = l.tokens.begins[adapter]; at < l.tokens.begins[adapter + 1]; at++) {
      const u64 token = l.tokens.order[at];
      sum += toFloat(l.wide[token * l.columns + column]) * toFloat(l.narrow[token * l.stride + r]);
    }
    *to = l.add ? *to + sum : sum;
  }
}
#endif

// Rows by index: to[i] = from[index[i]], or with `scatter` to[index[i]] = from[i]. One thread: 8 elements of a row.
struct TrainingRows {
  const T* from;
  T* to;
  const int* index;
  long long rows;
  int columns, scatter;
};
extern "C" __global__ void __launch_bounds__(256) training_rows(const __grid_constant__ TrainingRows p) {
  const auto [row, at, aligned] = rowPiece(p.columns);
  if (row >= p.rows) return;
  const long long other = p.index[row];
  float f[8];
  load8(p.from + (p.scatter ? row : other) * p.columns, at, p.columns, aligned, f);
  store8(p.to + (p.scatter ? other : row) * p.columns, at, p.columns, aligned, f);
}

// Cross-entropy of a row of logits; with `gradient` the logits become weight · (softmax − label). A block of 256 threads a row.
struct TrainingVocabularyLoss {
  T* logits;
  const int* labels;
  const float* weights;
  float* losses;
  int vocab, gradient;
};
extern "C" __global__ void __launch_bounds__(256) training_vocabulary_loss(const __grid_constant__ TrainingVocabularyLoss p) {
  __shared__ float largest[8], sums[8];
  T* row = p.logits + (long long)blockIdx.x * p.vocab;
  const bool aligned = p.vocab % 8 == 0;
  const int label = p.labels[blockIdx.x];
  float m = negInf(), sum = 0;
  for (int at = threadIdx.x * 8; at < p.vocab; at += 2048) {
    float f[8], top = m;
    load8(row, at, p.vocab, aligned, f);
#pragma unroll
    for (int i = 0; i < 8; i++) top = at + i < p.vocab ? fmaxf(top, f[i]) : top;
    if (top > m) {
      sum *= expf(m - top);
      m = top;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) sum += at + i < p.vocab ? expf(f[i] - m) : 0.f;
  }
  const float warp = warpMaximum(m);
  sum = warpSum(sum > 0 ? sum * expf(m - warp) : sum);
  if ((threadIdx.x & 31) == 0) {
    largest[threadIdx.x >> 5] = warp;
    sums[threadIdx.x >> 5] = sum;
  }
  const float ofLabel = toFloat(row[label]);
  __syncthreads();
  m = negInf();
#pragma unroll
  for (int i = 0; i < 8; i++) m = fmaxf(m, largest[i]);
  sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += sums[i] == 0.f ? 0.f : sums[i] * expf(largest[i] - m);
  if (threadIdx.x == 0) p.losses[blockIdx.x] = logf(sum) + m - ofLabel;
  if (!p.gradient) return;
  const float weight = p.weights[blockIdx.x], factor = weight / sum;
  for (int at = threadIdx.x * 8; at < p.vocab; at += 2048) {
    float f[8];
    load8(row, at, p.vocab, aligned, f);
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] = expf(f[i] - m) * factor - (at + i == label ? weight : 0.f);
    store8(row, at, p.vocab, aligned, f);
  }
}

// Adds float32 matrices to others: gradients to their places. Grid (any, parts).
struct GradientPart {
  float* to;
  long long from;        // elements behind `from` of the launch
  int rows, columns, fromStride, toStride;
};
struct TrainingAddGradients {
  const GradientPart* parts;
  const float* from;
};
extern "C" __global__ void __launch_bounds__(256) training_add_gradients(const __grid_constant__ TrainingAddGradients p) {
  const GradientPart part = p.parts[blockIdx.y];
  const float* from = p.from + part.from;
  const bool plain = part.fromStride == part.columns && part.toStride == part.columns;  // one long row
  const long long columns = plain ? (long long)part.rows * part.columns : part.columns, fours = (columns + 3) / 4;
  const bool aligned = (columns | part.fromStride | part.toStride | (long long)((u64)part.to / 4) | (long long)((u64)from / 4)) % 4 == 0;
  const long long count = plain ? fours : part.rows * fours;
  for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < count; i += (long long)gridDim.x * 256) {
    const long long row = plain ? 0 : i / fours, column = (i - row * fours) * 4;
    float* to = part.to + row * part.toStride + column;
    const float* add = from + row * part.fromStride + column;
    if (aligned) {
      const float4 a = *(const float4*)to, b = *(const float4*)add;
      *(float4*)to = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
    } else {
      for (int j = 0; j < 4 && column + j < columns; j++) to[j] += add[j];
    }
  }
}

// Float32 values, or such as are rounded already, into the model's tensors. Grid (any, parts).
struct PublishedPart {
  const void* from;
  T* to;
  int rows, columns, toStride, toColumn;
};
struct TrainingPublish {
  const PublishedPart* parts;
  int rounded;  // whether they come in the model's dtype
};
extern "C" __global__ void __launch_bounds__(256) training_publish(const __grid_constant__ TrainingPublish p) {
  const PublishedPart part = p.parts[blockIdx.y];
  const long long count = (long long)part.rows * part.columns;
  for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < count; i += (long long)gridDim.x * 256)
    part.to[i / part.columns * part.toStride + i % part.columns * part.toColumn] =
        p.rounded ? ((const T*)part.from)[i] : fromFloat(((const float*)part.from)[i]);
}

// One step of AdamW on a stretch of the flat buffers, gradients scaled first.
struct TrainingAdamW {
  float* values;
  const float* gradients;
  float* means;
  float* variances;
  long long count;
  float scale, decay, rate, bias, beta1, beta2, epsilon;
};
extern "C" __global__ void __launch_bounds__(256) training_adam_w(const __grid_constant__ TrainingAdamW p) {
  for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < p.count; i += (long long)gridDim.x * 256) {
    const float g = p.scale * p.gradients[i];
    const float m = p.beta1 * p.means[i] + (1.f - p.beta1) * g, v = p.beta2 * p.variances[i] + (1.f - p.beta2) * (g * g);
    p.means[i] = m;
    p.variances[i] = v;
    p.values[i] = p.decay * p.values[i] - p.rate * (m / (sqrtf(v) / p.bias + p.epsilon));
  }
}

// Each block's sum of squares.
struct TrainingSquares {
  const float* values;
  double* sums;          // (blocks)
  long long count;
};
extern "C" __global__ void __launch_bounds__(256) training_squares(const __grid_constant__ TrainingSquares p) {
  __shared__ double sums[8];
  double sum = 0;
  for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < p.count; i += (long long)gridDim.x * 256) {
    const float v = p.values[i];
    sum += (double)v * v;
  }
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < 8; i++) sum += sums[i];
    p.sums[blockIdx.x] = sum;
  }
}
