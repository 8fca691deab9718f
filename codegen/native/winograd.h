// 3x3 convolutions of stride 1 by Winograd's F(4x4, 3x3): 36 products per channel and 16 results instead of 144
// ("Fast Algorithms for Convolutional Neural Networks", Lavin and Gray 2016).
#pragma once

#include "convolution.h"

namespace torch_rewrite {

// The points are -B, -A, 0, A, B and infinity. Inputs are evaluated up to a factor for each point, by which the
// transformed kernel is divided (see codegen/native/kernels.py).
constexpr float A = 0.75f, B = 1.5f;

inline void transform_input(const vec (&d)[6], vec (&t)[6]) {
  const vec even_a = d[4] - B * B * d[2], odd_a = A * (d[3] - B * B * d[1]);
  const vec even_b = d[4] - A * A * d[2], odd_b = B * (d[3] - A * A * d[1]);
  t[0] = even_b - odd_b;
  t[1] = even_a - odd_a;
  t[2] = d[4] - (A * A + B * B) * d[2] + A * A * B * B * d[0];
  t[3] = even_a + odd_a;
  t[4] = even_b + odd_b;
  t[5] = d[5] - (A * A + B * B) * d[3] + A * A * B * B * d[1];
}

inline void transform_output(const vec (&m)[6], vec (&y)[4]) {
  const vec even_a = m[3] + m[1], odd_a = m[3] - m[1], even_b = m[4] + m[0], odd_b = m[4] - m[0];
  y[0] = m[2] + even_a + even_b;
  y[1] = A * odd_a + B * odd_b;
  y[2] = A * A * even_a + B * B * even_b;
  y[3] = A * A * A * odd_a + B * B * B * odd_b + m[5];
}

class Winograd : Operands {
 public:
  // The kernel is 36 packed matrices [in channels, out channels], one behind the other.
  static int64_t packed(Image in, Window window, Image out) { return 36 * packed_size(1, in.channels, out.channels); }

  explicit Winograd(const Operands& operands)
      : Operands(operands), panels_(out_.channels), depth_((in_.channels + VL - 1) / VL * VL),
        columns_(panels_.vectors * VL), across_((out_.width + 3) / 4), down_((out_.height + 3) / 4) {}

  void run() {
    const int64_t tiles = out_.batch * across_ * down_;
    const int threads = threads_for(tiles * 36 * in_.channels * out_.channels);
    // tiles of a block: what is transformed should stay in a core's second cache
    const int64_t most = std::max<int64_t>(CACHE / (36 * (depth_ + columns_)), 2 * rows_for(MAX_VECTORS));
    const int64_t blocks = (tiles + most - 1) / most;
    if (threads == 1 || blocks >= 2 * threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
      {
        thread_local Scratch scratch;
#pragma omp for schedule(dynamic)
        for (int64_t b = 0; b < blocks; b++) {
          const Range block = share(tiles, b, blocks);
          const int64_t count = block.end - block.begin;
          float* v = scratch.take(36 * (depth_ + columns_) * count);
          float* m = v + 36 * depth_ * count;
          gather(block, {0, count * (depth_ / VL)}, v);
          multiply(count, {0, 36 * panels_.count}, v, m);
          scatter(block, {0, count * panels_.vectors}, m);
        }
      }
      return;
    }
    // few tiles: all threads work on each block, and share its matrices
    const int64_t shared_blocks = (tiles + threads * most - 1) / (threads * most);
    thread_local Scratch scratch;
    for (int64_t b = 0; b < shared_blocks; b++) {
      const Range block = share(tiles, b, shared_blocks);
      const int64_t count = block.end - block.begin;
      float* v = scratch.take(36 * (depth_ + columns_) * count);
      float* m = v + 36 * depth_ * count;
#pragma omp parallel num_threads(threads)
      {
        const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
        gather(block, share(count * (depth_ / VL), me, team), v);
#pragma omp barrier
        multiply(count, share(36 * panels_.count, me, team), v, m);
#pragma omp barrier
        scatter(block, share(count * panels_.vectors, me, team), m);
      }
    }
  }

 private:
  static constexpr int64_t CACHE = 160 * 1024;  // floats

