// AVX-512 with VNNI: a tile's 16 rows of 4 columns are one register, looked up by a byte shuffle, summed by vpdpbusd.
// Compiled twice: avx512vbmi.cpp adds vpermb, whose six-bit index spares the masks.
#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

namespace openafm {
namespace {

struct Lanes {
  using F = __m512;
  using I = __m512i;
  using B = __m512i;
  using W = __m512i;  // unsigned: weight + 128, which the panel's sums take back
  using T = __m512i;
#ifdef OPENAFM_VBMI
  static constexpr const char* kName = "avx512vbmi";
#else
  static constexpr const char* kName = "avx512";
#endif
  static constexpr int kPanel = 16, kSplit = 4;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F divide(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F absolute(F a) { return _mm512_abs_ps(a); }
  static float sum(F a) { return _mm512_reduce_add_ps(a); }
  static float highest(F a) { return _mm512_reduce_max_ps(a); }
  static F times_power(F p, F shifted) {
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
  }
  static F from_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static void to_half(F x, uint16_t* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
  }
  static F from_bfloat(const uint16_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
  }
  static F from_byte(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static B bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int Shift> static B shift(B b) {
    if constexpr (Shift == 0) return b;
    else return _mm512_srli_epi16(b, Shift);  // bits of the neighbour above are never looked at
  }
  static T table(const int8_t* p) {
    if (!p) return _mm512_setzero_si512();
    const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_xor_si512(_mm512_broadcast_i32x4(t), _mm512_set1_epi8(-128));
  }
  template <int Bits> static W look(T t, B b) {  // a table of 4 is stored four times over
#ifdef OPENAFM_VBMI
    return _mm512_permutexvar_epi8(b, t);
#else
    return _mm512_shuffle_epi8(t, _mm512_and_si512(b, _mm512_set1_epi8(15)));
#endif
  }
  static W signed_bytes(B b) { return _mm512_xor_si512(b, _mm512_set1_epi8(-128)); }
  static I start(const int32_t* sum) { return _mm512_set1_epi32(*sum); }
  static I nothing() { return _mm512_setzero_si512(); }
  template <int Bits, int N> static I dot(I sum, W w, const int8_t* a) {
    int32_t four;
    __builtin_memcpy(&four, a, 4);
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(four));
  }
  static I plus(I a, I b) { return _mm512_add_epi32(a, b); }
  static F to_float(I a) { return _mm512_cvtepi32_ps(a); }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
};

}  // namespace
}  // namespace openafm

#include "generic.h"

#ifdef OPENAFM_VBMI
const openafm::Kernels* openafm::avx512vbmi_kernels() { return &kKernels; }
#else
const openafm::Kernels* openafm::avx512_kernels() { return &kKernels; }
#endif
#elif defined(OPENAFM_VBMI)
const openafm::Kernels* openafm::avx512vbmi_kernels() { return nullptr; }
#else
const openafm::Kernels* openafm::avx512_kernels() { return nullptr; }
#endif
