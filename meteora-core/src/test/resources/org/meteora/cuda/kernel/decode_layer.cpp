// The kernels that follow a product in a decode step, and the gated linear's, against float64; and how products
// are dealt over blocks.
#include "on_cpu.h"

// A linear with adapters (or without) of random sizes.
struct Adapted {
  std::vector<int> ranks;
  int sum = 0;
  Array<T> b, bias;
  Array<int> offsets, indices;
  Array<float> scales, weights;
  RoutedLinear linear;

  Adapted(int out, int rows, bool biased, bool adapted, std::vector<int> r)
      : ranks(r), b([&] { for (int x : r) sum += x; return (size_t)sum * out; }()), bias(out), offsets(r.size() + 1),
        indices(rows * TOPK), scales(r.size()), weights(rows * TOPK) {
    fill(b);
    fill(bias);
    offsets[0] = 0;
    for (size_t i = 0; i < r.size(); i++) {
      offsets[i + 1] = offsets[i] + r[i];
      scales[i] = 0.5f + 0.1f * i;
    }
    linear = {adapted ? b.p : 0, biased ? bias.p : 0, offsets.p, scales.p, indices.p, weights.p, 0, 0, 0, adapted ? (int)r.size() : 0,
              out, 0};
  }

  // The adapters of a row, the first k in front, by what a row of the product has.
  std::vector<std::pair<double, int>> order(const std::vector<double>& y) {
    std::vector<std::pair<double, int>> all;
    for (int e = 0; e < linear.n; e++) {
      std::vector<double> z(y.begin() + linear.zAt + offsets[e], y.begin() + linear.zAt + offsets[e + 1]);
      all.push_back({-scored(y[linear.gateAt + e], z), e});
    }
    std::stable_sort(all.begin(), all.end());
    return all;
  }
  void choose(const std::vector<double>& y, int row, double inverseTemperature) {
    const auto all = order(y);
    double sum = 0;
    for (int j = 0; j < std::min(TOPK, linear.n); j++) sum += std::exp((all[0].first - all[j].first) * inverseTemperature);
    for (int j = 0; j < TOPK && linear.n; j++) {
      indices[row * TOPK + j] = j < linear.n ? all[j].second : -1;
      weights[row * TOPK + j] = j < linear.n ? std::exp((all[0].first - all[j].first) * inverseTemperature) / sum : 0;
    }
  }

  // Output o, from what a row of the product has, or where the choice is given from that.
  double output(const std::vector<double>& y, int o, double inverseTemperature, double base, const int* choice, const float* choiceWeights) {
    if (SCORES == SCORES_GIVEN) {
      double given = base;
      for (int j = 0; j < TOPK && linear.n; j++)
        for (int e = choice[j], r = offsets[e]; r < offsets[e + 1]; r++)
          given += (double)choiceWeights[j] * scales[e] * y[linear.zAt + r] * toFloat(b[(size_t)r * linear.out + o]);
      return given;
    }
    const auto order = this->order(y);
    double sum = 0, added = 0;
    for (int j = 0; j < std::min(TOPK, linear.n); j++) {
      double weight = std::exp((order[0].first - order[j].first) * inverseTemperature), lora = 0;
      int e = order[j].second;
      for (int r = offsets[e]; r < offsets[e + 1]; r++) lora += y[linear.zAt + r] * toFloat(b[(size_t)r * linear.out + o]);
      sum += weight;
      added += weight * scales[e] * lora;
    }
    return linear.n ? base + added / sum : base;
  }
};
static std::vector<int> someRanks() {
  static const std::vector<int> all[] = {{8, 8, 8, 8, 8}, {1, 64, 3, 8, 17, 33}, {1, 1, 1}, {0, 5, 0, 12}, {64, 64, 40},
                                         std::vector<int>(MAXN - 2, 2)};
  return all[below(6)];
}

// What a product of some linears with one input left: outputs, then logits, then z, in several slots.
struct Left {
  std::vector<Adapted*> linears;
  int rows, slots, ld = 0;
  Array<float>*y, *next;
  Array<float> inverseTemperature{1};
  Array<unsigned> parts{1};
  Array<T> x;
  Array<float> sumsq;
  int k, partials;
  Array<int> choice;
  Array<float> choiceWeights;
  Array<unsigned> choices{1};
  ProductOutput chain;

