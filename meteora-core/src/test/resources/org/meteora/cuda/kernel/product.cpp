// Products by tensor maps, against float64.
#include "on_cpu.h"

static void product() {
  const int rows = oneOf({1, 2, 5, 8, 9, 16}), k = 8 * (1 + below(400)), matrices = 1 + below(4), allChunks = (k + 1023) / 1024;
  const int slices = 1 + below(std::min(3, allChunks)), stages = 2 + below(3);
  std::vector<std::unique_ptr<Array<T>>> weights;
  StreamedProduct p{};
  Product& it = p.product;
  const int gate = below(matrices + 1);  // which matrix comes first, if one does
  for (int i = 0; i < matrices; i++) {
    const int n = 1 + below(60), tiles = (n + 15) / 16;
    weights.push_back(std::make_unique<Array<T>>((size_t)n * k));
    fill(*weights.back());
    it.total += n;
    it.segment[i] = {weights.back()->p, it.total};
    p.map[i] = tensorMap({weights.back()->p, n, k});
    if (i < gate) it.firstGateTile += tiles;
    if (i == gate) it.gateTiles = tiles;
    it.tiles += tiles;
  }
  const int members = 1 + below(std::min(6, it.tiles)), maxChunks = (allChunks + slices - 1) / slices;
  if (it.tiles * (allChunks / slices) / members < ((it.gateTiles + members - 1) / members + 1) * maxChunks) it.gateTiles = 0;
  const bool normed = below(2);
  const int partials = 1 + below(40);
  Array<T> x((size_t)rows * k);
  Array<float> y((size_t)slices * rows * (it.total + 3)), sumsq(rows * partials);
  Array<unsigned> counter(1);
  fill(x);
  std::fill(y.p, y.p + y.n, 0.f);
  counter[0] = 5;
  for (size_t i = 0; i < sumsq.n; i++) sumsq[i] = 1 + below(100);
  it.x = x.p;
  it.y = y.p;
  it.sumsq = normed ? sumsq.p : 0;
  it.rows = rows;
  it.k = k;
  it.segments = matrices;
  it.ld = it.total + 3;
  it.partials = partials;
  it.eps = 1e-5f;
  it.slices = slices;
  it.stages = stages;
  it.gateTilesDone = it.gateTiles ? counter.p : 0;
  Array<unsigned char> shared(512 + (rows > 8 ? 2 : 1) * 8192 + rows * (maxChunks * 2048 + 64) + 128 + stages * STAGE_BYTES);
  dynamicShared = shared.p;
  launch<StreamedProduct>(288, members * slices, 1, 1, rows > 8 ? product_stream16 : product_stream8, p);
  const bool left = SCORES == SCORES_STANDARDIZED && it.gateTiles;
  check("gates' tiles", counter[0], 5 + it.gateTiles * slices);
  for (int m = 0; m < rows; m++) {
    double squares = 0;
    for (int i = 0; i < partials; i++) squares += sumsq[m * partials + i];
    const double factor = normed ? 1 / std::sqrt(squares / k + 1e-5) : 1;
    for (int i = 0, o = 0; i < matrices; i++)
      for (int row = 0; o < it.segment[i].end; row++, o++) {
        double expected = 0, got = 0;
        for (int c = 0; c < k; c++) expected += (double)toFloat((*weights[i])[(size_t)row * k + c]) * toFloat(x[(size_t)m * k + c]);
        for (int s = 0; s < slices; s++) got += y[((size_t)s * rows + m) * it.ld + o];
        check("product", got, expected * factor);
      }
    for (int s = 0; s < slices; s++)
      for (int o = it.total; o < it.ld - 2 * left; o++) check("beside the product", y[((size_t)s * rows + m) * it.ld + o], 0);
    if (!left) continue;
    double sum = 0, sumOfSquares = 0, of = 0, ofSquares = 0;
    for (int c = 0; c < k; c++) {
      const double d = factor * ((double)toFloat(x[(size_t)m * k + c]) - toFloat(x[(size_t)m * k]));
      sum += d;
      sumOfSquares += d * d;
    }
    for (int s = 0; s < slices; s++) {
      of += y[((size_t)s * rows + m) * it.ld + it.ld - 2];
      ofSquares += y[((size_t)s * rows + m) * it.ld + it.ld - 1];
    }
    check("sum", of, sum);
    check("squares", ofSquares, sumOfSquares);
  }
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) product();
  std::printf("largest error %g\n", worst);
}
