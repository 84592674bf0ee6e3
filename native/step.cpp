#include "step.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace openafm {
namespace {

constexpr size_t kTogether = 8;     // tokens of a sequence that attention handles at once
constexpr size_t kFew = 16;         // up to so many rows, pieces are published from scratch memory and may be repeated
constexpr size_t kPieceBytes = 65536;  // of weights; 1 to 3 microseconds of memory's speed

}  // namespace

// Whatever changes from task to task is in the task itself: a late thread must still find memory that fits together.
struct Step::Product {
  Step* step;
  Part parts[3];
  size_t count, chunk, rows, layer;
  const float* input;
  size_t stride;
};

Step::Step(Model& model) : model_(model), shape_(model.shape_), kernels_(*model.kernels_), planes_(model.planes_ ? model.planes_ : 1) {
  width_ = round_up(shape_.width, kRows);
  query_width_ = shape_.heads * shape_.head_width;
  key_width_ = shape_.key_heads * shape_.head_width;
  inner_ = round_up(shape_.inner, kRows);
  widest_ = round_up(std::max({width_, query_width_, inner_}), kGroup);
  for (auto* list : {&panel_first_, &run_of_, &wanted_}) list->reserve(kMaxTokens);
  runs_.reserve(kMaxTokens);
  queries_.reserve(kMaxTokens);
  panels_.reserve(kMaxTokens);
  parts_.reserve(3);
}

void Step::prepare(const std::vector<Request>& requests, bool every, bool head) {
  size_t tokens = 0;
  for (const Request& request : requests) tokens += request.tokens.size();
  runs_.clear(), queries_.clear(), run_of_.clear(), wanted_.clear();
  adapters_ = false, head_ = head;
  if (tokens > capacity_) {
    const size_t capacity = round_up(tokens, 16), n = capacity + kMaxPanel;  // a late thread may look a panel further
    x_ = Buffer<float>(n * width_), normed_ = Buffer<float>(n * width_), added_ = Buffer<float>(n * width_);
    query_ = Buffer<float>(n * query_width_), mixed_ = Buffer<float>(n * query_width_);
    key_ = Buffer<float>(n * key_width_), value_ = Buffer<float>(n * key_width_);
    gate_ = Buffer<float>(n * inner_), up_ = Buffer<float>(n * inner_);
    low_ = Buffer<float>(n * 3 * kMaxRank), angles_ = Buffer<float>(n * shape_.head_width);
    const size_t rounded = planes_ * n * widest_;
    quantized_ = Buffer<int8_t>(rounded);
    quantized_scales_ = Buffer<float>(rounded / kGroup), quantized_sums_ = Buffer<int32_t>(rounded / kGroup);
    const size_t most = kTogether * (shape_.heads / shape_.key_heads);
    scratch_size_ = std::max(most * (2 * shape_.head_width + 3) + 2 * kPagePositions * shape_.head_width,
                             kFew * (kPieceBytes / 64 + kRows));
    scratch_size_ = round_up(std::max(scratch_size_, kTogether * kMaxRank), 16);
    scratch_ = Buffer<float>(scratch_size_ * static_cast<size_t>(model_.pool_.threads()));
    capacity_ = capacity;  // last: memory may run out before
  }
  const size_t half = shape_.head_width / 2;
  size_t token = 0;
  for (const Request& request : requests) {
    model_.cache_.extend(request.sequence, request.tokens.size());
    Sequence& sequence = model_.cache_.at(request.sequence);
    const Adapter* adapter = request.adapter.empty() ? nullptr : &model_.adapters_.at(request.adapter);
    adapters_ = adapters_ || adapter;
    runs_.push_back({token, request.tokens.size(), adapter, &sequence, sequence.length});
    for (size_t i = 0; i < request.tokens.size(); i += kTogether) {
      queries_.push_back({token + i, std::min(kTogether, request.tokens.size() - i), &runs_.back()});
    }
    for (size_t i = 0; i < request.tokens.size(); i++, token++) {
      model_.embedding_->row(static_cast<size_t>(request.tokens[i]), x_.data() + token * width_);
      run_of_.push_back(runs_.size() - 1);
      if (every || i + 1 == request.tokens.size()) wanted_.push_back(token);
      float* angles = angles_.data() + token * shape_.head_width;
      for (size_t d = 0; d < half; d++) {
        const double frequency = std::pow(static_cast<double>(shape_.rope_base), -static_cast<double>(d) / half);
        // in single precision, as the torch model computes the angle
        const float angle = static_cast<float>(sequence.length + i) * static_cast<float>(frequency);
        angles[d] = std::cos(angle), angles[half + d] = std::sin(angle);
      }
    }
  }
  const size_t logits = !head ? 0 : wanted_.size() * round_up(shape_.vocabulary, kRows);
  if (logits > logits_.size()) logits_ = Buffer<float>(logits);
  stage_ = Stage::attention_in, layer_ = 0, phase_ = 0;
  divide(tokens);
  enter();
}

