#include "model.h"

#include <algorithm>
#include <cstdlib>
#include <set>
#include <stdexcept>

#include "step.h"

namespace openafm {
namespace {

constexpr const char* kNames[kProjections] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                              "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                                              "mlp.down_proj"};
constexpr const char* kEmbedding = "model.embed_tokens";

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string sizes(size_t rows, size_t columns) { return std::to_string(rows) + " x " + std::to_string(columns); }

bool supported(const Kernels* kernels) {
  if (!kernels) return false;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const std::string name = kernels->name;
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (name == "avx2") return avx2;
  if (name == "avxvnni") {
    unsigned a = 7, b, c = 1, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return avx2 && (a >> 4 & 1);
  }
  if (name == "avx512") return avx512;
  if (name == "avx512vbmi") return avx512 && __builtin_cpu_supports("avx512vbmi");
#endif
  return true;
}

std::vector<const Kernels*> all_kernels() {  // the best first
  std::vector<const Kernels*> found;
  for (const Kernels* kernels : {avx512vbmi_kernels(), avx512_kernels(), avxvnni_kernels(), avx2_kernels(),
                                 neon_kernels(), portable_kernels()}) {
    if (supported(kernels)) found.push_back(kernels);
  }
  return found;
}

int planes_of(const std::string& activations) {
  if (activations == "int8" || activations.empty()) return 1;
  if (activations == "int16") return 2;
  if (activations == "float32") return 0;
  refuse("activations are int8, int16 or float32, not '" + activations + "'");
}

Stored stored_as(const std::string& name, int planes) {
  if (name == "float32" || (name.empty() && !planes)) return Stored::floats;
  if (name == "float16" || name.empty()) return Stored::halves;
  if (name == "int8") return Stored::bytes;
  refuse("the KV cache is kept in float32, float16 or int8, not in '" + name + "'");
}

}  // namespace

std::vector<std::string> available_kernels() {
  std::vector<std::string> names;
  for (const Kernels* kernels : all_kernels()) names.push_back(kernels->name);
  return names;
}

const Kernels* pick_kernels(const std::string& name) {
  const auto kernels = all_kernels();
  if (name.empty()) return kernels.front();
  std::string known;
  for (const Kernels* one : kernels) {
    if (one->name == name) return one;
    known += std::string(known.empty() ? "" : ", ") + one->name;
  }
  refuse("this machine runs no kernels called '" + name + "'; it runs " + known);
}

Model::Model(const Shape& shape, int threads, const std::string& kernels, const std::string& activations,
             const std::string& cache)
    : shape_(shape),
      kernels_(pick_kernels(kernels)),
      planes_(planes_of(activations)),
      cache_({shape.layers, shape.key_heads, shape.head_width, stored_as(cache, planes_)}),
      layers_(shape.layers),
      pool_(threads) {
  const size_t parts[] = {shape.vocabulary, shape.width, shape.layers, shape.heads, shape.key_heads, shape.inner};
  if (std::any_of(std::begin(parts), std::end(parts), [](size_t n) { return n == 0 || n > size_t{1} << 24; })) {
    refuse("a size of the shape is zero or absurd");
  }
  const size_t rows = std::max({shape.vocabulary, shape.width, 2 * round_up(shape.inner, kRows),
                                (shape.heads + 2 * shape.key_heads) * shape.head_width});
  if (rows > kRows * kMaxPieces) refuse("a matrix of the shape has too many rows for the native engine");
  if (shape.head_width % kRows || shape.head_width > kMaxHeadWidth || shape.head_width == 0) {
    refuse("head_dim " + std::to_string(shape.head_width) + ": the native engine needs a multiple of 16 up to 256");
  }
  if (shape.heads % shape.key_heads || shape.key_heads > 64) refuse("n_kv_heads does not divide n_heads, or is over 64");
  if (threads < 1 || threads > 256) refuse("threads must be 1 to 256");
  step_ = std::make_unique<Step>(*this);
}

Model::~Model() { pool_.settle(); }

std::unique_ptr<Matrix>& Model::place(const std::string& name, size_t& rows, size_t& columns) {
  const size_t queries = shape_.heads * shape_.head_width, keys = shape_.key_heads * shape_.head_width;
  if (name == kEmbedding) {
    rows = shape_.vocabulary, columns = shape_.width;
    return embedding_;
  }
  const std::string prefix = "model.layers.";
  const size_t dot = name.find('.', prefix.size());
  if (name.rfind(prefix, 0) == 0 && dot != std::string::npos) {
    const size_t layer = std::strtoull(name.c_str() + prefix.size(), nullptr, 10);
    const auto* found = std::find(std::begin(kNames), std::end(kNames), name.substr(dot + 1));
    if (layer < shape_.layers && name == prefix + std::to_string(layer) + name.substr(dot) && found != std::end(kNames)) {
      const auto projection = static_cast<size_t>(found - kNames);
      const size_t all_rows[] = {queries, keys, keys, shape_.width, shape_.inner, shape_.inner, shape_.width};
      rows = all_rows[projection];
      columns = projection == kOutput ? queries : projection == kDown ? shape_.inner : shape_.width;
      return layers_[layer].projections[projection];
    }
  }
  refuse("the shape has no place for a matrix " + name);
}

void Model::set_matrix(const std::string& name, Matrix matrix) {
  size_t rows, columns;
  auto& slot = place(name, rows, columns);
  const Tiles& tiles = matrix.tiles();
  if (tiles.rows != rows || tiles.columns != columns) {
    refuse(name + " is " + sizes(tiles.rows, tiles.columns) + ", the shape asks for " + sizes(rows, columns));
  }
  slot = std::make_unique<Matrix>(std::move(matrix));
}

void Model::set_norm(const std::string& name, std::vector<float> gain) {
  const auto put = [&](std::vector<float>& slot, size_t width) {
    if (gain.size() != width) refuse(name + " has " + std::to_string(gain.size()) + " gains, not " + std::to_string(width));
    slot = std::move(gain);
  };
  if (name == "model.norm.weight") return put(final_norm_, shape_.width);
  for (size_t i = 0; i < shape_.layers; i++) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    if (name == prefix + "input_layernorm.weight") return put(layers_[i].input_norm, shape_.width);
    if (name == prefix + "post_attention_layernorm.weight") return put(layers_[i].post_norm, shape_.width);
    if (shape_.qk_norm && name == prefix + "self_attn.q_norm.weight") return put(layers_[i].query_norm, shape_.head_width);
    if (shape_.qk_norm && name == prefix + "self_attn.k_norm.weight") return put(layers_[i].key_norm, shape_.head_width);
  }
  refuse("the shape has no place for a norm " + name);
}