  Left(std::vector<Adapted*> all, int rows, bool padded, bool outputs) : linears(all), rows(rows), slots(1 + below(5)), x(rows * 200), sumsq(rows * 7),
        k(2 + below(199)), partials(1 + below(7)), choice(rows * TOPK), choiceWeights(rows * TOPK) {
    for (auto l : all) {
      l->linear.outAt = outputs ? ld : 0;
      l->linear.vectors = l->linear.out % 4 == 0 && l->linear.outAt % 4 == 0;
      ld += outputs ? l->linear.out : 0;
    }
    for (auto l : all) { l->linear.gateAt = ld; ld += GATED ? l->linear.n : 0; }
    for (auto l : all) { l->linear.zAt = ld; ld += l->linear.n ? l->sum : 0; }
    if (SCORES == SCORES_STANDARDIZED) ld += 2;
    if (padded) ld = (ld + 3) / 4 * 4;
    y = new Array<float>((size_t)slots * rows * ld);
    fill(*y);
    next = new Array<float>(below(200));
    inverseTemperature[0] = 1 / 3.f;
    parts[0] = below(1000);
    fill(x);
    for (size_t i = 0; i < sumsq.n; i++) sumsq[i] = 1 + below(10);
    fill(choiceWeights);
    for (size_t i = 0; i < choice.n; i++) choice[i] = below(3);  // no bank is smaller
    choices[0] = below(1000);
    chain = {y->p, next->p, inverseTemperature.p, next->n, parts.p, slots, ld, rows, (int)parts[0], x.p, below(2) ? sumsq.p : 0, k, partials, 1e-5f,
             choice.p, choiceWeights.p, choices.p, (int)choices[0]};
#if SCORES == SCORES_STANDARDIZED
    if (below(2)) {  // left by the product
      chain.x = 0;
      for (int m = 0; m < rows; m++) {
        double squares = 0, sums[2] = {};
        for (int i = 0; i < partials; i++) squares += sumsq[m * partials + i];
        const double f = chain.sumsq ? 1 / std::sqrt(squares / k + 1e-5) : 1;
        for (int c = 0; c < k; c++) {
          const double d = f * (toFloat(x[m * k + c]) - toFloat(x[m * k]));
          sums[0] += d;
          sums[1] += d * d;
        }
        for (int s = 0; s < slots; s++)
          for (int i = 0; i < 2; i++) {
            const double part = s + 1 < slots ? normal() : sums[i];
            (*y)[((size_t)s * rows + m) * ld + ld - 2 + i] = part;
            sums[i] -= part;
          }
      }
    }
#endif
  }
  ~Left() { delete y; delete next; }

  std::vector<double> row(int m) {
    std::vector<double> v(ld);
    for (int s = 0; s < slots; s++)
      for (int i = 0; i < ld; i++) v[i] += (*y)[((size_t)s * rows + m) * ld + i];
    return v;
  }
  double output(int which, int m, int o) {
    auto v = row(m);
    auto& l = *linears[which];
    return l.output(v, o, inverse(m), v[l.linear.outAt + o] + (l.linear.bias ? toFloat(l.bias[o]) : 0), choice.p + m * TOPK, choiceWeights.p + m * TOPK);
  }
  // 1 / T, and what a row's scores are divided by.
  double inverse(int m) {
    double squares = 0;
    for (int i = 0; i < partials; i++) squares += sumsq[m * partials + i];
    return inverseTemperature[0] * spread(x.p + m * k, k, chain.sumsq ? 1 / std::sqrt(squares / k + 1e-5f) : 1);
  }
  void isCleared() {
    for (size_t i = 0; i < next->n; i++) check("the next product's buffer", (*next)[i], 0);
  }
};

template <typename F>
static F* formOf(std::initializer_list<F*> forms, int which) { return forms.begin()[which]; }
// Which of the forms of a kernel; the last one takes a choice that is there.
static int when(Left& left) {
  const int form = below(SCORES == SCORES_PRODUCT || SCORES == SCORES_MAGNITUDE ? 3 : 2);
  for (size_t i = 0; form == 2 && i < left.linears.size(); i++)
    for (int m = 0; m < left.rows; m++) left.linears[i]->choose(left.row(m), m, left.inverse(m));
  return form;
}

