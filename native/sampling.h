// One token from a row of logits, drawn or held against a proposal.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kernels.h"

namespace openafm {

struct Sampling {
  float temperature = 1.0f;  // 0: the likeliest
  int top_k = 0;             // 0: all
  float top_p = 1.0f, min_p = 0.0f;
  float presence_penalty = 0.0f, frequency_penalty = 0.0f;  // OpenAI's: subtracted from the logits of tokens made
  float repetition_penalty = 1.0f;  // CTRL's: divides positive logits, multiplies negative ones; the prompt's tokens too
  uint64_t seed = 0;
  int alternatives = 0;  // so many of the likeliest tokens are told beside each choice
};

struct Choice {
  int token;
  float logprob;  // natural log under the model as it is: before penalties, temperature and cuts
  std::vector<std::pair<int, float>> likeliest;  // under the same, the likeliest first
};

class Sampler {
 public:
  // Throws std::invalid_argument for a parameter out of its range.
  explicit Sampler(const Sampling& sampling);

  void read(const std::vector<int>& prompt);  // tokens that the repetition penalty counts as seen

  // `allowed`: null, or a bit for each token, set where the token may be chosen. The logits are changed.
  // Order: penalties, mask, temperature, min-p, top-k, top-p.
  Choice choose(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed);

  // Take `proposed`, which was drawn with the chances `drafted` [vocabulary] (null: it was certain), with probability
  // min(1, p / q), else draw from max(0, p - q): what comes out is distributed as by `choose` (Leviathan et al., 2023).
  Choice verify(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed, int proposed,
                const float* drafted);

  // The distribution that the last choice was drawn from, if the logits have not changed since.
  void spread(const Kernels& kernels, const float* logits, size_t vocabulary, float* out);

  const Sampling& sampling() const { return sampling_; }

 private:
  void prepare(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed);
  void rank(const float* logits, size_t vocabulary);
  void penalize(float* logits, size_t vocabulary);
  void cut(const Kernels& kernels, const float* logits, size_t vocabulary);
  void list_all(const Kernels& kernels, const float* logits, size_t vocabulary);
  double chance(int token, const float* logits) const;
  int draw(const Kernels& kernels, const float* logits, size_t vocabulary);
  int draw_uncut(const Kernels& kernels, const float* logits, size_t vocabulary);
  Choice answer(int token, const float* logits);
  float weight(float logit) const;
  double uniform();

  Sampling sampling_;
  uint64_t state_;
  std::unordered_map<int, int> made_;  // how often each token was made; 0 for those of the prompt
  // Of the current row: logits that penalties changed, its log-sum-exp and likeliest tokens before them, and what the
  // cuts left, the likeliest first, with weights that add up to `sum_`. Uncut, the lists are empty.
  std::vector<std::pair<int, float>> before_, likeliest_;
  float total_ = 0.0f, most_ = 0.0f;
  bool uncut_ = false;
  double sum_ = 0.0;
  std::vector<int> order_;
  std::vector<float> weights_;
};

}  // namespace openafm
