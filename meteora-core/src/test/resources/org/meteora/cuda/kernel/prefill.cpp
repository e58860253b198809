// The kernels of a prefill, against float64.
#include "on_cpu.h"

static void mask() {
  const int linears = 1 + below(3), tokens = 1 + below(20);
  struct One {
    int n, at, logitsAt = 0, sum = 0;
    Array<int> offsets, indices, chosen;
    Array<float> scales, weights, factors;
    One(int n, int at, int tokens)
        : n(n), at(at), offsets(n + 1), indices(tokens * TOPK), chosen(TOPK * tokens), scales(n), weights(tokens * TOPK), factors(TOPK * tokens) {}
  };
  std::vector<std::unique_ptr<One>> all;
  int stride = 0;
  for (int l = 0; l < linears; l++) {
    const int n = 1 + below(MAXN);
    all.push_back(std::make_unique<One>(n, stride, tokens));
    One& one = *all.back();
    for (int e = 0; e < n; e++) {
      one.offsets[e] = one.sum;
      one.scales[e] = 0.5f + 0.1f * e;
      one.sum += below(9);
    }
    one.offsets[n] = one.sum;
    stride += one.sum;
  }
  for (auto& one : all) {
    one->logitsAt = stride;
    stride += one->n;
  }
  stride = (stride + 7) / 8 * 8;
  Array<T> rows((size_t)tokens * stride);
  fill(rows);
  std::vector<T> before(rows.p, rows.p + rows.n);
  const float inverse = 0.5f;
  const int k = 2 + below(100);
  Array<T> x(tokens * k);
  fill(x);
  PrefillRouteScaleZ p{rows.p, tokens, stride, x.p, k, inverse, {}};
  const bool written = below(2);
  for (int l = 0; l < linears; l++) {
    One& one = *all[l];
    p.linear[l] = {one.offsets.p, one.scales.p, written ? one.indices.p : 0, written ? one.weights.p : 0, one.at, one.logitsAt, one.n, one.sum};
  }
  PrefillRoute route{rows.p, tokens, stride, x.p, k, inverse, {}};
  for (int l = 0; l < linears; l++) route.linear[l] = {p.linear[l], all[l]->chosen.p, all[l]->factors.p};
  launch<PrefillRoute>(256, (tokens + 7) / 8, linears, 1, prefill_route, route);
  launch<PrefillRouteScaleZ>(256, (tokens + 7) / 8, linears, 1, prefill_route_scale_z, p);
  for (int l = 0; l < linears; l++)
    for (int t = 0; t < tokens; t++) {
      One& one = *all[l];
      const size_t from = (size_t)t * stride + one.at, gate = (size_t)t * stride + one.logitsAt;
      std::vector<std::pair<double, int>> order;
      for (int e = 0; e < one.n; e++) {
        std::vector<double> z;
        for (int r = one.offsets[e]; r < one.offsets[e + 1]; r++) z.push_back(toFloat(before[from + r]));
        order.push_back({-scored(toFloat(before[gate + e]), z), e});
      }
      std::stable_sort(order.begin(), order.end());
      std::vector<double> weight(one.n);
      double sum = 0;
      const int chosen = std::min(TOPK, one.n);
      const double divided = inverse * spread(x.p + t * k, k, 1);
      for (int j = 0; j < chosen; j++) sum += weight[order[j].second] = std::exp((order[0].first - order[j].first) * divided);
      for (int j = 0; written && j < chosen; j++) {
        check("adapter", one.indices[t * TOPK + j], order[j].second);
        check("weight", one.weights[t * TOPK + j], weight[order[j].second] / sum);
      }
      std::vector<int> ascending(TOPK);  // zeros where there are no more adapters
      for (int j = 0; j < chosen; j++) ascending[j] = order[j].second;
      std::stable_sort(ascending.begin(), ascending.end());
      double factors[MAXN] = {};
      for (int j = 0; j < TOPK; j++) {
        check("adapter in order", one.chosen[j * tokens + t], ascending[j]);
        factors[ascending[j]] += one.factors[j * tokens + t];
      }
      for (int e = 0; e < one.n; e++) check("factor", factors[e], weight[e] / sum * one.scales[e]);
      for (int e = 0; e < one.n; e++) {
        for (int r = one.offsets[e]; r < one.offsets[e + 1]; r++)
          check("z", toFloat(rows[from + r]), weight[e] / sum * one.scales[e] * toFloat(before[from + r]));
        check("logit", rows[gate + e], before[gate + e]);
      }
    }
}

