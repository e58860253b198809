// DecodeAttention of one new token per row over its keys and values, split over the sequence. Those of tokens t are number
// t % KV_BLOCK of a block of the pool (blocks, kvHeads, KV_BLOCK, HEAD_DIM), tables[t / KV_BLOCK][row]. Grid (splits, heads /
// GROUP, rows), 128 threads. The block that ends last for a row and head group joins the splits and leaves the counter at zero.
struct DecodeAttention {
  const float* q;
  const T* kCache;
  const T* vCache;
  T* out;
  float* partial;
  unsigned* counters;
  const int* tables;
  const int* lengths;  // negative: no sequence
  int heads, kvHeads, tableRows, splits;
};
// Where a block's keys or values of a head begin.
__device__ __forceinline__ u64 inPool(int block, int kvHeads, int kvHead) {
  return ((u64)block * kvHeads + kvHead) * (KV_BLOCK * HEAD_DIM);
}
#define SEGMENTS ((HEAD_DIM + 7) / 8)
#define LANE_SEGMENTS ((SEGMENTS + 7) / 8)
#define PADDED (SEGMENTS * 8)
#define KEYS 64
#define KEY_GROUPS (128 / SEGMENTS)
extern "C" __global__ void __launch_bounds__(128) decode_attention(const __grid_constant__ DecodeAttention p) {
  __shared__ __align__(16) float score[GROUP][KEYS];
  __shared__ float correction[GROUP], top[GROUP], total[GROUP];
  __shared__ __align__(16) float reduce[KEY_GROUPS * GROUP * PADDED];
  __shared__ bool last;
  releaseNext();
  const int split = blockIdx.x, group = blockIdx.y, row = blockIdx.z, tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
  const int kvHead = group * GROUP / (p.heads / p.kvHeads), length = p.lengths[row] + 1;
  const bool aligned = HEAD_DIM % 8 == 0;
  int begin = 0, end = 0, active = 1;  // splits that have work: at least KEYS keys each, or all
  if (length > 0) {
    int each = ((length + p.splits - 1) / p.splits + KEYS - 1) / KEYS * KEYS;
    active = (length + each - 1) / each;
    begin = split * each;
    end = begin + each < length ? begin + each : length;
  }
  if (split >= active) return;
  auto blockOf = [&](int key) { return inPool(p.tables[key / KV_BLOCK * p.tableRows + row], p.kvHeads, kvHead); };
  // Tables, lengths and all columns but the newest are older than this step: they can come closer before the previous kernel
  // ends.
  for (int at = begin * HEAD_DIM + tid * (128 / (int)sizeof(T)); at < end * HEAD_DIM && at < (begin + 4 * KEYS) * HEAD_DIM;
       at += 128 * (128 / (int)sizeof(T))) {
    const u64 there = blockOf(at / HEAD_DIM) + at % (KV_BLOCK * HEAD_DIM);
    prefetch(p.kCache + there);
    prefetch(p.vCache + there);
  }
  waitForPrevious();

  float q[GROUP][LANE_SEGMENTS][8];
#pragma unroll
  for (int h = 0; h < GROUP; h++)
#pragma unroll
    for (int s = 0; s < LANE_SEGMENTS; s++)
{
        const int d = ((tid & 7) + 8 * s) * 8;
        const float* from = p.q + ((u64)row * p.heads + group * GROUP + h) * HEAD_DIM + d;
#if HEAD_DIM % 8 == 0
        float4 u = make_float4(0, 0, 0, 0), v = u;
        if (d < HEAD_DIM) { u = *(const float4*)from; v = *(const float4*)(from + 4); }
        q[h][s][0] = u.x; q[h][s][1] = u.y; q[h][s][2] = u.z; q[h][s][3] = u.w;
        q[h][s][4] = v.x; q[h][s][5] = v.y; q[h][s][6] = v.z; q[h][s][7] = v.w;
#else
#pragma unroll
        for (int i = 0; i < 8; i++) q[h][s][i] = d + i < HEAD_DIM ? from[i] : 0.f;
#endif
      }
  float acc[GROUP][8];
#pragma unroll
  for (int h = 0; h < GROUP; h++)
#pragma unroll
    for (int i = 0; i < 8; i++) acc[h][i] = 0.f;
  float runningMax = negInf(), runningSum = 0.f;  // of head `warp`
  const int keyGroup = tid / SEGMENTS, segment = tid - keyGroup * SEGMENTS;

  for (int t0 = begin; t0 < end; t0 += KEYS) {
    u64 blocks[KEYS / KV_BLOCK];
#pragma unroll
    for (int i = 0; i < KEYS / KV_BLOCK; i++) blocks[i] = t0 + i * KV_BLOCK < end ? blockOf(t0 + i * KV_BLOCK) : 0;
#pragma unroll
    for (int pass = 0; pass < KEYS / 16; pass++) {
      int local = pass * 16 + (tid >> 3), key = t0 + local;
      float dot[GROUP];
#pragma unroll
      for (int h = 0; h < GROUP; h++) dot[h] = 0.f;
      if (key < end) {
#pragma unroll
        for (int s = 0; s < LANE_SEGMENTS; s++) {
          float f[8];
          load8(p.kCache + blocks[pass * 16 / KV_BLOCK] + local % KV_BLOCK * HEAD_DIM, ((tid & 7) + 8 * s) * 8, HEAD_DIM, aligned, f);
#pragma unroll
          for (int h = 0; h < GROUP; h++)
#pragma unroll
            for (int i = 0; i < 8; i++) dot[h] += f[i] * q[h][s][i];
        }
      }
#pragma unroll
      for (int h = 0; h < GROUP; h++) {
        dot[h] += __shfl_xor_sync(0xffffffffu, dot[h], 1);
        dot[h] += __shfl_xor_sync(0xffffffffu, dot[h], 2);
        dot[h] += __shfl_xor_sync(0xffffffffu, dot[h], 4);
        if ((tid & 7) == 0) score[h][local] = key < end ? dot[h] : negInf();
      }
    }
    __syncthreads();
    if (warp < GROUP) {
      float a = score[warp][lane], b = score[warp][lane + 32];
      float m = fmaxf(a, b);
#pragma unroll
      for (int d = 16; d > 0; d >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
      float next = fmaxf(m, runningMax), factor = __expf(runningMax - next);
      a = __expf(a - next);
      b = __expf(b - next);
      score[warp][lane] = a;
      score[warp][lane + 32] = b;
      runningSum = runningSum * factor + warpSum(a + b);
      runningMax = next;
      if (lane == 0) correction[warp] = factor;
    }
    __syncthreads();
    if (keyGroup < KEY_GROUPS) {
#pragma unroll
      for (int h = 0; h < GROUP; h++)
#pragma unroll
        for (int i = 0; i < 8; i++) acc[h][i] *= correction[h];
#pragma unroll 8
      for (int local = keyGroup; local < KEYS; local += KEY_GROUPS) {
        if (t0 + local < end) {
          float f[8];
          u64 block = blocks[0];
#pragma unroll
          for (int i = 1; i < KEYS / KV_BLOCK; i++) block = local >= i * KV_BLOCK ? blocks[i] : block;
          load8(p.vCache + block + local % KV_BLOCK * HEAD_DIM, segment * 8, HEAD_DIM, aligned, f);
#pragma unroll
          for (int h = 0; h < GROUP; h++) {
            float w = score[h][local];
#pragma unroll
            for (int i = 0; i < 8; i++) acc[h][i] += w * f[i];
          }
        }
      }
    }
    __syncthreads();
  }
  if (keyGroup < KEY_GROUPS)
#pragma unroll
    for (int h = 0; h < GROUP; h++)
#pragma unroll
      for (int i = 0; i < 8; i++) reduce[(keyGroup * GROUP + h) * PADDED + segment * 8 + i] = acc[h][i];
  if (warp < GROUP && lane == 0) { top[warp] = runningMax; total[warp] = runningSum; }
  __syncthreads();
  const int width = GROUP * (PADDED + 2);
  float* mine = p.partial + (((u64)row * gridDim.y + group) * p.splits + split) * width;
  for (int i = tid; i < GROUP * PADDED; i += 128) {
    float v = 0;
#pragma unroll
    for (int g = 0; g < KEY_GROUPS; g++) v += reduce[g * GROUP * PADDED + i];
    mine[i] = v;
  }
  if (tid < GROUP) {
    mine[GROUP * PADDED + tid] = top[tid];
    mine[GROUP * PADDED + GROUP + tid] = total[tid];
  }
  if (active > 1) __threadfence();
  __syncthreads();
  unsigned* counter = p.counters + row * gridDim.y + group;
  if (tid == 0) last = active == 1 || atomicAdd(counter, 1u) == (unsigned)active - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (tid == 0) *counter = 0;
  const float* all = p.partial + (((u64)row * gridDim.y + group) * p.splits) * width;
  // weight of each split, per head: exp(max - overall max) / overall sum
  float* weights = reduce;  // [splits][GROUP], splits ≤ 64
  if (warp < GROUP) {
    float m = negInf();
    for (int s = lane; s < active; s += 32) m = fmaxf(m, __ldcg(all + s * width + GROUP * PADDED + warp));
#pragma unroll
    for (int d = 16; d > 0; d >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, d));
    float sum = 0;
    for (int s = lane; s < active; s += 32) {
      float own = __ldcg(all + s * width + GROUP * PADDED + warp), w = own == negInf() ? 0.f : __expf(own - m);
      weights[s * GROUP + warp] = w;
      sum += w * __ldcg(all + s * width + GROUP * PADDED + GROUP + warp);
    }
    sum = warpSum(sum);
    __syncwarp();
    for (int s = lane; s < active; s += 32) weights[s * GROUP + warp] *= sum > 0 ? 1.f / sum : 0.f;
  }
  __syncthreads();
  for (int i = tid; i < GROUP * PADDED; i += 128) {
    int h = i / PADDED, d = i - h * PADDED;
    float v = 0;
#pragma unroll 8
    for (int s = 0; s < active; s++) v += weights[s * GROUP + h] * __ldcg(all + s * width + i);
    if (d < HEAD_DIM) p.out[((u64)row * p.heads + group * GROUP + h) * HEAD_DIM + d] = fromFloat(v);
  }
}

