// The kernels of a training step that read and write several numbers at once where they may, against float64, on shapes where they
// may and where they may not.
#include "on_cpu.h"

// Rows of [z of all linears | logits of all gates | zeros], their choice, and the way back.
static void route() {
  const int linears = 1 + below(3), tokens = 1 + below(12), each = oneOf({1, 3, 5, 8}), gated = below(3) > 0;
  struct One {
    int zAt, logitsAt = 0, n, ranks = 0;
    Array<int> offsets;
    Array<float> scales;
    One(int zAt, int n) : zAt(zAt), n(n), offsets(n + 1), scales(n) {}
  };
  std::vector<std::unique_ptr<One>> all;
  int ranks = 0;
  const int n = 1 + below(MAXN);
  for (int l = 0; l < linears; l++) {
    all.push_back(std::make_unique<One>(ranks, n));
    One& one = *all.back();
    for (int e = 0; e < n; e++) {
      one.offsets[e] = one.ranks;
      one.scales[e] = 0.5f + 0.1f * e;
      one.ranks += each == 8 ? 8 : below(each + 1);
    }
    one.offsets[n] = one.ranks;
    ranks += one.ranks;
  }
  int used = ranks;
  for (auto& one : all) {
    one->logitsAt = used;
    used += n;
  }
  const int stride = (used + 7) / 8 * 8 + (each == 8 ? 0 : below(3));
  Array<T> rows((size_t)tokens * stride), slope((size_t)tokens * ranks), c((size_t)tokens * ranks), again((size_t)tokens * ranks), out((size_t)tokens * stride);
  Array<int> fixed(tokens), targets(tokens);
  Array<float> votes((size_t)tokens * n), loss(tokens), right(tokens);
  fill(rows);
  fill(slope);
  for (int t = 0; t < tokens; t++) {
    fixed[t] = below(n);
    targets[t] = below(n + 1) - 1;
    loss[t] = right[t] = 0;
  }
  for (int i = 0; i < tokens * n; i++) votes[i] = 0;
  const float gateWeight = 0.3f;
  TrainingRouted of{rows.p, fixed.p, targets.p, tokens, stride, ranks, linears, gated, used, {}};
  for (int l = 0; l < linears; l++) {
    One& one = *all[l];
    of.linear[l] = {one.offsets.p, one.scales.p, one.zAt, one.logitsAt, n, one.ranks};
  }
  launch<TrainingRoute>(256, (tokens + 7) / 8, 1, 1, training_route, {of, c.p, votes.p, loss.p, right.p, nullptr});
  Array<int> chosen((size_t)linears * TOPK * tokens);
  launch<TrainingRouteBackward>(256, (tokens + 7) / 8, 1, 1, training_route_backward, {of, slope.p, again.p, out.p, chosen.p, gateWeight});
  for (int t = 0; t < tokens; t++) {
    double ofToken = 0;
    int first = 0;  // gates that have the target first
    std::vector<double> voted(n);
    for (auto& at : all) {
      One& one = *at;
      const T *row = rows.p + (size_t)t * stride, *ofC = slope.p + (size_t)t * ranks;
      std::vector<double> weight(n), ofWeight(n);
      std::vector<std::pair<double, int>> order;
      double sum = 0, mean = 0, whole = 0;
      for (int e = 0; e < n; e++) order.push_back({-toFloat(row[one.logitsAt + e]), e});
      std::stable_sort(order.begin(), order.end());
      const int best = gated ? std::min(TOPK, n) : 0;
      for (int j = 0; j < TOPK; j++)
        check("chosen", chosen[((&at - &all[0]) * TOPK + j) * tokens + t], j < best ? order[j].second : gated || j ? -1 : fixed[t]);
      for (int j = 0; j < best; j++) sum += weight[order[j].second] = std::exp(order[0].first - order[j].first);
      for (int e = 0; e < n; e++) weight[e] = gated ? weight[e] / sum : e == fixed[t];
      for (int e = 0; e < n; e++) {
        whole += std::exp(order[0].first - order[e].first);
        for (int r = one.zAt + one.offsets[e]; r < one.zAt + one.offsets[e + 1]; r++) {
          const double factor = weight[e] * one.scales[e];
          check("c", toFloat(c[(size_t)t * ranks + r]), factor * toFloat(row[r]));
          check("c again", toFloat(again[(size_t)t * ranks + r]), factor * toFloat(row[r]));
          check("slope of z", toFloat(out[(size_t)t * stride + r]), factor * toFloat(ofC[r]));
          ofWeight[e] += one.scales[e] * (double)toFloat(row[r]) * toFloat(ofC[r]);
        }
        mean += weight[e] * ofWeight[e];
      }
      if (!gated) continue;
      for (int e = 0; e < n; e++) {
        voted[e] += weight[e];
        double v = weight[e] * (ofWeight[e] - mean);
        if (targets[t] >= 0) v += gateWeight * (std::exp(toFloat(row[one.logitsAt + e]) + order[0].first) / whole - (e == targets[t]));
        check("slope of a logit", toFloat(out[(size_t)t * stride + one.logitsAt + e]), v);
      }
      if (targets[t] >= 0) ofToken += std::log(whole) - order[0].first - toFloat(row[one.logitsAt + targets[t]]);
      first += order[0].second == targets[t];
    }
    check("loss", loss[t], ofToken);
    check("right", right[t], first);
    for (int e = 0; e < n; e++) check("votes", votes[(size_t)t * n + e], voted[e]);
    for (int i = used; i < stride; i++) check("padding", toFloat(out[(size_t)t * stride + i]), 0);
  }
}