static void addResidual(int rows) {
  const int hidden = oneOf({1, 3, 37, 64, 65, 130, 256}), blocks = (hidden + 63) / 64;
  Adapted linear(hidden, rows, below(2), below(4), someRanks());
  Left left({&linear}, rows, true, true);
  Array<float> h(rows * hidden), sums(rows * blocks);
  Array<T> weight(hidden), out(rows * hidden);
  fill(h);
  fill(weight);
  std::vector<float> before(h.p, h.p + h.n);
  const auto form = formOf({decode_route_add_residual, decode_route_add_residual_gates_first, decode_route_add_residual_chosen}, when(left));
  launch<DecodeRouteAddResidual>(32, blocks, rows, 1, form, {left.chain, linear.linear, h.p, weight.p, out.p, sums.p, hidden});
  left.isCleared();
  for (int m = 0; m < rows; m++) {
    double squares = 0, given = 0;
    for (int o = 0; o < hidden; o++) {
      double expected = before[m * hidden + o] + left.output(0, m, o);
      check("residual", h[m * hidden + o], expected);
      check("norm's input", toFloat(out[m * hidden + o]), expected * toFloat(weight[o]));
      squares += expected * expected;
    }
    for (int b = 0; b < blocks; b++) given += sums[m * blocks + b];
    check("squares", given, squares);
  }
}

static void siluUpRows(int rows) {
  const int inter = oneOf({1, 4, 63, 64, 129, 260}), each = oneOf({64, 128});
  Adapted gate(inter, rows, below(2), below(4), someRanks()), up(inter, rows, below(2), below(4), someRanks());
  Left left({&gate, &up}, rows, true, true);
  Array<T> out(rows * inter);
  const auto form = each == 64 ? formOf({decode_route_silu_up2, decode_route_silu_up2_gates_first, decode_route_silu_up2_chosen}, when(left))
                               : formOf({decode_route_silu_up4, decode_route_silu_up4_gates_first, decode_route_silu_up4_chosen}, when(left));
  launch<DecodeRouteSiluUp>(32, (inter + each - 1) / each, rows, 1, form, {left.chain, gate.linear, up.linear, out.p, inter});
  left.isCleared();
  for (int m = 0; m < rows; m++)
    for (int o = 0; o < inter; o++) {
      double g = left.output(0, m, o);
      check("silu", toFloat(out[m * inter + o]), g / (1 + std::exp(-g)) * left.output(1, m, o));
    }
}

static void ropeAppend(int rows) {
  const int d = oneOf({2, 10, 18, 64, 128, 130, 256}), heads = 1 + below(4), kv = 1 + below(2), half = d / 2, each = 3;
  Adapted q(heads * d, rows, false, below(4), someRanks()), k(kv * d, rows, below(2), below(4), someRanks()),
      v(kv * d, rows, below(2), below(4), someRanks());
  Left left({&q, &k, &v}, rows, true, true);
  Array<float> rotated(rows * heads * d), frequencies(half);
  Array<T> keys((size_t)(rows + 1) * each * kv * KV_BLOCK * d), values(keys.n);
  Array<int> lengths(rows), tables(each * (rows + 1));
  for (int i = 0; i < half; i++) frequencies[i] = 1.f / (1 + i);
  for (int m = 0; m < rows; m++) {
    lengths[m] = below(6) ? below(each * KV_BLOCK) : -1;
    for (int i = 0; i < each; i++) tables[i * (rows + 1) + m] = i * KV_BLOCK <= lengths[m] ? (each - i) * rows + m : -(1 << 20);
  }
  const auto form = formOf({decode_route_rope_append, decode_route_rope_append_gates_first, decode_route_rope_append_chosen}, when(left));
  launch<DecodeRouteRopeAppend>(32, heads + 2 * kv, (half + 63) / 64, rows, form,
                     {left.chain, {q.linear, k.linear, v.linear}, rotated.p, keys.p, values.p, tables.p, lengths.p,
                      frequencies.p, heads, kv, d, rows + 1, 0.5f, 1.f});
  left.isCleared();
  for (int m = 0; m < rows; m++)
    for (int which = 0; which < 3; which++)
      for (int h = 0; h < (which ? kv : heads); h++)
        for (int i = 0; i < half; i++) {
          double a = left.output(which, m, h * d + i), b = left.output(which, m, h * d + i + half);
          double angle = (double)lengths[m] * frequencies[i];
          double x = which < 2 ? a * std::cos(angle) - b * std::sin(angle) : a;
          double y = which < 2 ? b * std::cos(angle) + a * std::sin(angle) : b;
          if (which == 0) {
            check("q", rotated[(m * heads + h) * d + i], x / 2);
            check("q", rotated[(m * heads + h) * d + i + half], y / 2);
          } else if (lengths[m] >= 0) {
            auto& cache = which == 1 ? keys : values;
            size_t at = (((size_t)tables[lengths[m] / KV_BLOCK * (rows + 1) + m] * kv + h) * KV_BLOCK + lengths[m] % KV_BLOCK) * d + i;
            check("cache", toFloat(cache[at]), x);
            check("cache", toFloat(cache[at + half]), y);
          }
        }
}

