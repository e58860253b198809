// Sums of products of many rows, against float64.
#include "on_cpu.h"

// A matrix as it lies in memory, perhaps a part of a wider one.
struct Part {
  int rows, columns, stride;
  Array<T> memory;
  Part(int rows, int columns)
      : rows(rows), columns(columns), stride((columns + 7) / 8 * 8 + 8 * below(3)), memory((size_t)(rows - 1) * stride + columns) {}
  T& at(int row, int column) { return memory[(size_t)row * stride + column]; }
  void fill() {  // NaN is between the rows
    for (int r = 0; r < rows; r++)
      for (int c = 0; c < columns; c++) at(r, c) = fromFloat(normal());
  }
  TensorMap map(int pieceRows) const { return mapInPlace(MatrixInPlace{memory.p, rows, columns, stride, pieceRows}); }
};
struct Term {
  bool rowMajor;
  int inner;
  Part a, b;
  Term(bool rowMajor, int inner, int rows, int columns)
      : rowMajor(rowMajor), inner(inner), a(rows, inner), b(rowMajor ? inner : columns, rowMajor ? columns : inner) {
    a.fill();
    b.fill();
  }
  double product(int row, int column) {
    double sum = 0;
    for (int k = 0; k < inner; k++) sum += (double)toFloat(a.at(row, k)) * toFloat(rowMajor ? b.at(k, column) : b.at(column, k));
    return sum;
  }
};

static void productSum(bool drops) {
  const int outputs = drops ? 1 : 1 + below(3), rows = 1 + below(outputs == 1 ? 400 : 200);
  ProductSum p{};
  p.outputs = outputs;
  p.pairs = (rows + SUM_ROWS * SUM_BLOCKS - 1) / (SUM_ROWS * SUM_BLOCKS);
  std::vector<std::unique_ptr<Part>> ys;
  std::vector<std::unique_ptr<Term>> terms;
  int beside = 0;
  for (int o = 0; o < outputs; o++) {
    const int columns = 8 * (1 + below(outputs == 1 ? 45 : 33)), count = 1 + below(std::min<int>(3, SUM_TERMS - terms.size() - (outputs - 1 - o)));
    ys.push_back(std::make_unique<Part>(rows, columns));
    p.output[o] = {ys[o]->map(64), columns, count, (columns + SUM_COLUMNS - 1) / SUM_COLUMNS};
    for (int i = 0; i < count; i++) {
      const int at = terms.size(), inner = oneOf({8 * (1 + below(20)), 64 * (1 + below(3)), 1 + below(90)});
      const bool rowMajor = drops && i == 0 || below(2);
      terms.push_back(std::make_unique<Term>(rowMajor, inner, rows, columns));
      p.a[at] = terms[at]->a.map(SUM_ROWS);
      p.b[at] = terms[at]->b.map(rowMajor ? SUM_INNER : SUM_COLUMNS / 2);
      p.inner[at] = inner;
      p.rowMajorB |= rowMajor << at;
    }
    int chunks = 0;
    for (int i = terms.size() - count; i < (int)terms.size(); i++) chunks += sumChunks(terms[i]->inner);
    p.chunks = std::max(p.chunks, chunks);
    beside += p.output[o].tiles;
  }
  // some of the tiles, or all, are split over clusters, each of which has a chunk at least
  const int tiles = beside * p.pairs;
  p.split = below(3) ? 1 + below(tiles) : 0;
  const int clusters = 1 + below(p.split ? std::min(p.split * p.chunks, 2 * tiles + 2) : tiles), parts = clusters * SUM_BLOCKS * 2;
  Array<float4> left((size_t)parts * 64 * SUM_COLUMNS / 4);
  Array<unsigned> ready(parts);
  std::fill(ready.p, ready.p + parts, 0);
  p.parts = left.p;
  p.ready = ready.p;
  if (drops) p.dropout = {generator(), 20000, 65536.f / (65536 - 20000)};
  Array<unsigned char> shared(drops ? (SUM_STAGES - 1) * SUM_STAGE_BYTES + 4 * SUM_STORE_BYTES + SUM_ROWS * 32 : SUM_STAGES * SUM_STAGE_BYTES + 4 * SUM_STORE_BYTES);
  dynamicShared = shared.p;
  launch<ProductSum>(384, clusters, 1, 1, drops ? product_sum_dropped : product_sum, p);
  for (int i = 0; i < parts; i++) check("part that is ready", ready[i], 0);
  for (int o = 0, first = 0; o < outputs; first += p.output[o++].terms)
    for (int r = 0; r < rows; r++) {
      Part& y = *ys[o];
      for (int c = 0; c < y.columns; c += 8) {
        double expected[8] = {};
        float factors[8] = {1, 1, 1, 1, 1, 1, 1, 1};
        if (drops) drop8(p.dropout, r, c, y.columns, factors);
        for (int i = 0; i < p.output[o].terms; i++)
          for (int j = 0; j < 8; j++) expected[j] += terms[first + i]->product(r, c + j) * (i == 0 ? factors[j] : 1);
        for (int j = 0; j < 8; j++) check("sum", toFloat(y.at(r, c + j)), expected[j]);
      }
      for (int c = y.columns; c < y.stride && r + 1 < rows; c++)
        if (y.at(r, c) != 0xffff) {
          std::printf("written beside row %d\n", r);
          std::exit(1);
        }
    }
}

