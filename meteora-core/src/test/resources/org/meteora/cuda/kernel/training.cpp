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
  launch<TrainingRouteBackward>(256, (tokens + 7) / 8, 1, 1, training_route_backward, {of, slope.p, again.p, out.p, gateWeight});
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
      const int chosen = gated ? std::min(TOPK, n) : 0;
      for (int j = 0; j < chosen; j++) sum += weight[order[j].second] = std::exp(order[0].first - order[j].first);
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
  }
  std::printf("largest error %g\n", worst);
}