#if defined(TENSOR_CORES) && __CUDA_ARCH__ >= 900 && (HEAD_DIM == 64 || HEAD_DIM == 128)
// The same on tensor cores. A cluster of `splits` blocks joins its results in shared memory; only long sequences need several
// clusters, which are joined as above. Every warp takes 16 keys at a time, straight from memory into the operands' registers:
// where an operand wants columns side by side, any order of the head's dimensions will do, so each lane takes 16 contiguous
// bytes. Grid (clusters · splits, heads / GROUP, rows), 128 threads.
//
// Scores are Q Kᵀ with the query heads as the rows; four heads leave four of the first eight rows, which hold what rounding q
// (and then the weights) to T leaves over: the sums are as exact as with float32 queries.
#define QUADS (HEAD_DIM / 32)    // 16 bytes of each of four lanes
#define OCTETS (HEAD_DIM / 64)   // 16 bytes of each of eight lanes
#define PART_ROW (HEAD_DIM + 4)
extern "C" __global__ void __launch_bounds__(128) decode_attention_cluster(const __grid_constant__ DecodeAttention p) {
  __shared__ float parts[4][GROUP][PART_ROW], tops[4][GROUP], totals[4][GROUP];
  __shared__ float joined[GROUP * HEAD_DIM], top[GROUP], total[GROUP];
  __shared__ bool last;
  releaseNext();
  const int group = blockIdx.y, row = blockIdx.z, cluster = blockIdx.x / p.splits, rank = blockIdx.x % p.splits;
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
  const int kvHead = group * GROUP / (p.heads / p.kvHeads), newest = p.lengths[row];
  int begin = 0, end = 0, clusters = 1;  // that have work
  if (newest >= 0) {
    int length = newest + 1, each = ((length + gridDim.x - 1) / gridDim.x + 15) / 16 * 16;
    if (each < KEYS) each = KEYS;
    clusters = (length + each * p.splits - 1) / (each * p.splits);
    begin = blockIdx.x * each;
    end = begin + each < length ? begin + each : length;
  }
  if (cluster >= clusters) return;
  uint4 k[2][QUADS], v[4][OCTETS];
  // 16 keys from a multiple of 16 on are in one block.
  auto blockOf = [&](int key) { return key < end ? p.tables[key / KV_BLOCK * p.tableRows + row] : 0; };
  auto loadKeys = [&](int block, int from, int but) {
    const T* keys = p.kCache + inPool(block, p.kvHeads, kvHead) + from % KV_BLOCK * HEAD_DIM + q * 8;
#pragma unroll
    for (int t = 0; t < 2; t++) {
      int at = t * 8 + g;
#pragma unroll
      for (int s = 0; s < QUADS; s++) k[t][s] = loadIf(from + at < end && from + at != but, keys + at * HEAD_DIM + s * 32);
    }
  };
  auto loadValues = [&](int block, int from, int but) {
    const T* values = p.vCache + inPool(block, p.kvHeads, kvHead) + from % KV_BLOCK * HEAD_DIM + g * 8;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int at = (i >> 1) * 8 + q * 2 + (i & 1);
#pragma unroll
      for (int s = 0; s < OCTETS; s++) v[i][s] = loadIf(from + at < end && from + at != but, values + at * HEAD_DIM + s * 64);
    }
  };
  // All columns but the newest are older than this step, and so are tables and lengths: the first are here before the
  // previous kernel ends.
  int t0 = begin + warp * 16, block = blockOf(t0), next = blockOf(t0 + 64);
  loadKeys(block, t0, newest);
  loadValues(block, t0, newest);
  waitForPrevious();

  unsigned query[QUADS][4];  // of row g: head g % 4, from four on what rounding left over
  {
    const int head = g & 3;
    const float* from = p.q + ((u64)row * p.heads + group * GROUP + head) * HEAD_DIM + q * 8;
#pragma unroll
    for (int s = 0; s < QUADS; s++) {
      float4 a = make_float4(0, 0, 0, 0), b = a;
      if (head < GROUP) { a = *(const float4*)(from + s * 32); b = *(const float4*)(from + s * 32 + 4); }
      unsigned low;
      const bool rest = g >= 4;
      twoParts(a.x, a.y, query[s][0], low); query[s][0] = rest ? low : query[s][0];
      twoParts(a.z, a.w, query[s][1], low); query[s][1] = rest ? low : query[s][1];
      twoParts(b.x, b.y, query[s][2], low); query[s][2] = rest ? low : query[s][2];
      twoParts(b.z, b.w, query[s][3], low); query[s][3] = rest ? low : query[s][3];
    }
  }
  if (t0 <= newest && newest < t0 + 16) {
    loadKeys(block, t0, -1);
    loadValues(block, t0, -1);
  }

  float o[OCTETS][8][2];  // of row g: dimensions 64 s + 16 q + j and 8 more