// Two linears' gradients of A or B by the tokens that chose each adapter: none, a few, or most.
static void chosenGradients() {
  const int n = 1 + below(6), tokens = 1 + below(oneOf({40, 400})), eights = 1 + below(2);
  struct One {
    int columns, stride, columnStep, rankStep, add, skipped, ranks = 0;
    Array<int> chosen, order, begins, offsets;
    Array<T> wide, narrow;
    Array<float> to;
    std::vector<float> before;
    One(int n, int tokens, int columns, int stride, size_t size)
        : columns(columns), stride(stride), chosen(TOPK * tokens), order(TOPK * tokens), begins(n + 1), offsets(n + 1), wide((size_t)tokens * columns),
          narrow((size_t)tokens * stride), to(size) {}
  };
  std::vector<int> ranks;
  int sum = 0;
  for (int e = 0; e < n; e++) sum += ranks.emplace_back(8 * below(eights + 1));
  std::vector<std::unique_ptr<One>> all;
  TrainingLists lists{{}, tokens};
  TrainingChosenGradients p{{}, eights};
  int widest = 0;
  for (int l = 0; l < 2; l++) {
    const int columns = 8 * (1 + below(70)), stride = sum + 8 * (1 + below(2)), skipped = below(3);
    all.push_back(std::make_unique<One>(n, tokens, columns, stride, skipped + (size_t)columns * sum));
    One& one = *all.back();
    const bool ofB = below(2);
    one.columnStep = ofB ? sum : 1;
    one.rankStep = ofB ? 1 : columns;
    one.add = below(2);
    one.skipped = skipped;
    one.offsets[0] = 0;
    for (int e = 0; e < n; e++) one.offsets[e + 1] = one.offsets[e] + ranks[e];
    fill(one.wide);
    for (size_t i = 0; one.add && i < one.to.n; i++) one.to[i] = normal();
    one.before.assign(one.to.p, one.to.p + one.to.n);
    const int often = below(n), few = below(2);
    for (int t = 0; t < tokens; t++) {
      std::vector<int> order(n);
      for (int e = 0; e < n; e++) order[e] = e;
      std::shuffle(order.begin(), order.end(), generator);
      if (few && below(4)) std::swap(order[0], *std::find(order.begin(), order.end(), often));
      for (int j = 0; j < TOPK; j++) {
        const int e = one.chosen[j * tokens + t] = j < n && (j == 0 || below(9)) ? order[j] : -1;
        for (int r = 0; e >= 0 && r < ranks[e]; r++) one.narrow[(size_t)t * stride + one.offsets[e] + r] = fromFloat(normal() / 4);
      }
    }
    const ChosenTokens list{one.chosen.p, one.order.p, one.begins.p};
    lists.linear[l] = list;
    p.linear[l] = {list, one.offsets.p, one.wide.p, one.narrow.p, one.to.p + skipped, one.columnStep, one.rankStep, columns, stride, one.add};
    widest = std::max(widest, columns);
  }
  std::vector<unsigned char> shared(GRADIENT_SHARED);
  dynamicShared = shared.data();
  launch<TrainingLists>(256, n, 2, 1, training_lists, lists);
  launch<TrainingChosenGradients>(128, n, 2 * eights, (widest + GRADIENT_COLUMNS - 1) / GRADIENT_COLUMNS, training_chosen_gradients, p);
  for (auto& at : all) {
    One& one = *at;
    int place = 0;
    for (int e = 0; e < n; e++) {
      check("begin", one.begins[e], place);
      std::vector<double> wanted((size_t)one.columns * ranks[e]);
      for (int i = 0; i < TOPK * tokens; i++) {
        if (one.chosen[i] != e) continue;
        const int t = i % tokens;
        check("token", one.order[place++], t);
        for (int w = 0; w < one.columns; w++)
          for (int r = 0; r < ranks[e]; r++)
            wanted[(size_t)w * ranks[e] + r] +=
                (double)toFloat(one.wide[(size_t)t * one.columns + w]) * toFloat(one.narrow[(size_t)t * one.stride + one.offsets[e] + r]);
      }
      for (int w = 0; w < one.columns; w++)
        for (int r = 0; r < ranks[e]; r++) {
          const size_t i = one.skipped + (size_t)w * one.columnStep + (size_t)(one.offsets[e] + r) * one.rankStep;
          check("gradient", one.to[i], wanted[(size_t)w * ranks[e] + r] + (one.add ? one.before[i] : 0));
        }
    }
    check("end", one.begins[n], place);
    for (int i = 0; i < one.skipped; i++) check("before", std::isnan(one.to[i]) || one.to[i] == one.before[i], 1);
  }
}