// z of the chosen adapters alone, and their choice for who comes behind.
static void routeZ(int rows) {
  std::vector<std::unique_ptr<Adapted>> owned;
  std::vector<Adapted*> linears;
  for (int i = 1 + below(3); i > 0; i--) {
    owned.push_back(std::make_unique<Adapted>(3, rows, false, below(4), someRanks()));
    linears.push_back(owned.back().get());
  }
  Left left(linears, rows, false, true);
  const int k = left.k, each = 1 + below(2);
  int most = 1;
  DecodeRouteZ p{left.chain};
  std::vector<std::unique_ptr<Array<T>>> a;
  for (size_t i = 0; i < linears.size(); i++) {
    a.push_back(std::make_unique<Array<T>>((size_t)linears[i]->sum * k));
    fill(*a[i]);
    p.linear[i] = linears[i]->linear;
    p.a[i] = a[i]->p;
    for (int rank : linears[i]->ranks) most = std::max(most, rank);
    for (int s = 0; s < left.slots; s++)
      for (int m = 0; m < rows; m++)
        for (int r = 0; r < linears[i]->sum && p.linear[i].n; r++) (*left.y)[((size_t)s * rows + m) * left.ld + p.linear[i].zAt + r] = 0;
  }
  p.x = left.x.p;
  p.sumsq = left.chain.sumsq;
  p.y = left.y->p;
  p.k = k;
  p.partials = left.partials;
  p.eps = 1e-5f;
  p.vectors = k % ELEMENTS_16B == 0;
  p.each = each;
  const unsigned before = left.choices[0];
  const bool leaves = SCORES <= SCORES_MAGNITUDE && below(2);
  if (!leaves) p.product.choices = 0;
  if (!leaves && below(2)) p.product.gateTiles = 0;  // behind the product
  launch<DecodeRouteZ>(256, (most * TOPK + each - 1) / each, linears.size(), rows, decode_route_z, p);
  check("choices", left.choices[0] - before, leaves ? linears.size() * rows : 0);
  for (size_t i = 0; i < linears.size(); i++)
    for (int m = 0; m < rows && p.linear[i].n; m++) {
      auto& l = *linears[i];
      const auto order = l.order(left.row(m));
      double squares = 0, sum = 0;
      for (int n = 0; n < left.partials; n++) squares += left.sumsq[m * left.partials + n];
      const double factor = p.sumsq ? 1 / std::sqrt(squares / k + 1e-5) : 1;
      const int all = std::min(TOPK, l.linear.n);
      for (int j = 0; j < all; j++) sum += std::exp((order[0].first - order[j].first) * left.inverse(m));
      for (int j = 0; j < all; j++) {
        const int e = SCORES == SCORES_GIVEN ? left.choice[m * TOPK + j] : order[j].second;
        for (int r = l.offsets[e]; r < l.offsets[e + 1]; r++) {
          double z = 0;
          for (int c = 0; c < k; c++) z += (double)toFloat((*a[i])[(size_t)r * k + c]) * toFloat(left.x[m * k + c]);
          check("chosen z", (*left.y)[(size_t)m * left.ld + l.linear.zAt + r], z * factor);
        }
        if (leaves) {
          check("choice", l.indices[m * TOPK + j], e);
          check("its weight", l.weights[m * TOPK + j], std::exp((order[0].first - order[j].first) * left.inverse(m)) / sum);
        }
      }
    }
}

