// Rotary embeddings, the KV cache's forms, and attention over its pages.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "step.h"

namespace openafm {
namespace {

// Turn a head's vector by a Hadamard matrix, which is its own inverse. A few channels of keys are far larger than the
// others and would leave those few steps of an int8 scale; turned, all are alike (Ashkboos et al. 2024, QuaRot). Queries
// turn with the keys, so scores stay; values are turned back once they are mixed.
void turn(float* x, size_t width) {
  const size_t block = width & (~width + 1);  // the largest power of two that divides it: at least 16
  const float size = 1.0f / std::sqrt(static_cast<float>(block));
  for (float* end = x + width; x < end; x += block) {
    for (size_t half = 1; half < block; half *= 2) {
      for (size_t first = 0; first < block; first += 2 * half) {
        for (size_t i = first; i < first + half; i++) {
          const float a = x[i], b = x[i + half];
          x[i] = a + b, x[i + half] = a - b;
        }
      }
    }
    for (size_t i = 0; i < block; i++) x[i] *= size;
  }
}

}  // namespace

void Step::rotate(float* x, size_t token, const std::vector<float>& norm) const {
  const size_t width = shape_.head_width, half = width / 2;
  if (shape_.qk_norm) kernels_.rms_norm(x, norm.data(), width, shape_.norm_eps, x);
  const float* cosine = angles_.data() + token * width;
  const float* sine = cosine + half;
  for (size_t d = 0; d < half; d++) {
    const float a = x[d], b = x[half + d];
    x[d] = a * cosine[d] - b * sine[d];
    x[half + d] = b * cosine[d] + a * sine[d];
  }
}

void Step::keys_and_values(size_t token) {
  const Layer& layer = model_.layers_[layer_];
  const Run& run = runs_[run_of_[token]];
  const size_t width = shape_.head_width, position = run.position + token - run.first, slot = position % kPagePositions;
  const Page& page = run.sequence->pages[position / kPagePositions];
  const bool turned = model_.cache_.shape().stored == Stored::bytes;
  for (size_t h = 0; h < shape_.heads; h++) {
    float* query = query_.data() + token * query_width_ + h * width;
    rotate(query, token, layer.query_norm);
    if (turned) turn(query, width);
  }
  for (size_t h = 0; h < shape_.key_heads; h++) {
    float* key = key_.data() + token * key_width_ + h * width;
    float* value = value_.data() + token * key_width_ + h * width;
    rotate(key, token, layer.key_norm);
    if (turned) turn(key, width), turn(value, width);
    keep(model_.cache_.block(page, layer_, h), slot, key, value);
  }
}

// Key and value of one head at a position of its page.
void Step::keep(uint16_t* block, size_t slot, const float* key, const float* value) const {
  const size_t width = shape_.head_width, values = kPagePositions * width;
  switch (model_.cache_.shape().stored) {
    case Stored::floats: {
      float* floats = reinterpret_cast<float*>(block);
      for (size_t d = 0; d < width; d++) floats[d * kPagePositions + slot] = key[d];
      std::memcpy(floats + values + slot * width, value, width * sizeof(float));
      break;
    }
    case Stored::halves: {
      uint16_t halves[kMaxHeadWidth];
      kernels_.to_halves(key, width, halves);
      for (size_t d = 0; d < width; d++) block[d * kPagePositions + slot] = halves[d];
      kernels_.to_halves(value, width, block + values + slot * width);
      break;
    }
    case Stored::bytes: {
      int8_t* bytes = reinterpret_cast<int8_t*>(block);
      float* scales = reinterpret_cast<float*>(bytes + 2 * values);
      int8_t column[kMaxHeadWidth];
      scales[slot] = kernels_.to_bytes(key, width, column);
      for (size_t d = 0; d < width; d++) bytes[d * kPagePositions + slot] = column[d];
      scales[kPagePositions + slot] = kernels_.to_bytes(value, width, bytes + values + slot * width);
      break;
    }
  }
}

// A page's keys [width][16] and values [16][width] of one head as floats.
void Step::recall(const uint16_t* block, float* out) const {
  const size_t values = kPagePositions * shape_.head_width;
  switch (model_.cache_.shape().stored) {
    case Stored::floats: std::memcpy(out, block, 2 * values * sizeof(float)); break;
    case Stored::halves: kernels_.from_halves(block, 2 * values, out); break;
    case Stored::bytes: {
      const int8_t* bytes = reinterpret_cast<const int8_t*>(block);
      const float* scales = reinterpret_cast<const float*>(bytes + 2 * values);
      kernels_.from_bytes(bytes, bytes + values, scales, scales + kPagePositions, shape_.head_width, out);
      break;
    }
  }
}

void Step::attention_task(Task& task) {
  task.compute = compute_attention;
  task.publish = publish_attention;
  task.pieces = queries_.size() * shape_.key_heads;
  task.set(Work{this, layer_});
}

// One key head for some tokens of a sequence: queries [token][head of the group] in scratch memory, their outputs after.
void Step::compute_attention(const Task& task, size_t piece, int thread) {
  const Work work = task.get<Work>();
  Step& step = *work.step;
  const Shape& shape = step.shape_;
  const Query& query = step.queries_[piece / shape.key_heads];
  const size_t head = piece % shape.key_heads, group = shape.heads / shape.key_heads, width = shape.head_width;
  const size_t n = query.count * group, position = query.run->position + query.first - query.run->first;
  float* out = step.scratch(thread);
  float* queries = out + n * width;
  float* total = queries + n * width;
  float* maximum = total + n;
  float* key = maximum + n + n;
  int* valid = reinterpret_cast<int*>(maximum + n);
  const float scale = 1.0f / std::sqrt(static_cast<float>(width));
  for (size_t i = 0; i < n; i++) {
    const float* from = step.query_.data() + (query.first + i / group) * step.query_width_ + (head * group + i % group) * width;
    for (size_t d = 0; d < width; d++) queries[i * width + d] = from[d] * scale;
    maximum[i] = -INFINITY, total[i] = 0.0f;
  }
  std::memset(out, 0, n * width * sizeof(float));
  for (size_t first = 0; first < position + query.count; first += kPagePositions) {
    const Page& page = query.run->sequence->pages[first / kPagePositions];
    const uint16_t* block = step.model_.cache_.block(page, work.layer, head);
    step.recall(block, key);
    for (size_t i = 0; i < n; i++) {
      const auto seen = static_cast<long>(position + i / group + 1) - static_cast<long>(first);
      valid[i] = static_cast<int>(std::min<long>(seen, kPagePositions));
    }
    step.kernels_.attend(queries, static_cast<int>(n), valid, key, key + kPagePositions * width, width, maximum, total, out);
  }
  for (size_t i = 0; i < n; i++) {
    for (size_t d = 0; d < width; d++) out[i * width + d] /= total[i];
    if (step.model_.cache_.shape().stored == Stored::bytes) turn(out + i * width, width);
  }
}

void Step::publish_attention(const Task& task, size_t piece, int thread) {
  Step& step = *task.get<Work>().step;
  const Shape& shape = step.shape_;
  const Query& query = step.queries_[piece / shape.key_heads];
  const size_t group = shape.heads / shape.key_heads, size = group * shape.head_width;
  for (size_t i = 0; i < query.count; i++) {
    std::memcpy(step.mixed_.data() + (query.first + i) * step.query_width_ + piece % shape.key_heads * size,
                step.scratch(thread) + i * size, size * sizeof(float));
  }
}

}  // namespace openafm
