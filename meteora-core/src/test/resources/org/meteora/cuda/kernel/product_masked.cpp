// Products with what dropout keeps of their input, against float64.
#include "on_cpu.h"

struct Part {
  int rows, columns, stride;
  Array<T> memory;
  Part(int rows, int columns)
      : rows(rows), columns(columns), stride((columns + 7) / 8 * 8 + 8 * below(3)), memory((size_t)(rows - 1) * stride + columns) {
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < columns; c++) at(r, c) = fromFloat(normal());
  }
  T& at(int row, int column) { return memory[(size_t)row * stride + column]; }
  TensorMap map(int pieceRows) const { return mapInPlace(MatrixInPlace{memory.p, rows, columns, stride, pieceRows}); }
};

static void masked(bool gradient) {
  const int tokens = 1 + below(300), in = 256 * (1 + below(2)), gates = below(4);
  int ranks = 32 * (1 + below(gradient ? 9 : 12));
  if (ranks % SUM_COLUMNS + 32 * gates > SUM_COLUMNS) ranks = ranks / SUM_COLUMNS * SUM_COLUMNS + SUM_COLUMNS - 32 * gates;
  const int columns = ranks + (gates ? 32 * gates - 8 * below(4) : 0), tiles = gates ? ranks / SUM_COLUMNS + 1 : (ranks + SUM_COLUMNS - 1) / SUM_COLUMNS;
  const Dropout dropout{generator(), 20000, 65536.f / (65536 - 20000)};
  Part x(tokens, in), b(gradient ? tokens : columns, gradient ? columns : in), y(tokens, columns);
  for (int r = 0; r < tokens; r++)
    for (int c = 0; c < columns; c++) y.at(r, c) = 0xffff;
  Array<unsigned short> kept((size_t)in / 64 * tokens * 4);
  for (int i = 0; i < in / 64 * tokens * 4; i++) kept[i] = 0;
  for (int t = 0; t < tokens; t++)
    for (int c = 0; c < in; c++) {
      float one[8] = {1, 1, 1, 1, 1, 1, 1, 1};
      drop8(dropout, t, c / 8 * 8, in, one);
      if (one[c % 8] != 0) kept[((size_t)(c / 64) * tokens + t) * 4 + c % 8 / 2] |= 1 << 8 * (c % 2) + c % 64 / 8;
    }
  Array<float> out((size_t)(gradient ? columns * in : 1));
  ProductMasked p{};
  p.kept = kept.p, p.tokens = tokens, p.masked = ranks, p.columns = columns, p.scale = dropout.scale;
  p.rows = gradient ? in : tokens, p.stride = y.stride, p.y = y.memory.p, p.gradient = out.p;
  p.sum.outputs = 1;
  p.sum.pairs = (p.rows + SUM_ROWS * SUM_BLOCKS - 1) / (SUM_ROWS * SUM_BLOCKS);
  p.sum.output[0] = {mapInPlace(MatrixInPlace{y.memory.p, tokens, ranks, y.stride, 64}), ranks, 1, tiles};
  p.sum.a[0] = x.map(gradient ? SUM_INNER : SUM_ROWS);
  p.sum.b[0] = b.map(gradient ? SUM_INNER : SUM_COLUMNS / 2);
  p.sum.inner[0] = gradient ? tokens : in;
  p.sum.rowMajorB = gradient;
  p.sum.chunks = sumChunks(p.sum.inner[0]);
  const int all = tiles * p.sum.pairs;
  p.sum.split = below(3) ? 1 + below(all) : 0;
  const int clusters = 1 + below(p.sum.split ? std::min(p.sum.split * p.sum.chunks, 2 * all + 2) : all), parts = clusters * SUM_BLOCKS * 2;
  Array<float4> left((size_t)parts * 64 * SUM_COLUMNS / 4);
  Array<unsigned> ready(parts);
  std::fill(ready.p, ready.p + parts, 0);
  p.sum.parts = left.p, p.sum.ready = ready.p;
  Array<unsigned char> shared(SUM_STAGES * SUM_STAGE_BYTES + 4 * SUM_STORE_BYTES);
  dynamicShared = shared.p;
  launch<ProductMasked>(384, clusters, 1, 1, gradient ? product_masked_gradient : product_masked, p);
  auto keeps = [&](int t, int c) { return kept[((size_t)(c / 64) * tokens + t) * 4 + c % 8 / 2] >> 8 * (c % 2) + c % 64 / 8 & 1; };
  if (gradient) {
    for (int c = 0; c < columns; c++)
      for (int i = below(8); i < in; i += 1 + below(8)) {
        double expected = 0;
        for (int t = 0; t < tokens; t++)
          expected += (double)toFloat(x.at(t, i)) * toFloat(b.at(t, c)) * (c >= ranks ? 1 : keeps(t, i) ? p.scale : 0);
        check("gradient", out[(size_t)c * in + i], expected);
      }
    return;
  }
  for (int t = 0; t < tokens; t++)
    for (int c = below(4); c < columns; c += 1 + below(4)) {
      double expected = 0;
      for (int i = 0; i < in; i++) expected += (double)toFloat(x.at(t, i)) * toFloat(b.at(c, i)) * (c >= ranks ? 1 : keeps(t, i) ? p.scale : 0);
      check("row", toFloat(y.at(t, c)), expected);
    }
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) masked(false), masked(true);
  std::printf("largest error %g\n", worst);
}