void Step::divide(size_t rows) {
  rows_ = rows;
  panels_.clear(), panel_first_.clear();
  const size_t most = static_cast<size_t>(kernels_.panel);
  for (size_t first = 0; first < rows;) {
    const size_t left = planes_ * (rows - first), n = left >= most ? most : std::min<size_t>(left, most > 8 ? 8 : most);
    const size_t at = planes_ * first * widest_;
    panels_.push_back({quantized_.data() + at, quantized_scales_.data() + at / kGroup,
                       quantized_sums_.data() + at / kGroup, static_cast<int>(n), static_cast<int>(planes_)});
    panel_first_.push_back(first);
    first += n / planes_;
  }
}

void Step::enter() {
  parts_.clear();
  const auto add = [&](int projection, Buffer<float>& out, size_t stride) {
    parts_.push_back({&model_.layers_[layer_].projections[projection]->tiles(), out.data(), stride, projection});
  };
  const auto from = [&](const Buffer<float>& x, size_t stride, size_t columns) {
    input_ = x.data(), input_stride_ = stride, input_columns_ = columns;
  };
  switch (stage_) {
    case Stage::attention_in:
      from(normed_, width_, shape_.width);
      add(kQuery, query_, query_width_), add(kKey, key_, key_width_), add(kValue, value_, key_width_);
      break;
    case Stage::attention: break;
    case Stage::attention_out:
      from(mixed_, query_width_, query_width_);
      add(kOutput, added_, width_);
      break;
    case Stage::feed_in:
      from(normed_, width_, shape_.width);
      add(kGate, gate_, inner_), add(kUp, up_, inner_);
      break;
    case Stage::feed_out:
      from(gate_, inner_, shape_.inner);
      add(kDown, added_, width_);
      break;
    case Stage::head:
      from(normed_, width_, shape_.width);
      parts_.push_back({&model_.embedding_->tiles(), logits_.data(), round_up(shape_.vocabulary, kRows), -1});
      divide(wanted_.size());
      break;
    case Stage::done: break;
  }
}

bool Step::next(Task& task, int) {
  for (;;) {
    switch (phase_++) {
      case 0:
        if (rows_ > kFew) return elements_task(task), true;
        elements(0, rows_);
        break;
      case 1:
        if (adapters_ && stage_ != Stage::attention && stage_ != Stage::head) return lora_task(task), true;
        break;
      case 2:
        if (stage_ == Stage::head && !head_) break;
        return stage_ == Stage::attention ? attention_task(task) : product_task(task), true;
      default:
        phase_ = 0;
        if (stage_ == Stage::feed_out && ++layer_ < shape_.layers) {
          stage_ = Stage::attention_in;
        } else {
          stage_ = static_cast<Stage>(static_cast<int>(stage_) + 1);
        }
        if (stage_ == Stage::done) return false;
        enter();
    }
  }
}