static void addAdapters(int rows) {
  std::vector<std::unique_ptr<Adapted>> owned;
  std::vector<Adapted*> linears;
  std::vector<std::unique_ptr<Array<T>>> ys;
  int widest = 1;
  for (int i = 1 + below(3); i > 0; i--) {
    owned.push_back(std::make_unique<Adapted>(oneOf({1, 33, 64, 100, 129}), rows, false, true, someRanks()));
    linears.push_back(owned.back().get());
    widest = std::max(widest, owned.back()->linear.out);
  }
  Left left(linears, rows, false, false);
  PrefillRouteAddAdapters p{left.chain};
  std::vector<std::vector<T>> before;
  for (size_t i = 0; i < linears.size(); i++) {
    ys.push_back(std::make_unique<Array<T>>(rows * linears[i]->linear.out));
    fill(*ys[i]);
    before.emplace_back(ys[i]->p, ys[i]->p + ys[i]->n);
    p.linear[i] = linears[i]->linear;
    p.y[i] = ys[i]->p;
  }
  launch<PrefillRouteAddAdapters>(32, (widest + 63) / 64, rows, linears.size(), prefill_route_add_adapters, p);
  for (size_t i = 0; i < linears.size(); i++)
    for (int m = 0; m < rows; m++)
      for (int o = 0, out = linears[i]->linear.out; o < out; o++)
        check("layer", toFloat((*ys[i])[m * out + o]),
              linears[i]->output(left.row(m), o, left.inverse(m), toFloat(before[i][m * out + o]), left.choice.p + m * TOPK,
                                 left.choiceWeights.p + m * TOPK));
}

static void embedRows(int rows) {
  const int hidden = 1 + below(200), vocab = 7, blocks = (hidden + 31) / 32;
  Array<T> table(vocab * hidden), weight(hidden), out(rows * hidden);
  Array<int> tokens(rows);
  Array<float> h(rows * hidden), sums(rows * blocks), next(below(50));
  fill(table);
  fill(weight);
  for (int m = 0; m < rows; m++) tokens[m] = below(9) - 1;  // one too small and one too large among them
  launch<DecodeEmbed>(32, blocks, rows, 1, decode_embed, {table.p, tokens.p, weight.p, h.p, out.p, sums.p, next.p, next.n, hidden, vocab});
  for (int m = 0; m < rows; m++)
    for (int o = 0; o < hidden; o++) {
      double expected = tokens[m] >= 0 && tokens[m] < vocab ? toFloat(table[tokens[m] * hidden + o]) : 0;
      check("embedding", h[m * hidden + o], expected);
      check("embedding's norm input", toFloat(out[m * hidden + o]), expected * toFloat(weight[o]));
    }
}

