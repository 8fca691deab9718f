// Products of a few rows with a panel of a packed matrix, all sums in registers.
#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "vector.h"

namespace torch_rewrite {

constexpr int MAX_VECTORS = REGISTERS == 32 ? 4 : 2;  // of columns in a panel
constexpr int MAX_ROWS = 14;

// How many rows fit into registers beside a panel's row of so many vectors.
constexpr int rows_for(int vectors) {
  return std::min(MAX_ROWS, (REGISTERS - 2 - (REGISTERS == 32 ? vectors : 0)) / vectors);
}

// Columns are cut into panels of one to MAX_VECTORS vectors, as even as can be.
struct Panels {
  int64_t columns, vectors, count;
  explicit Panels(int64_t columns)
      : columns(columns), vectors((columns + VL - 1) / VL), count((vectors + MAX_VECTORS - 1) / MAX_VECTORS) {}
  int64_t first(int64_t panel) const { return panel * vectors / count; }  // its first vector
  int width(int64_t panel) const { return static_cast<int>(first(panel + 1) - first(panel)); }
};

// Channels as vectors of weights have them, filled up with zeros.
inline int64_t filled(int64_t channels) { return (channels + 15) / 16 * 16; }

// What is done to a sum before it is stored.
struct Epilogue {
  const float* bias;      // for all columns, or none
  const float* residual;  // an image of the result's size, or none: added before the activation
  int64_t residual_pitch;
  Activation activation;
};

// What the activation is as bounds; `exact` where it is nothing else.
struct Bounds {
  float low, high;
  bool exact;
  explicit Bounds(Activation activation)
      : low(activation == Activation::none ? -INFINITY : 0.0f), high(activation == Activation::relu6 ? 6.0f : INFINITY),
        exact(activation <= Activation::relu6) {}
};

// Where rows of results go, and rows of what is added to them lie: distances in floats.
struct Places {
  int64_t results[MAX_ROWS], residuals[MAX_ROWS];
};

// Where a tile's sums go: row r from `to + offset[r]` on, the last vector as far as `last` says.
struct Output {
  float* to;
  const int64_t* offset;
  Lanes last;
  const float *bias, *residual;  // added, where they are there
  const int64_t* residual_offset;
  Bounds bounds;
};

// `rows[tap * MAX_ROWS + r]` are the inputs of row r.
using Tile = void (*)(const float* const* rows, int64_t taps, int64_t depth, const float* panel, const Output& output);

// Nothing is called as long as there are sums: the compiler keeps all of them in registers only then.
template <int ROWS, int VECTORS>
void multiply(const float* const* rows, int64_t taps, int64_t depth, const float* panel, const Output& output) {
  vec sum[ROWS][VECTORS] = {};
  for (int64_t tap = 0; tap < taps; tap++) {
    const float* a[ROWS];
#pragma GCC unroll 14
    for (int r = 0; r < ROWS; r++) a[r] = rows[tap * MAX_ROWS + r];
    for (int64_t k = 0; k < depth; k++) {
      vec b[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) b[v] = load(panel + v * VL);
      panel += VECTORS * VL;
#pragma GCC unroll 14
      for (int r = 0; r < ROWS; r++) {
        const vec x = all(a[r][k]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[r][v] += x * b[v];
      }
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; v++) {
    const Lanes lanes = v == VECTORS - 1 ? output.last : Lanes(VL);
    if (output.bias) {
      const vec bias = load(output.bias + v * VL, lanes);
#pragma GCC unroll 14
      for (int r = 0; r < ROWS; r++) sum[r][v] += bias;
    }
    if (output.residual)
#pragma GCC unroll 14
      for (int r = 0; r < ROWS; r++) sum[r][v] += load(output.residual + output.residual_offset[r] + v * VL, lanes);
#pragma GCC unroll 14
    for (int r = 0; r < ROWS; r++)
      store(output.to + output.offset[r] + v * VL, at_most(at_least(sum[r][v], output.bounds.low), output.bounds.high),
            lanes);
  }
}

template <Activation ACTIVATION>
void finish_with(const float* sums, int rows, int vectors, float* out, const Places& places, int64_t column,
                 int64_t columns, const Epilogue& epilogue) {
  for (int v = 0; v < vectors; v++, column += VL) {
    const Lanes left(columns - column);
    const vec bias = epilogue.bias ? load(epilogue.bias + column, left) : vec{};
    for (int r = 0; r < rows; r++) {
      vec value = load(sums + (r * vectors + v) * VL) + bias;
      if (epilogue.residual) value += load(epilogue.residual + places.residuals[r] + column, left);
      store(out + places.results[r] + column, activated(value, ACTIVATION), left);
    }
  }
}

// Stores rows of sums, `vectors` wide, from a column on.
inline void finish(const float* sums, int rows, int vectors, float* out, const Places& places, int64_t column,
                   int64_t columns, const Epilogue& epilogue) {
  const auto with = [&](auto how) { how(sums, rows, vectors, out, places, column, columns, epilogue); };
  switch (epilogue.activation) {
    case Activation::none: return with(finish_with<Activation::none>);
    case Activation::relu: return with(finish_with<Activation::relu>);
    case Activation::relu6: return with(finish_with<Activation::relu6>);
    case Activation::hardswish: return with(finish_with<Activation::hardswish>);
    case Activation::hardsigmoid: return with(finish_with<Activation::hardsigmoid>);
    case Activation::sigmoid: return with(finish_with<Activation::sigmoid>);
    case Activation::silu: return with(finish_with<Activation::silu>);
    case Activation::gelu: return with(finish_with<Activation::gelu>);
  }
}

template <int VECTORS, int... ROWS>
constexpr void fill(Tile (&row)[MAX_ROWS + 1], std::integer_sequence<int, ROWS...>) {
  ((row[ROWS + 1] = multiply<ROWS + 1, VECTORS>), ...);
}

struct Tiles {
  Tile of[MAX_VECTORS + 1][MAX_ROWS + 1] = {};
  constexpr Tiles() { fill_all(std::make_integer_sequence<int, MAX_VECTORS>{}); }
  template <int... V>
  constexpr void fill_all(std::integer_sequence<int, V...>) {
    (fill<V + 1>(of[V + 1], std::make_integer_sequence<int, rows_for(V + 1)>{}), ...);
  }
};

inline constexpr Tiles TILES{};

}  // namespace torch_rewrite
