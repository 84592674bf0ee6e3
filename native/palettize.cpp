#include "palettize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <vector>

namespace openafm {
namespace {

using Doubles = std::vector<double>;
using Places = std::vector<uint32_t>;

struct Item {
  uint32_t key, index;
};

// The values' order, equal ones as they came: a radix sort of keys that order as floats do.
std::vector<Item> sorted(const float* values, size_t n) {
  constexpr size_t kDigits = 11, kBuckets = size_t{1} << kDigits, kPasses = 3;
  std::vector<Item> items(n), spare(n);
  std::array<std::vector<uint32_t>, kPasses> starts;
  for (auto& counts : starts) counts.assign(kBuckets + 1, 0);
  for (size_t i = 0; i < n; i++) {
    const auto bits = std::bit_cast<uint32_t>(values[i] + 0.0f);  // no minus zero
    const uint32_t key = bits >> 31 ? ~bits : bits | 0x80000000u;
    items[i] = {key, static_cast<uint32_t>(i)};
    for (size_t pass = 0; pass < kPasses; pass++) starts[pass][(key >> (kDigits * pass)) % kBuckets + 1]++;
  }
  for (size_t pass = 0; pass < kPasses; pass++) {
    auto& start = starts[pass];
    for (size_t b = 0; b < kBuckets; b++) start[b + 1] += start[b];
    for (const Item& item : items) spare[start[(item.key >> (kDigits * pass)) % kBuckets]++] = item;
    std::swap(items, spare);
  }
  return items;
}

double gain(double mass, double moment) { return mass > 0 ? moment * moment / mass : 0.0; }

// Running sums at the positions that cuts may take.
struct Sums {
  Doubles mass, moment;
};

// Positions for cuts: half of them follow the count of the values, half the fourth root of their density.
Places positions(const Doubles& ordered, const Doubles& weights, size_t count) {
  const size_t n = ordered.size();
  Places found(std::min(count, n) + 1, static_cast<uint32_t>(n));
  if (n <= count) {
    for (size_t i = 0; i <= n; i++) found[i] = static_cast<uint32_t>(i);
    return found;
  }
  Doubles measure(n + 1);
  for (size_t i = 1; i < n; i++) {
    const double gap = ordered[i] - ordered[i - 1];
    measure[i] = measure[i - 1] + std::sqrt(gap * std::sqrt(gap * weights[i]));
  }
  measure[n] = measure[n - 1];
  const double total = std::max(measure[n], 1e-300), length = static_cast<double>(n);
  found[0] = 0;
  for (size_t i = 0, j = 1; i <= n; i++) {
    const double here = measure[i] / total + static_cast<double>(i) / length;
    while (j < count && here >= static_cast<double>(2 * j) / static_cast<double>(count)) {
      found[j++] = static_cast<uint32_t>(i);
    }
  }
  return found;
}

// One layer of the programme at position i: the best start in [low, high] of the last run.
struct Choice {
  double value;
  size_t start;
};

Choice choose(const Sums& sums, const Doubles& before, size_t i, size_t low, size_t high) {
  Choice best{-1.0, low};
  const double mass = sums.mass[i], moment = sums.moment[i];
  for (size_t j = low; j <= high; j++) {
    const double value = gain(mass - sums.mass[j], moment - sums.moment[j]) + before[j];
    if (value > best.value) best = {value, j};
  }
  return best;
}

// Places 0 = c0 <= c1 <= ... <= ck = p of the cuts. Best starts grow with the end (the cost is concave), so those of
// odd multiples of a stride lie between their neighbours' at twice the stride: O(k p log p).
Places programme(const Sums& sums, size_t k) {
  const size_t p = sums.mass.size() - 1;
  Doubles best(p + 1), next(p + 1);
  for (size_t i = 0; i <= p; i++) best[i] = gain(sums.mass[i] - sums.mass[0], sums.moment[i] - sums.moment[0]);
  std::vector<Places> starts;
  for (size_t layer = 0; layer + 2 < k; layer++) {
    Places start(p + 1, 0);
    next[0] = best[0];
    for (size_t stride = std::bit_floor(p); stride > 0; stride /= 2) {
      for (size_t i = stride; i <= p; i += 2 * stride) {
        const size_t high = i + stride <= p ? std::min<size_t>(i, start[i + stride]) : i;
        const Choice found = choose(sums, best, i, start[i - stride], high);
        next[i] = found.value;
        start[i] = static_cast<uint32_t>(found.start);
      }
    }
    std::swap(best, next);
    starts.push_back(std::move(start));
  }
  Places cuts(k + 1, 0);
  cuts[k] = static_cast<uint32_t>(p);
  cuts[k - 1] = static_cast<uint32_t>(choose(sums, best, p, 0, p).start);
  for (size_t cut = k - 2; cut > 0; cut--) cuts[cut] = starts[cut - 1][cuts[cut + 1]];
  return cuts;
}

// Mean of each run over the centre; an empty run takes the one before it, or the first that is not empty.
void run_means(const Sums& sums, const Places& cuts, Doubles& means) {
  const size_t k = means.size();
  size_t first = k;
  for (size_t run = 0; run < k; run++) {
    const double mass = sums.mass[cuts[run + 1]] - sums.mass[cuts[run]];
    const double moment = sums.moment[cuts[run + 1]] - sums.moment[cuts[run]];
    if (mass > 0) {
      means[run] = moment / mass;
      first = std::min(first, run);
    } else if (first < k) {
      means[run] = means[run - 1];
    }
  }
  for (size_t run = 0; run < first; run++) means[run] = means[first];
}

}  // namespace

void best_means(const float* values, const double* weights, size_t n, size_t k, size_t candidates, size_t rounds,
                double* means) {
  const std::vector<Item> order = sorted(values, n);
  Doubles ordered(n), weight(n);
  const double centre = static_cast<double>(values[order[n / 2].index]) + 0.0;
  Sums sums{Doubles(n + 1, 0.0), Doubles(n + 1, 0.0)};
  for (size_t i = 0; i < n; i++) {
    ordered[i] = static_cast<double>(values[order[i].index]) - centre;
    weight[i] = weights[order[i].index];
    sums.mass[i + 1] = sums.mass[i] + weight[i];
    sums.moment[i + 1] = sums.moment[i] + weight[i] * ordered[i];
  }
  const Places at = positions(ordered, weight, candidates);
  Sums chosen{Doubles(at.size()), Doubles(at.size())};
  for (size_t i = 0; i < at.size(); i++) {
    chosen.mass[i] = sums.mass[at[i]];
    chosen.moment[i] = sums.moment[at[i]];
  }
  Places cuts = programme(chosen, k);
  for (auto& cut : cuts) cut = at[cut];
  Doubles found(k);
  for (size_t round = 0;; round++) {
    run_means(sums, cuts, found);
    if (round == rounds) break;
    Places moved = cuts;
    for (size_t run = 1; run < k; run++) {
      const double edge = (found[run] + found[run - 1]) / 2;
      moved[run] = static_cast<uint32_t>(std::lower_bound(ordered.begin(), ordered.end(), edge) - ordered.begin());
    }
    if (moved == cuts) break;
    cuts = std::move(moved);
  }
  for (size_t run = 0; run < k; run++) means[run] = found[run] + centre;
}

void nearest(const float* values, size_t n, const double* edges, size_t count, uint8_t* found) {
  if (count > 16) {
    for (size_t i = 0; i < n; i++) {
      found[i] = static_cast<uint8_t>(std::upper_bound(edges, edges + count, static_cast<double>(values[i])) - edges);
    }
    return;
  }
  std::fill_n(found, n, uint8_t{0});
  for (size_t i = 0; i < n; i++) {  // the compiler turns few comparisons into vectors
    const double value = values[i];
    int below = 0;
    for (size_t edge = 0; edge < count; edge++) below += edges[edge] <= value;
    found[i] = static_cast<uint8_t>(below);
  }
}

}  // namespace openafm