// Every unit of a product is some block's, the gates' tiles come first and whole, and no sum has more than two contributors.
static void dealOut() {
  const int chunks = 1 + below(14), members = 1 + below(140);
  Product p{};
  p.gateTiles = below(3) * below(20);
  p.tiles = p.gateTiles + 1 + below(2000);
  p.firstGateTile = below(p.tiles - p.gateTiles + 1);
  const int share = (int)((long long)p.tiles * chunks / members), maxGateTiles = (p.gateTiles + members - 1) / members;
  if (share < (maxGateTiles + 1) * chunks) return;  // then no gate comes first
  std::vector<int> seen(p.tiles * chunks), contributors(p.tiles);
  int smallest = p.tiles * chunks, largest = 0, gates = 0;
  for (int member = 0; member < members; member++) {
    Units units(p, chunks, member, members);
    bool mayBeGate = true, left = true;
    int tile = -1, chunk = -1;
    for (; units.at < units.count; units.at++) {
      const bool other = units.enter(p), isGate = units.tile >= p.firstGateTile && units.tile < p.firstGateTile + p.gateTiles;
      check("another tile", other, units.at == 0 || units.tile != tile);
      check("a tile is left before the next", other, left);
      if (!other) check("next chunk", units.chunk, chunk + 1);
      tile = units.tile;
      chunk = units.chunk;
      if (tile < 0 || tile >= p.tiles || chunk < 0 || chunk >= chunks) std::abort();
      seen[tile * chunks + chunk]++;
      mayBeGate &= isGate;
      check("gates first", isGate, mayBeGate);
      check("gate", units.isGate(), isGate);
      left = units.leaves();
      if (left) {
        contributors[tile]++;
        gates += isGate;
      }
    }
    check("the last tile is left", left, true);
    smallest = std::min(smallest, units.count);
    largest = std::max(largest, units.count);
  }
  check("gates' tiles", gates, p.gateTiles);
  for (int n : seen) check("times a unit is dealt", n, 1);
  for (int tile = 0; tile < p.tiles; tile++)
    if (contributors[tile] > (tile >= p.firstGateTile && tile < p.firstGateTile + p.gateTiles ? 1 : 2))
      check("contributors", contributors[tile], 1);
  check("even shares", largest - smallest <= 1, true);
}

// Steps of many rows: products leave one slot, and norms are whole.
static void addResidualNorm(int rows) {
  const int hidden = oneOf({1, 37, 64, 130, 260, 2052});
  Adapted linear(hidden, rows, below(2), below(4), someRanks());
  Left left({&linear}, rows, true, true);
  left.chain.slots = left.slots = 1;
  left.chain.x = left.x.p;
  Array<float> h(rows * hidden);
  Array<T> weight(hidden), out(rows * hidden);
  fill(h);
  fill(weight);
  std::vector<float> before(h.p, h.p + h.n);
  launch<DecodeRouteAddResidualNorm>(512, rows, 1, 1, decode_route_add_residual_norm,
                                     {left.chain, linear.linear, h.p, weight.p, out.p, hidden, 1e-5f});
  for (int m = 0; m < rows; m++) {
    double squares = 0;
    for (int o = 0; o < hidden; o++) {
      check("residual", h[m * hidden + o], before[m * hidden + o] + left.output(0, m, o));
      squares += h[m * hidden + o] * h[m * hidden + o];
    }
    for (int o = 0; o < hidden; o++)
      check("norm", toFloat(out[m * hidden + o]), h[m * hidden + o] / std::sqrt(squares / hidden + 1e-5) * toFloat(weight[o]));
  }
}

static void siluUpWide(int rows) {
  const int inter = oneOf({1, 4, 63, 129, 700, 1028});
  Adapted gate(inter, rows, below(2), below(4), someRanks()), up(inter, rows, below(2), below(4), someRanks());
  Left left({&gate, &up}, rows, true, true);
  left.chain.slots = left.slots = 1;
  left.chain.x = left.x.p;
  Array<T> out(rows * inter);
  launch<DecodeRouteSiluUp>(128, 1 + below(2), rows, 1, decode_route_silu_up_wide, {left.chain, gate.linear, up.linear, out.p, inter});
  for (int m = 0; m < rows; m++)
    for (int o = 0; o < inter; o++) {
      double g = left.output(0, m, o);
      check("silu", toFloat(out[m * inter + o]), g / (1 + std::exp(-g)) * left.output(1, m, o));
    }
}

static void embedNorm(int rows) {
  const int hidden = oneOf({1, 37, 256, 700}), vocab = 9;
  Array<T> table(vocab * hidden), weight(hidden), out(rows * hidden);
  Array<float> h(rows * hidden);
  Array<int> tokens(rows);
  fill(table);
  fill(weight);
  for (int m = 0; m < rows; m++) tokens[m] = below(vocab);
  launch<DecodeEmbedNorm>(256, rows, 1, 1, decode_embed_norm, {table.p, tokens.p, weight.p, h.p, out.p, hidden, vocab, 1e-5f});
  for (int m = 0; m < rows; m++) {
    double squares = 0;
    for (int o = 0; o < hidden; o++) {
      check("embedding", h[m * hidden + o], toFloat(table[tokens[m] * hidden + o]));
      squares += h[m * hidden + o] * h[m * hidden + o];
    }
    for (int o = 0; o < hidden; o++)
      check("norm", toFloat(out[m * hidden + o]), h[m * hidden + o] / std::sqrt(squares / hidden + 1e-5) * toFloat(weight[o]));
  }
}

