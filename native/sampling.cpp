#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace openafm {
namespace {

size_t likeliest(const float* logits, size_t n) { return static_cast<size_t>(std::max_element(logits, logits + n) - logits); }

// A word of 32 tokens at once: most of a grammar's words are all zeros or all ones.
void forbid(float* logits, size_t vocabulary, const uint32_t* allowed) {
  for (size_t start = 0; start < vocabulary; start += 32) {
    const uint32_t word = allowed[start / 32];
    const size_t n = std::min<size_t>(32, vocabulary - start);
    if (word == 0) std::fill_n(logits + start, n, -INFINITY);
    if (word == 0 || word == UINT32_MAX) continue;
    for (size_t i = 0; i < n; i++) logits[start + i] = word >> i & 1 ? logits[start + i] : -INFINITY;
  }
}

void refuse_unless(bool good, const char* remedy) {
  if (!good) throw std::invalid_argument(remedy);
}

}  // namespace

Sampler::Sampler(const Sampling& sampling) : sampling_(sampling), state_(sampling.seed) {
  refuse_unless(sampling.temperature >= 0.0f && sampling.temperature < INFINITY, "temperature must be 0 or more");
  refuse_unless(sampling.alternatives >= 0, "alternatives must be 0 or more");
  refuse_unless(sampling.top_k >= 0, "top_k must be 1 or more, or 0 for all");
  refuse_unless(sampling.top_p > 0.0f && sampling.top_p <= 1.0f, "top_p must be above 0, at most 1");
  refuse_unless(sampling.min_p >= 0.0f && sampling.min_p <= 1.0f, "min_p must be 0 to 1");
  refuse_unless(sampling.repetition_penalty > 0.0f && sampling.repetition_penalty < INFINITY,
                "repetition_penalty must be above 0; 1 changes nothing");
  refuse_unless(std::isfinite(sampling.presence_penalty) && std::isfinite(sampling.frequency_penalty),
                "presence_penalty and frequency_penalty must be finite");
}

void Sampler::read(const std::vector<int>& prompt) {
  if (sampling_.repetition_penalty == 1.0f) return;
  for (const int token : prompt) made_.emplace(token, 0);
}

Choice Sampler::choose(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed) {
  prepare(kernels, logits, vocabulary, allowed);
  return answer(draw(kernels, logits, vocabulary), logits);
}

Choice Sampler::verify(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed, int proposed,
                       const float* drafted) {
  prepare(kernels, logits, vocabulary, allowed);
  const double odds = drafted ? static_cast<double>(drafted[proposed]) : 1.0;
  if (uniform() * odds < chance(proposed, logits)) return answer(proposed, logits);
  if (uncut_) list_all(kernels, logits, vocabulary);
  const auto less = [&](size_t i) {  // p - q
    if (!drafted) return order_[i] == proposed ? 0.0 : static_cast<double>(weights_[i]);
    return std::max(0.0, weights_[i] - static_cast<double>(drafted[order_[i]]) * sum_);
  };
  double left = 0.0;
  for (size_t i = 0; i < order_.size(); i++) left += less(i);
  if (left > 0.0) {  // else p and q are equal up to rounding, and p itself will do
    for (size_t i = 0; i < order_.size(); i++) weights_[i] = static_cast<float>(less(i));
    sum_ = left;
  }
  return answer(draw(kernels, logits, vocabulary), logits);
}

double Sampler::chance(int token, const float* logits) const {
  if (uncut_) return logits[token] == -INFINITY ? 0.0 : weight(logits[token]) / sum_;
  const auto found = std::find(order_.begin(), order_.end(), token);
  return found == order_.end() ? 0.0 : weights_[static_cast<size_t>(found - order_.begin())] / sum_;
}

void Sampler::spread(const Kernels& kernels, const float* logits, size_t vocabulary, float* out) {
  if (uncut_) list_all(kernels, logits, vocabulary);
  std::fill_n(out, vocabulary, 0.0f);
  for (size_t i = 0; i < order_.size(); i++) out[order_[i]] = static_cast<float>(weights_[i] / sum_);
}

void Sampler::prepare(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed) {
  const float highest = logits[likeliest(logits, vocabulary)];
  total_ = highest + static_cast<float>(std::log(kernels.sum_exp(logits, vocabulary, 1.0f, highest, nullptr)));
  if (sampling_.alternatives) rank(logits, vocabulary);
  penalize(logits, vocabulary);
  if (allowed) forbid(logits, vocabulary, allowed);
  cut(kernels, logits, vocabulary);
}

// One pass with a heap, the least likely of the kept on top: nearly all tokens are below that.
void Sampler::rank(const float* logits, size_t vocabulary) {
  const auto likelier = [](const auto& a, const auto& b) {
    return a.second > b.second || (a.second == b.second && a.first < b.first);
  };
  const size_t most = std::min(static_cast<size_t>(sampling_.alternatives), vocabulary);
  likeliest_.clear();
  for (size_t i = 0; i < vocabulary; i++) {
    const float logprob = logits[i] - total_;
    if (likeliest_.size() == most) {
      if (logprob <= likeliest_.front().second) continue;
      std::pop_heap(likeliest_.begin(), likeliest_.end(), likelier);
      likeliest_.pop_back();
    }
    likeliest_.emplace_back(static_cast<int>(i), logprob);
    std::push_heap(likeliest_.begin(), likeliest_.end(), likelier);
  }
  std::sort_heap(likeliest_.begin(), likeliest_.end(), likelier);
}

