// Depthwise convolutions of images with channels last: a block of channels of some rows is copied beside its zeros into
// the nearest cache, and a row of results is summed in registers.
#pragma once

#include "convolution.h"

namespace torch_rewrite {

class Depthwise : Operands {
 public:
  // The kernel is [taps, channels], the latter filled up with zeros to a multiple of 16.
  static int64_t packed(Image in, Window window, Image out) { return window.taps() * filled(out.channels); }

  explicit Depthwise(const Operands& operands)
      : Operands(operands), blocks_((in_.channels + VL - 1) / VL),
        reach_y_((window_.height - 1) * window_.dilation_y + 1), reach_x_((window_.width - 1) * window_.dilation_x + 1) {}

  void run() {
    width_ = (out_.width - 1) * window_.stride_x + reach_x_;
    // as many rows of results as have their inputs in the cache
    const int64_t most = std::max<int64_t>((CACHE / (width_ * VL) - reach_y_) / window_.stride_y + 1, 1);
    strips_ = (out_.height + most - 1) / most;
    const int64_t tasks = out_.batch * strips_ * blocks_;
    const int threads = static_cast<int>(std::min<int64_t>(
        threads_for(out_.batch * out_.height * out_.width * out_.channels * window_.taps()), tasks));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      thread_local Scratch scratch;
      const Range range = share(tasks, omp_get_thread_num(), omp_get_num_threads());
      for (int64_t task = range.begin; task < range.end; task++)
        part(task / blocks_ / strips_, share(out_.height, task / blocks_ % strips_, strips_), task % blocks_, scratch);
    }
  }

 private:
  static constexpr int64_t CACHE = 6 * 1024;  // floats

  static int64_t filled(int64_t channels) { return (channels + 15) / 16 * 16; }

  void part(int64_t n, Range ys, int64_t block, Scratch& scratch) const {
    const int64_t rows = (ys.end - ys.begin - 1) * window_.stride_y + reach_y_;
    float* copied = scratch.take(rows * width_ * VL);
    copy(n, ys.begin * window_.stride_y - window_.top, rows, block, copied);
    const int64_t channel = block * VL;
    const int64_t groups = (out_.width + WIDE - 1) / WIDE;
    for (int64_t y = ys.begin; y < ys.end; y++) {
      const float* from = copied + (y - ys.begin) * window_.stride_y * width_ * VL;
      const int64_t to = ((n * out_.height + y) * out_.width) * out_.channels;
      for (int64_t g = 0; g < groups; g++) {
        const Range some = share(out_.width, g, groups);
        const int count = static_cast<int>(some.end - some.begin);
        alignas(64) float sums[WIDE * VL];
        int64_t offset[WIDE];
        for (int i = 0; i < count; i++) offset[i] = to + (some.begin + i) * out_.channels;
        row(std::make_integer_sequence<int, WIDE>{}, count, from + some.begin * window_.stride_x * VL,
            packed_ + channel, sums);
        finish(sums, count, 1, result_, offset, channel, out_.channels, epilogue_);
      }
    }
  }

  static constexpr int WIDE = REGISTERS == 32 ? 8 : 4;  // neighbours that are summed at once

  void copy(int64_t n, int64_t y, int64_t rows, int64_t block, float* to) const {
    const int64_t channel = block * VL, left = in_.channels - channel;
    for (int64_t r = 0; r < rows; r++, y++) {
      const float* from = x_ + (n * in_.height + y) * in_.width * in_.channels + channel;
      const bool inside = y >= 0 && y < in_.height;
      const int64_t first = inside ? std::min(window_.left, width_) : width_;
      const int64_t last = inside ? std::clamp(window_.left + in_.width, first, width_) : width_;
      int64_t j = 0;
      for (; j < first; j++, to += VL) store(to, vec{});
      if (left >= VL) {
        for (; j < last; j++, from += in_.channels, to += VL) store(to, load(from));
      } else {
        for (; j < last; j++, from += in_.channels, to += VL) store(to, load(from, left));
      }
      for (; j < width_; j++, to += VL) store(to, vec{});
    }
  }

  // The sums of `count` neighbours, by code for that number.
  template <int... COUNTS>
  void row(std::integer_sequence<int, COUNTS...>, int count, const float* from, const float* kernel,
           float* sums) const {
    ((count == COUNTS + 1 && (row_of<COUNTS + 1>(from, kernel, sums), true)) || ...);
  }

  template <int COUNT>
  void row_of(const float* from, const float* kernel, float* sums) const {
    if (window_.dilation_x == 1 && window_.stride_x <= 2) {
      switch (window_.width * 2 + window_.stride_x) {
        case 7: return summed<COUNT, 3, 1>(from, kernel, sums);
        case 8: return summed<COUNT, 3, 2>(from, kernel, sums);
        case 11: return summed<COUNT, 5, 1>(from, kernel, sums);
        case 12: return summed<COUNT, 5, 2>(from, kernel, sums);
        case 15: return summed<COUNT, 7, 1>(from, kernel, sums);
        default: break;
      }
    }
    summed<COUNT, 0, 0>(from, kernel, sums);
  }

  // A kernel of a known width and stride shares what it loads among neighbours.
  template <int COUNT, int WIDTH, int STRIDE>
  void summed(const float* from, const float* kernel, float* sums) const {
    vec sum[COUNT] = {};
    const int64_t step = filled(out_.channels);
    for (int64_t ky = 0; ky < window_.height; ky++, from += window_.dilation_y * width_ * VL) {
      if constexpr (WIDTH > 0) {
        vec weights[WIDTH];
#pragma GCC unroll 8
        for (int kx = 0; kx < WIDTH; kx++) weights[kx] = load(kernel + kx * step);
        kernel += WIDTH * step;
#pragma GCC unroll 24
        for (int j = 0; j < (COUNT - 1) * STRIDE + WIDTH; j++) {
          const vec x = load(from + j * VL);
#pragma GCC unroll 8
          for (int kx = 0; kx < WIDTH; kx++)
            if (j >= kx && (j - kx) % STRIDE == 0 && (j - kx) / STRIDE < COUNT)
              sum[(j - kx) / STRIDE] += x * weights[kx];
        }
      } else {
        for (int64_t kx = 0; kx < window_.width; kx++, kernel += step) {
          const vec weight = load(kernel);
#pragma GCC unroll 8
          for (int i = 0; i < COUNT; i++)
            sum[i] += weight * load(from + (i * window_.stride_x + kx * window_.dilation_x) * VL);
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i++) store(sums + i * VL, sum[i]);
  }

  int64_t blocks_, reach_y_, reach_x_, width_ = 0, strips_ = 1;
};

}  // namespace torch_rewrite
