// The reference: plain C++ for any processor. The other sets are held against it.
#include <cmath>
#include <cstdint>
#include <cstring>

#define OPENAFM_NARROW
namespace openafm {
namespace {

struct Lanes {
  struct F { float v[16]; };
  struct I { int32_t v[16]; };
  struct B { uint8_t v[64]; };
  struct W { int8_t v[64]; };
  struct T { int8_t v[16]; };
  static constexpr const char* kName = "portable";
  static constexpr int kPanel = 4, kSplit = 0;

  template <class Each> static F each(Each f) {
    F r;
    for (int i = 0; i < 16; i++) r.v[i] = f(i);
    return r;
  }
  static F load(const float* p) { return each([&](int i) { return p[i]; }); }
  static void store(float* p, F x) { std::memcpy(p, x.v, 64); }
  static F set1(float x) { return each([&](int) { return x; }); }
  static F add(F a, F b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
  static F sub(F a, F b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
  static F mul(F a, F b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
  static F divide(F a, F b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
  static F fma(F a, F b, F c) { return each([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
  static F max(F a, F b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
  static F min(F a, F b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
  static F absolute(F a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
  static float sum(F a) {
    float s = 0;
    for (float x : a.v) s += x;
    return s;
  }
  static float highest(F a) {
    float m = a.v[0];
    for (float x : a.v) m = x > m ? x : m;
    return m;
  }
  static F times_power(F p, F shifted) {  // p * 2^n, n in the low bits of shifted
    return each([&](int i) {
      int32_t bits, n;
      std::memcpy(&bits, &p.v[i], 4);
      std::memcpy(&n, &shifted.v[i], 4);
      bits += static_cast<int32_t>(static_cast<uint32_t>(n) << 23);
      float r;
      std::memcpy(&r, &bits, 4);
      return r;
    });
  }
  static float half(uint16_t h) {
    const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 0) {
      const float small = static_cast<float>(fraction) * 0x1p-24f;
      return sign ? -small : small;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7F800000u : (exponent + 112) << 23) | fraction << 13;
    float r;
    std::memcpy(&r, &bits, 4);
    return r;
  }
  static F from_half(const uint16_t* p) { return each([&](int i) { return half(p[i]); }); }
  static uint16_t half(float x) {  // ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x7F800000u) return static_cast<uint16_t>(sign | (magnitude > 0x7F800000u ? 0x7E00u : 0x7C00u));
    if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // rounds beyond 65504
    if (magnitude < 0x38800000u) {  // subnormal: units of 2^-24
      const float units = std::nearbyint(std::fabs(x) * 0x1p24f);
      return static_cast<uint16_t>(sign | static_cast<uint32_t>(units));
    }
    const uint32_t rounded = magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | rounded >> 13);
  }
  static void to_half(F x, uint16_t* p) {
    for (int i = 0; i < 16; i++) p[i] = half(x.v[i]);
  }
  static F from_bfloat(const uint16_t* p) {
    return each([&](int i) {
      const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
      float r;
      std::memcpy(&r, &bits, 4);
      return r;
    });
  }
  static F from_byte(const int8_t* p) { return each([&](int i) { return static_cast<float>(p[i]); }); }
  static B bytes(const uint8_t* p) {
    B b;
    std::memcpy(b.v, p, 64);
    return b;
  }
  template <int Shift> static B shift(B b) {
    for (uint8_t& x : b.v) x = static_cast<uint8_t>(x >> Shift);
    return b;
  }
  static T table(const int8_t* p) {
    T t = {};
    if (p) std::memcpy(t.v, p, 16);
    return t;
  }
  template <int Bits> static W look(const T& t, const B& b) {
    W w;
    for (int i = 0; i < 64; i++) w.v[i] = t.v[b.v[i] & ((1 << Bits) - 1)];
    return w;
  }
  static W signed_bytes(const B& b) {
    W w;
    std::memcpy(w.v, b.v, 64);
    return w;
  }
  static I start(const int32_t*) { return nothing(); }
  static I nothing() { return {}; }
  template <int Bits, int N> static I dot(I sum, const W& w, const int8_t* a) {
    for (int i = 0; i < 16; i++) {
      for (int k = 0; k < 4; k++) sum.v[i] += w.v[4 * i + k] * a[k];
    }
    return sum;
  }
  static I plus(I a, const I& b) {
    for (int i = 0; i < 16; i++) a.v[i] += b.v[i];
    return a;
  }
  static F to_float(const I& a) { return each([&](int i) { return static_cast<float>(a.v[i]); }); }
  static void prefetch(const void*) {}
};

}  // namespace
}  // namespace openafm

#include "generic.h"

const openafm::Kernels* openafm::portable_kernels() { return &kKernels; }