void Sampler::penalize(float* logits, size_t vocabulary) {
  before_.clear();
  for (const auto& [token, times] : made_) {
    if (static_cast<size_t>(token) >= vocabulary) continue;
    float& logit = logits[token];
    before_.emplace_back(token, logit);
    logit = logit > 0 ? logit / sampling_.repetition_penalty : logit * sampling_.repetition_penalty;
    if (times) logit -= sampling_.presence_penalty + sampling_.frequency_penalty * static_cast<float>(times);
  }
}

float Sampler::weight(float logit) const { return std::exp((logit - most_) / sampling_.temperature); }

void Sampler::cut(const Kernels& kernels, const float* logits, size_t vocabulary) {
  const size_t best = likeliest(logits, vocabulary);
  most_ = logits[best];
  if (most_ == -INFINITY) throw std::invalid_argument("no token is allowed here");
  order_.clear(), weights_.clear();
  uncut_ = false;
  if (sampling_.temperature == 0.0f) {
    order_.push_back(static_cast<int>(best)), weights_.push_back(1.0f), sum_ = 1.0;
    return;
  }
  const float inverse = 1.0f / sampling_.temperature;
  if (sampling_.top_k == 0 && sampling_.top_p == 1.0f && sampling_.min_p == 0.0f) {
    uncut_ = true;
    sum_ = kernels.sum_exp(logits, vocabulary, inverse, most_, nullptr);
    return;
  }
  const float floor = sampling_.min_p > 0 ? most_ + std::log(sampling_.min_p) * sampling_.temperature : -INFINITY;
  for (size_t i = 0; i < vocabulary; i++) {
    if (logits[i] >= floor && logits[i] != -INFINITY) order_.push_back(static_cast<int>(i));
  }
  const auto likelier = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
  const size_t k = sampling_.top_k > 0 ? std::min<size_t>(static_cast<size_t>(sampling_.top_k), order_.size()) : order_.size();
  if (k < order_.size()) {
    std::nth_element(order_.begin(), order_.begin() + static_cast<long>(k), order_.end(), likelier);
    order_.resize(k);
  }
  const bool whole = sampling_.top_k == 0 && sampling_.min_p == 0.0f;
  sum_ = whole ? kernels.sum_exp(logits, vocabulary, inverse, most_, nullptr) : 0.0;
  if (!whole) {
    for (const int token : order_) sum_ += weight(logits[token]);
  }
  // Sorted only as far as top-p reaches: the fewest tokens whose chances add up to it.
  const double aim = sampling_.top_p < 1.0f ? sampling_.top_p * sum_ : INFINITY;
  double reached = 0.0;
  for (size_t sorted = 0; sorted < k && reached < aim;) {
    const size_t further = std::min(k, std::max<size_t>(64, 4 * sorted));
    std::partial_sort(order_.begin() + static_cast<long>(sorted), order_.begin() + static_cast<long>(further), order_.end(), likelier);
    for (; sorted < further && reached < aim; sorted++) {
      weights_.push_back(weight(logits[order_[sorted]]));
      reached += weights_.back();
    }
  }
  order_.resize(weights_.size());
  sum_ = reached;
}

void Sampler::list_all(const Kernels& kernels, const float* logits, size_t vocabulary) {
  order_.resize(vocabulary), weights_.resize(vocabulary);
  std::iota(order_.begin(), order_.end(), 0);
  kernels.sum_exp(logits, vocabulary, 1.0f / sampling_.temperature, most_, weights_.data());
  for (size_t i = 0; i < vocabulary; i++) {
    if (logits[i] == -INFINITY) weights_[i] = 0.0f;  // the kernel's exponential never is
  }
  uncut_ = false;
}

int Sampler::draw(const Kernels& kernels, const float* logits, size_t vocabulary) {
  if (uncut_) return draw_uncut(kernels, logits, vocabulary);
  double left = uniform() * sum_;
  size_t last = 0;
  for (size_t i = 0; i < order_.size(); i++) {
    if (weights_[i] == 0.0f) continue;
    last = i;
    left -= weights_[i];
    if (left < 0) break;
  }
  return order_[last];
}

// The block of 1024, then the token in it: the whole vocabulary's weights are added up in registers only.
int Sampler::draw_uncut(const Kernels& kernels, const float* logits, size_t vocabulary) {
  const float inverse = 1.0f / sampling_.temperature;
  double left = uniform() * sum_;
  size_t last = likeliest(logits, vocabulary);
  for (size_t start = 0; start < vocabulary; start += 1024) {
    const size_t n = std::min<size_t>(1024, vocabulary - start);
    const double sum = kernels.sum_exp(logits + start, n, inverse, most_, nullptr);
    if (left >= sum) {
      left -= sum;
      continue;
    }
    for (size_t i = start; i < start + n; i++) {
      if (logits[i] == -INFINITY) continue;
      last = i;
      left -= std::exp(static_cast<double>((logits[i] - most_) * inverse));
      if (left < 0) return static_cast<int>(i);
    }
  }
  return static_cast<int>(last);
}

Choice Sampler::answer(int token, const float* logits) {
  const auto changed = std::find_if(before_.begin(), before_.end(), [&](const auto& pair) { return pair.first == token; });
  const float logit = changed == before_.end() ? logits[token] : changed->second;
  if (sampling_.presence_penalty != 0 || sampling_.frequency_penalty != 0 || sampling_.repetition_penalty != 1) made_[token]++;
  return {token, logit - total_, likeliest_};
}

double Sampler::uniform() {  // splitmix64
  uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return static_cast<double>((z ^ z >> 31) >> 11) * 0x1p-53;
}

}  // namespace openafm