#pragma unroll
  for (int s = 0; s < OCTETS; s++)
#pragma unroll
    for (int j = 0; j < 8; j++) o[s][j][0] = o[s][j][1] = 0.f;
  float runningMax = negInf(), runningSum = 0.f;
  for (; t0 < end; t0 += 64) {
    float w[2][2], m = negInf();
#pragma unroll
    for (int t = 0; t < 2; t++) {
      float c[2][4] = {};
#pragma unroll
      for (int s = 0; s < QUADS; s++) {
        mma(c[0], query[s][0], 0, query[s][1], 0, k[t][s].x, k[t][s].y);
        mma(c[1], query[s][2], 0, query[s][3], 0, k[t][s].z, k[t][s].w);
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float score = c[0][i] + c[1][i];
        score += __shfl_xor_sync(0xffffffffu, score, 16);
        w[t][i] = t0 + t * 8 + q * 2 + i < end ? score : negInf();
        m = fmaxf(m, w[t][i]);
      }
    }
    loadKeys(next, t0 + 64, -1);
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 1));
    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, 2));
    m = fmaxf(m, runningMax);
    float factor = __expf(runningMax - m);
    runningMax = m;
    runningSum *= factor;
    unsigned weight[2];
#pragma unroll
    for (int t = 0; t < 2; t++) {
      float a = __expf(w[t][0] - m), b = __expf(w[t][1] - m);
      runningSum += a + b;
      unsigned low;
      twoParts(a, b, weight[t], low);
      if (g >= 4) weight[t] = low;
    }
