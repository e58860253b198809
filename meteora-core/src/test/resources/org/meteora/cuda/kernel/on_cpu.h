// Lets meteora.cu be compiled as C++ and run on a CPU: a block's threads take turns, blocks run one after another.
// Together with AddressSanitizer and arrays of exact size this finds accesses outside of them. Clusters have one block.
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#define ON_CPU
#define __CUDA_ARCH__ 900
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))

struct Dim3 { unsigned x, y, z; };
static Dim3 threadIdx, blockIdx, blockDim, gridDim;
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
static uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// A block's threads take turns on one thread of the host; threads of the host's own would take most of the time. Each runs until it
// waits for others. Who follows is random, and some are left behind for a while, so that a wait that is missing is seen.
// Not by swapcontext, which asks the system each time, and for which AddressSanitizer forgets what of the stack may be read.
struct Fiber {
  void* place[5];  // where it goes on
  bool isDone;
  std::unique_ptr<char[]> stack;
};
static const int STACK = 256 << 10;
static Fiber fibers[1024];
static void* scheduler[5];
static std::minstd_rand turns;
static int running, changes;  // of barriers, and of threads that are done
static std::function<void()> toRun;
template <typename V>
struct OfThreads {
  V all[1024];
  V& operator*() { return all[running]; }
  V* operator->() { return &all[running]; }
};
// noipa: others run meanwhile, so the compiler must not know that this function changes nothing that kernels look at
static __attribute__((noipa, no_sanitize_address)) void goTo(void** place) { __builtin_longjmp(place, 1); }
static __attribute__((noipa, no_sanitize_address)) void leave(void** from, void** to) {
  if (!__builtin_setjmp(from)) goTo(to);
}
static void letOthersRun() { leave(fibers[running].place, scheduler); }
static void runAll() {
  for (;; letOthersRun()) {
    toRun();
    fibers[running].isDone = true;
  }
}
static __attribute__((noipa, no_sanitize_address)) void goOn(Fiber& fiber) {
  if (fiber.stack) return leave(scheduler, fiber.place);
  fiber.stack.reset(new char[STACK]);
  ucontext_t begin;
  getcontext(&begin);
  begin.uc_stack = {fiber.stack.get(), 0, STACK};
  makecontext(&begin, runAll, 0);
  if (!__builtin_setjmp(scheduler)) setcontext(&begin);
}
struct Barrier {
  int all, missing, phase = 0;
  explicit Barrier(int n) : all(n), missing(n) {}
  void arrive() {
    changes++;
    if (--missing == 0) missing = all, phase++;
  }
  void arrive_and_wait() {
    const int before = phase;
    for (arrive(); phase == before;) letOthersRun();
  }
  void arrive_and_drop() {
    all--;
    arrive();
  }
};
static std::unique_ptr<Barrier> block;
static std::vector<std::unique_ptr<Barrier>> warps;
static unsigned long long exchanged[32][32];
static void __syncthreads() { block->arrive_and_wait(); }
static void __syncwarp() { warps[threadIdx.x >> 5]->arrive_and_wait(); }
template <typename V>
V fromLane(V v, int lane) {
  auto& all = exchanged[threadIdx.x >> 5];
  std::memcpy(&all[threadIdx.x & 31], &v, sizeof v);
  __syncwarp();
  std::memcpy(&v, &all[lane & 31], sizeof v);
  __syncwarp();
  return v;
}
template <typename V>
V __shfl_sync(unsigned, V v, int lane) { return fromLane(v, lane); }
template <typename V>
V __shfl_xor_sync(unsigned, V v, int d) { return fromLane(v, (threadIdx.x & 31) ^ d); }
template <typename V>
V __shfl_up_sync(unsigned, V v, int d) {
  int lane = threadIdx.x & 31;
  return fromLane(v, lane >= d ? lane - d : lane);
}
static unsigned __reduce_max_sync(unsigned, unsigned v) {
  for (int d = 16; d > 0; d >>= 1) v = std::max(v, fromLane(v, (threadIdx.x & 31) ^ d));
  return v;
}
static unsigned __ballot_sync(unsigned, bool v) {
  unsigned all = 0;
  for (int lane = 0; lane < 32; lane++) all |= (unsigned)fromLane((unsigned)v, lane) << lane;
  return all;
}