void Step::elements(size_t first, size_t last) {
  const Layer& layer = model_.layers_[std::min(layer_, shape_.layers - 1)];
  for (size_t i = first; i < last; i++) {
    const size_t token = stage_ == Stage::head ? wanted_[i] : i;
    float* x = x_.data() + token * width_;
    const bool add = stage_ == Stage::feed_in || stage_ == Stage::head || (stage_ == Stage::attention_in && layer_);
    if (add) {
      const float* added = added_.data() + token * width_;
      for (size_t d = 0; d < shape_.width; d++) x[d] += added[d];
    }
    float* normed = normed_.data() + i * width_;
    if (stage_ == Stage::attention_in) {
      kernels_.rms_norm(x, layer.input_norm.data(), shape_.width, shape_.norm_eps, normed);
    } else if (stage_ == Stage::feed_in) {
      kernels_.rms_norm(x, layer.post_norm.data(), shape_.width, shape_.norm_eps, normed);
    } else if (stage_ == Stage::head) {
      kernels_.rms_norm(x, model_.final_norm_.data(), shape_.width, shape_.norm_eps, normed);
    } else if (stage_ == Stage::attention) {
      keys_and_values(i);
    } else if (stage_ == Stage::feed_out) {
      kernels_.swiglu(gate_.data() + i * inner_, up_.data() + i * inner_, inner_);
    }
  }
  if (std::none_of(parts_.begin(), parts_.end(), [&](const Part& part) { return integer(*part.weight); })) return;
  for (size_t p = 0; p < panels_.size(); p++) {
    if (panel_first_[p] < first || panel_first_[p] >= last) continue;
    kernels_.quantize(input_ + panel_first_[p] * input_stride_, input_stride_, input_columns_,
                      round_up(input_columns_, kGroup), panels_[p]);
  }
}

void Step::elements_task(Task& task) {
  task.compute = compute_elements;
  task.pieces = panels_.size();
  task.set(Work{this, layer_});
}

void Step::compute_elements(const Task& task, size_t piece, int) {
  Step& step = *task.get<Work>().step;
  const size_t first = step.panel_first_[piece];
  step.elements(first, first + static_cast<size_t>(step.panels_[piece].tokens()));
}

// low = A x, for each block of tokens and each projection; `low` is [token][3][kMaxRank].
void Step::lora_task(Task& task) {
  task.compute = compute_lora;
  task.publish = publish_lora;
  task.pieces = queries_.size() * parts_.size();
  Product product = {this, {}, parts_.size(), 0, rows_, layer_, input_, input_stride_};
  std::copy(parts_.begin(), parts_.end(), product.parts);
  task.set(product);
}

namespace {

const LowRank* low_rank(const Run& run, size_t layer, int projection) {
  if (!run.adapter) return nullptr;
  const auto& found = run.adapter->projections[layer * kProjections + static_cast<size_t>(projection)];
  return found ? &*found : nullptr;
}

}  // namespace

void Step::compute_lora(const Task& task, size_t piece, int thread) {
  const Product product = task.get<Product>();
  Step& step = *product.step;
  const Query& query = step.queries_[piece / product.count];
  const LowRank* low = low_rank(*query.run, product.layer, product.parts[piece % product.count].projection);
  if (!low) return;
  const Tiles& a = low->a->tiles();
  for (size_t tile = 0; tile < a.tiles(); tile++) {
    step.kernels_.real(a, tile, product.input + query.first * product.stride, product.stride,
                       static_cast<int>(query.count), low->scale, false, step.scratch(thread) + tile * kRows, kMaxRank);
  }
}

void Step::publish_lora(const Task& task, size_t piece, int thread) {
  const Product product = task.get<Product>();
  Step& step = *product.step;
  const Query& query = step.queries_[piece / product.count];
  for (size_t i = 0; i < query.count; i++) {
    std::memcpy(step.low_.data() + ((query.first + i) * 3 + piece % product.count) * kMaxRank,
                step.scratch(thread) + i * kMaxRank, kMaxRank * sizeof(float));
  }
}