#if DTYPE != 0
static void fewColumns() {
  const int rows = 1 + below(70), columns = oneOf({1, 9, 64, 65, 256, 300}), k = 32 * (1 + below(9)), slice = 32 * (1 + below(4));
  const int slices = (k + slice - 1) / slice, ld = columns + below(5);
  Array<T> x((size_t)rows * k), w((size_t)columns * k);
  Array<float> parts((size_t)slices * rows * columns), y((size_t)rows * ld);
  fill(x);
  fill(w);
  Array<unsigned char> memory(FEW_STAGES * FEW_STAGE_BYTES);
  dynamicShared = memory.p;
  const DecodeFewColumns p = {x.p, w.p, parts.p, rows, columns, k, slice};
  if (below(2)) launch<DecodeFewColumns>(512, slices, (rows + 63) / 64, (columns + 255) / 256, decode_few_columns, p);
  else launch<DecodeFewColumns>(256, slices, (rows + 63) / 64, (columns + 127) / 128, decode_few_columns_staged, p);
  launch<DecodeSumParts>(128, (columns + 127) / 128, rows, 1, decode_sum_parts, {parts.p, y.p, rows, columns, slices, ld});
  for (int m = 0; m < rows; m += 1 + below(9))
    for (int o = 0; o < columns; o++) {
      double sum = 0;
      for (int i = 0; i < k; i++) sum += (double)toFloat(x[(size_t)m * k + i]) * toFloat(w[(size_t)o * k + i]);
      check("few columns", y[(size_t)m * ld + o], sum);
    }
}
#endif