void Model::check() const {
  if (!embedding_) refuse("the weights lack the embedding");
  if (final_norm_.empty()) refuse("the weights lack the last norm");
  for (size_t i = 0; i < shape_.layers; i++) {
    const Layer& layer = layers_[i];
    bool whole = !layer.input_norm.empty() && !layer.post_norm.empty();
    whole = whole && (!shape_.qk_norm || (!layer.query_norm.empty() && !layer.key_norm.empty()));
    for (const auto& projection : layer.projections) whole = whole && projection;
    if (!whole) refuse("the weights of layer " + std::to_string(i) + " are not all there");
  }
}

void Model::set_adapter(const std::string& name, const std::string& projection, Matrix a, Matrix b, float scale) {
  size_t rows, columns;
  place(projection, rows, columns);
  const size_t rank = a.tiles().rows;
  if (projection == kEmbedding || b.tiles().rows != rows || a.tiles().columns != columns || b.tiles().columns != rank) {
    refuse("the adapter's " + projection + " is " + sizes(b.tiles().rows, a.tiles().columns) + " at rank " +
           std::to_string(rank) + ", the model's " + sizes(rows, columns) + ": it was made for another model");
  }
  if (rank > kMaxRank) refuse("an adapter of rank " + std::to_string(rank) + ": the native engine takes up to 64");
  pool_.settle();
  Adapter& adapter = adapters_[name];
  adapter.projections.resize(shape_.layers * kProjections);
  const size_t layer = std::strtoull(projection.c_str() + std::string("model.layers.").size(), nullptr, 10);
  const std::string last = projection.substr(projection.find('.', std::string("model.layers.").size()) + 1);
  const auto index = static_cast<size_t>(std::find(std::begin(kNames), std::end(kNames), last) - kNames);
  adapter.projections[layer * kProjections + index] =
      LowRank{std::make_unique<Matrix>(std::move(a)), std::make_unique<Matrix>(std::move(b)), scale};
}

void Model::remove_adapter(const std::string& name) {
  pool_.settle();
  adapters_.erase(name);
}

float* Model::step(const std::vector<Request>& requests, bool every, size_t& wanted) {
  run(requests, every, true);
  wanted = step_->wanted();
  return step_->logits();
}

const float* Model::hidden(const std::vector<Request>& requests, size_t& tokens) {
  run(requests, true, false);
  tokens = step_->wanted();
  return step_->hidden();
}

void Model::run(const std::vector<Request>& requests, bool every, bool head) {
  size_t tokens = 0;
  std::set<int> seen;
  for (const Request& request : requests) {
    const Sequence& sequence = cache_.at(request.sequence);
    if (!seen.insert(request.sequence).second) refuse("a sequence twice in one step");
    if (request.tokens.empty()) refuse("a request without tokens");
    if (sequence.length + request.tokens.size() > shape_.max_length) {
      refuse("a sequence would be longer than the model's " + std::to_string(shape_.max_length) + " tokens");
    }
    if (!request.adapter.empty() && !adapters_.count(request.adapter)) refuse("no adapter '" + request.adapter + "'");
    for (const int token : request.tokens) {
      if (token < 0 || static_cast<size_t>(token) >= shape_.vocabulary) refuse("token " + std::to_string(token) + " is not in the vocabulary");
    }
    tokens += request.tokens.size();
  }
  if (tokens == 0 || tokens > kMaxTokens) refuse("a step takes 1 to " + std::to_string(kMaxTokens) + " tokens");
  pool_.settle();
  step_->prepare(requests, every, head);
  pool_.run(*step_);
  for (const Request& request : requests) cache_.at(request.sequence).length += request.tokens.size();
}

size_t Model::weight_bytes() const {
  size_t bytes = embedding_ ? embedding_->bytes() : 0;
  for (const Layer& layer : layers_) {
    for (const auto& projection : layer.projections) bytes += projection ? projection->bytes() : 0;
  }
  return bytes;
}

}  // namespace openafm