#pragma unroll
    for (int s = 0; s < OCTETS; s++) {
      const unsigned* v0 = &v[0][s].x;
      const unsigned* v1 = &v[1][s].x;
      const unsigned* v2 = &v[2][s].x;
      const unsigned* v3 = &v[3][s].x;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const int take = j & 1 ? 0x7632 : 0x5410;
        float c[4] = {o[s][j][0] * factor, o[s][j][1] * factor, 0.f, 0.f};
        mma(c, weight[0], 0, weight[1], 0, __byte_perm(v0[j / 2], v1[j / 2], take), __byte_perm(v2[j / 2], v3[j / 2], take));
        o[s][j][0] = c[0];
        o[s][j][1] = c[1];
      }
    }
    loadValues(next, t0 + 64, -1);
    next = blockOf(t0 + 128);
  }

  // The warps' results, then the blocks'.
  runningSum += __shfl_xor_sync(0xffffffffu, runningSum, 1);
  runningSum += __shfl_xor_sync(0xffffffffu, runningSum, 2);
#pragma unroll
  for (int s = 0; s < OCTETS; s++)
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float all = o[s][j][i] + __shfl_xor_sync(0xffffffffu, o[s][j][i], 16);
        if (g < GROUP) parts[warp][g][s * 64 + q * 16 + i * 8 + j] = all;
      }
  if (g < GROUP && q == 0) { tops[warp][g] = runningMax; totals[warp][g] = runningSum; }
  __syncthreads();
  for (int at = threadIdx.x; at < GROUP * HEAD_DIM; at += 128) {
    int h = at / HEAD_DIM, d = at - h * HEAD_DIM;
    float m = fmaxf(fmaxf(tops[0][h], tops[1][h]), fmaxf(tops[2][h], tops[3][h])), sum = 0, all = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float weight = tops[i][h] == negInf() ? 0.f : __expf(tops[i][h] - m);
      all += weight * parts[i][h][d];
      sum += weight * totals[i][h];
    }
    joined[at] = all;
    if (d == 0) { top[h] = m; total[h] = sum; }
  }
  clusterArrive();
  clusterWait();
  const int width = GROUP * (HEAD_DIM + 2);
  float* const all = p.partial + ((u64)row * gridDim.y + group) * (gridDim.x / p.splits) * width;
  T* const out = p.out + ((u64)row * p.heads + group * GROUP) * HEAD_DIM;
  for (int at = rank * 128 + threadIdx.x; at < GROUP * HEAD_DIM; at += p.splits * 128) {
    int h = at / HEAD_DIM;
    float tops[8], m = negInf(), sum = 0, v = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      tops[i] = i < p.splits ? sharedOf(&top[h], i) : negInf();
      m = fmaxf(m, tops[i]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < p.splits) {
        float weight = tops[i] == negInf() ? 0.f : __expf(tops[i] - m);
        sum += weight * sharedOf(&total[h], i);
        v += weight * sharedOf(&joined[at], i);
      }
    if (clusters == 1) {
      out[at] = fromFloat(sum > 0 ? v / sum : 0.f);
    } else {
      float* mine = all + cluster * width;
      mine[at] = v;
      if (at == h * HEAD_DIM) { mine[GROUP * HEAD_DIM + h] = m; mine[GROUP * HEAD_DIM + GROUP + h] = sum; }
    }
  }
  if (clusters > 1) __threadfence();
  clusterArrive();  // nobody leaves while others read
  clusterWait();
  if (clusters == 1 || rank != 0) return;
  unsigned* counter = p.counters + row * gridDim.y + group;
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicAdd(counter, 1u) == (unsigned)clusters - 1;
    if (last) *counter = 0;
    __threadfence();
  }
  __syncthreads();
  if (!last) return;
  for (int at = threadIdx.x; at < GROUP * HEAD_DIM; at += 128) {
    int h = at / HEAD_DIM;
    float m = negInf(), sum = 0, v = 0;
    for (int i = 0; i < clusters; i++) m = fmaxf(m, __ldcg(all + i * width + GROUP * HEAD_DIM + h));
#pragma unroll 4
    for (int i = 0; i < clusters; i++) {
      float weight = __expf(__ldcg(all + i * width + GROUP * HEAD_DIM + h) - m);
      sum += weight * __ldcg(all + i * width + GROUP * HEAD_DIM + GROUP + h);
      v += weight * __ldcg(all + i * width + at);
    }
    out[at] = fromFloat(v / sum);
  }
}
#endif
