// Vectors of float32 by the compiler's extension, as wide as the machine's registers, and what is computed on them.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace torch_rewrite {

#if defined(__AVX512F__)
constexpr int VL = 16;         // floats of one register
constexpr int REGISTERS = 32;  // how many there are
#elif defined(__AVX2__)
constexpr int VL = 8;
constexpr int REGISTERS = 16;
#else
constexpr int VL = 4;
constexpr int REGISTERS = 16;
#endif

typedef float vec __attribute__((vector_size(VL * 4)));
typedef int32_t ivec __attribute__((vector_size(VL * 4)));
typedef float unaligned_vec __attribute__((vector_size(VL * 4), aligned(4), may_alias));

inline vec load(const float* from) { return *reinterpret_cast<const unaligned_vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<unaligned_vec*>(to) = value; }
inline vec all(float value) { return value - vec{}; }  // exact, and one instruction

// The first floats of a vector; there is no more behind them.
#if defined(__AVX512F__)
struct Lanes {
  __mmask16 mask;
  explicit Lanes(int64_t count) : mask(count >= VL ? 0xffff : (1 << count) - 1) {}
};
inline vec load(const float* from, Lanes lanes) { return (vec)_mm512_maskz_loadu_ps(lanes.mask, from); }
inline void store(float* to, vec value, Lanes lanes) { _mm512_mask_storeu_ps(to, lanes.mask, (__m512)value); }
#else
struct Lanes {
  int64_t count;
  explicit Lanes(int64_t count) : count(count) {}
};
inline vec load(const float* from, Lanes lanes) {
  if (lanes.count >= VL) return load(from);
  vec value{};
  std::memcpy(&value, from, lanes.count * sizeof(float));
  return value;
}
inline void store(float* to, vec value, Lanes lanes) {
  if (lanes.count >= VL) return store(to, value);
  std::memcpy(to, &value, lanes.count * sizeof(float));
}
#endif

// The larger, the smaller of both; x where it is NaN, as the instructions have it.
inline vec at_least(vec x, float bound) {
#if defined(__AVX512F__)
  return (vec)_mm512_max_ps((__m512)all(bound), (__m512)x);
#elif defined(__AVX2__)
  return (vec)_mm256_max_ps((__m256)all(bound), (__m256)x);
#else
  return x < bound ? all(bound) : x;
#endif
}

inline vec at_most(vec x, float bound) {
#if defined(__AVX512F__)
  return (vec)_mm512_min_ps((__m512)all(bound), (__m512)x);
#elif defined(__AVX2__)
  return (vec)_mm256_min_ps((__m256)all(bound), (__m256)x);
#else
  return x > bound ? all(bound) : x;
#endif
}

// e^x for x between -87 and 88, and what those give beyond; 2^n 2^f with a polynomial for 2^f, f at most 1/2, that
// interpolates at Chebyshev's points: within 1.5e-7, and 1e-7 |x| where there is no fused product.
inline vec exponential(vec x) {
  constexpr float LOG2_E = 1.44269504f, SHIFT = 12582912.0f + 127.0f;  // 1.5 * 2^23: what is added is rounded
  const vec bounded = at_most(at_least(x, -87.0f), 88.0f);
  const vec shifted = bounded * LOG2_E + SHIFT;
  const vec f = bounded * LOG2_E - (shifted - SHIFT);
  vec p = all(1.545316295e-4f);
  p = p * f + 1.339086336e-3f;
  p = p * f + 9.618082557e-3f;
  p = p * f + 5.550357114e-2f;
  p = p * f + 2.402265076e-1f;
  p = p * f + 6.931471880e-1f;
  p = p * f + 1.0f;
  ivec bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits <<= 23;
  vec power;
  std::memcpy(&power, &bits, sizeof(power));
  return p * power;
}

// Of finite numbers whose reciprocal is not denormal: an estimate, and a step of Newton's.
inline vec reciprocal(vec x) {
#if defined(__AVX512F__)
  const vec estimate = (vec)_mm512_rcp14_ps((__m512)x);
  return estimate * (2.0f - x * estimate);
#else
  return 1.0f / x;
#endif
}

inline vec sigmoid(vec x) {
  const vec result = reciprocal(1.0f + exponential(-x));
  return x < -87.0f ? all(0.0f) : result;  // so that of -infinity it is 0, and SiLU NaN, as torch's
}

// The error function of Abramowitz and Stegun, 7.1.26: within 1.5e-7.
inline vec error_function(vec x) {
  const vec size = at_most(x < 0.0f ? -x : x, 6.0f);
  const vec t = reciprocal(1.0f + 0.3275911f * size);
  vec p = all(1.061405429f);
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const vec result = 1.0f - p * t * exponential(-size * size);
  return x < 0.0f ? -result : result;
}

// In the order of the names in codegen/native/operators.py.
enum class Activation : int64_t { none, relu, relu6, hardswish, hardsigmoid, sigmoid, silu, gelu };

inline vec activated(vec x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return at_least(x, 0.0f);
    case Activation::relu6: return at_most(at_least(x, 0.0f), 6.0f);
    case Activation::hardswish: return x * (at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f));
    case Activation::hardsigmoid: return at_most(at_least(x + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
    case Activation::sigmoid: return sigmoid(x);
    case Activation::silu: return x * sigmoid(x);
    case Activation::gelu: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
  }
  return x;
}

}  // namespace torch_rewrite
