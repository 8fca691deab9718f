// Vectors of float32 by the compiler's extension, as wide as the machine's registers, and what is computed on them.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

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

// The first `count` floats, zeros behind.
inline vec load(const float* from, int64_t count) {
  if (count >= VL) return load(from);
  vec value{};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

inline void store(float* to, vec value, int64_t count) {
  if (count >= VL) return store(to, value);
  std::memcpy(to, &value, count * sizeof(float));
}

// Comparisons with NaN are false, so that what stands last keeps it.
inline vec at_least(vec x, float bound) { return x < bound ? all(bound) : x; }
inline vec at_most(vec x, float bound) { return x > bound ? all(bound) : x; }

// Cephes' single precision exponential; infinite and zero where float32 is.
inline vec exponential(vec x) {
  const vec bounded = at_most(at_least(x, -87.0f), 88.0f);
  const vec n = __builtin_convertvector(
      __builtin_convertvector(bounded * 1.44269504f + (bounded < 0.0f ? all(-0.5f) : all(0.5f)), ivec), vec);
  const vec r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = all(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const ivec bits = (__builtin_convertvector(n, ivec) + 127) << 23;
  vec power;
  std::memcpy(&power, &bits, sizeof(power));
  vec result = p * power;
  result = x > 88.72283f ? all(std::numeric_limits<float>::infinity()) : result;
  result = x < -87.33654f ? all(0.0f) : result;
  return x != x ? x : result;
}

// The error function of Abramowitz and Stegun, 7.1.26: within 1.5e-7.
inline vec error_function(vec x) {
  const vec size = x < 0.0f ? -x : x;
  const vec t = 1.0f / (1.0f + 0.3275911f * size);
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
    case Activation::sigmoid: return 1.0f / (1.0f + exponential(-x));
    case Activation::silu: return x / (1.0f + exponential(-x));
    case Activation::gelu: return 0.5f * x * (1.0f + error_function(x * 0.70710678f));
  }
  return x;
}

}  // namespace torch_rewrite
