// All adapters of up to three linears added to a product, against float64.
#include "on_cpu.h"

static void mixture() {
  const int linears = below(4), n = 1 + below(oneOf({3, 40, 256})), rows = oneOf({1, 2, 7, 9, 16, 17, 35}), slots = 1 + below(3);
  const bool weighs = linears == 0 || below(2);
  DecodeAddMixture p{};
  std::vector<std::unique_ptr<Array<T>>> bs;
  std::vector<std::unique_ptr<Array<int>>> adapters;
  std::vector<std::unique_ptr<Array<float>>> scales;
  int at = below(5);
  p.logitsAt = at;
  at += n + below(5);
  for (int i = 0; i < linears; i++) {
    const int out = below(2) ? 8 * (1 + below(30)) : 1 + below(150);
    std::vector<int> of;
    for (int e = 0; e < n; e++)
      for (int r = below(n < 50 ? 12 : 4); r > 0; r--) of.push_back(e);
    const int ranks = of.size();
    bs.push_back(std::make_unique<Array<T>>((size_t)ranks * out));
    adapters.push_back(std::make_unique<Array<int>>(ranks));
    scales.push_back(std::make_unique<Array<float>>(n));
    fill(*bs.back());
    fill(*scales.back());
    std::copy(of.begin(), of.end(), adapters.back()->p);
    p.linear[i] = {bs.back()->p, adapters.back()->p, scales.back()->p, at, at + out, ranks, out, out % 8 == 0};
    at += out + ranks + below(5);
  }
  Array<float> y((size_t)slots * rows * at), weights((size_t)rows * n), bias(n), inverse(1);
  fill(y);
  fill(bias);
  if (!weighs) fill(weights);
  inverse[0] = 0.7f;
  std::vector<float> before(y.p, y.p + y.n);
  p.y = y.p;
  p.weights = weights.p;
  p.bias = weighs ? bias.p : 0;
  p.invTemperature = inverse.p;
  p.slots = slots;
  p.ld = at;
  p.rows = rows;
  p.n = n;
  p.given = !weighs && below(2);
  p.resident = 1 + below(4);
  int widest = 1;
  for (int i = 0; i < linears; i++) widest = std::max(widest, p.linear[i].out);
  Array<unsigned char> shared(std::min(rows, MAX_ROWS) * (MIXED_ROOM + n) * 4);
  dynamicShared = shared.p;
  launch<DecodeAddMixture>(256, (widest + 63) / 64, (rows + MAX_ROWS - 1) / MAX_ROWS, std::max(1, linears), decode_add_mixture, p);
  auto sum = [&](int row, int column) {
    double v = 0;
    for (int s = 0; s < slots; s++) v += before[((size_t)s * rows + row) * at + column];
    return v;
  };
  std::vector<double> expected(before.begin(), before.end());
  for (int row = 0; row < rows; row++) {
    std::vector<double> w(n);
    double all = 0;
    for (int e = 0; e < n; e++) all += w[e] = weighs ? std::exp(sum(row, p.logitsAt + e) * inverse[0]) : 1;
    for (int e = 0; e < n; e++) {
      w[e] = weighs ? w[e] / all + bias[e] : weights[(size_t)row * n + e];
      check("weight", weights[(size_t)row * n + e], w[e]);
    }
    for (int i = 0; i < linears; i++) {
      const MixedLinear& l = p.linear[i];
      for (int r = 0; r < l.ranks; r++) {
        const double coefficient = w[l.adapter[r]] * l.scales[l.adapter[r]] * sum(row, l.zAt + r);
        for (int o = 0; o < l.out; o++) expected[(size_t)row * at + l.outAt + o] += coefficient * toFloat(l.b[(size_t)r * l.out + o]);
      }
    }
  }
  double largest = 1;
  for (double v : expected) largest = std::max(largest, std::abs(v));
  for (size_t i = 0; i < y.n; i++) check("mixture", y[i] / largest, expected[i] / largest);
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) mixture();
  std::printf("largest error %g\n", worst);
}
