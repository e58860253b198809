// Products of 17 to 64 rows, against float64.
#include "on_cpu.h"

static void product() {
  const int tiles = oneOf({2, 4}), rows = tiles * 8 + 1 + below(tiles * 8), chunks = 1 + below(2), ofK = 1 + below(7), k = 64 * chunks * ofK;
  const int matrices = 1 + below(4), slices = 1 + below(std::min(3, ofK)), passes = 1 + below(2);
  std::vector<std::unique_ptr<Array<T>>> weights;
  ProductWide it{};
  int all = 0, members = 0;
  it.most = 1 + below(32);
  const int stageBytes = chunks * (tiles * 16 * 128 + it.most * 1024), stages = std::min(2 + below(3), (200 << 10) / stageBytes);  // what a block has
  it.early = below(2 * matrices);
  it.earlyMost = 1 + below(it.most);
  for (int i = 0; i < matrices; i++) {
    const int n = 1 + below(24 * passes * it.most), most = i == it.early ? it.earlyMost : it.most;  // up to three blocks
    const int ofBlock = i == it.early ? most : passes * most;
    weights.push_back(std::make_unique<Array<T>>((size_t)n * k));
    fill(*weights.back());
    it.groups[i] = (n + 7) / 8;
    it.blocks[i] = (it.groups[i] + ofBlock - 1) / ofBlock;
    all += it.groups[i];
    members += it.blocks[i];
    it.w[i] = tensorMap({weights.back()->p, n, k, 64, most * 8, 64, 1, chunks});
  }
  Array<unsigned> done(1);
  done[0] = 0;
  it.earlyDone = done.p;
  Array<T> x((size_t)rows * k);
  it.ld = all * 8 + 4;
  Array<float> y((size_t)slices * rows * it.ld);
  fill(x);
  it.x = tensorMap({x.p, rows, k, 64, tiles * 16, 64, 1, chunks});
  it.y = y.p;
  it.rows = rows;
  it.stages = stages;
  it.chunks = chunks;
  it.each = ofK / slices;
  it.more = ofK % slices;
  it.passes = passes;
  Array<unsigned char> shared(2048 + (std::max(16, (it.most + 7) / 8 * 8) - it.most) * 1024 + stages * stageBytes);
  dynamicShared = shared.p;
  launch<ProductWide>(288, members, slices, 1, tiles == 2 ? product_wide32 : product_wide64, it);
  check("early blocks", done[0], it.early < matrices ? it.blocks[it.early] * slices : 0);
  for (int m = 0; m < rows; m++)
    for (int i = 0, o = 0; i < matrices; i++)
      for (int row = 0; row < it.groups[i] * 8; row++, o++) {
        double expected = 0, got = 0;
        if (row < (int)(weights[i]->n / k))
          for (int c = 0; c < k; c++) expected += (double)toFloat((*weights[i])[(size_t)row * k + c]) * toFloat(x[(size_t)m * k + c]);
        for (int s = 0; s < slices; s++) got += y[((size_t)s * rows + m) * it.ld + o];
        check("product", got, expected);
      }
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) product();
  std::printf("largest error %g\n", worst);
}
