// What a Llama does between its matrix products, for the many tokens of a prefill.

// The RMSNorm factor of the row of p.h that begins at element `row`, or with a delta of h + delta, which goes to sum. By a block of
// 256 threads.
template <class P>
__device__ __forceinline__ float rowNormFactor(const P& p, int hidden, float eps, long long row, bool aligned, float* sums) {
  float squares = 0;
  for (int at = threadIdx.x * 8; at < hidden; at += 2048) {
    float f[8];
    load8(p.h + row, at, hidden, aligned, f);
    if (p.delta) {
      float g[8];
      load8(p.delta + row, at, hidden, aligned, g);
#pragma unroll
      for (int i = 0; i < 8; i++) f[i] = toFloat(fromFloat(f[i] + g[i]));
      store8(p.sum + row, at, hidden, aligned, f);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) squares += f[i] * f[i];
  }
  return rsqrtf(blockSum(squares, sums) / hidden + eps);
}
// Eight elements of a normed row, times the norm's weight.
__device__ __forceinline__ void normed8(const T* row, const T* weight, int at, int hidden, bool aligned, float factor, float* f) {
  float w[8];
  load8(row, at, hidden, aligned, f);
  load8(weight, at, hidden, aligned, w);
#pragma unroll
  for (int i = 0; i < 8; i++) f[i] = toFloat(fromFloat(f[i] * factor)) * w[i];
}

// out = rmsnorm(h) · weight; with a delta of h + delta, which goes to sum. One block a row.
struct PrefillRmsNorm {
  const T* h;
  const T* delta;
  T* sum;
  const T* weight;
  T* out;
  long long rows;
  int hidden;
  float eps;
};
extern "C" __global__ void __launch_bounds__(256) prefill_rms_norm(const __grid_constant__ PrefillRmsNorm p) {
  __shared__ float sums[8];
  const long long row = (long long)blockIdx.x * p.hidden;
  const bool aligned = p.hidden % 8 == 0;
  const T* normed = p.delta ? p.sum + row : p.h + row;
  const float factor = rowNormFactor(p, p.hidden, p.eps, row, aligned, sums);
  for (int at = threadIdx.x * 8; at < p.hidden; at += 2048) {  // what this thread has seen before
    float f[8];
    normed8(normed, p.weight, at, p.hidden, aligned, factor, f);
    store8(p.out + row, at, p.hidden, aligned, f);
  }
}

// Rotates queries (batch, seq, heads, headDim) in place, and puts keys, rotated, and values, both (batch, seq, kvHeads, headDim),
// into the cache (batch, kvHeads, capacity, headDim) behind its first `past` positions, or, where `columns` (seq) are given, at
// those. Cosines and sines (seq, headDim), of every sequence (angleRows) or of all, are those that x · cos + (its halves exchanged)
// · sin takes: the first sines are negated.
// One thread: 8 pairs of a head, or one where heads have an odd form.
struct PrefillRopeAppend {
  T* q;
  const T* k;
  const T* v;
  const T* cosines;
  const T* sines;
  T* keys;
  T* values;
  const long long* columns;
  long long tokens, capacity, past;
  int seq, angleRows, heads, kvHeads, headDim, vectors;
};
template <int N>
__device__ __forceinline__ void ropeRow(const PrefillRopeAppend& p, long long token, int head, int i) {
  const int half = p.headDim / 2, kv = head < p.heads ? 0 : head < p.heads + p.kvHeads ? 1 : 2;
  const long long sequence = token / p.seq, t = token % p.seq;
  if (kv) head -= kv == 1 ? p.heads : p.heads + p.kvHeads;
  T* q = p.q + (token * p.heads + head) * p.headDim + i;
  const T* from = kv == 0 ? q : (kv == 1 ? p.k : p.v) + (token * p.kvHeads + head) * p.headDim + i;
  const long long column = p.columns ? p.columns[t] : p.past + t;
  T* to = kv == 0 ? q : (kv == 1 ? p.keys : p.values) + ((sequence * p.kvHeads + head) * p.capacity + column) * p.headDim + i;
  const long long angle = ((p.angleRows > 1 ? sequence * p.seq : 0) + t) * p.headDim + i;
  float a[8], b[8], c[8], s[8];
  load8(from, 0, N, N == 8, a);
  load8(from + half, 0, N, N == 8, b);
  if (kv < 2) {
    load8(p.cosines + angle, 0, N, N == 8, c);
    load8(p.sines + angle + half, 0, N, N == 8, s);
#pragma unroll
    for (int j = 0; j < N; j++) {
      const float x = a[j], y = b[j];
      a[j] = x * c[j] - y * s[j];
      b[j] = y * c[j] + x * s[j];
    }
  }
  store8(to, 0, N, N == 8, a);
  store8(to + half, 0, N, N == 8, b);
}
extern "C" __global__ void __launch_bounds__(256) prefill_rope_append(const __grid_constant__ PrefillRopeAppend p) {
  const int pairs = p.vectors ? p.headDim / 16 : p.headDim / 2, heads = p.heads + 2 * p.kvHeads;
  const long long at = (long long)blockIdx.x * 256 + threadIdx.x, token = at / (pairs * heads);
  if (token >= p.tokens) return;
  const int rest = (int)(at % (pairs * heads));
  if (p.vectors)
    ropeRow<8>(p, token, rest / pairs, rest % pairs * 8);
  else
    ropeRow<1>(p, token, rest / pairs, rest % pairs);
}

// out = silu(gate) · up, elementwise.
struct PrefillSiluUp {
  const T* gate;
  const T* up;
  T* out;
  long long count;
  int vectors;
};
extern "C" __global__ void __launch_bounds__(256) prefill_silu_up(const __grid_constant__ PrefillSiluUp p) {
  long long at = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
  if (at >= p.count) return;
  int n = p.count - at < 8 ? (int)(p.count - at) : 8;
  float g[8], u[8];
  load8(p.gate + at, 0, n, p.vectors, g);
  load8(p.up + at, 0, n, p.vectors, u);
#pragma unroll
  for (int i = 0; i < 8; i++) g[i] = silu(g[i]) * u[i];
  store8(p.out + at, 0, n, p.vectors, g);
}

// Columns of rows of one KV cache to another's, keys and values. Five numbers an entry: row and first column there, row and
// first column here, and how many. Grid (columns · headDim / 2048, 2 kvHeads, entries).
struct PrefillCopyColumns {
  const T* fromKeys;
  const T* fromValues;
  T* toKeys;
  T* toValues;
  const long long* entries;
  long long fromCapacity, toCapacity;
  int kvHeads, headDim;
};
extern "C" __global__ void __launch_bounds__(256) prefill_copy_columns(const __grid_constant__ PrefillCopyColumns p) {
  const long long* e = p.entries + 5 * blockIdx.z;
  const bool values = (int)blockIdx.y >= p.kvHeads;
  const int head = blockIdx.y - (values ? p.kvHeads : 0), end = (int)e[4] * p.headDim, at = (blockIdx.x * 256 + threadIdx.x) * 8;
  if (at >= end) return;
  const T* from = (values ? p.fromValues : p.fromKeys) + ((e[0] * p.kvHeads + head) * p.fromCapacity + e[1]) * p.headDim;
  T* to = (values ? p.toValues : p.toKeys) + ((e[2] * p.kvHeads + head) * p.toCapacity + e[3]) * p.headDim;
  float f[8];
  load8(from, at, end, p.headDim % 8 == 0, f);
  store8(to, at, end, p.headDim % 8 == 0, f);
}
