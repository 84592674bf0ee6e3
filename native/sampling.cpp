#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace openafm {
namespace {

size_t likeliest(const float* logits, size_t n) { return static_cast<size_t>(std::max_element(logits, logits + n) - logits); }

}  // namespace

float log_sum_exp(const Kernels& kernels, const float* logits, size_t vocabulary) {
  const float most = logits[likeliest(logits, vocabulary)];
  return most + static_cast<float>(std::log(kernels.sum_exp(logits, vocabulary, 1.0f, most)));
}

double Sampler::uniform() {  // splitmix64
  uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

Choice Sampler::choose(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed) {
  const float total = log_sum_exp(kernels, logits, vocabulary);
  std::vector<std::pair<int, float>> before;  // logits that penalties change
  for (const auto& [token, times] : counts_) {
    float& logit = logits[token];
    before.emplace_back(token, logit);
    logit = logit > 0 ? logit / sampling_.repetition_penalty : logit * sampling_.repetition_penalty;
    logit -= sampling_.presence_penalty + sampling_.frequency_penalty * static_cast<float>(times);
  }
  const auto answer = [&](size_t token, float logit) {
    const auto changed = std::find_if(before.begin(), before.end(), [&](const auto& b) { return b.first == static_cast<int>(token); });
    const bool counted = sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0 || sampling_.repetition_penalty != 1;
    if (counted) counts_[static_cast<int>(token)]++;
    return Choice{static_cast<int>(token), (changed == before.end() ? logit : changed->second) - total};
  };
  if (allowed) {
    for (size_t i = 0; i < vocabulary; i++) {
      if (!(allowed[i / 32] >> (i % 32) & 1)) logits[i] = -INFINITY;
    }
  }
  const size_t best = likeliest(logits, vocabulary);
  if (logits[best] == -INFINITY) throw std::invalid_argument("no token is allowed here");
  if (sampling_.temperature == 0.0f) return answer(best, logits[best]);

  const float inverse = 1.0f / sampling_.temperature, most = logits[best];
  const bool cut = sampling_.top_k > 0 || sampling_.top_p < 1.0f || sampling_.min_p > 0.0f;
  if (!cut) {
    double left = uniform() * kernels.sum_exp(logits, vocabulary, inverse, most);
    size_t last = best;
    for (size_t start = 0; start < vocabulary; start += 1024) {  // find the block, then the token in it
      const size_t n = std::min<size_t>(1024, vocabulary - start);
      const double sum = kernels.sum_exp(logits + start, n, inverse, most);
      if (left >= sum) {
        left -= sum;
        continue;
      }
      for (size_t i = start; i < start + n; i++) {
        if (logits[i] == -INFINITY) continue;
        last = i;
        left -= std::exp(static_cast<double>((logits[i] - most) * inverse));
        if (left < 0) return answer(i, logits[i]);
      }
    }
    return answer(last, logits[last]);
  }
  // The likeliest first; only so many as a cut can leave are sorted.
  order_.resize(vocabulary);
  std::iota(order_.begin(), order_.end(), 0);
  const float floor = sampling_.min_p > 0 ? most + std::log(sampling_.min_p) * sampling_.temperature : -INFINITY;
  const auto kept = std::partition(order_.begin(), order_.end(), [&](int i) { return logits[i] >= floor && logits[i] != -INFINITY; });
  order_.erase(kept, order_.end());
  const auto likelier = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  size_t n = sampling_.top_k > 0 ? std::min<size_t>(static_cast<size_t>(sampling_.top_k), order_.size()) : order_.size();
  std::partial_sort(order_.begin(), order_.begin() + static_cast<long>(n), order_.end(), likelier);
  chances_.resize(n);
  double sum = 0.0;
  for (size_t i = 0; i < n; i++) sum += chances_[i] = std::exp((logits[order_[i]] - most) * inverse);
  if (sampling_.top_p < 1.0f) {  // the fewest tokens whose chances reach top_p
    double reached = 0.0;
    for (size_t i = 0; i < n; i++) {
      reached += chances_[i];
      if (reached >= sampling_.top_p * sum) {
        n = i + 1, sum = reached;
        break;
      }
    }
  }
  double left = uniform() * sum;
  size_t i = 0;
  for (; i + 1 < n; i++) {
    left -= chances_[i];
    if (left < 0) break;
  }
  return answer(static_cast<size_t>(order_[i]), logits[order_[i]]);
}

}  // namespace openafm
