// A decoder of random weights on every instruction set and number of threads: all must agree with the portable kernels,
// a text computed at once with the same text token by token, and speculative decoding with plain decoding. No Python: for
// sanitizers and for processors under qemu.
#include <cmath>
#include <cstdio>
#include <random>

#include "model.h"
#include "speculation.h"

using namespace openafm;

namespace {

constexpr Shape kShape = {320, 96, 2, 4, 2, 16, 200, 10000.0f, 1e-5f, true, 512};
constexpr const char* kNames[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                                  "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

Matrix random_matrix(std::mt19937& random, size_t rows, size_t columns, int bits) {
  std::normal_distribution<float> normal(0.0f, 1.0f / std::sqrt(static_cast<float>(columns)));
  if (bits == 32) {
    std::vector<float> values(rows * columns);
    for (float& value : values) value = normal(random);
    return Matrix::dense(Kind::f32, values.data(), rows, columns);
  }
  const size_t row_bytes = (columns * static_cast<size_t>(bits) + 7) / 8, tables = (rows + 15) / 16 << bits;
  std::vector<uint8_t> packed(rows * row_bytes);
  for (uint8_t& byte : packed) byte = static_cast<uint8_t>(random());
  std::vector<uint16_t> values(tables);
  for (uint16_t& value : values) value = to_half(normal(random));
  return Matrix::palettized(packed.data(), values.data(), bits, 16, rows, columns);
}

void fill(Model& model) {
  std::mt19937 random(7);
  const size_t queries = 64, keys = 32;
  const size_t rows[] = {queries, keys, keys, 96, 200, 200, 96}, columns[] = {96, 96, 96, queries, 96, 96, 200};
  const int bits[] = {4, 2, 1, 4, 8, 2, 4};
  for (size_t layer = 0; layer < kShape.layers; layer++) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    for (size_t i = 0; i < 7; i++) {
      model.set_matrix(prefix + kNames[i], random_matrix(random, rows[i], columns[i], layer && i == 5 ? 32 : bits[i]));
      model.set_adapter("one", prefix + kNames[i], random_matrix(random, 20, columns[i], 32),
                        random_matrix(random, rows[i], 20, 32), 0.5f);
    }
    for (const char* norm : {"input_layernorm", "post_attention_layernorm"}) {
      model.set_norm(prefix + norm + ".weight", std::vector<float>(96, 1.1f));
    }
    for (const char* norm : {"q_norm", "k_norm"}) {
      model.set_norm(prefix + "self_attn." + norm + ".weight", std::vector<float>(16, 0.9f));
    }
  }
  model.set_norm("model.norm.weight", std::vector<float>(96, 1.0f));
  std::vector<int8_t> embedding(320 * 96);
  for (int8_t& value : embedding) value = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  model.set_matrix("model.embed_tokens", Matrix::int8(embedding.data(), std::vector<float>(320, 0.01f).data(), 320, 96));
  model.check();
}

// Logits after each of 40 tokens, with and without an adapter, in steps of `size` tokens of two sequences at once; then
// the hidden states of the same.
std::vector<float> logits(Model& model, size_t size) {
  const int a = model.cache().create(), b = model.cache().create();
  std::vector<float> plain, adapted;
  for (size_t start = 0; start < 40; start += size) {
    std::vector<int> tokens;
    for (size_t i = start; i < start + size && i < 40; i++) tokens.push_back(static_cast<int>(i * 37 % 320));
    size_t wanted = 0;
    const float* found = model.step({{a, tokens, ""}, {b, tokens, "one"}}, true, wanted);
    plain.insert(plain.end(), found, found + wanted / 2 * 320);
    adapted.insert(adapted.end(), found + wanted / 2 * 320, found + wanted * 320);
  }
  for (const int id : {a, b}) model.cache().truncate(id, 0);
  for (size_t start = 0; start < 40; start += size) {
    std::vector<int> tokens;
    for (size_t i = start; i < start + size && i < 40; i++) tokens.push_back(static_cast<int>(i * 37 % 320));
    size_t count = 0;
    const float* found = model.hidden({{a, tokens, ""}, {b, tokens, "one"}}, count);
    plain.insert(plain.end(), found, found + count / 2 * kShape.width);
    adapted.insert(adapted.end(), found + count / 2 * kShape.width, found + count * kShape.width);
  }
  for (const int id : {a, b}) model.cache().release(id);
  plain.insert(plain.end(), adapted.begin(), adapted.end());
  return plain;
}

double distance(const std::vector<float>& x, const std::vector<float>& y) {
  double difference = 0.0, size = 0.0;
  for (size_t i = 0; i < y.size(); i++) difference += std::pow(x[i] - y[i], 2), size += std::pow(y[i], 2);
  return std::sqrt(difference / size);
}

// Forty greedy tokens, `count` at a time proposed by another model (0: plain decoding), the prompt from a shared fork.
std::vector<int> greedy(Model& model, Model& other, size_t count) {
  Sampler sampler({.temperature = 0.0f, .alternatives = 5}), guess({.temperature = count % 2 ? 0.0f : 1.0f, .top_k = 40, .seed = 3});
  const int prompt = model.cache().create();
  size_t wanted = 0;
  std::vector<int> made = {5, 9, 200, 17, 5, 9, 31};
  model.step({{prompt, {made.begin(), made.end() - 1}, ""}}, false, wanted);
  const int sequence = model.cache().fork(prompt);
  const int drafted = other.cache().create();
  while (made.size() < 47) {
    Proposal proposal;
    const long known = static_cast<long>(other.cache().at(drafted).length);
    if (count) proposal = draft(other, {drafted, {made.begin() + known, made.end()}, ""}, guess, count);
    for (const Choice& choice : verify(model, {sequence, {made.back()}, ""}, proposal, sampler, [] { return nullptr; })) {
      made.push_back(choice.token);
    }
    // the last token is new to both models, and what the other computed after the first refused one is wrong
    other.cache().truncate(drafted, std::min(other.cache().at(drafted).length, made.size() - 1));
  }
  made.resize(47);
  for (const int id : {prompt, sequence}) model.cache().release(id);
  other.cache().release(drafted);
  return made;
}

bool agree(const std::string& name, int threads, const std::string& activations, const std::string& cache,
           const std::vector<float>& expected) {
  Model model(kShape, threads, name, activations, cache), other(kShape, threads, name, "float32");
  fill(model), fill(other);
  bool good = true;
  for (const size_t size : {size_t{40}, size_t{1}, size_t{7}}) {
    const double off = distance(logits(model, size), expected);
    const bool fine = off < (activations == "int8" ? 3e-2 : 1e-3);
    good = good && fine;
    std::printf("%s %s, cache %s, %d threads, %zu tokens a step: %.1e %s\n", name.c_str(), activations.c_str(),
                cache.c_str(), threads, size, off, fine ? "" : "WRONG");
  }
  const std::vector<int> plain = greedy(model, other, 0);
  for (const size_t count : {size_t{1}, size_t{4}, size_t{7}}) {
    const bool fine = greedy(model, other, count) == plain;
    good = good && fine;
    if (!fine) std::printf("  %zu proposed tokens a step change the answer: WRONG\n", count);
  }
  return good;
}

}  // namespace

int main() {
  bool good = true;
  for (const std::string activations : {"float32", "int16", "int8"}) {
    for (const char* cache : {"float32", "float16", "int8"}) {
      if (activations == "float32" && std::string(cache) == "float16") continue;
      Model reference(kShape, 1, "portable", activations, cache);
      fill(reference);
      const std::vector<float> expected = logits(reference, 40);
      for (const std::string& name : available_kernels()) {
        for (const int threads : {1, 2, 5}) good = agree(name, threads, activations, cache, expected) && good;
      }
    }
  }
  std::puts(good ? "all agree" : "FAILED");
  return good ? 0 : 1;
}
