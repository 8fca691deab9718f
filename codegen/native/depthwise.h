// Depthwise convolutions of images with channels last, read where they lie: neighbours in a row of results are summed in
// registers and share what they load, without what would lie beside the image.
#pragma once

#include "convolution.h"

namespace torch_rewrite {

class Depthwise : Operands {
 public:
  // The kernel is [taps, channels], the latter filled up with zeros to a multiple of 16.
  static int64_t packed(Image in, Window window, Image out) { return window.taps() * filled(out.channels); }

  explicit Depthwise(const Operands& operands)
      : Operands(operands), blocks_((in_.channels + VL - 1) / VL), step_(filled(out_.channels)),
        groups_((out_.width + WIDE - 1) / WIDE),
        bounds_(epilogue_.activation) {}

  void run() const {
    const int64_t rows = out_.batch * out_.height;
    const int threads = threads_for(rows * out_.width * out_.channels * window_.taps());
    const bool by_blocks = evenness(blocks_, threads) > evenness(rows, threads);
    // as many rows of results as have their inputs in a core's second cache, for each block of channels reads them all
    const int64_t most = std::max<int64_t>((CACHE / (in_.width * in_.channels) - window_.height) / window_.stride_y, 1);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();  // there may be fewer than were asked for
      const Range mine = by_blocks ? Range{0, rows} : share(rows, me, team);
      const Range blocks = by_blocks ? share(blocks_, me, team) : Range{0, blocks_};
      for (int64_t first = mine.begin; first < mine.end; first += most) {
        const int64_t last = std::min(first + most, mine.end);
        for (int64_t block = blocks.begin; block < blocks.end; block++)
          for (int64_t y = first; y < last; y++) row(y / out_.height, y % out_.height, block * VL);
      }
    }
  }

 private:
  static constexpr int64_t CACHE = 128 * 1024;           // floats
  static constexpr int WIDE = REGISTERS == 32 ? 8 : 4;  // neighbours that are summed at once

  // The part of their time that threads work which share so many.
  static double evenness(int64_t total, int64_t threads) {
    return static_cast<double>(total) / static_cast<double>((total + threads - 1) / threads * threads);
  }

  // Taps along one dimension that lie inside, for the first one's place.
  static Range inside(int64_t place, int64_t size, int64_t taps, int64_t dilation) {
    const int64_t first = place < 0 ? (dilation - 1 - place) / dilation : 0;
    const int64_t last = place < size ? (size - place + dilation - 1) / dilation : 0;
    return {std::min(first, taps), std::clamp(last, std::min(first, taps), taps)};
  }

  // Neighbours in a row of results, for VL channels.
  struct Some {
    const float* from;  // the first row of the image that has taps
    int64_t place;      // in it of the first tap
    int64_t height;     // rows of taps that lie inside
    const float* kernel;
    int64_t channel, pixel;  // of the first result
    Lanes lanes;
  };

  // A row of results, for VL channels.
  void row(int64_t n, int64_t y, int64_t channel) const {
    const int64_t place = y * window_.stride_y - window_.top;
    const Range taps = inside(place, in_.height, window_.height, window_.dilation_y);
    const float* from =
        x_ + (n * in_.height + place + taps.begin * window_.dilation_y) * in_.width * in_.pitch + channel;
    const float* kernel = packed_ + taps.begin * window_.width * step_ + channel;
    const int64_t height = taps.end - taps.begin, to = (n * out_.height + y) * out_.width;
    const Lanes lanes(in_.channels - channel);
    for (int64_t g = 0; g < groups_; g++) {
      const Range xs = share(out_.width, g, groups_);
      neighbours(std::make_integer_sequence<int, WIDE>{}, static_cast<int>(xs.end - xs.begin),
                 {from, xs.begin * window_.stride_x - window_.left, height, kernel, channel, to + xs.begin, lanes});
    }
  }

  // The sums of `count` neighbours, by code for that number.
  template <int... COUNTS>
  void neighbours(std::integer_sequence<int, COUNTS...>, int count, const Some& some) const {
    ((count == COUNTS + 1 && (neighbours_of<COUNTS + 1>(some), true)) || ...);
  }