  // Inputs of tiles, transformed: [36, tile, channel]. Items are pairs of a tile and a vector of channels.
  void gather(Range block, Range items, float* v) const {
    const int64_t count = block.end - block.begin, vectors = depth_ / VL, plane = count * depth_;
    for (int64_t item = items.begin; item < items.end; item++) {
      const int64_t tile = item / vectors, channel = item % vectors * VL;
      const Lanes left(in_.channels - channel);
      const auto [n, y, x] = corner(block.begin + tile);
      vec d[6][6], t[6];
      for (int i = 0; i < 6; i++) {
        const int64_t row = y - window_.top + i;
        const float* from = x_ + ((n * in_.height + row) * in_.width + x - window_.left) * in_.pitch + channel;
        for (int j = 0; j < 6; j++) {
          const int64_t column = x - window_.left + j;
          const bool inside = row >= 0 && row < in_.height && column >= 0 && column < in_.width;
          d[i][j] = inside ? load(from + j * in_.pitch, left) : vec{};
        }
      }
      for (int j = 0; j < 6; j++) {
        const vec column[6] = {d[0][j], d[1][j], d[2][j], d[3][j], d[4][j], d[5][j]};
        transform_input(column, t);
        for (int i = 0; i < 6; i++) d[i][j] = t[i];
      }
      float* to = v + tile * depth_ + channel;
      for (int i = 0; i < 6; i++) {
        transform_input(d[i], t);
        for (int j = 0; j < 6; j++, to += plane) store(to, t[j]);
      }
    }
  }

  // 36 products [tile, channel] x [channel, out channel]. Items are pairs of a matrix and a panel of columns.
  void multiply(int64_t count, Range items, const float* v, float* m) const {
    for (int64_t item = items.begin; item < items.end; item++) {
      const int64_t matrix = item / panels_.count, p = item % panels_.count, column = panels_.first(p) * VL;
      const int vectors = panels_.width(p), most = rows_for(vectors);
      const float* panel = packed_ + in_.channels * (matrix * columns_ + column);
      const float* from = v + matrix * count * depth_;
      float* to = m + matrix * count * columns_;
      const int64_t tiles = (count + most - 1) / most;
      for (int64_t t = 0; t < tiles; t++) {
        const Range range = share(count, t, tiles);
        const float* rows[MAX_ROWS];
        int64_t offset[MAX_ROWS];
        for (int64_t r = range.begin; r < range.end; r++)
          rows[r - range.begin] = from + r * depth_, offset[r - range.begin] = r * columns_;
        TILES.of[vectors][range.end - range.begin](
            rows, 1, in_.channels, panel,
            {to + column, offset, Lanes(VL), nullptr, nullptr, nullptr, Bounds(Activation::none)});
      }
    }
  }

  // Results of tiles from [36, tile, out channel]. Items are pairs of a tile and a vector of channels.
  void scatter(Range block, Range items, const float* m) const {
    const int64_t count = block.end - block.begin, plane = count * columns_;
    for (int64_t item = items.begin; item < items.end; item++) {
      const int64_t tile = item / panels_.vectors, channel = item % panels_.vectors * VL;
      const Lanes left(out_.channels - channel);
      const auto [n, y, x] = corner(block.begin + tile);
      const float* from = m + tile * columns_ + channel;
      vec half[4][6];
      for (int j = 0; j < 6; j++) {
        vec column[6], four[4];
        for (int i = 0; i < 6; i++) column[i] = load(from + (i * 6 + j) * plane);
        transform_output(column, four);
        for (int i = 0; i < 4; i++) half[i][j] = four[i];
      }
      const vec bias = epilogue_.bias ? load(epilogue_.bias + channel, left) : vec{};
      for (int i = 0; i < 4 && y + i < out_.height; i++) {
        vec four[4];
        transform_output(half[i], four);
        for (int j = 0; j < 4 && x + j < out_.width; j++) {
          const int64_t pixel = (n * out_.height + y + i) * out_.width + x + j;
          vec value = four[j] + bias;
          if (epilogue_.residual) value += load(epilogue_.residual + pixel * epilogue_.residual_pitch + channel, left);
          store(result_ + pixel * out_.pitch + channel, activated(value, epilogue_.activation), left);
        }
      }
    }
  }

  struct Corner {
    int64_t n, y, x;
  };

  Corner corner(int64_t tile) const {
    return {tile / (across_ * down_), tile / across_ % down_ * 4, tile % across_ * 4};
  }

  Panels panels_;
  int64_t depth_, columns_, across_, down_;
};

}  // namespace torch_rewrite
