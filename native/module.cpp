// What Python sees: openafm.engine._native. Arrays are numpy's; halves and bfloat16 come as uint16.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "model.h"
#include "palettize.h"
#include "sampling.h"
#include "speculation.h"

namespace nb = nanobind;
using namespace openafm;

namespace {

using Told = std::tuple<int, float, std::vector<std::pair<int, float>>>;  // a Choice
template <class T, int N> using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void set_palettized(Model& model, const std::string& name, Array<uint8_t, 2> packed, Array<uint16_t, 2> tables, int bits,
                    size_t group, size_t columns) {
  const size_t rows = packed.shape(0);
  if (bits != 1 && bits != 2 && bits != 4 && bits != 8) refuse(name + ": bits must be 1, 2, 4 or 8");
  if (group == 0 || packed.shape(1) != (columns * static_cast<size_t>(bits) + 7) / 8) refuse(name + ": indices do not fit the columns");
  if (tables.shape(0) != (rows + group - 1) / group || tables.shape(1) != size_t{1} << bits) refuse(name + ": tables do not fit");
  nb::gil_scoped_release release;
  model.set_matrix(name, Matrix::palettized(packed.data(), tables.data(), bits, group, rows, columns));
}

void set_int8(Model& model, const std::string& name, Array<int8_t, 2> values, Array<float, 1> scales) {
  if (scales.shape(0) != values.shape(0)) refuse(name + ": one scale a row is needed");
  nb::gil_scoped_release release;
  model.set_matrix(name, Matrix::int8(values.data(), scales.data(), values.shape(0), values.shape(1)));
}

Matrix halves(Array<uint16_t, 2> values) { return Matrix::dense(Kind::f16, values.data(), values.shape(0), values.shape(1)); }

std::vector<Request> requests_of(const std::vector<int>& sequences, const std::vector<std::vector<int>>& tokens,
                                 const std::vector<std::optional<std::string>>& adapters) {
  if (sequences.size() != tokens.size() || sequences.size() != adapters.size()) refuse("lists of different lengths");
  std::vector<Request> requests;
  for (size_t i = 0; i < sequences.size(); i++) requests.push_back({sequences[i], tokens[i], adapters[i].value_or("")});
  return requests;
}

// A new numpy array that frees `data` in the end.
template <class T> nb::object owned(T* data, std::initializer_list<size_t> shape) {
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::cast(nb::ndarray<nb::numpy, T>(data, shape, owner));
}

nb::object logits_of(Model& model, const std::vector<int>& sequences, const std::vector<std::vector<int>>& tokens,
                     const std::vector<std::optional<std::string>>& adapters, bool every) {
  const auto requests = requests_of(sequences, tokens, adapters);
  const size_t vocabulary = model.shape().vocabulary;
  size_t wanted = 0;
  float* copy = nullptr;
  {
    nb::gil_scoped_release release;
    const float* logits = model.step(requests, every, wanted);
    copy = new float[wanted * vocabulary];
    for (size_t i = 0; i < wanted; i++) {
      std::copy_n(logits + i * round_up(vocabulary, kRows), vocabulary, copy + i * vocabulary);
    }
  }
  return owned(copy, {wanted, vocabulary});
}

nb::object hidden_of(Model& model, const std::vector<int>& sequences, const std::vector<std::vector<int>>& tokens,
                     const std::vector<std::optional<std::string>>& adapters) {
  const auto requests = requests_of(sequences, tokens, adapters);
  const size_t width = model.shape().width;
  size_t count = 0;
  float* copy = nullptr;
  {
    nb::gil_scoped_release release;
    const float* hidden = model.hidden(requests, count);
    copy = new float[count * width];
    for (size_t i = 0; i < count; i++) std::copy_n(hidden + i * round_up(width, kRows), width, copy + i * width);
  }
  return owned(copy, {count, width});
}

// What a function of Python's allows each choice to be, [choices][ceil(vocabulary / 32)]. It is asked after a step, so
// that grammars are followed while the model computes. None: everything.
class Masks {
 public:
  Masks(std::optional<nb::callable>& function, size_t choices, size_t vocabulary)
      : function_(function), choices_(choices), vocabulary_(vocabulary) {}

  static size_t words(size_t vocabulary) { return (vocabulary + 31) / 32; }

  const uint32_t* ask() {  // without the interpreter's lock
    if (!function_) return nullptr;
    nb::gil_scoped_acquire acquire;
    bits_ = nb::cast<Array<uint32_t, 2>>((*function_)());
    if (bits_.shape(0) != choices_ || bits_.shape(1) != words(vocabulary_)) refuse("masks do not fit");
    return bits_.data();
  }