static void norm() {
  const int rows = 1 + below(3), hidden = oneOf({1, 7, 8, 64, 100, 2048, 2051, 4104});
  const bool added = below(2), inPlace = below(2);
  Array<T> h(rows * hidden), delta(rows * hidden), sum(rows * hidden), weight(hidden), out(rows * hidden);
  fill(h);
  fill(delta);
  fill(weight);
  std::vector<T> before(delta.p, delta.p + delta.n);
  T* to = inPlace ? delta.p : sum.p;
  launch<PrefillRmsNorm>(256, rows, 1, 1, prefill_rms_norm,
                   {h.p, added ? delta.p : 0, added ? to : 0, weight.p, out.p, rows, hidden, 1e-5f});
  for (int m = 0; m < rows; m++) {
    std::vector<double> x;
    double squares = 0;
    for (int i = m * hidden; i < (m + 1) * hidden; i++) {
      x.push_back(toFloat(h[i]) + (added ? toFloat(before[i]) : 0));
      if (added) check("sum", toFloat(to[i]), x.back());
      squares += x.back() * x.back();
    }
    for (int i = 0; i < hidden; i++)
      check("norm", toFloat(out[m * hidden + i]), x[i] / std::sqrt(squares / hidden + 1e-5) * toFloat(weight[i]));
  }
}

static void silu() {
  const int count = 1 + below(5000);
  Array<T> gate(count), up(count);
  fill(gate);
  fill(up);
  std::vector<T> before(gate.p, gate.p + count);
  launch<PrefillSiluUp>(256, (count + 2047) / 2048, 1, 1, prefill_silu_up, {gate.p, up.p, gate.p, count, 1});
  for (int i = 0; i < count; i++) {
    double g = toFloat(before[i]);
    check("silu", toFloat(gate[i]), g / (1 + std::exp(-g)) * toFloat(up[i]));
  }
}

static void rope() {
  const int batch = 1 + below(3), seq = 1 + below(9), heads = 1 + below(4), kv = 1 + below(2), d = oneOf({2, 10, 16, 64, 128});
  const bool given = below(2);  // columns, in no order, with gaps
  const int past = given ? 0 : below(5), capacity = past + (given ? 2 : 1) * seq + below(3), angleRows = below(2) ? batch : 1, half = d / 2;
  const int tokens = batch * seq, vectors = d % 16 == 0 && below(4);
  Array<T> q(tokens * heads * d), k(tokens * kv * d), v(tokens * kv * d), keys(batch * kv * capacity * d), values(keys.n);
  Array<T> cosines(angleRows * seq * d), sines(cosines.n);
  fill(q);
  fill(k);
  fill(v);
  fill(keys);
  fill(values);
  for (size_t i = 0; i < cosines.n; i++) {
    double angle = (i / d + 1.0) / (1 + i % half);
    cosines[i] = fromFloat(std::cos(angle));
    sines[i] = fromFloat(i % d < half ? -std::sin(angle) : std::sin(angle));
  }
  Array<long long> columns(seq);
  std::vector<int> tokenAt(capacity, -1);
  for (int t = 0; t < seq; t++) {
    int at = given ? below(capacity) : past + t;
    while (tokenAt[at] >= 0) at = (at + 1) % capacity;
    tokenAt[columns[t] = at] = t;
  }
  std::vector<T> queries(q.p, q.p + q.n), oldKeys(keys.p, keys.p + keys.n), oldValues(values.p, values.p + values.n);
  const int threads = tokens * (heads + 2 * kv) * (vectors ? d / 16 : half);
  launch<PrefillRopeAppend>(256, (threads + 255) / 256, 1, 1, prefill_rope_append,
                   {q.p, k.p, v.p, cosines.p, sines.p, keys.p, values.p, given ? columns.p : 0, tokens, capacity, past, seq, angleRows, heads, kv, d, vectors});
  auto turned = [&](const T* head, int b, int t, int i) {
    size_t at = ((size_t)(angleRows > 1 ? b * seq : 0) + t) * d + i;
    return (double)toFloat(head[i]) * toFloat(cosines[at]) + (double)toFloat(head[(i + half) % d]) * toFloat(sines[at]);
  };
  for (int b = 0; b < batch; b++) {
    for (int t = 0; t < seq; t++)
      for (int h = 0; h < heads; h++)
        for (int i = 0; i < d; i++) {
          size_t head = ((size_t)(b * seq + t) * heads + h) * d;
          check("q", toFloat(q[head + i]), turned(&queries[head], b, t, i));
        }
    for (int h = 0; h < kv; h++)
      for (int t = 0; t < capacity; t++)
        for (int i = 0; i < d; i++) {
          const bool is = tokenAt[t] >= 0;
          const int token = is ? tokenAt[t] : 0;
          size_t at = ((size_t)(b * kv + h) * capacity + t) * d + i, head = ((size_t)(b * seq + token) * kv + h) * d;
          check("key", toFloat(keys[at]), is ? turned(&k[head], b, token, i) : toFloat(oldKeys[at]));
          check("value", toFloat(values[at]), toFloat(is ? v[head + i] : oldValues[at]));
        }
  }
}

