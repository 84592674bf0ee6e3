// Speculative decoding: tokens that something cheap proposes, checked by one step of the model over all of them.
#pragma once

#include <functional>
#include <vector>

#include "model.h"
#include "sampling.h"

namespace openafm {

struct Proposal {
  std::vector<int> tokens;
  std::vector<float> chances;  // [tokens][vocabulary] that each was drawn with; empty: they were certain

  void cut(size_t count) {  // to the first `count` tokens
    if (count >= tokens.size()) return;
    chances.resize(chances.size() / tokens.size() * count);
    tokens.resize(count);
  }
};

// Up to `count` tokens that the model draws after `request`; fewer where its context ends or it becomes unsure.
Proposal draft(Model& model, Request request, Sampler& sampler, size_t count);

// A step over the request's tokens and the proposed ones; what the sampler takes: the proposed tokens up to the first
// that is refused, and one more of its own. The sequence then ends before the last one. `masks` is asked after the step:
// null, or bits [proposed + 1][ceil(vocabulary / 32)].
std::vector<Choice> verify(Model& model, Request request, const Proposal& proposal, Sampler& sampler,
                           const std::function<const uint32_t*()>& masks);

}  // namespace openafm