void Step::product_task(Task& task) {
  Product product = {this, {}, parts_.size(), 0, rows_, layer_, input_, input_stride_};
  std::copy(parts_.begin(), parts_.end(), product.parts);
  size_t bytes = 0, largest = 0;
  for (const Part& part : parts_) {
    bytes += part.weight->tiles() * part.weight->tile_bytes;
    largest = std::max(largest, part.weight->tile_bytes);
  }
  const size_t aim = std::min(kPieceBytes, bytes / (8 * static_cast<size_t>(model_.pool_.threads())));
  product.chunk = std::clamp<size_t>(aim / largest, 1, kPieceBytes / 64 / kRows);
  task.set(product);
  task.compute = compute_product;
  task.publish = rows_ <= kFew ? publish_product : nullptr;
  for (const Part& part : parts_) task.pieces += (part.weight->tiles() + product.chunk - 1) / product.chunk;
}

namespace {

// The part that a piece belongs to; the piece becomes the first of its tiles.
template <class Product> size_t part_of(const Product& product, size_t& piece) {
  size_t part = 0;
  for (;; part++) {
    const size_t pieces = (product.parts[part].weight->tiles() + product.chunk - 1) / product.chunk;
    if (piece < pieces) break;
    piece -= pieces;
  }
  piece *= product.chunk;
  return part;
}

void fetch(const Tiles& weight, size_t tile) {
  const uint8_t* data = weight.data + tile * weight.tile_bytes;
  for (size_t at = 0; at < weight.tile_bytes; at += 64) __builtin_prefetch(data + at);
}

}  // namespace

void Step::compute_product(const Task& task, size_t piece, int thread) {
  const Product product = task.get<Product>();
  Step& step = *product.step;
  const size_t index = part_of(product, piece);
  const Part& part = product.parts[index];
  const Tiles& weight = *part.weight;
  const size_t last = std::min(weight.tiles(), piece + product.chunk);
  const bool adapted = step.adapters_ && part.projection >= 0;
  for (size_t tile = piece; tile < last; tile++) {
    if (adapted) {  // half a kilobyte of each adapter: too little for the processor to see it coming
      for (const Query& query : step.queries_) {
        if (const LowRank* low = low_rank(*query.run, product.layer, part.projection)) fetch(low->b->tiles(), tile);
      }
    }
    float* out = task.publish ? step.scratch(thread) + (tile - piece) * kRows : part.out + tile * kRows;
    const size_t stride = task.publish ? product.chunk * kRows : part.stride;
    if (step.integer(weight)) {
      for (size_t p = 0; p < step.panels_.size(); p++) {
        step.integer_product(weight, tile, step.panels_[p], out + step.panel_first_[p] * stride, stride);
      }
    } else {
      step.kernels_.real(weight, tile, product.input, product.stride, static_cast<int>(product.rows), 1.0f, false,
                         out, stride);
    }
    if (!adapted) continue;
    for (const Query& query : step.queries_) {
      if (const LowRank* low = low_rank(*query.run, product.layer, part.projection)) {
        step.kernels_.real(low->b->tiles(), tile, step.low_.data() + (query.first * 3 + index) * kMaxRank,
                           3 * kMaxRank, static_cast<int>(query.count), 1.0f, true, out + query.first * stride, stride);
      }
    }
  }
}

void Step::integer_product(const Tiles& weight, size_t tile, const Panel& panel, float* out, size_t stride) const {
  if (panel.planes == 1) return kernels_.integer(weight, tile, panel, out, stride);
  float both[kMaxPanel * kRows];
  kernels_.integer(weight, tile, panel, both, kRows);
  for (int i = 0; i < panel.tokens(); i++, out += stride) {
    for (size_t row = 0; row < kRows; row++) out[row] = both[2 * i * kRows + row] + both[(2 * i + 1) * kRows + row];
  }
}

void Step::publish_product(const Task& task, size_t piece, int thread) {
  const Product product = task.get<Product>();
  const Part& part = product.parts[part_of(product, piece)];
  const size_t tiles = std::min(part.weight->tiles() - piece, product.chunk);
  for (size_t i = 0; i < product.rows; i++) {
    std::memcpy(part.out + i * part.stride + piece * kRows,
                product.step->scratch(thread) + i * product.chunk * kRows, tiles * kRows * sizeof(float));
  }
}

}  // namespace openafm
