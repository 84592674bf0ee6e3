// The decoder: weights, adapters, sequences, and the step that brings some of the sequences forward by some tokens.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cache.h"
#include "pool.h"
#include "weights.h"

namespace openafm {

struct Shape {
  size_t vocabulary, width, layers, heads, key_heads, head_width, inner;
  float rope_base, norm_eps;
  bool qk_norm;
  size_t max_length;
};

enum Projection { kQuery, kKey, kValue, kOutput, kGate, kUp, kDown, kProjections };

struct LowRank {
  std::unique_ptr<Matrix> a, b;
  float scale = 0.0f;
};

struct Adapter {
  size_t rank = 0;
  std::vector<std::optional<LowRank>> projections;  // [layer * kProjections + projection]
};

struct Layer {
  std::unique_ptr<Matrix> projections[kProjections];
  std::vector<float> input_norm, post_norm, query_norm, key_norm;
};

struct Request {  // one sequence's part of a step
  int sequence;
  std::vector<int> tokens;
  std::string adapter;  // empty: none
};

constexpr size_t kMaxRank = 64;
constexpr size_t kMaxHeadWidth = 256;
constexpr size_t kMaxTokens = 512;  // of one step

const Kernels* pick_kernels(const std::string& name);  // "" the best this processor has; throws for what it lacks
std::vector<std::string> available_kernels();

class Step;

class Model {
 public:
  // `activations` is int8, int16 (two planes of int8) or float32; `cache` is float32, float16 or int8; "" for the usual.
  Model(const Shape& shape, int threads, const std::string& kernels, const std::string& activations,
        const std::string& cache = "");
  ~Model();

  // Names as in docs/format.md. Each throws std::invalid_argument for a name or size that the shape has no place for.
  void set_matrix(const std::string& name, Matrix matrix);
  void set_norm(const std::string& name, std::vector<float> gain);
  void check() const;  // throws where a weight is missing
  void set_adapter(const std::string& name, const std::string& projection, Matrix a, Matrix b, float scale);
  void remove_adapter(const std::string& name);

  // Logits [wanted][vocabulary] of the last token of each request, or of every token; they stay until the next step,
  // and may be changed.
  float* step(const std::vector<Request>& requests, bool every, size_t& wanted);
  // Hidden states [tokens][width rounded up to 16] of every token, after the last norm, without the logits; they stay
  // until the next step.
  const float* hidden(const std::vector<Request>& requests, size_t& tokens);

  Cache& cache() {  // a late thread may still read the sequences that the caller is about to change
    pool_.settle();
    return cache_;
  }
  const Shape& shape() const { return shape_; }
  const Kernels& kernels() const { return *kernels_; }
  Pool& pool() { return pool_; }
  size_t weight_bytes() const;

 private:
  friend class Step;
  void run(const std::vector<Request>& requests, bool every, bool head);
  std::unique_ptr<Matrix>& place(const std::string& name, size_t& rows, size_t& columns);

  Shape shape_;
  const Kernels* kernels_;
  int planes_;  // of int8 that activations are rounded to; 0: they stay floats
  Cache cache_;
  std::unique_ptr<Matrix> embedding_;
  std::vector<Layer> layers_;
  std::vector<float> final_norm_;
  std::map<std::string, Adapter> adapters_;
  std::unique_ptr<Step> step_;
  Pool pool_;  // last: its threads end before what they read
};

}  // namespace openafm
