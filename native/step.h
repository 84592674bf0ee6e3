// One step of the decoder as a chain of tasks. All memory that tasks touch lives here, for threads that come late.
#pragma once

#include "model.h"

namespace openafm {

struct Run {  // tokens of one request, next to one another
  size_t first, count;
  const Adapter* adapter;
  Sequence* sequence;
  size_t position;  // of the first
};

struct Query {  // tokens that attention handles together
  size_t first, count;
  const Run* run;
};

class Step final : public Chain {
 public:
  explicit Step(Model& model);

  void prepare(const std::vector<Request>& requests, bool every, bool head);
  bool next(Task& task, int thread) override;
  float* logits() { return logits_.data(); }
  const float* hidden() const { return normed_.data(); }  // of the wanted tokens, after the last norm
  size_t wanted() const { return wanted_.size(); }

 private:
  enum class Stage { attention_in, attention, attention_out, feed_in, feed_out, head, done };
  struct Part {  // one matrix of a product
    const Tiles* weight;
    float* out;
    size_t stride;
    int projection;
  };
  struct Product;
  struct Work {
    Step* step;
    size_t layer;
  };

  void enter();  // begin the current stage: which matrices, on what
  void divide(size_t rows);  // panels over so many rows
  void elements(size_t first, size_t last);  // what the stage does to tokens one by one
  void keys_and_values(size_t token);
  void keep(uint16_t* block, size_t slot, const float* key, const float* value) const;
  void recall(const uint16_t* block, float* out) const;
  void rotate(float* x, size_t token, const std::vector<float>& norm) const;
  void elements_task(Task& task);
  void lora_task(Task& task);
  void product_task(Task& task);
  void attention_task(Task& task);
  bool integer(const Tiles& weight) const { return model_.planes_ && weight.kind <= Kind::int8; }

  void integer_product(const Tiles& weight, size_t tile, const Panel& panel, float* out, size_t stride) const;

  static void compute_elements(const Task& task, size_t piece, int thread);
  static void compute_lora(const Task& task, size_t piece, int thread);
  static void publish_lora(const Task& task, size_t piece, int thread);
  static void compute_product(const Task& task, size_t piece, int thread);
  static void publish_product(const Task& task, size_t piece, int thread);
  static void compute_attention(const Task& task, size_t piece, int thread);
  static void publish_attention(const Task& task, size_t piece, int thread);

  float* scratch(int thread) { return scratch_.data() + static_cast<size_t>(thread) * scratch_size_; }

  Model& model_;
  const Shape& shape_;
  const Kernels& kernels_;
  const size_t planes_;
  size_t width_, query_width_, key_width_, inner_;  // strides: multiples of 16

  Stage stage_ = Stage::done;
  int phase_ = 0;  // of a stage: token by token, low-rank, product
  size_t layer_ = 0, rows_ = 0;
  bool adapters_ = false, head_ = true;  // without the head there are no logits
  // Lists that late threads may still read: their memory is reserved once.
  std::vector<Run> runs_;
  std::vector<Query> queries_;
  std::vector<Panel> panels_;
  std::vector<size_t> panel_first_, run_of_, wanted_;
  std::vector<Part> parts_;
  const float* input_ = nullptr;
  size_t input_stride_ = 0, input_columns_ = 0;
  Buffer<float> x_, normed_, query_, key_, value_, mixed_, added_, gate_, up_, low_, logits_, angles_, scratch_;
  Buffer<int8_t> quantized_;
  Buffer<float> quantized_scales_;
  Buffer<int32_t> quantized_sums_;
  size_t widest_ = 0;  // most columns of any input, padded
  size_t scratch_size_ = 0, capacity_ = 0;
};

}  // namespace openafm
