#include "speculation.h"

#include <stdexcept>

namespace openafm {

// What follows a token that the draft itself takes for less likely than one half is seldom taken. That token stays in
// the proposal: left out by what was drawn, the answer's distribution would shift.
constexpr float kUnsure = -0.6931472f;

Proposal draft(Model& model, Request request, Sampler& sampler, size_t count) {
  const size_t vocabulary = model.shape().vocabulary;
  Proposal proposal;
  while (proposal.tokens.size() < count) {
    if (model.cache().at(request.sequence).length + request.tokens.size() > model.shape().max_length) break;
    size_t wanted = 0;
    float* logits = model.step({request}, false, wanted);
    const Choice choice = sampler.choose(model.kernels(), logits, vocabulary, nullptr);
    proposal.tokens.push_back(choice.token);
    if (sampler.sampling().temperature > 0.0f) {
      proposal.chances.resize(proposal.tokens.size() * vocabulary);
      sampler.spread(model.kernels(), logits, vocabulary, proposal.chances.data() + proposal.chances.size() - vocabulary);
    }
    if (choice.logprob < kUnsure) break;
    request.tokens = {choice.token};
  }
  return proposal;
}

std::vector<Choice> verify(Model& model, Request request, const Proposal& proposal, Sampler& sampler,
                           const std::function<const uint32_t*()>& masks) {
  const size_t vocabulary = model.shape().vocabulary, words = (vocabulary + 31) / 32, proposed = proposal.tokens.size();
  if (!proposal.chances.empty() && proposal.chances.size() != proposed * vocabulary) {
    throw std::invalid_argument("the proposal was drawn by a model with another vocabulary");
  }
  const size_t first = request.tokens.size() - 1;  // whose logits the first choice is made of
  request.tokens.insert(request.tokens.end(), proposal.tokens.begin(), proposal.tokens.end());
  const size_t before = model.cache().at(request.sequence).length + first + 1;
  size_t wanted = 0;
  float* logits = model.step({request}, true, wanted) + first * round_up(vocabulary, kRows);
  std::vector<Choice> choices;
  const auto keep = [&](size_t taken) { model.cache().truncate(request.sequence, before + taken); };
  try {
    const uint32_t* bits = masks();
    for (size_t i = 0; i <= proposed; i++, logits += round_up(vocabulary, kRows)) {
      const uint32_t* mask = bits ? bits + i * words : nullptr;
      if (i == proposed) {
        choices.push_back(sampler.choose(model.kernels(), logits, vocabulary, mask));
        break;
      }
      const float* chances = proposal.chances.empty() ? nullptr : proposal.chances.data() + i * vocabulary;
      choices.push_back(sampler.verify(model.kernels(), logits, vocabulary, mask, proposal.tokens[i], chances));
      if (choices.back().token != proposal.tokens[i]) break;
    }
  } catch (...) {  // there are no masks, or one allows nothing
    keep(0);
    throw;
  }
  keep(choices.size() - 1);
  return choices;
}

}  // namespace openafm