 private:
  std::optional<nb::callable>& function_;
  size_t choices_, vocabulary_;
  Array<uint32_t, 2> bits_;
};

// A step, and a choice for each request that has a sampler: the first ones.
std::vector<Told> choose(Model& model, const std::vector<int>& sequences, const std::vector<std::vector<int>>& tokens,
                         const std::vector<std::optional<std::string>>& adapters, const std::vector<Sampler*>& samplers,
                         std::optional<nb::callable> masks) {
  const auto requests = requests_of(sequences, tokens, adapters);
  const size_t vocabulary = model.shape().vocabulary;
  if (samplers.size() > requests.size()) refuse("more samplers than sequences");
  Masks allowed(masks, samplers.size(), vocabulary);
  nb::gil_scoped_release release;
  size_t wanted = 0;
  float* logits = model.step(requests, false, wanted);
  const uint32_t* bits = allowed.ask();
  std::vector<Told> choices;
  for (size_t i = 0; i < samplers.size(); i++) {
    const uint32_t* mask = bits ? bits + i * Masks::words(vocabulary) : nullptr;
    Choice choice = samplers[i]->choose(model.kernels(), logits + i * round_up(vocabulary, kRows), vocabulary, mask);
    choices.emplace_back(choice.token, choice.logprob, std::move(choice.likeliest));
  }
  return choices;
}

nb::object means_of(Array<float, 2> values, Array<double, 2> weights, size_t k, size_t candidates, size_t rounds) {
  const size_t groups = values.shape(0), n = values.shape(1);
  if (n == 0 || n > UINT32_MAX || k < 2) refuse("groups of values and at least 2 means are needed");
  if (weights.shape(1) != n || (weights.shape(0) != 1 && weights.shape(0) != groups)) refuse("weights do not fit the values");
  auto* means = new double[groups * k];
  {
    nb::gil_scoped_release release;
    for (size_t g = 0; g < groups; g++) {
      const double* own = weights.data() + (weights.shape(0) == 1 ? 0 : g * n);
      best_means(values.data() + g * n, own, n, k, candidates, rounds, means + g * k);
    }
  }
  return owned(means, {groups, k});
}

nb::object nearest_of(Array<float, 2> values, Array<double, 2> edges) {
  const size_t groups = values.shape(0), n = values.shape(1), count = edges.shape(1);
  if (edges.shape(0) != groups || count > 255) refuse("edges do not fit the groups");
  auto* found = new uint8_t[groups * n];
  {
    nb::gil_scoped_release release;
    for (size_t g = 0; g < groups; g++) nearest(values.data() + g * n, n, edges.data() + g * count, count, found + g * n);
  }
  return owned(found, {groups, n});
}

// A step over `tokens` and the proposal's, and what the sampler takes of it.
std::vector<Told> take(Model& model, int sequence, const std::vector<int>& tokens, const std::optional<std::string>& adapter,
                       Sampler& sampler, const Proposal& proposal, std::optional<nb::callable> masks) {
  if (tokens.empty()) refuse("a request without tokens");
  Masks allowed(masks, proposal.tokens.size() + 1, model.shape().vocabulary);
  nb::gil_scoped_release release;
  std::vector<Told> taken;
  for (Choice& choice : verify(model, {sequence, tokens, adapter.value_or("")}, proposal, sampler,
                               [&] { return allowed.ask(); })) {
    taken.emplace_back(choice.token, choice.logprob, std::move(choice.likeliest));
  }
  return taken;
}

// The distribution that a sampler draws from after these logits.
nb::object chances_of(Sampler& sampler, const Model& model, Array<float, 1> logits, std::optional<Array<uint32_t, 1>> mask) {
  const size_t vocabulary = logits.shape(0);
  if (mask && mask->shape(0) != (vocabulary + 31) / 32) refuse("the mask does not fit");
  std::vector<float> copy(logits.data(), logits.data() + vocabulary);
  sampler.choose(model.kernels(), copy.data(), vocabulary, mask ? mask->data() : nullptr);
  float* chances = new float[vocabulary];
  sampler.spread(model.kernels(), copy.data(), vocabulary, chances);
  return owned(chances, {vocabulary});
}

}  // namespace

