// One token from a row of logits.
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
  float repetition_penalty = 1.0f;                          // CTRL's: divides positive logits, multiplies negative ones
  uint64_t seed = 0;
};

struct Choice {
  int token;
  float logprob;  // natural log under the model as it is: before penalties, temperature and cuts
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : sampling_(sampling), state_(sampling.seed) {}

  // `allowed`: null, or a bit for each token, set where the token may be chosen. The logits are changed.
  Choice choose(const Kernels& kernels, float* logits, size_t vocabulary, const uint32_t* allowed);

 private:
  double uniform();

  Sampling sampling_;
  uint64_t state_;
  std::unordered_map<int, int> counts_;
  std::vector<int> order_;
  std::vector<float> chances_;
};

float log_sum_exp(const Kernels& kernels, const float* logits, size_t vocabulary);

}  // namespace openafm
