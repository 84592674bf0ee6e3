// AVX2 with FMA and F16C: a tile's 16 rows of 4 columns are two registers. Without vpdpbusd, signed products come from
// |w| times sign(a, w), or |a| times sign(w, a), whose pairs fit 16 bits. Compiled twice: avxvnni.cpp has vpdpbusd in these registers.
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__) && (!defined(OPENAFM_VNNI) || defined(__AVXVNNI__))
#include <immintrin.h>

#define OPENAFM_NARROW
namespace openafm {
namespace {

struct Lanes {
  struct F { __m256 a, b; };
  struct I { __m256i a, b; };
  using B = I;
  struct W { __m256i a, b, c, d; };  // w, and |w| where it is needed; with VNNI w + 128
  using T = __m256i;
#ifdef OPENAFM_VNNI
  static constexpr const char* kName = "avxvnni";
#else
  static constexpr const char* kName = "avx2";
#endif
  static constexpr int kPanel = 4, kSplit = 1;

  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
  static F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static F divide(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static F absolute(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static float sum(F x) {
    const __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
  }
  static float highest(F x) {
    const __m256 s = _mm256_max_ps(x.a, x.b);
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
  }
  static __m256 times_power(__m256 p, __m256 n) {
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
  }
  static F times_power(F p, F n) { return {times_power(p.a, n.a), times_power(p.b, n.b)}; }
  static __m128i eight(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static F from_half(const uint16_t* p) { return {_mm256_cvtph_ps(eight(p)), _mm256_cvtph_ps(eight(p + 8))}; }
  static void to_half(F x, uint16_t* p) {
    __m128i* out = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(out, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(out + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
  }
  static __m256 bfloat(__m128i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16)); }
  static F from_bfloat(const uint16_t* p) { return {bfloat(eight(p)), bfloat(eight(p + 8))}; }
  static __m256 byte(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static F from_byte(const int8_t* p) { return {byte(p), byte(p + 8)}; }
  static B bytes(const uint8_t* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  template <int Shift> static B shift(B x) {
    if constexpr (Shift == 0) return x;
    else return {_mm256_srli_epi16(x.a, Shift), _mm256_srli_epi16(x.b, Shift)};
  }
  static T table(const int8_t* p) {
    if (!p) return _mm256_setzero_si256();
    const T t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#ifdef OPENAFM_VNNI
    return _mm256_xor_si256(t, _mm256_set1_epi8(-128));
#else
    return t;
#endif
  }
  template <int Bits> static W look(T t, B x) {  // a table of 4 is stored four times over
    const __m256i mask = _mm256_set1_epi8(15);
    return whole(_mm256_shuffle_epi8(t, _mm256_and_si256(x.a, mask)),
                 _mm256_shuffle_epi8(t, _mm256_and_si256(x.b, mask)));
  }
#ifdef OPENAFM_VNNI
  static W whole(__m256i a, __m256i b) { return {a, b, a, b}; }
  static W signed_bytes(B x) {
    const __m256i top = _mm256_set1_epi8(-128);
    return whole(_mm256_xor_si256(x.a, top), _mm256_xor_si256(x.b, top));
  }
  static I start(const int32_t* sum) { return {_mm256_set1_epi32(*sum), _mm256_set1_epi32(*sum)}; }
  template <int Bits, int N> static I dot(I s, const W& w, const int8_t* p) {
    const __m256i a = broadcast(p);
    return {_mm256_dpbusd_avx_epi32(s.a, w.a, a), _mm256_dpbusd_avx_epi32(s.b, w.b, a)};
  }
#else
  static W whole(__m256i a, __m256i b) { return {a, b, _mm256_abs_epi8(a), _mm256_abs_epi8(b)}; }
  static W signed_bytes(B x) { return whole(x.a, x.b); }
  static I start(const int32_t*) { return nothing(); }
  static __m256i add_pairs(__m256i s, __m256i pairs) {
    return _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  template <int Bits, int N> static I dot(I s, const W& w, const int8_t* p) {
    const __m256i a = broadcast(p);
    if constexpr (Bits < 8 && N <= 2) {  // one |a| for both registers is cheaper than two |w|; tables have no -128
      const __m256i size = _mm256_abs_epi8(a);
      return {add_pairs(s.a, _mm256_maddubs_epi16(size, _mm256_sign_epi8(w.a, a))),
              add_pairs(s.b, _mm256_maddubs_epi16(size, _mm256_sign_epi8(w.b, a)))};
    }
    return {add_pairs(s.a, _mm256_maddubs_epi16(w.c, _mm256_sign_epi8(a, w.a))),
            add_pairs(s.b, _mm256_maddubs_epi16(w.d, _mm256_sign_epi8(a, w.b)))};
  }
#endif
  static __m256i broadcast(const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  static I nothing() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static I plus(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
};

}  // namespace
}  // namespace openafm

#include "generic.h"

#ifdef OPENAFM_VNNI
const openafm::Kernels* openafm::avxvnni_kernels() { return &kKernels; }
#else
const openafm::Kernels* openafm::avx2_kernels() { return &kKernels; }
#endif
#elif defined(OPENAFM_VNNI)
const openafm::Kernels* openafm::avxvnni_kernels() { return nullptr; }
#else
const openafm::Kernels* openafm::avx2_kernels() { return nullptr; }
#endif
