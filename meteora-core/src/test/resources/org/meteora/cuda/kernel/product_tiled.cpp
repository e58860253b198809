// Products of some rows and several matrices, against float64. A cluster of one block has the first 128 rows.
#include "on_cpu.h"

static void productTiled() {
  const int matrices = 1 + below(3), rows = 1 + below(SUM_ROWS * SUM_BLOCKS), k = 64 * (1 + below(6));
  ProductTiled p{};
  p.rows = rows, p.k = k, p.matrices = matrices;
  p.slices = 1 + below(std::min(3, k / 64));
  Array<T> x((size_t)rows * k);
  for (size_t i = 0; i < (size_t)rows * k; i++) x.p[i] = fromFloat(normal());
  p.x = mapInPlace(MatrixInPlace{x.p, rows, k, k, SUM_ROWS});
  std::vector<std::unique_ptr<Array<T>>> w;
  int tiles = 0;
  for (int m = 0; m < matrices; m++) {
    const int columns = oneOf({1 + below(300), 256 * (1 + below(2)), 8 * (1 + below(40))});
    w.push_back(std::make_unique<Array<T>>((size_t)columns * k));
    for (size_t i = 0; i < (size_t)columns * k; i++) w[m]->p[i] = fromFloat(normal());
    p.w[m] = mapInPlace(MatrixInPlace{w[m]->p, columns, k, k, TILED_COLUMNS / 2});
    p.columns[m] = columns;
    p.at[m] = p.ld;
    p.ld += (columns + 7) / 8 * 8;
    tiles += (columns + TILED_COLUMNS - 1) / TILED_COLUMNS;
  }
  Array<float> y((size_t)p.slices * rows * p.ld);
  const float untouched = -1234.5f;
  std::fill(y.p, y.p + (size_t)p.slices * rows * p.ld, untouched);
  p.y = y.p;
  Array<unsigned char> shared(TILED_STAGES * TILED_STAGE_BYTES);
  dynamicShared = shared.p;
  launch<ProductTiled>(384, 1 + below(tiles * p.slices), 1, 1, product_tiled, p);
  for (int m = 0; m < matrices; m++)
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < (p.columns[m] + 7) / 8 * 8; c++) {
        double expected = 0, sum = 0;
        for (int s = 0; s < p.slices; s++) sum += y.p[((size_t)s * rows + r) * p.ld + p.at[m] + c];
        if (c >= p.columns[m])
          expected = (double)untouched * p.slices;
        else
          for (int i = 0; i < k; i++) expected += (double)toFloat(x.p[(size_t)r * k + i]) * toFloat(w[m]->p[(size_t)c * k + i]);
        check("output", sum, expected);
      }
}

static void siluUp() {
  const int rows = 1 + below(SUM_ROWS * SUM_BLOCKS), k = 64 * (1 + below(8)), outs = 8 * (1 + below(30));
  ProductSiluUp p{};
  p.rows = rows, p.k = k, p.outs = outs;
  auto array = [](int rows, int columns, float scale) {
    auto a = std::make_unique<Array<T>>((size_t)rows * columns);
    for (size_t i = 0; i < (size_t)rows * columns; i++) a->p[i] = fromFloat(scale * normal());
    return a;
  };
  auto x = array(rows, k, 1), w0 = array(outs, k, .1f), w1 = array(outs, k, .1f), bias = array(1, outs, 1);
  p.x = mapInPlace(MatrixInPlace{x->p, rows, k, k, SUM_ROWS});
  std::unique_ptr<Array<T>> coefficients[2], b[2];
  for (int i = 0; i < 2; i++) {
    p.w[i] = mapInPlace(MatrixInPlace{(i ? w1 : w0)->p, outs, k, k, SILU_COLUMNS});
    p.ranks[i] = below(4) ? 8 * (1 + below(20)) : 0;
    p.bias[i] = below(2) ? bias->p : nullptr;
    if (!p.ranks[i]) continue;
    coefficients[i] = array(rows, p.ranks[i], 1);
    b[i] = array(p.ranks[i], outs, 1);
    p.coefficients[i] = mapInPlace(MatrixInPlace{coefficients[i]->p, rows, p.ranks[i], p.ranks[i], SUM_ROWS});
    p.b[i] = mapInPlace(MatrixInPlace{b[i]->p, p.ranks[i], outs, outs, SUM_INNER});
  }
  Array<T> out((size_t)rows * outs);
  p.out = out.p;
  Array<unsigned char> shared(TILED_STAGES * TILED_STAGE_BYTES);
  dynamicShared = shared.p;
  launch<ProductSiluUp>(384, 1 + below((outs + SILU_COLUMNS - 1) / SILU_COLUMNS), 1, 1, product_silu_up, p);
  for (int r = 0; r < rows; r++)
    for (int o = 0; o < outs; o++) {
      double v[2];
      for (int i = 0; i < 2; i++) {
        v[i] = p.bias[i] ? toFloat(bias->p[o]) : 0;
        for (int j = 0; j < k; j++) v[i] += (double)toFloat(x->p[(size_t)r * k + j]) * toFloat((i ? w1 : w0)->p[(size_t)o * k + j]);
        for (int j = 0; j < p.ranks[i]; j++) v[i] += (double)toFloat(coefficients[i]->p[(size_t)r * p.ranks[i] + j]) * toFloat(b[i]->p[(size_t)j * outs + o]);
      }
      check("silu · up", toFloat(out.p[(size_t)r * outs + o]), v[0] / (1 + std::exp(-v[0])) * v[1]);
    }
}

// Every chunk of every tile is some cluster's, once.
static void works() {
  ProductTiled p{};
  p.matrices = 1 + below(3);
  p.k = 64 * (1 + below(30));
  p.slices = 1 + below(std::min(8, p.k / 64));
  std::map<std::pair<int, int>, std::vector<int>> done;
  for (int m = 0; m < p.matrices; m++) {
    p.columns[m] = 1 + below(2000);
    for (int c = 0; c < p.columns[m]; c += TILED_COLUMNS) done[{m, c}].resize(p.k / 64);
  }
  const int clusters = 1 + below(40);
  gridDim = {(unsigned)(clusters * SUM_BLOCKS), 1, 1};
  for (int cluster = 0; cluster < clusters; cluster++) {
    blockIdx = {(unsigned)(cluster * SUM_BLOCKS), 0, 0};
    for (TiledWork work(p); work.more(p);)
      for (int chunk = work.from; chunk < work.to; chunk++) done.at({work.matrix, work.column}).at(chunk)++;
  }
  for (auto& [tile, chunks] : done)
    for (int each : chunks) check("chunks of a tile", each, 1);
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) {
    productTiled();
    siluUp();
    for (int i = 0; i < 20; i++) works();
  }
  std::printf("largest error %g\n", worst);
}