// Every tile of every output is some block's, once, and tiles beneath each other come first.
static void tiles() {
  ProductSum p{};
  p.outputs = 1 + below(3);
  p.pairs = 1 + below(40);
  int beside = 0, terms = 0;
  std::map<std::pair<int, int>, int> missing;  // a tile's first term and column, its rows
  for (int o = 0; o < p.outputs; o++) {
    p.output[o].tiles = 1 + below(20);
    p.output[o].terms = 1 + below(2);
    for (int i = 0; i < p.output[o].tiles; i++) missing[{terms, i * SUM_COLUMNS}] = p.pairs;
    beside += p.output[o].tiles;
    terms += p.output[o].terms;
  }
  std::map<std::pair<int, int>, int> next;
  for (int at = 0; at < beside * p.pairs; at++) {
    const SumTile tile = sumTile(p, at, beside, 0);
    const auto place = std::make_pair(tile.term, tile.column);
    check("row of a tile", tile.row, next[place]++ * SUM_ROWS * SUM_BLOCKS);
    check("tiles that are left", missing.at(place)-- > 0, 1);
  }
}

// Every chunk of every tile is some cluster's, once, in the clusters' order; a cluster leaves one part at most, the first it multiplies.
static void shares() {
  ProductSum p{};
  const int tiles = 1 + below(40), clusters = 1 + below(20);
  p.split = below(std::min(tiles, clusters) + 1);
  p.chunks = (clusters + 1) * (1 + below(3));
  gridDim = {(unsigned)(clusters * SUM_BLOCKS), 1, 1};
  std::vector<int> done(tiles);  // chunks, from the first on
  for (int cluster = 0; cluster < clusters; cluster++) {
    blockIdx = {(unsigned)(cluster * SUM_BLOCKS), 0, 0};
    SumWork work(p, tiles);
    std::vector<SumWork> all;
    while (work.more(p)) all.push_back(work);
    int split = 0;
    for (const SumWork& each : all) {
      const bool whole = each.tile < tiles - p.split;
      check("parts that are left", each.to == p.chunks || split == 0, 1);
      if (whole) check("order of tiles", split, 0);
      split += !whole;
    }
    for (; !all.empty(); all.pop_back()) {
      const SumWork& each = all.back();
      check("first chunk", each.from, done[each.tile]);
      check("chunks", each.to > each.from && each.to <= p.chunks, 1);
      done[each.tile] = each.to;
    }
  }
  for (int tile = 0; tile < tiles; tile++) check("chunks of a tile", done[tile], p.chunks);
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) {
    productSum(false);
    productSum(true);
    for (int i = 0; i < 20; i++) tiles(), shares();
  }
  std::printf("largest error %g\n", worst);
}
