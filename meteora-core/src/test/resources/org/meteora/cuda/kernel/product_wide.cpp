// Products of 17 to 64 rows, against float64.
#include "on_cpu.h"

static void product() {
  const int tiles = oneOf({2, 4}), rows = tiles * 8 + 1 + below(tiles * 8), k = 64 * (1 + below(7)), matrices = 1 + below(4);
  const int slices = 1 + below(std::min(3, k / 64)), stages = 2 + below(3), atATime = 32;
  std::vector<std::unique_ptr<Array<T>>> weights;
  ProductWideMaps p{};
  ProductWide& it = p.product;
  for (int i = 0; i < matrices; i++) {
    const int n = 1 + below(300);
    weights.push_back(std::make_unique<Array<T>>((size_t)n * k));
    fill(*weights.back());
    it.groups += (n + 7) / 8;
    it.end[i] = it.groups;
    p.large[i] = tensorMap({weights.back()->p, n, k, 64, 64, 64, 1});
    p.small[i] = tensorMap({weights.back()->p, n, k, 64, 8, 64, 1});
  }
  const int members = 1 + below(std::min(6, it.groups)), most = (it.groups + members - 1) / members;
  const int passes = (most + atATime - 1) / atATime;
  Array<T> x((size_t)rows * k);
  it.ld = it.groups * 8 + 4;
  Array<float> y((size_t)slices * rows * it.ld);
  fill(x);
  p.x = tensorMap({x.p, rows, k, 64, tiles * 16, 64, 1});
  it.y = y.p;
  it.rows = rows;
  it.k = k;
  it.slices = slices;
  it.stages = stages;
  it.most = (most + passes - 1) / passes;
  it.segments = matrices;
  Array<unsigned char> shared(2048 + (std::max(16, (it.most + 7) / 8 * 8) - it.most) * 1024 + stages * (tiles * 16 * 128 + it.most * 1024));
  dynamicShared = shared.p;
  launch<ProductWideMaps>(288, members * slices, 1, 1, tiles == 2 ? product_wide32 : product_wide64, p);
  for (int m = 0; m < rows; m++)
    for (int i = 0, o = 0; i < matrices; i++)
      for (int row = 0; o < it.end[i] * 8; row++, o++) {
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