// Matrices of any place, width and pitch.
static void addGradients() {
  const int count = 1 + below(4);
  struct One {
    int skipped, ofFrom;
    Array<float> to;
    std::vector<float> before;
    One(int skipped, int ofFrom, size_t size) : skipped(skipped), ofFrom(ofFrom), to(size) {}
  };
  std::vector<std::unique_ptr<One>> all;
  Array<GradientPart> parts(count);
  int size = 0;
  for (int i = 0; i < count; i++) {
    const int rows = 1 + below(5), columns = 1 + below(80), wider = below(2) * below(9), pitch = below(2) * below(9), skipped = below(2) * below(5);
    size += below(2) * below(4);
    all.push_back(std::make_unique<One>(skipped, size, skipped + (rows - 1) * (columns + pitch) + columns));
    One& one = *all.back();
    for (size_t j = 0; j < one.to.n; j++) one.to[j] = normal();
    one.before.assign(one.to.p, one.to.p + one.to.n);
    parts[i] = {one.to.p + skipped, size, rows, columns, columns + wider, columns + pitch};
    size += (rows - 1) * (columns + wider) + columns;
  }
  Array<float> from(size);
  for (int i = 0; i < size; i++) from[i] = normal();
  launch<TrainingAddGradients>(256, 1 + below(2), count, 1, training_add_gradients, {parts.p, from.p});
  for (int i = 0; i < count; i++) {
    const GradientPart& part = parts[i];
    One& one = *all[i];
    std::vector<double> wanted(one.before.begin(), one.before.end());
    for (int r = 0; r < part.rows; r++)
      for (int k = 0; k < part.columns; k++) wanted[one.skipped + r * part.toStride + k] += from[one.ofFrom + r * part.fromStride + k];
    for (size_t j = 0; j < wanted.size(); j++) check("sum", one.to[j], wanted[j]);
  }
}

int main(int, char** arguments) {
  generator.seed(std::atoi(arguments[1]));
  for (int round = std::atoi(arguments[2]); round > 0; round--) {
    route();
    for (int i = 0; i < 4; i++) addGradients();
    chosenGradients();
  }
  std::printf("largest error %g\n", worst);
}