#ifdef TENSOR_CORES
// Two linears' adapters by groups of tokens, chosen as given; or z of all adapters' ranks, and both linears' sum. With many there are
// more tiles than warps.
static void grouped(bool many) {
  const bool byRow = below(2);
  const int n = many ? 32 - below(8) : TOPK + below(4), tokens = 17 + below(many ? 250 : 30), chunk = many ? 192 : oneOf({24, 64});
  const int k = 32 * (1 + below(many ? 3 : 40)), out = 8 * (1 + below(9));
  const int chunks = (tokens + chunk - 1) / chunk, tiles = TOPK * chunk / TILE + std::min(n, TOPK * chunk);
  struct One {
    Array<int> chosen, offsets;
    Array<GroupedTile> tile;
    Array<float> factors;
    Array<T> rows, b, z, y;
    One(int n, int tokens, int tiles, int chunks, int sum, int k, int out, int ranks)
        : chosen(TOPK * tokens), offsets(n + 1), tile(chunks * tiles), factors(TOPK * tokens), rows(sum * k), b(sum * out),
          z((size_t)chunks * tiles * TILE * ranks), y(tokens * out) {}
  };
  std::vector<int> ranks;
  int sum = 0, most = 1;
  for (int e = 0; e < n; e++) {
    ranks.push_back(!below(5) ? 0 : byRow ? oneOf({8, 16}) : oneOf({1, 7, 8, 9, 16}));
    sum += ranks.back();
    most = std::max(most, ranks.back());
  }
  if (!sum) ranks[0] = sum = most = 8;
  most = (most + 7) / 8 * 8;
  Array<T> x(tokens * k);
  fill(x);
  std::vector<std::unique_ptr<One>> all;
  GroupTokens group{{}, tokens, chunk, tiles};
  Array<T> whole((size_t)tokens * 2 * sum);
  for (size_t i = 0; i < whole.n; i++) whole[i] = 0;
  const GroupedColumns columns = byRow ? GroupedColumns{2 * sum, 1} : GroupedColumns{most, 0};
  GroupZ product{{}, columns, tokens, chunk, tiles, chunks};
  GroupAdd add{{}, columns, 2, byRow ? 2 : 1, chunk, tiles};
  std::vector<std::vector<double>> added(2, std::vector<double>(tokens * out));
  for (int l = 0; l < 2; l++) {
    all.push_back(std::make_unique<One>(n, tokens, tiles, chunks, sum, k, out, most));
    One& one = *all.back();
    one.offsets[0] = 0;
    for (int e = 0; e < n; e++) one.offsets[e + 1] = one.offsets[e] + ranks[e];
    fill(one.rows);
    for (size_t i = 0; byRow && i < one.rows.n; i++) one.rows[i] = fromFloat(toFloat(one.rows[i]) / std::sqrt(64.f * k));
    fill(one.b);
    const bool narrow = below(2);  // most tokens choose the same
    for (int t = 0; t < tokens; t++) {
      std::vector<int> order(n);
      for (int e = 0; e < n; e++) order[e] = e;
      if (!narrow || !below(4)) std::shuffle(order.begin(), order.end(), generator);
      if (!byRow) std::sort(order.begin(), order.begin() + TOPK);
      for (int j = 0; j < TOPK; j++) {
        const int e = one.chosen[j * tokens + t] = order[j];
        const float given = one.factors[j * tokens + t] = normal() / std::sqrt(64.f * k), factor = byRow ? 1 : given;
        for (int r = one.offsets[e]; r < one.offsets[e + 1]; r++) {
          double z = 0;
          for (int i = 0; i < k; i++) z += (double)toFloat(x[t * k + i]) * toFloat(one.rows[r * k + i]);
          for (int o = 0; o < out; o++) added[l][t * out + o] += z * factor * toFloat(one.b[r * out + o]);
        }
      }
    }
    const TokenGroups groups{one.chosen.p, one.offsets.p, one.tile.p};
    group.linear[l] = groups;
    T* const z = byRow ? whole.p + l * sum : one.z.p;
    product.linear[l] = {groups, x.p, one.rows.p, byRow ? nullptr : one.factors.p, z, k};
    add.linear[l] = {groups, one.b.p, z, one.y.p, out};
  }
  std::vector<unsigned char> shared(chunk * 64 + 16 + 2 * (tiles * sizeof(GroupedTile) + sizeof(int)));
  std::vector<unsigned char> sorting(tiles * sizeof(GroupedTile) + (256 * TOPK + 8) * sizeof(int));
  dynamicShared = sorting.data();
  launch<GroupTokens>(SORT_THREADS, 1, chunks, 2, group_tokens, group);
  dynamicShared = shared.data();
  launch<GroupZ>(oneOf({128, 256}), tiles * chunks, most / 8, 2, group_z, product);
  for (int i = 0; byRow && i < tokens * out; i++) added[0][i] += added[1][i];
  launch<GroupAdd>(GROUP_THREADS, 1 + below(7), chunks, 1, byRow ? group_add_by_row : group_add, add);

  const double rounded = std::sqrt(TOPK * add.together);  // so often, up or down
  for (int l = 0; l < 2 / add.together; l++)
    for (int i = 0; i < tokens * out; i++) check("added", toFloat(all[l]->y[i]) / rounded, added[l][i] / rounded);
}
#endif

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) {
    mask();
    norm();
    silu();
    rope();
#ifdef TENSOR_CORES
    grouped(false);
    grouped(true);
#endif
  }
  std::printf("largest error %g\n", worst);
}