  template <int COUNT>
  void neighbours_of(const Some& some) const {
    if (window_.dilation_x == 1 && window_.stride_x <= 2) {
      switch (window_.width * 2 + window_.stride_x) {
        case 7: return shared<COUNT, 3, 1>(some);
        case 8: return shared<COUNT, 3, 2>(some);
        case 11: return shared<COUNT, 5, 1>(some);
        case 12: return shared<COUNT, 5, 2>(some);
        case 15: return shared<COUNT, 7, 1>(some);
        default: break;
      }
    }
    each<COUNT>(some);
  }

  // A kernel of a known width and stride.
  template <int COUNT, int WIDTH, int STRIDE>
  void shared(const Some& some) const {
    if (some.place >= 0 && some.place + (COUNT - 1) * STRIDE + WIDTH <= in_.width)
      shared_where<COUNT, WIDTH, STRIDE, true>(some);
    else
      shared_where<COUNT, WIDTH, STRIDE, false>(some);
  }

  // `INSIDE`: all pixels that are read are there; otherwise some are zeros beside the image.
  template <int COUNT, int WIDTH, int STRIDE, bool INSIDE>
  void shared_where(const Some& some) const {
    const int64_t first = -some.place, last = in_.width - some.place, pixel = in_.pitch;
    const float *from = some.from + some.place * pixel, *kernel = some.kernel;
    vec sum[COUNT] = {};
    for (int64_t ky = 0; ky < some.height; ky++, from += window_.dilation_y * in_.width * pixel) {
      vec weights[WIDTH];
#pragma GCC unroll 8
      for (int kx = 0; kx < WIDTH; kx++) weights[kx] = load(kernel + kx * step_);
      kernel += WIDTH * step_;
#pragma GCC unroll 24
      for (int j = 0; j < (COUNT - 1) * STRIDE + WIDTH; j++) {
        if (!INSIDE && (j < first || j >= last)) continue;
        const vec x = load(from + j * pixel, some.lanes);
#pragma GCC unroll 8
        for (int kx = 0; kx < WIDTH; kx++)
          if (j >= kx && (j - kx) % STRIDE == 0 && (j - kx) / STRIDE < COUNT)
            sum[(j - kx) / STRIDE] += x * weights[kx];
      }
    }
    give(sum, some);
  }

  template <int COUNT>
  void each(const Some& some) const {
    const int64_t reach = (COUNT - 1) * window_.stride_x + (window_.width - 1) * window_.dilation_x + 1;
    const bool all = some.place >= 0 && some.place + reach <= in_.width;
    const float *from = some.from, *kernel = some.kernel;
    vec sum[COUNT] = {};
    for (int64_t ky = 0; ky < some.height; ky++, from += window_.dilation_y * in_.width * in_.pitch) {
      for (int64_t kx = 0; kx < window_.width; kx++, kernel += step_) {
        const vec weight = load(kernel);
        const int64_t at = some.place + kx * window_.dilation_x;
#pragma GCC unroll 8
        for (int i = 0; i < COUNT; i++) {
          const int64_t x = at + i * window_.stride_x;
          if (all || (x >= 0 && x < in_.width)) sum[i] += weight * load(from + x * in_.pitch, some.lanes);
        }
      }
    }
    give(sum, some);
  }

  template <int COUNT>
  void give(const vec (&sum)[COUNT], const Some& some) const {
    if (bounds_.exact) {
      const vec bias = epilogue_.bias ? load(epilogue_.bias + some.channel, some.lanes) : vec{};
#pragma GCC unroll 8
      for (int i = 0; i < COUNT; i++) {
        vec value = sum[i] + bias;
        if (epilogue_.residual)
          value += load(epilogue_.residual + (some.pixel + i) * epilogue_.residual_pitch + some.channel, some.lanes);
        store(result_ + (some.pixel + i) * out_.pitch + some.channel,
              at_most(at_least(value, bounds_.low), bounds_.high), some.lanes);
      }
      return;
    }
    alignas(64) float sums[COUNT * VL];
    Places places;
#pragma GCC unroll 8
    for (int i = 0; i < COUNT; i++) {
      store(sums + i * VL, sum[i]);
      places.results[i] = (some.pixel + i) * out_.pitch;
      places.residuals[i] = (some.pixel + i) * epilogue_.residual_pitch;
    }
    finish(sums, COUNT, 1, result_, places, some.channel, out_.channels, epilogue_);
  }

  int64_t blocks_, step_, groups_;
  Bounds bounds_;
};

}  // namespace torch_rewrite
