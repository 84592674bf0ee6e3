// NEON with the dot-product extension (ARMv8.2 and later): a tile's 16 rows of 4 columns are four registers.
#include "kernels.h"

#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

#define OPENAFM_NARROW
namespace openafm {
namespace {

struct Lanes {
  struct F { float32x4_t v[4]; };
  struct I { int32x4_t v[4]; };
  struct B { uint8x16_t v[4]; };
  struct W { int8x16_t v[4]; };
  using T = int8x16_t;
  static constexpr const char* kName = "neon";
  static constexpr int kPanel = 4, kSplit = 1;

  template <class Each> static F each(Each f) { return {f(0), f(1), f(2), f(3)}; }
  static F load(const float* p) { return each([&](int i) { return vld1q_f32(p + 4 * i); }); }
  static void store(float* p, F x) {
    for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
  }
  static F set1(float x) { return each([&](int) { return vdupq_n_f32(x); }); }
  static F add(F a, F b) { return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); }); }
  static F sub(F a, F b) { return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); }); }
  static F mul(F a, F b) { return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); }); }
  static F divide(F a, F b) { return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); }); }
  static F fma(F a, F b, F c) { return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); }); }
  static F max(F a, F b) { return each([&](int i) { return vmaxq_f32(a.v[i], b.v[i]); }); }
  static F min(F a, F b) { return each([&](int i) { return vminq_f32(a.v[i], b.v[i]); }); }
  static F absolute(F a) { return each([&](int i) { return vabsq_f32(a.v[i]); }); }
  static float sum(F a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3]))); }
  static float highest(F a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }
  static F times_power(F p, F n) {
    return each([&](int i) {
      return vreinterpretq_f32_s32(
          vaddq_s32(vreinterpretq_s32_f32(p.v[i]), vshlq_n_s32(vreinterpretq_s32_f32(n.v[i]), 23)));
    });
  }
  static F from_half(const uint16_t* p) {
    return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static void to_half(F x, uint16_t* p) {
    for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
  }
  static F from_bfloat(const uint16_t* p) {
    return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static F from_byte(const int8_t* p) {
    const int8x16_t x = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(x)), high = vmovl_s8(vget_high_s8(x));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(low))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(low))),
            vcvtq_f32_s32(vmovl_s16(vget_low_s16(high))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(high)))};
  }
  static B bytes(const uint8_t* p) { return {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}; }
  template <int Shift> static B shift(B b) {
    if constexpr (Shift == 0) return b;
    else {
      for (auto& x : b.v) x = vshrq_n_u8(x, Shift);
      return b;
    }
  }
  static T table(const int8_t* p) { return p ? vld1q_s8(p) : vdupq_n_s8(0); }
  template <int Bits> static W look(T t, B b) {
    const uint8x16_t mask = vdupq_n_u8((1 << Bits) - 1);
    return {vqtbl1q_s8(t, vandq_u8(b.v[0], mask)), vqtbl1q_s8(t, vandq_u8(b.v[1], mask)),
            vqtbl1q_s8(t, vandq_u8(b.v[2], mask)), vqtbl1q_s8(t, vandq_u8(b.v[3], mask))};
  }
  static W signed_bytes(B b) {
    return {vreinterpretq_s8_u8(b.v[0]), vreinterpretq_s8_u8(b.v[1]), vreinterpretq_s8_u8(b.v[2]),
            vreinterpretq_s8_u8(b.v[3])};
  }
  static I start(const int32_t*) { return nothing(); }
  static I nothing() { return {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}; }
  template <int Bits, int N> static I dot(I s, const W& w, const int8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    const int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (int i = 0; i < 4; i++) s.v[i] = vdotq_s32(s.v[i], w.v[i], a);
    return s;
  }
  static I plus(I a, I b) {
    for (int i = 0; i < 4; i++) a.v[i] = vaddq_s32(a.v[i], b.v[i]);
    return a;
  }
  static F to_float(I a) { return each([&](int i) { return vcvtq_f32_s32(a.v[i]); }); }
  static void prefetch(const void* p) { __builtin_prefetch(p); }
};

}  // namespace
}  // namespace openafm

#include "generic.h"

const openafm::Kernels* openafm::neon_kernels() { return &kKernels; }
#else
const openafm::Kernels* openafm::neon_kernels() { return nullptr; }
#endif