#if DTYPE != 0
// A linear's adapters in the masked form, beside the one that they are of.
struct Masked {
  Array<T> coefficients;
  MaskedLinear linear;
  Masked(const Adapted& of, int rows)
      : coefficients((size_t)(rows + 15) / 16 * 16 * ((of.linear.n ? of.sum + 31 : 0) / 32 * 32)),
        linear{of.linear.b, of.linear.bias, coefficients.p, of.linear.outAt, of.linear.out, of.linear.n ? of.sum : 0,
               (of.linear.n ? of.sum + 31 : 0) / 32 * 32} {}
};
// Slices of gate's and up's gates and A are summed and routed; SiLU by whole B.
static void masked(int rows) {
  const int slices = 1 + below(40), inter = 8 * (1 + below(20));
  std::vector<std::unique_ptr<Adapted>> owned;
  std::vector<Adapted*> all;
  for (int i = 0; i < 2; i++) {
    owned.push_back(std::make_unique<Adapted>(inter, rows, below(2), below(5), below(6) ? someRanks() : std::vector<int>(9, 60)));
    all.push_back(owned.back().get());
  }
  Left left(all, rows, true, true);
  left.chain.slots = left.slots = 1;
  left.chain.x = left.x.p;
  const int outputs = 2 * inter;
  int columns = 0;
  for (auto l : all) columns += (GATED ? l->linear.n : 0) + (l->linear.n ? l->sum : 0);
  for (auto l : all)  // coefficients are rounded, so what they add is to be no more than what it is added to
    for (int m = 0; m < rows; m++)
      for (int r = 0; r < l->sum && l->linear.n; r++) (*left.y)[(size_t)m * left.ld + l->linear.zAt + r] *= 0.05f;
  Array<float> parts((size_t)slices * rows * columns);
  for (int i = 0; i < slices; i++)
    for (int m = 0; m < rows; m++)
      for (int c = 0; c < columns; c++)
        parts[((size_t)i * rows + m) * columns + c] =
            i + 1 < slices ? 0.1f * normal() : (*left.y)[(size_t)m * left.ld + outputs + c];
  for (int m = 0; m < rows; m++)  // the last slice is what is left of the sum
    for (int c = 0; c < columns; c++) {
      float& last = parts[((size_t)(slices - 1) * rows + m) * columns + c];
      for (int i = 0; i + 1 < slices; i++) last -= parts[((size_t)i * rows + m) * columns + c];
    }
  for (int m = 0; m < rows; m++)
    for (int c = 0; c < columns; c++) (*left.y)[(size_t)m * left.ld + outputs + c] = NAN;
  DecodeSumRoute route{left.chain};
  std::vector<std::unique_ptr<Masked>> masks;
  int shared = 0;
  for (int i = 0; i < 2; i++) {
    masks.push_back(std::make_unique<Masked>(*all[i], rows));
    route.linear[i] = all[i]->linear;
    route.masked[i] = masks.back()->linear;
    shared += std::min(256, masks.back()->linear.stride) * 128;
  }
  route.parts = parts.p;
  route.y = left.y->p + outputs;
  route.columns = columns;
  route.slices = slices;
  launch<DecodeSumRoute>(512, rows, 1, 1, decode_sum_route, route);
  // what is in y now might have been there before the product ended
  Array<unsigned> tiles(1);
  tiles[0] = 5;
  DecodeSumRoute early = route;
  std::vector<std::unique_ptr<Masked>> before;
  early.columns = 0;
  early.product.gateTilesDone = tiles.p;
  early.product.gateTiles = 5;
  for (int i = 0; i < 2; i++) {
    before.push_back(std::make_unique<Masked>(*all[i], rows));
    early.masked[i] = before.back()->linear;
  }
  launch<DecodeSumRoute>(64, rows, 1, 1, decode_sum_route, early);
  for (int i = 0; i < 2; i++)
    for (size_t j = 0; j < (size_t)(rows + 15) / 16 * 16 * masks[i]->linear.stride; j++)
      check("early coefficient", before[i]->coefficients[j], masks[i]->coefficients[j]);  // or nothing in both
  DecodeSumRoute byRow = route;
  byRow.byRow = 1;
  std::vector<std::unique_ptr<Array<T>>> plain;
  for (int i = 0; i < 2; i++) {
    plain.push_back(std::make_unique<Array<T>>((size_t)rows * route.masked[i].stride));
    byRow.masked[i].coefficients = plain[i]->p;
  }
  launch<DecodeSumRoute>(512, rows, 1, 1, decode_sum_route, byRow);
  for (int i = 0; i < 2; i++)
    for (int m = 0; m < rows; m++)
      for (int r = 0; r < route.masked[i].stride; r++)
        check("coefficient", plain[i]->p[m * route.masked[i].stride + r],
              route.masked[i].coefficients[m / 16 * 16 * route.masked[i].stride + r / 16 * 256 + (m % 8 * 4 + r / 2 % 4) * 8 + r / 8 % 2 * 4 + m / 8 % 2 * 2 + r % 2]);
  Array<unsigned char> memory(shared);
  dynamicShared = memory.p;
  Array<T> out((size_t)rows * inter);
  launch<DecodeMaskedSiluUp>(256, (inter + 63) / 64, 1, 1, below(2) ? decode_masked_silu_up64 : decode_masked_silu_up128,
                             {route.masked[0], route.masked[1], left.y->p, out.p, rows, left.ld});
  for (int m = 0; m < rows; m++)
    for (int o = 0; o < inter; o++) {
      double g = left.output(0, m, o);
      check("masked silu", toFloat(out[m * inter + o]), g / (1 + std::exp(-g)) * left.output(1, m, o));
    }
}
#endif

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) {
    const int rows = 1 + below(3);
    addResidual(rows);
    siluUpRows(rows);
    ropeAppend(rows);
    addAdapters(rows);
    if (SCORES != SCORES_NORM && round <= 5) routeZ(rows);
    embedRows(rows);
    if (round <= 3) addResidualNorm(rows);
    if (round <= 3) siluUpWide(rows);
    if (round <= 3) embedNorm(rows);
#if DTYPE != 0
    if (round <= 3) fewColumns();
    if (round <= 4) masked(1 + below(round > 2 ? 20 : 70));
#endif
    for (int i = 0; i < 20; i++) dealOut();
  }
  std::printf("largest error %g\n", worst);
}
