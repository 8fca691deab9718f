// Squeeze-and-excitation ("Squeeze-and-Excitation Networks", Hu et al. 2018) in one call: the mean of each channel, two
// small layers, and the product with what they give, which general compilers make four calls of.
#pragma once

#include "convolution.h"

namespace torch_rewrite {

class Excitation {
 public:
  // `reduce` is [channels, hidden], `expand` [hidden, channels], their last dimensions filled up to a multiple of 16.
  Excitation(const float* x, Image in, const float* reduce, const float* reduce_bias, const float* expand,
             const float* expand_bias, int64_t hidden, Activation inner, Activation outer, float* result,
             int64_t result_pitch)
      : x_(x), in_(in), reduce_(reduce), reduce_bias_(reduce_bias), expand_(expand), expand_bias_(expand_bias),
        hidden_(hidden), inner_(inner), outer_(outer), result_(result), result_pitch_(result_pitch),
        pixels_(in.height * in.width), channels_(filled(in.channels)), width_(filled(hidden)) {}

  void run() {
    const int64_t n = in_.batch, vectors = (in_.channels + VL - 1) / VL;
    const int most = threads_for(n * in_.channels * (4 * pixels_ + 2 * hidden_));
    thread_local Scratch scratch;
    const int64_t sums_size = n * channels_, hiddens_size = n * width_;
    float* sums = scratch.take((most + 2) * sums_size + (most + 1) * hiddens_size);
    float *means = sums + most * sums_size, *gates = means + sums_size;
    float *partial = gates + sums_size, *hidden = partial + most * hiddens_size;
#pragma omp parallel num_threads(most) if (most > 1)
    {
      const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();
      const Range mine = share(n * pixels_, me, team), channels = share(vectors, me, team);
      std::fill_n(sums + me * sums_size, sums_size, 0.0f);
      each_image(mine, [&](int64_t image, Range some) {
        sum(x_ + (image * pixels_ + some.begin) * in_.pitch, some.end - some.begin,
            sums + me * sums_size + image * channels_);
      });
#pragma omp barrier
      for (int64_t i = 0; i < n; i++) {
        float* mean = means + i * channels_;
        for (int64_t v = channels.begin * VL; v < channels.end * VL; v += VL) {
          vec total{};
          for (int64_t t = 0; t < team; t++) total += load(sums + t * sums_size + i * channels_ + v);
          store(mean + v, total * (1.0f / static_cast<float>(pixels_)));
        }
        const Range rows{channels.begin * VL, std::min(channels.end * VL, in_.channels)};
        product(mean, rows, reduce_, width_, {0, width_}, partial + me * hiddens_size + i * width_);
      }
#pragma omp barrier
      const Range units = share(width_ / 16, me, team);
      for (int64_t i = 0; i < n; i++)
        for (int64_t v = units.begin * 16; v < units.end * 16; v += VL) {
          vec total = reduce_bias_ ? load_some(reduce_bias_, v, hidden_) : vec{};
          for (int64_t t = 0; t < team; t++) total += load(partial + t * hiddens_size + i * width_ + v);
          store(hidden + i * width_ + v, activated(total, inner_));
        }
#pragma omp barrier
      for (int64_t i = 0; i < n; i++) {
        float* gate = gates + i * channels_;
        product(hidden + i * width_, {0, hidden_}, expand_, channels_, {channels.begin * VL, channels.end * VL}, gate);
        for (int64_t v = channels.begin * VL; v < channels.end * VL; v += VL)
          store(gate + v, activated(expand_bias_ ? load(gate + v) + load_some(expand_bias_, v, in_.channels)
                                                 : load(gate + v), outer_));
      }
#pragma omp barrier
      each_image(mine, [&](int64_t image, Range some) {
        const int64_t pixel = image * pixels_ + some.begin;
        scale(x_ + pixel * in_.pitch, some.end - some.begin, gates + image * channels_,
              result_ + pixel * result_pitch_);
      });
    }
  }

 private:
  static constexpr int BLOCK = REGISTERS == 32 ? 8 : 4;  // vectors that are summed at once
  static constexpr int64_t CHUNK = 64;  // pixels whose sum is taken by itself, for float32 is exact enough then

  static vec load_some(const float* from, int64_t at, int64_t count) {
    return at < count ? load(from + at, Lanes(count - at)) : vec{};
  }

  // The parts of a range of pixels of all images, image by image.
  template <typename Do>
  void each_image(Range pixels, Do part) const {
    for (int64_t at = pixels.begin; at < pixels.end;) {
      const int64_t image = at / pixels_, end = std::min((image + 1) * pixels_, pixels.end);
      part(image, Range{at - image * pixels_, end - image * pixels_});
      at = end;
    }
  }

  void sum(const float* from, int64_t pixels, float* to) const {
    for (int64_t first = 0; first < pixels; first += CHUNK) {
      const int64_t count = std::min(CHUNK, pixels - first);
      const float* chunk = from + first * in_.pitch;
      int64_t c = 0;
      for (; c + BLOCK * VL <= in_.channels; c += BLOCK * VL) sum_block<BLOCK>(chunk + c, count, Lanes(VL), to + c);
      for (; c < in_.channels; c += VL) sum_block<1>(chunk + c, count, Lanes(in_.channels - c), to + c);
    }
  }

  template <int VECTORS>
  void sum_block(const float* from, int64_t pixels, Lanes lanes, float* to) const {
    vec total[VECTORS] = {};
    for (int64_t p = 0; p < pixels; p++, from += in_.pitch)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) total[v] += load(from + v * VL, lanes);
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) store(to + v * VL, load(to + v * VL) + total[v]);
  }

  // Some columns of a row times some rows of a matrix [rows, stride].
  static void product(const float* row, Range rows, const float* matrix, int64_t stride, Range columns, float* to) {
    int64_t c = columns.begin;
    for (; c + BLOCK * VL <= columns.end; c += BLOCK * VL) product_block<BLOCK>(row, rows, matrix + c, stride, to + c);
    for (; c < columns.end; c += VL) product_block<1>(row, rows, matrix + c, stride, to + c);
  }

  template <int VECTORS>
  static void product_block(const float* row, Range rows, const float* matrix, int64_t stride, float* to) {
    vec total[VECTORS] = {};
    for (int64_t r = rows.begin; r < rows.end; r++) {
      const vec x = all(row[r]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) total[v] += x * load(matrix + r * stride + v * VL);
    }
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) store(to + v * VL, total[v]);
  }

  void scale(const float* from, int64_t pixels, const float* gate, float* to) const {
    const int64_t whole = in_.channels / VL * VL;
    const Lanes rest(in_.channels - whole);
    for (int64_t p = 0; p < pixels; p++, from += in_.pitch, to += result_pitch_) {
      for (int64_t c = 0; c < whole; c += VL) store(to + c, load(from + c) * load(gate + c));
      if (whole < in_.channels) store(to + whole, load(from + whole, rest) * load(gate + whole), rest);
    }
  }

  const float* x_;
  Image in_;
  const float *reduce_, *reduce_bias_, *expand_, *expand_bias_;
  int64_t hidden_;
  Activation inner_, outer_;
  float* result_;
  int64_t result_pitch_;
  int64_t pixels_, channels_, width_;
};

}  // namespace torch_rewrite
