// DecodeAttention of one new token against float64, over blocks all over a pool, in which all else is NaN.
#include "on_cpu.h"

static void attend(bool onTensorCores) {
  const int d = HEAD_DIM, perKv = GROUP * (1 + below(2)), kv = 1 + below(2), heads = perKv * kv, rows = 1 + below(2);
  const int each = 1 + below(13), grid = 1 + below(4), groups = heads / GROUP;
  Array<float> q(rows * heads * d), partial((size_t)rows * groups * grid * GROUP * ((d + 7) / 8 * 8 + 2));
  const int tableRows = rows + below(3);
  std::vector<int> order((rows + 1) * each);  // of blocks, some of which are nobody's
  for (size_t i = 0; i < order.size(); i++) std::swap(order[i] = (int)i, order[below((int)i + 1)]);
  Array<T> keys(order.size() * kv * KV_BLOCK * d), values(keys.n), out(rows * heads * d);
  Array<unsigned> counters(rows * groups);
  Array<int> lengths(rows), tables(each * tableRows);
  for (size_t i = 0; i < tables.n; i++) tables[i] = -(1 << 20);  // nobody's
  for (size_t i = 0; i < q.n; i++) q[i] = 0.3f * normal();
  for (size_t i = 0; i < counters.n; i++) counters[i] = 0;
  auto at = [&](int m, int h, int t) {
    return (((size_t)order[m * each + t / KV_BLOCK] * kv + h) * KV_BLOCK + t % KV_BLOCK) * d;
  };
  for (int m = 0; m < rows; m++) {
    lengths[m] = below(8) ? below(each * KV_BLOCK) : -1;
    for (int i = 0; i * KV_BLOCK <= lengths[m]; i++) tables[i * tableRows + m] = order[m * each + i];
    for (int h = 0; h < kv; h++)
      for (int column = 0; column <= lengths[m]; column++)
        for (int i = 0; i < d; i++) {
          keys[at(m, h, column) + i] = fromFloat(normal());
          values[at(m, h, column) + i] = fromFloat(normal());
        }
  }
  const DecodeAttention p = {q.p, keys.p, values.p, out.p, partial.p, counters.p, tables.p, lengths.p, heads, kv, tableRows,
                       onTensorCores ? 1 : grid};
#ifdef TENSOR_CORES
  launch<DecodeAttention>(128, grid, groups, rows, onTensorCores ? decode_attention_cluster : decode_attention, p);
#else
  launch<DecodeAttention>(128, grid, groups, rows, decode_attention, p);
#endif
  for (size_t i = 0; i < counters.n; i++) check("counter", counters[i], 0);
  for (int m = 0; m < rows; m++)
    for (int h = 0; h < heads && lengths[m] >= 0; h++) {
      std::vector<double> weights;
      double largest = -INFINITY, sum = 0;
      for (int column = 0; column <= lengths[m]; column++) {
        double score = 0;
        for (int i = 0; i < d; i++) score += q[(m * heads + h) * d + i] * toFloat(keys[at(m, h / perKv, column) + i]);
        weights.push_back(score);
        largest = std::max(largest, score);
      }
      for (auto& weight : weights) sum += weight = std::exp(weight - largest);
      for (int i = 0; i < d; i++) {
        double expected = 0;
        for (size_t c = 0; c < weights.size(); c++)
          expected += weights[c] / sum * toFloat(values[at(m, h / perKv, c) + i]);
        check("attention", toFloat(out[(m * heads + h) * d + i]), expected);
      }
    }
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) {
    attend(false);
#ifdef TENSOR_CORES
    attend(true);
#endif
  }
  std::printf("largest error %g\n", worst);
}