static float __uint_as_float(unsigned v) { float f; std::memcpy(&f, &v, 4); return f; }
static float __int_as_float(int v) { return __uint_as_float(v); }
static unsigned __float_as_uint(float v) { unsigned u; std::memcpy(&u, &v, 4); return u; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fsub_rn(float a, float b) { return a - b; }
static float __fdividef(float a, float b) { return a / b; }
static float expOnCpu(float v) { return std::exp(v); }  // the C library has names like CUDA's
#define __expf expOnCpu
static float rsqrtf(float v) { return 1 / std::sqrt(v); }
static int __ffs(unsigned v) { return __builtin_ffs(v); }
static int __popc(unsigned v) { return __builtin_popcount(v); }
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static unsigned __byte_perm(unsigned a, unsigned b, unsigned select) {
  unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned v = 0;
  for (int i = 0; i < 4; i++) v |= (unsigned)(both >> 8 * (select >> 4 * i & 7) & 255) << 8 * i;
  return v;
}
static float atomicAdd(float* p, float v) {
  float old = *p, sum;
  do sum = old + v;
  while (!__atomic_compare_exchange(p, &old, &sum, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}
template <typename V>
V atomicAdd(V* p, V v) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }
static void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <typename V>
V __ldg(const V* p) { return *p; }
template <typename V>
V __ldcg(const V* p) { return *p; }

// What meteora.cu says in PTX.
static float halfToFloat(unsigned short v) { _Float16 h; std::memcpy(&h, &v, 2); return h; }
static unsigned short floatToHalf(float v) { _Float16 h = v; unsigned short u; std::memcpy(&u, &h, 2); return u; }
static unsigned short floatToBfloat(float v) {
  unsigned u = __float_as_uint(v);
  return (unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
static uint4 loadNeighbours(const void* p) { return *(const uint4*)p; }
static uint4 loadStream(const void* p) { return *(const uint4*)p; }
static void storeStream(void* p, uint4 v) { *(uint4*)p = v; }
static uint4 loadIf(bool wanted, const void* p) { return wanted ? *(const uint4*)p : make_uint4(0, 0, 0, 0); }
static void prefetch(const void*) {}
static unsigned loadAcquire(const unsigned* p) { return *p; }
static void waitABit() { std::abort(); }  // what is waited for is there
static void releaseNext() {}
static void waitForPrevious() {}
static float sharedOf(const float* p, int) { return *p; }
static void clusterArrive() {}
static void clusterWait() { __syncthreads(); }
static void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  static float a[32][16][16], b[32][16][8];
  auto number = [](unsigned v) { return DTYPE == 1 ? halfToFloat(v) : __uint_as_float(v << 16); };
  const int w = threadIdx.x >> 5, g = (threadIdx.x & 31) >> 2, q = threadIdx.x & 3;
  const unsigned as[] = {a0, a1, a2, a3}, bs[] = {b0, b1};
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) a[w][g + i % 2 * 8][q * 2 + i / 2 * 8 + j] = number(as[i] >> 16 * j & 0xffff);
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 2; j++) b[w][q * 2 + i * 8 + j][g] = number(bs[i] >> 16 * j & 0xffff);
  __syncwarp();
  for (int i = 0; i < 4; i++)
    for (int k = 0; k < 16; k++) c[i] += a[w][g + i / 2 * 8][k] * b[w][k][q * 2 + i % 2];
  __syncwarp();
}
static unsigned transposed(unsigned v) {
  const int g = (threadIdx.x & 31) >> 2, q = threadIdx.x & 3;
  return __byte_perm(fromLane(v, 8 * q + g / 2), fromLane(v, 8 * q + 4 + g / 2), g & 1 ? 0x7632 : 0x5410);
}
static void mma8(float* c, unsigned a0, unsigned a1, unsigned b0) { mma(c, a0, a1, 0, 0, b0, 0); }
static unsigned addPairs(unsigned a, unsigned b) {
  auto number = [](unsigned v) { return DTYPE == 1 ? halfToFloat(v) : __uint_as_float(v << 16); };
  auto sum = [&](int shift) {
    const float v = number(a >> shift & 0xffff) + number(b >> shift & 0xffff);
    return (unsigned)(DTYPE == 1 ? floatToHalf(v) : floatToBfloat(v)) << shift;
  };
  return sum(0) | sum(16);
}

// Shared memory of a size that the launch names, its barriers, and copies by tensor maps, which are done when they begin.
static unsigned char* dynamicShared;
#define DYNAMIC_SHARED(name) unsigned char* const name = dynamicShared
static unsigned shared32(const void* p) { return (unsigned)((const unsigned char*)p - dynamicShared); }
static uint4 loadShared(unsigned at) { return *(const uint4*)(dynamicShared + at); }
static void loadTransposed(unsigned at, unsigned (&v)[4]) {
  const int g = (threadIdx.x & 31) >> 2, q = threadIdx.x & 3;
  for (int m = 0; m < 4; m++) {
    const unsigned low = fromLane(at, 8 * m + 2 * q), high = fromLane(at, 8 * m + 2 * q + 1);
    v[m] = *(const unsigned short*)(dynamicShared + low + 2 * g) | (unsigned)*(const unsigned short*)(dynamicShared + high + 2 * g) << 16;
  }
}
static void storeShared(unsigned at, uint4 v) { *(uint4*)(dynamicShared + at) = v; }
static void copyAsync(unsigned to, bool wanted, const void* from) { storeShared(to, loadIf(wanted, from)); }
static void copiesDone() {}
static void closeGroup() {}
template <int N>
static void waitForGroups() {}
struct SharedBarrier {
  int all, missing;
  long long bytes;
  unsigned phase;
};
static std::map<unsigned, SharedBarrier> sharedBarriers;
static void barrierInit(unsigned b, int count) { sharedBarriers[b] = {count, count, 0, 0}; }
static void barriersMade() {}
static void writtenForCopies() {}
static void moveBarrier(unsigned b, int arrived, long long bytes) {
  changes++;
  SharedBarrier& it = sharedBarriers.at(b);
  it.missing -= arrived;
  it.bytes += bytes;
  if (it.missing == 0 && it.bytes == 0) {
    it.missing = it.all;
    it.phase++;
  }
}
static void barrierArrive(unsigned b) { moveBarrier(b, 1, 0); }
static void barrierExpect(unsigned b, unsigned bytes) { moveBarrier(b, 1, bytes); }
static void barrierWait(unsigned b, unsigned parity) {
  while ((sharedBarriers.at(b).phase & 1) == parity) letOthersRun();
}
static std::unique_ptr<Barrier> consumers;
static void syncConsumers() { consumers->arrive_and_wait(); }
static unsigned long long readOnce() { return 0; }
static unsigned long long readOften() { return 0; }
// A warpgroup's products of tiles in shared memory, done when they begin: each lane makes its own sums.
static float ofTile(unsigned long long tile, int row, int column) {
  const unsigned at = (unsigned)(tile & 0x3fff) * 16 + row / 8 * (unsigned)(tile >> 32 & 0x3fff) * 16 + row % 8 * 128 + column * 2;
  const unsigned short v = *(const unsigned short*)(dynamicShared + (at ^ (at >> 7 & 7) << 4));
  return DTYPE == 1 ? halfToFloat(v) : __uint_as_float((unsigned)v << 16);
}
template <int N>
static void multiplyTile(float (&c)[N / 2], unsigned long long w, unsigned long long x) {
  const int row = (threadIdx.x >> 5 & 3) * 16 + (threadIdx.x & 31) / 4, q = threadIdx.x & 3;
  for (int i = 0; i < N / 2; i++)
    for (int k = 0; k < 16; k++) c[i] += ofTile(w, row + (i >> 1 & 1) * 8, k) * ofTile(x, i / 4 * 8 + 2 * q + (i & 1), k);
}
template <int N>
static void holdSums(float (&)[N]) {}
static void beginTiles() {}
static void closeTiles() {}
template <int LEFT>
static void waitForTiles() { __syncwarp(); }  // one lane says for all that they have read
struct TensorMap;
static void fetchMap(const TensorMap*) {}
static void tensorCopy(unsigned to, const TensorMap* map, int c1, int c2, unsigned barrier, unsigned long long);

// Sums of products, whose blocks are alone. A warpgroup's products are done as late as they may be, when they are waited for.
#define SUM_BLOCKS 1
struct SumStep {
  float* c;
  unsigned long long a, b;
  bool rowMajorB, transposedA = false;
  int columns = 256;
  const unsigned* factors = nullptr;  // a in registers, which must not change before
};
static OfThreads<std::vector<SumStep>> sumSteps;  // of the group that is not closed
static OfThreads<std::deque<std::vector<SumStep>>> sumGroups;
static std::unique_ptr<Barrier> warpgroups[2];
static float ofColumns(unsigned long long tile, int row, int column) {
  const unsigned at = (unsigned)(tile & 0x3fff) * 16 + column / 64 * (unsigned)(tile >> 16 & 0x3fff) * 16;
  return ofTile((tile & ~0x3fffull) | at / 16, row, column % 64);
}
static void multiply(const SumStep& s) {
  const int lane = threadIdx.x & 31, row = (threadIdx.x >> 5 & 3) * 16 + lane / 4, q = threadIdx.x & 3;
  unsigned ofQuad[4][4];
  if (s.factors)
    for (int i = 0; i < 16; i++) ofQuad[i / 4][i % 4] = fromLane(s.factors[i % 4], (lane & ~3) + i / 4);
  auto factor = [&](int half, int k) {
    if (!s.factors) return s.transposedA ? ofColumns(s.a, k, row + 8 * half) : ofTile(s.a, row + 8 * half, k);
    const unsigned v = ofQuad[k % 8 / 2][k / 8 * 2 + half] >> 16 * (k % 2) & 0xffff;
    return DTYPE == 1 ? halfToFloat(v) : __uint_as_float(v << 16);
  };
  for (int k = 0; k < 16; k++) {
    const float a[] = {factor(0, k), factor(1, k)};
    for (int i = 0; i < s.columns / 2; i += 4)
      for (int j = 0; j < 2; j++) {
        const int column = i * 2 + 2 * q + j;
        const float b = s.rowMajorB ? ofColumns(s.b, k, column) : ofTile(s.b, column, k);
        s.c[i + j] += a[0] * b;
        s.c[i + 2 + j] += a[1] * b;
      }
  }
}
template <int N, bool ROW_MAJOR_B>
static void multiplyMasked(float (&c)[128], const unsigned (&a)[4], unsigned long long b) { sumSteps->push_back({c, 0, b, ROW_MAJOR_B, false, N, a}); }
template <int AT, bool TRANSPOSED, bool ROW_MAJOR_B>
static void multiplyWhole(float (&c)[128], unsigned long long a, unsigned long long b) {
  sumSteps->push_back({c + AT / 2, a, b, ROW_MAJOR_B, TRANSPOSED, 32});
}
static void holdFactors(unsigned (&)[4][4]) {}
static void loadMatrices(unsigned at, unsigned (&v)[4]) {
  for (int m = 0; m < 4; m++) v[m] = *(const unsigned*)(dynamicShared + fromLane(at, 8 * m + (threadIdx.x & 31) / 4) + 4 * (threadIdx.x & 3));
}
static unsigned halvesOf(unsigned v) { return (v & 0x80 ? 0xffff : 0) | (v & 0x8000 ? 0xffff0000 : 0); }
template <bool ROW_MAJOR_B>
static void multiplySum(float (&c)[128], unsigned long long a, unsigned long long b) { sumSteps->push_back({c, a, b, ROW_MAJOR_B}); }
template <int N, int AT, bool ROW_MAJOR_B>
static void multiplyTiled(float (&c)[112], unsigned long long a, unsigned long long b) { sumSteps->push_back({c + AT / 2, a, b, ROW_MAJOR_B, false, N}); }
template <int N>
static void holdSum(float (&)[N]) {}
static void beginSums() {}
static void closeSums() {
  sumGroups->push_back(*sumSteps);
  sumSteps->clear();
}
template <int LEFT>
static void waitForSums() {
  for (; sumGroups->size() > LEFT; sumGroups->pop_front())
    for (const SumStep& step : sumGroups->front()) multiply(step);
  warpgroups[threadIdx.x >> 7]->arrive_and_wait();
}
static int rankOfBlock() { return 0; }
static void arriveAt(unsigned b, int) { barrierArrive(b); }
static void fewRegisters() {}
static void manyRegisters() {}
// Pieces leave as late as they may.
struct SumPiece {
  unsigned from;
  const TensorMap* map;
  int column, row;
};
static OfThreads<std::deque<SumPiece>> sumPieces;
static void store(const SumPiece& piece);
static void pieceFrom(unsigned from, const TensorMap* map, int column, int row) { sumPieces->push_back({from, map, column, row}); }
template <int N>
static void piecesRead() {
  for (; sumPieces->size() > N; sumPieces->pop_front()) store(sumPieces->front());
}
static void piecesLanded() { piecesRead<0>(); }
static void syncGroup(int group) { warpgroups[group]->arrive_and_wait(); }
static void storeMatrices(unsigned at, unsigned a, unsigned b, unsigned c, unsigned d) {
  const unsigned v[] = {a, b, c, d};
  const int g = (threadIdx.x & 31) >> 2, q = threadIdx.x & 3;
  for (int m = 0; m < 4; m++) *(unsigned*)(dynamicShared + fromLane(at, 8 * m + g) + 4 * q) = v[m];
}
static void pieceToThis(unsigned to, const TensorMap* map, int column, int row, unsigned barrier);
static void pieceToBoth(unsigned to, const TensorMap* map, int column, int row, unsigned barrier) { pieceToThis(to, map, column, row, barrier); }

#include "meteora.cu"

#if DTYPE != 0
struct Matrix {  // what a TensorMap holds here: a matrix of 16-bit numbers, and the pieces that are copied of it
  const unsigned short* at;
  int rows, k;
  int inner = 0, pieceRows = 0, pieceColumns = 0, swizzled = 0;  // zeros: as products of few rows want them
  int chunks = 0;  // of 64 columns, one behind the other; rows are then the inner dimension
};
static TensorMap tensorMap(const Matrix& matrix) {
  TensorMap map = {};
  std::memcpy(map.opaque, &matrix, sizeof matrix);
  return map;
}
static void tensorCopy(unsigned to, const TensorMap* map, int c1, int c2, unsigned barrier, unsigned long long) {
  Matrix matrix;
  std::memcpy(&matrix, map->opaque, sizeof matrix);
  const int columns = matrix.inner ? matrix.pieceColumns : 1024, rows = matrix.inner ? matrix.pieceRows : 16;
  const int d = matrix.inner ? matrix.inner : std::min(256, matrix.k & -matrix.k);
  if (matrix.swizzled && to % 1024) std::abort();
  if (matrix.chunks) std::swap(c1, c2);
  for (int chunk = 1; chunk < matrix.chunks; chunk++) {
    Matrix next = matrix;
    next.chunks = 1;
    const TensorMap one = tensorMap(next);
    tensorCopy(to + chunk * rows * columns * 2, &one, c2, c1 + chunk, barrier, 0);
  }
  for (int r = 0; r < rows; r++)
    for (int c = 0; c < columns; c++) {
      const int row = c2 + r, column = c1 * d + c, place = matrix.swizzled ? c ^ (r & 7) << 3 : c;
      const bool inside = row < matrix.rows && column < matrix.k;
      ((unsigned short*)(dynamicShared + to))[r * columns + place] = inside ? matrix.at[(size_t)row * matrix.k + column] : 0;
    }
  moveBarrier(barrier, 0, -rows * columns * 2);
}
// Of a matrix as it lies in memory, in pieces of 64 columns, swizzled.
struct MatrixInPlace {
  unsigned short* at;
  int rows, columns, stride, pieceRows;
};
static TensorMap mapInPlace(const MatrixInPlace& matrix) {
  TensorMap map = {};
  std::memcpy(map.opaque, &matrix, sizeof matrix);
  return map;
}
static void pieceToThis(unsigned to, const TensorMap* map, int column, int row, unsigned barrier) {
  MatrixInPlace matrix;
  std::memcpy(&matrix, map->opaque, sizeof matrix);
  if (to % 1024) std::abort();
  for (int r = 0; r < matrix.pieceRows; r++)
    for (int c = 0; c < 64; c++) {
      const bool inside = row + r < matrix.rows && column + c < matrix.columns;
      ((unsigned short*)(dynamicShared + to))[r * 64 + (c ^ (r & 7) << 3)] = inside ? matrix.at[(size_t)(row + r) * matrix.stride + column + c] : 0;
    }
  moveBarrier(barrier, 0, -matrix.pieceRows * 64 * 2);
}
static void store(const SumPiece& piece) {
  MatrixInPlace matrix;
  std::memcpy(&matrix, piece.map->opaque, sizeof matrix);
  if (piece.from % 1024) std::abort();
  for (int r = 0; r < matrix.pieceRows && piece.row + r < matrix.rows; r++)
    for (int c = 0; c < 64 && piece.column + c < matrix.columns; c++)
      matrix.at[(size_t)(piece.row + r) * matrix.stride + piece.column + c] =
          ((unsigned short*)(dynamicShared + piece.from))[r * 64 + (c ^ (r & 7) << 3)];
}
#endif

// ------------------------------------------------------------------------------------------------------------- for the tests
template <typename P>
static void launch(int threads, int x, int y, int z, void (*kernel)(const P), const P& p) {
  blockDim = {(unsigned)threads, 1, 1};
  gridDim = {(unsigned)x, (unsigned)y, (unsigned)z};
  for (unsigned k = 0; k < gridDim.z; k++)
    for (unsigned j = 0; j < gridDim.y; j++)
      for (unsigned i = 0; i < gridDim.x; i++) {
        block = std::make_unique<Barrier>(threads);
        warps.clear();
        consumers = std::make_unique<Barrier>(256);
        for (auto& group : warpgroups) group = std::make_unique<Barrier>(128);
        for (int w = 0; w < threads / 32; w++) warps.push_back(std::make_unique<Barrier>(32));
        blockIdx = {i, j, k};
        toRun = [&] { kernel(p); };
        for (int t = 0; t < threads; t++) fibers[t].isDone = false;
        for (int left = threads, together = 1, behind = 0, passes = 0, idle = 0; left > 0;) {
          if (idle > 0 || passes-- == 0) {
            together = 1 << turns() % 9;
            behind = turns() % threads / together;
            passes = 1 << turns() % 12;
          }
          const int before = changes, first = turns() % threads, step = turns() % 2 ? 1 : threads - 1;
          for (int n = 0, t = first; n < threads; n++, t = (t + step) % threads) {
            if (fibers[t].isDone || t / together == behind) continue;
            running = t;
            threadIdx = {(unsigned)t, 0, 0};
            goOn(fibers[t]);
            if (!fibers[t].isDone) continue;
            left--;
            block->arrive_and_drop();
          }
          idle = changes == before ? idle + 1 : 0;
          if (idle > 10000) std::printf("threads wait for each other\n"), std::exit(1);
        }
      }
}

static std::mt19937 generator;
static int below(int n) { return generator() % n; }
static float normal() { return std::normal_distribution<float>()(generator); }
static int oneOf(std::initializer_list<int> of) { return of.begin()[below(of.size())]; }

// An array of exactly n elements, aligned as the GPU's memory is, of NaN.
template <typename V>
struct Array {
  V* p;
  size_t n;
  explicit Array(size_t n) : n(n) {
    void* memory;
    if (posix_memalign(&memory, 256, std::max<size_t>(1, n * sizeof(V)))) std::abort();
    p = (V*)memory;
    std::memset(p, 0xff, n * sizeof(V));
  }
  Array(const Array&) = delete;
  ~Array() { std::free(p); }
  V& operator[](size_t i) { return p[i]; }
};
static void fill(Array<float>& a) {
  for (size_t i = 0; i < a.n; i++) a[i] = normal();
}
#if DTYPE != 0
static void fill(Array<T>& a) {
  for (size_t i = 0; i < a.n; i++) a[i] = fromFloat(normal());
}
#endif

static double worst = 0;
static void check(const char* what, double got, double expected) {
  double error = std::abs(got - expected) / (1 + std::abs(expected));
  worst = std::max(worst, error);
  if (!(error < (DTYPE == 0 ? 1e-4 : DTYPE == 1 ? 2e-3 : 1e-2))) {
    std::printf("%s: %g instead of %g\n", what, got, expected);
    std::exit(1);
  }
}

// What an adapter's logit, or its z, is as a score.
static double scored(double logit, const std::vector<double>& z) {
  if (SCORES != SCORES_PRODUCT && z.empty()) return -INFINITY;
  if (SCORES == SCORES_MAGNITUDE) return std::abs(logit);
  if (SCORES != SCORES_NORM) return logit;
  double squares = 0;
  for (double v : z) squares += v * v;
  return std::sqrt(squares);
}
// 1 / the standard deviation of a row that is to be multiplied by f, where scores are divided by it.
static double spread(const T* x, int k, double f) {
  if (SCORES != SCORES_STANDARDIZED) return 1;
  double sum = 0, squares = 0;
  for (int i = 0; i < k; i++) sum += f * toFloat(x[i]) / k;
  for (int i = 0; i < k; i++) squares += (f * toFloat(x[i]) - sum) * (f * toFloat(x[i]) - sum);
  return 1 / std::sqrt(squares / k);
}