NB_MODULE(_native, m) {
  m.attr("MAX_TOKENS") = kMaxTokens;
  m.attr("MAX_RANK") = kMaxRank;
  m.def("available_kernels", &available_kernels, "Kernels that this processor runs, the best first.");
  m.def("best_means", &means_of, "Means (groups, k) of the runs that the values (groups, n) are best cut into.");
  m.def("nearest", &nearest_of, "How many edges of its group are at most each value.");
  nb::class_<Sampler>(m, "Sampler")
      .def("__init__",
           [](Sampler* self, float temperature, int top_k, float top_p, float min_p, float presence, float frequency,
              float repetition, uint64_t seed, int alternatives) {
             new (self) Sampler({temperature, top_k, top_p, min_p, presence, frequency, repetition, seed, alternatives});
           },
           nb::kw_only(), nb::arg("temperature"), nb::arg("top_k") = 0, nb::arg("top_p") = 1.0f, nb::arg("min_p") = 0.0f,
           nb::arg("presence_penalty") = 0.0f, nb::arg("frequency_penalty") = 0.0f, nb::arg("repetition_penalty") = 1.0f,
           nb::arg("seed") = 0, nb::arg("alternatives") = 0)
      .def("read", &Sampler::read)
      .def("chances", &chances_of, nb::arg("model"), nb::arg("logits"), nb::arg("mask") = nb::none());
  nb::class_<Proposal>(m, "Proposal")
      .def("__init__", [](Proposal* self, std::vector<int> tokens) { new (self) Proposal{std::move(tokens), {}}; })
      .def_prop_ro("tokens", [](const Proposal& proposal) { return proposal.tokens; })
      .def("cut", &Proposal::cut);
  nb::class_<Model>(m, "Model")
      .def("__init__",
           [](Model* self, size_t vocab_size, size_t d_model, size_t n_layers, size_t n_heads, size_t n_kv_heads,
              size_t head_dim, size_t d_ff, float rope_base, float norm_eps, bool qk_norm, size_t max_length, int threads,
              const std::string& kernels, const std::string& activations, const std::string& cache) {
             new (self) Model({vocab_size, d_model, n_layers, n_heads, n_kv_heads, head_dim, d_ff, rope_base, norm_eps,
                               qk_norm, max_length},
                              threads, kernels, activations, cache);
           },
           nb::kw_only(), nb::arg("vocab_size"), nb::arg("d_model"), nb::arg("n_layers"), nb::arg("n_heads"),
           nb::arg("n_kv_heads"), nb::arg("head_dim"), nb::arg("d_ff"), nb::arg("rope_base"), nb::arg("norm_eps"),
           nb::arg("qk_norm"), nb::arg("max_length"), nb::arg("threads"), nb::arg("kernels") = "",
           nb::arg("activations") = "", nb::arg("cache") = "")
      .def("set_palettized", &set_palettized)
      .def("set_int8", &set_int8)
      .def("set_float",
           [](Model& model, const std::string& name, Array<float, 2> values) {
             nb::gil_scoped_release release;
             model.set_matrix(name, Matrix::dense(Kind::f32, values.data(), values.shape(0), values.shape(1)));
           })
      .def("set_half",
           [](Model& model, const std::string& name, Array<uint16_t, 2> values) {
             nb::gil_scoped_release release;
             model.set_matrix(name, halves(values));
           })
      .def("set_bfloat",
           [](Model& model, const std::string& name, Array<uint16_t, 2> values) {
             nb::gil_scoped_release release;
             model.set_matrix(name, Matrix::dense(Kind::bf16, values.data(), values.shape(0), values.shape(1)));
           })
      .def("set_norm",
           [](Model& model, const std::string& name, Array<float, 1> gain) {
             model.set_norm(name, std::vector<float>(gain.data(), gain.data() + gain.shape(0)));
           })
      .def("check", &Model::check)
      .def("set_adapter",
           [](Model& model, const std::string& name, const std::string& projection, Array<uint16_t, 2> a,
              Array<uint16_t, 2> b, float scale) { model.set_adapter(name, projection, halves(a), halves(b), scale); })
      .def("remove_adapter", &Model::remove_adapter)
      .def("create", [](Model& model) { return model.cache().create(); })
      .def("fork", [](Model& model, int id) { return model.cache().fork(id); })
      .def("release", [](Model& model, int id) { model.cache().release(id); })
      .def("truncate", [](Model& model, int id, size_t length) { model.cache().truncate(id, length); })
      .def("limit_cache", [](Model& model, size_t bytes) { model.cache().limit(bytes); })
      .def("length", [](Model& model, int id) { return model.cache().at(id).length; })
      .def("logits", &logits_of, nb::arg("sequences"), nb::arg("tokens"), nb::arg("adapters"), nb::arg("every") = false)
      .def("hidden", &hidden_of, nb::arg("sequences"), nb::arg("tokens"), nb::arg("adapters"))
      .def("choose", &choose, nb::arg("sequences"), nb::arg("tokens"), nb::arg("adapters"), nb::arg("samplers"),
           nb::arg("masks") = nb::none())
      .def("draft",
           [](Model& model, int sequence, const std::vector<int>& tokens, const std::optional<std::string>& adapter,
              Sampler& sampler, size_t count) {
             nb::gil_scoped_release release;
             return draft(model, {sequence, tokens, adapter.value_or("")}, sampler, count);
           })
      .def("take", &take, nb::arg("sequence"), nb::arg("tokens"), nb::arg("adapter"), nb::arg("sampler"),
           nb::arg("proposal"), nb::arg("masks") = nb::none())
      .def_prop_ro("kernels", [](Model& model) { return model.kernels().name; })
      .def_prop_ro("threads", [](Model& model) { return model.pool().threads(); })
      .def_prop_ro("repeated", [](Model& model) { return model.pool().repeated(); })
      .def_prop_ro("weight_bytes", &Model::weight_bytes)
      .def_prop_ro("cache_bytes", [](Model& model) { return model.cache().bytes(); });
}
