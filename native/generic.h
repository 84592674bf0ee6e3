// The kernels, written once over `Lanes`: 16 rows side by side in whatever registers an instruction set has.
// Included by one source file for each set, within its own anonymous namespace, so that no code is shared across sets.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels.h"

namespace openafm {
namespace {

using F = Lanes::F;
using I = Lanes::I;
using B = Lanes::B;
using W = Lanes::W;

// e^x by 2^n times a polynomial (Cephes' expf), relative error below 2e-7 from -87 to 88.
inline F exponential(F x) {
  x = Lanes::min(Lanes::max(x, Lanes::set1(-87.0f)), Lanes::set1(88.0f));
  const F magic = Lanes::set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const F shifted = Lanes::fma(x, Lanes::set1(1.44269504088896341f), magic);
  const F n = Lanes::sub(shifted, magic);
  F r = Lanes::fma(n, Lanes::set1(-0.693359375f), x);
  r = Lanes::fma(n, Lanes::set1(2.12194440e-4f), r);
  F p = Lanes::set1(1.9875691500e-4f);
  p = Lanes::fma(p, r, Lanes::set1(1.3981999507e-3f));
  p = Lanes::fma(p, r, Lanes::set1(8.3334519073e-3f));
  p = Lanes::fma(p, r, Lanes::set1(4.1665795894e-2f));
  p = Lanes::fma(p, r, Lanes::set1(1.6666665459e-1f));
  p = Lanes::fma(p, r, Lanes::set1(5.0000001201e-1f));
  p = Lanes::add(Lanes::fma(Lanes::mul(p, r), r, r), Lanes::set1(1.0f));
  return Lanes::times_power(p, shifted);
}

template <int Bits, int Shift>
inline W weights(const Lanes::T& table, B codes) {
  if constexpr (Bits == 8) {
    return Lanes::signed_bytes(codes);
  } else {
    return Lanes::template look<Bits>(table, Lanes::template shift<Shift>(codes));
  }
}

// One load of 64 bytes: its 8 / Bits registers of weights meet 4 activations of each token.
template <int Bits, int N, int Shift = 0>
inline void multiply(const Lanes::T& table, B codes, const int8_t*& a, I* even, I* odd) {
  if constexpr (Shift < 8) {
    const W w = weights<Bits, Shift>(table, codes);
    constexpr bool second = N <= Lanes::kSplit && (Shift / Bits) % 2 == 1;  // two chains hide the latency
    for (int i = 0; i < N; i++) {
      (second ? odd : even)[i] = Lanes::template dot<Bits, N>((second ? odd : even)[i], w, a + 4 * i);
    }
    a += 4 * N;
    multiply<Bits, N, Shift + Bits>(table, codes, a, even, odd);
  }
}

template <int Bits, int N>
void integer_tile(const Tiles& weight, size_t tile, const Panel& panel, float* out, size_t stride) {
  const uint8_t* w = weight.data + tile * weight.tile_bytes;
  const Lanes::T table = Lanes::table(Bits == 8 ? nullptr : weight.tables + 16 * tile);
  const int8_t* a = panel.values;
  F total[N];
  for (int i = 0; i < N; i++) total[i] = Lanes::set1(0.0f);
  const size_t groups = weight.padded / kGroup;
  for (size_t g = 0; g < groups; g++) {
    I even[N], odd[N];
    for (int i = 0; i < N; i++) {
      even[i] = Lanes::start(panel.sums + g * N + i);
      odd[i] = Lanes::nothing();
    }
    for (size_t load = 0; load < kGroup / 4 * Bits / 8; load++, w += 64) {
      Lanes::prefetch(w + 2048);
      multiply<Bits, N>(table, Lanes::bytes(w), a, even, odd);
    }
    for (int i = 0; i < N; i++) {
      const I sum = N <= Lanes::kSplit ? Lanes::plus(even[i], odd[i]) : even[i];
      total[i] = Lanes::fma(Lanes::to_float(sum), Lanes::set1(panel.scales[g * N + i]), total[i]);
    }
  }
  const F scale = Lanes::load(weight.scales + 16 * tile);
  for (int i = 0; i < N; i++) Lanes::store(out + i * stride, Lanes::mul(total[i], scale));
}

template <int Bits>
void integer_any(const Tiles& weight, size_t tile, const Panel& panel, float* out, size_t stride) {
  switch (panel.n) {
#define CASE(n) case n: return integer_tile<Bits, n>(weight, tile, panel, out, stride);
    CASE(1) CASE(2) CASE(3) CASE(4)
#ifndef OPENAFM_NARROW
    CASE(5) CASE(6) CASE(7) CASE(8) CASE(16)
#endif
#undef CASE
    default: __builtin_unreachable();
  }
}

void integer(const Tiles& weight, size_t tile, const Panel& panel, float* out, size_t stride) {
  switch (weight.kind) {
    case Kind::lut4: return integer_any<4>(weight, tile, panel, out, stride);
    case Kind::lut2: return integer_any<2>(weight, tile, panel, out, stride);
    case Kind::int8: return integer_any<8>(weight, tile, panel, out, stride);
    default: __builtin_unreachable();
  }
}

// Weights of a tile as floats, 4 columns at a time from column c: the float path of the integer kinds.
inline void decode(const Tiles& weight, size_t tile, size_t c, float* out) {
  const int bits = weight.kind == Kind::lut4 ? 4 : weight.kind == Kind::lut2 ? 2 : 8;
  const size_t per_load = 4 * (8 / bits);
  const uint8_t* w = weight.data + tile * weight.tile_bytes + c / per_load * 64;
  const int shift = static_cast<int>(c % per_load / 4) * bits;
  for (size_t row = 0; row < kRows; row++) {
    for (size_t i = 0; i < 4; i++) {
      const uint8_t byte = w[4 * row + i];
      out[16 * i + row] = bits == 8 ? static_cast<int8_t>(byte) * weight.scales[16 * tile + row]
                                    : weight.exact[16 * tile + ((byte >> shift) & ((1 << bits) - 1))];
    }
  }
}

template <int N>
void real_tile(const Tiles& weight, size_t tile, const float* x, size_t x_stride, float scale, bool add, float* out,
               size_t stride) {
  constexpr int chains = 2;  // whatever N is: a token's sums must not depend on what it shares a step with
  const uint8_t* w = weight.data + tile * weight.tile_bytes;
  F total[N][chains];
  for (int i = 0; i < N; i++) {
    for (int k = 0; k < chains; k++) total[i][k] = Lanes::set1(0.0f);
  }
  float block[64];
  for (size_t c = 0; c < weight.columns; c += 4) {
    const size_t columns = weight.columns - c < 4 ? weight.columns - c : 4;
    const bool decoded = weight.kind < Kind::f16;
    if (decoded) decode(weight, tile, c, block);
    for (size_t k = 0; k < columns; k++) {
      const size_t at = 16 * (c + k);
      const F values = decoded                       ? Lanes::load(block + 16 * k)
                       : weight.kind == Kind::f16    ? Lanes::from_half(reinterpret_cast<const uint16_t*>(w) + at)
                       : weight.kind == Kind::bf16   ? Lanes::from_bfloat(reinterpret_cast<const uint16_t*>(w) + at)
                                                     : Lanes::load(reinterpret_cast<const float*>(w) + at);
      for (int i = 0; i < N; i++) {
        F& sum = total[i][k % chains];
        sum = Lanes::fma(values, Lanes::set1(x[i * x_stride + c + k]), sum);
      }
    }
  }
  for (int i = 0; i < N; i++) {
    for (int k = 1; k < chains; k++) total[i][0] = Lanes::add(total[i][0], total[i][k]);
    F result = Lanes::mul(total[i][0], Lanes::set1(scale));
    if (add) result = Lanes::add(result, Lanes::load(out + i * stride));
    Lanes::store(out + i * stride, result);
  }
}

void real(const Tiles& weight, size_t tile, const float* x, size_t x_stride, int n, float scale, bool add, float* out,
          size_t stride) {
  while (n > 0) {
#ifdef OPENAFM_NARROW
    const int step = n >= 3 ? 3 : n;
#else
    const int step = n >= 8 ? 8 : n;
#endif
    switch (step) {
#define CASE(n) case n: real_tile<n>(weight, tile, x, x_stride, scale, add, out, stride); break;
      CASE(1) CASE(2) CASE(3)
#ifndef OPENAFM_NARROW
      CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#endif
#undef CASE
    }
    x += step * x_stride;
    out += step * stride;
    n -= step;
  }
}

float to_bytes(const float* x, size_t n, int8_t* out) {
  F most = Lanes::set1(0.0f);
  for (size_t k = 0; k < n; k += 16) most = Lanes::max(most, Lanes::absolute(Lanes::load(x + k)));
  const float largest = Lanes::highest(most), inverse = largest > 0 ? 127.0f / largest : 0.0f;
  for (size_t k = 0; k < n; k++) {
    const float shifted = x[k] * inverse + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, 4);
    out[k] = static_cast<int8_t>(bits - 0x4B400000);
  }
  return largest / 127.0f;
}

void quantize(const float* x, size_t stride, size_t columns, size_t padded, const Panel& panel) {
  for (int row = 0; row < panel.n; row += panel.planes, x += stride) {
    for (size_t g = 0; g < padded / kGroup; g++) {
      float block[kGroup] = {};
      const size_t first = g * kGroup, count = columns - first < kGroup ? columns - first : kGroup;
      std::memcpy(block, x + first, count * sizeof(float));
      for (int i = row; i < row + panel.planes; i++) {
        int8_t values[kGroup];
        const float scale = panel.scales[g * panel.n + i] = to_bytes(block, kGroup, values);
        int32_t sum = 0;
        for (size_t k = 0; k < kGroup; k++) sum += values[k], block[k] -= scale * values[k];
        panel.sums[g * panel.n + i] = -128 * sum;
        for (size_t k = 0; k < kGroup; k += 4) {
          std::memcpy(panel.values + (first + k) * panel.n + 4 * i, values + k, 4);
        }
      }
    }
  }
}

// Sums over the first n floats, the rest of the last 16 read from a padded copy.
template <class Body>
inline void sixteen(size_t n, const float* x, float padding, Body body) {
  size_t k = 0;
  for (; k + 16 <= n; k += 16) body(k, Lanes::load(x + k));
  if (k < n) {
    float rest[16];
    for (size_t i = 0; i < 16; i++) rest[i] = k + i < n ? x[k + i] : padding;
    body(k, Lanes::load(rest));
  }
}

void rms_norm(const float* x, const float* gain, size_t width, float eps, float* out) {
  F squares = Lanes::set1(0.0f);
  sixteen(width, x, 0.0f, [&](size_t, F v) { squares = Lanes::fma(v, v, squares); });
  const float inverse = 1.0f / std::sqrt(Lanes::sum(squares) / static_cast<float>(width) + eps);
  for (size_t k = 0; k < width; k++) out[k] = x[k] * inverse * gain[k];
}

// gate * sigmoid(gate) * up in place of gate; width is padded to a multiple of 16 by the caller
void swiglu(float* gate, const float* up, size_t width) {
  for (size_t k = 0; k < width; k += 16) {
    const F g = Lanes::load(gate + k);
    const F e = exponential(Lanes::sub(Lanes::set1(0.0f), g));
    const F sigmoid = Lanes::divide(Lanes::set1(1.0f), Lanes::add(Lanes::set1(1.0f), e));
    Lanes::store(gate + k, Lanes::mul(Lanes::mul(g, sigmoid), Lanes::load(up + k)));
  }
}

void attend(const float* queries, int n, const int* valid, const float* key, const float* value, size_t width,
            float* maximum, float* total, float* out) {
  for (int q = 0; q < n; q++) {
    if (valid[q] <= 0) continue;
    const float* query = queries + q * width;
    F sums[4] = {Lanes::set1(0.0f), Lanes::set1(0.0f), Lanes::set1(0.0f), Lanes::set1(0.0f)};
    for (size_t d = 0; d < width; d += 4) {  // width is a multiple of 16
      for (size_t k = 0; k < 4; k++) {
        sums[k] = Lanes::fma(Lanes::load(key + 16 * (d + k)), Lanes::set1(query[d + k]), sums[k]);
      }
    }
    float scores[16];
    Lanes::store(scores, Lanes::add(Lanes::add(sums[0], sums[1]), Lanes::add(sums[2], sums[3])));
    for (int p = valid[q]; p < 16; p++) scores[p] = -INFINITY;
    const F score = Lanes::load(scores);
    const float highest = std::fmax(maximum[q], Lanes::highest(score));
    const float fade = std::exp(maximum[q] - highest);  // 0 the first time: the maximum is -infinity
    F chance = exponential(Lanes::sub(score, Lanes::set1(highest)));
    float chances[16];
    Lanes::store(chances, chance);
    float sum = 0.0f;
    for (int p = 0; p < valid[q] && p < 16; p++) sum += chances[p];
    maximum[q] = highest;
    total[q] = total[q] * fade + sum;
    const int last = valid[q] < 16 ? valid[q] : 16;
    float* mixed = out + q * width;
    for (size_t d = 0; d < width; d += 16) {
      F mix = Lanes::mul(Lanes::load(mixed + d), Lanes::set1(fade));
      for (int p = 0; p < last; p++) mix = Lanes::fma(Lanes::load(value + p * width + d), Lanes::set1(chances[p]), mix);
      Lanes::store(mixed + d, mix);
    }
  }
}

void from_halves(const uint16_t* halves, size_t n, float* out) {
  for (size_t k = 0; k < n; k += 16) Lanes::store(out + k, Lanes::from_half(halves + k));
}

void to_halves(const float* x, size_t n, uint16_t* out) {
  for (size_t k = 0; k < n; k += 16) Lanes::to_half(Lanes::load(x + k), out + k);
}

void from_bytes(const int8_t* key, const int8_t* value, const float* key_scales, const float* value_scales, size_t width,
                float* out) {
  const F scales = Lanes::load(key_scales);
  for (size_t d = 0; d < width; d++) Lanes::store(out + 16 * d, Lanes::mul(Lanes::from_byte(key + 16 * d), scales));
  out += 16 * width;
  for (size_t p = 0; p < 16; p++) {
    const F scale = Lanes::set1(value_scales[p]);
    for (size_t d = p * width; d < (p + 1) * width; d += 16) {
      Lanes::store(out + d, Lanes::mul(Lanes::from_byte(value + d), scale));
    }
  }
}

double sum_exp(const float* x, size_t n, float scale, float shift, float* out) {
  double total = 0.0;
  const F s = Lanes::set1(scale), m = Lanes::set1(shift);
  for (size_t start = 0; start < n; start += 1024) {  // partial sums in double: the vocabulary is long
    F sum = Lanes::set1(0.0f);
    const size_t count = n - start < 1024 ? n - start : 1024;
    sixteen(count, x + start, -INFINITY, [&](size_t k, F v) {
      const F term = exponential(Lanes::mul(Lanes::sub(v, m), s));
      sum = Lanes::add(sum, term);
      if (!out) return;
      float terms[16];
      Lanes::store(terms, term);
      std::memcpy(out + start + k, terms, (count - k < 16 ? count - k : 16) * sizeof(float));
    });
    total += Lanes::sum(sum);
  }
  return total;
}

constexpr Kernels kKernels = {Lanes::kName, Lanes::kPanel, integer, real,      quantize, rms_norm,
                              swiglu,       attend,        from_halves, to_halves, to_bytes, from_bytes, sum_exp};

}  // namespace
}  // namespace openafm
