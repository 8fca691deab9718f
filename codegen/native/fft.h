// Depthwise convolutions on a circle by fast Fourier transforms, for as many channels at once as a vector has floats.
// Neighbours in a row are the real and the imaginary part of one number, so that transforms have half as many points.
// Nothing is put in order: the product with the kernel's spectrum is taken where frequencies lie after a transform that
// decimates in frequency, and the one back decimates in time ("Inside the FFT Black Box", Chu and George 2000).
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "convolution.h"

namespace torch_rewrite {

struct cvec {
  vec re, im;
};

inline cvec operator+(cvec a, cvec b) { return {a.re + b.re, a.im + b.im}; }
inline cvec operator-(cvec a, cvec b) { return {a.re - b.re, a.im - b.im}; }
inline cvec operator*(cvec a, cvec b) { return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re}; }
inline cvec operator*(cvec a, float s) { return {a.re * s, a.im * s}; }
inline cvec conj(cvec a) { return {a.re, -a.im}; }
// Times i where a transform goes back, -i where it goes forth.
template <bool BACK>
inline cvec turned(cvec a) {
  return BACK ? cvec{-a.im, a.re} : cvec{a.im, -a.re};
}

// Transforms of so many numbers, in place.
template <int RADIX, bool BACK>
struct Butterfly;

template <bool BACK>
struct Butterfly<2, BACK> {
  static void run(cvec (&x)[2]) {
    const cvec a = x[0], b = x[1];
    x[0] = a + b, x[1] = a - b;
  }
};

template <bool BACK>
struct Butterfly<3, BACK> {
  static void run(cvec (&x)[3]) {
    const cvec sum = x[1] + x[2], middle = x[0] - sum * 0.5f, side = turned<BACK>(x[1] - x[2]) * 0.866025403784f;
    x[0] = x[0] + sum, x[1] = middle + side, x[2] = middle - side;
  }
};

template <bool BACK>
struct Butterfly<4, BACK> {
  static void run(cvec (&x)[4]) {
    const cvec a = x[0] + x[2], b = x[0] - x[2], c = x[1] + x[3], d = turned<BACK>(x[1] - x[3]);
    x[0] = a + c, x[1] = b + d, x[2] = a - c, x[3] = b - d;
  }
};

template <bool BACK>
struct Butterfly<8, BACK> {
  static void run(cvec (&x)[8]) {
    constexpr float HALF = 0.707106781187f;
    cvec even[4] = {x[0], x[2], x[4], x[6]}, odd[4] = {x[1], x[3], x[5], x[7]};
    Butterfly<4, BACK>::run(even);
    Butterfly<4, BACK>::run(odd);
    odd[1] = (odd[1] + turned<BACK>(odd[1])) * HALF;
    odd[2] = turned<BACK>(odd[2]);
    odd[3] = (turned<BACK>(odd[3]) - odd[3]) * HALF;
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) x[i] = even[i] + odd[i], x[i + 4] = even[i] - odd[i];
  }
};

// Odd primes: sums and differences of what lies opposite.
template <int RADIX, bool BACK>
struct Butterfly {
  static void run(cvec (&x)[RADIX]) {
    constexpr int HALF = RADIX / 2;
    static constexpr auto COSINE = table(false), SINE = table(true);
    cvec sum[HALF], side[HALF];
#pragma GCC unroll 3
    for (int i = 0; i < HALF; i++)
      sum[i] = x[i + 1] + x[RADIX - 1 - i], side[i] = turned<BACK>(x[i + 1] - x[RADIX - 1 - i]);
    const cvec first = x[0];
#pragma GCC unroll 3
    for (int i = 0; i < HALF; i++) x[0] = x[0] + sum[i];
#pragma GCC unroll 3
    for (int k = 1; k <= HALF; k++) {
      cvec a = first, b{};
#pragma GCC unroll 3
      for (int i = 0; i < HALF; i++) {
        const int angle = k * (i + 1) % RADIX;
        a = a + sum[i] * COSINE.of[angle], b = b + side[i] * SINE.of[angle];
      }
      x[k] = a + b, x[RADIX - k] = a - b;
    }
  }

 private:
  struct Table {
    float of[RADIX];
  };
  static constexpr Table table(bool sine) {
    static_assert(RADIX == 5 || RADIX == 7);
    if constexpr (RADIX == 5)
      return sine ? Table{{0, 0.951056516295f, 0.587785252292f, -0.587785252292f, -0.951056516295f}}
                  : Table{{1, 0.309016994375f, -0.809016994375f, -0.809016994375f, 0.309016994375f}};
    else
      return sine ? Table{{0, 0.781831482468f, 0.974927912182f, 0.433883739118f, -0.433883739118f, -0.974927912182f,
                           -0.781831482468f}}
                  : Table{{1, 0.623489801859f, -0.222520933956f, -0.900968867902f, -0.900968867902f, -0.222520933956f,
                           0.623489801859f}};
  }
};

// The steps of transforms of one length.
class Line {
 public:
  explicit Line(int64_t points) : points_(points) {
    std::vector<int> radices;
    int64_t left = points;
    for (const int radix : {8, 4, 2, 3, 5, 7})
      for (; left % radix == 0 && !(radix == 8 && left == 16); left /= radix) radices.push_back(radix);
    if (left != 1) throw std::invalid_argument("transforms have no prime factor above 7");
    std::reverse(radices.begin(), radices.end());  // the last ones are called most often
    int64_t block = points;
    for (const int radix : radices) {
      levels_.push_back({radix, block / radix, static_cast<int64_t>(twiddles_.size())});
      for (int64_t j = 0; j < block / radix; j++)
        for (int q = 1; q < radix; q++) {
          const double angle = -2 * M_PI * static_cast<double>(j * q % block) / static_cast<double>(block);
          twiddles_.push_back(static_cast<float>(std::cos(angle)));
          twiddles_.push_back(static_cast<float>(std::sin(angle)));
        }
      block /= radix;
    }
  }

  int64_t points() const { return points_; }

  // Where a frequency lies after a transform.
  int64_t place(int64_t frequency) const {
    int64_t at = 0;
    for (const Level& level : levels_) at += frequency % level.radix * level.apart, frequency /= level.radix;
    return at;
  }

  // In place, over points that are `step` apart.
  template <bool BACK>
  void run(cvec* z, int64_t step) const { part<BACK>(z, step, 0); }

 private:
  struct Level {
    int radix;
    int64_t apart, twiddles;
  };

  // What belongs together is done together, so that it stays in the nearest cache that it fits into.
  template <bool BACK>
  void part(cvec* z, int64_t step, size_t from) const {
    if (from == levels_.size()) return;
    const Level& level = levels_[from];
    if (!BACK) butterflies<BACK>(z, step, level);
    if (from + 1 < levels_.size())
      for (int q = 0; q < level.radix; q++) part<BACK>(z + q * level.apart * step, step, from + 1);
    if (BACK) butterflies<BACK>(z, step, level);
  }

  template <bool BACK>
  void butterflies(cvec* z, int64_t step, const Level& level) const {
    const float* twiddles = twiddles_.data() + level.twiddles;
    switch (level.radix) {
      case 2: return butterflies_of<2, BACK>(z, step, level.apart, twiddles);
      case 3: return butterflies_of<3, BACK>(z, step, level.apart, twiddles);
      case 4: return butterflies_of<4, BACK>(z, step, level.apart, twiddles);
      case 5: return butterflies_of<5, BACK>(z, step, level.apart, twiddles);
      case 7: return butterflies_of<7, BACK>(z, step, level.apart, twiddles);
      default: return butterflies_of<8, BACK>(z, step, level.apart, twiddles);
    }
  }

  template <int RADIX, bool BACK>
  static void butterflies_of(cvec* z, int64_t step, int64_t apart, const float* twiddle) {
    const int64_t stride = apart * step;
    for (int64_t j = 0; j < apart; j++, z += step, twiddle += 2 * (RADIX - 1)) {
      cvec x[RADIX];
#pragma GCC unroll 8
      for (int q = 0; q < RADIX; q++) x[q] = z[q * stride];
      if (!BACK) Butterfly<RADIX, BACK>::run(x);
      if (apart > 1)
#pragma GCC unroll 8
        for (int q = 1; q < RADIX; q++) {
          const float c = twiddle[2 * q - 2], s = BACK ? -twiddle[2 * q - 1] : twiddle[2 * q - 1];
          x[q] = {x[q].re * c - x[q].im * s, x[q].re * s + x[q].im * c};
        }
      if (BACK) Butterfly<RADIX, BACK>::run(x);
#pragma GCC unroll 8
      for (int q = 0; q < RADIX; q++) z[q * stride] = x[q];
    }
  }

  int64_t points_;
  std::vector<Level> levels_;
  std::vector<float> twiddles_;
};

// Transforms of one size: rows of pairs of real numbers.
struct Plane {
  // Where a frequency and its negative lie, and the turn by twice a column's angle.
  struct Opposite {
    int32_t place, negative;
    float cosine, sine;
  };

  Line down, across;
  int64_t pitch;  // an odd distance of rows, so that a column does not meet itself in the cache
  std::vector<Opposite> opposite;  // each pair of frequencies once

  Plane(int64_t rows, int64_t pairs) : down(rows), across(pairs), pitch(pairs | 1) {
    std::vector<Opposite> found(rows * pitch, {0, -1, 0, 0});
    const auto at = [&](int64_t u, int64_t v) { return static_cast<int32_t>(down.place(u) * pitch + across.place(v)); };
    for (int64_t u = 0; u < rows; u++)
      for (int64_t v = 0; v < pairs; v++) {
        const double angle = -2 * M_PI * static_cast<double>(v) / static_cast<double>(pairs);
        found[at(u, v)] = {at(u, v), at((rows - u) % rows, (pairs - v) % pairs), static_cast<float>(std::cos(angle)),
                           static_cast<float>(std::sin(angle))};
      }
    for (const Opposite& one : found)
      if (one.negative >= one.place) opposite.push_back(one);
  }

  int64_t size() const { return down.points() * pitch; }

  // Kept for ever: a program has a few.
  static const Plane& of(int64_t rows, int64_t columns) {
    if (columns % 2) throw std::invalid_argument("a circle has an even number of columns");
    static std::mutex mutex;
    static auto* known = new std::map<std::pair<int64_t, int64_t>, std::unique_ptr<Plane>>;
    const std::lock_guard<std::mutex> lock(mutex);
    auto& found = (*known)[{rows, columns}];
    if (!found) found = std::make_unique<Plane>(rows, columns / 2);
    return *found;
  }
};

// Values of channels at places: either what belongs to a place lies together, or what belongs to a channel.
struct Signals {
  float* data;
  int64_t channels, rows, columns;
  int64_t pitch;  // from place to place where channels are last, else 0

  int64_t size() const { return (pitch ? pitch : channels) * rows * columns; }
};

// VL x VL floats, the other way round.
inline void transpose(vec (&x)[VL]) {
  ivec lane;
  for (int i = 0; i < VL; i++) lane[i] = i;
#pragma GCC unroll 4
  for (int step = 1; step < VL; step *= 2) {
    const ivec upper = (lane & step) != 0;
    const ivec low = upper ? lane - step + VL : lane, high = upper ? lane + VL : lane + step;
#pragma GCC unroll 16
    for (int i = 0; i < VL; i++)
      if (!(i & step)) {
        const vec a = x[i], b = x[i + step];
#if defined(__clang__)
        for (int k = 0; k < VL; k++) {
          x[i][k] = low[k] < VL ? a[low[k]] : b[low[k] - VL];
          x[i + step][k] = high[k] < VL ? a[high[k]] : b[high[k] - VL];
        }
#else
        x[i] = __builtin_shuffle(a, b, low), x[i + step] = __builtin_shuffle(a, b, high);
#endif
      }
  }
}

class FftConvolution {
 public:
  // For each block of channels and each pair of opposite frequencies: the spectra of the kernel's even columns and of its
  // odd ones, with all factors.
  static int64_t packed(const Plane& plane, int64_t channels) { return blocks(channels) * spectrum(plane); }

  explicit FftConvolution(const Plane& plane) : plane_(plane) {}

  void pack(Signals kernel, float* to) const {
    thread_local Scratch scratch;
    cvec* z = take(scratch);
    const float scale = 0.25f / static_cast<float>(plane_.down.points() * plane_.across.points());
    for (int64_t block = 0; block < blocks(kernel.channels); block++) {
      enter(z, kernel, block * VL);
      forth(z, kernel.rows);
      for (const auto& [p, q, c, s] : plane_.opposite) {
        const auto [even, odd] = parts(z[p], z[q]);
        const cvec both[2] = {even * scale, odd * scale};
        std::memcpy(to, both, sizeof(both));
        to += 4 * VL;
      }
    }
  }

  // Each `stride`-th of the first results along both dimensions.
  void run(Signals in, int64_t images, const float* kernel, Signals out, int64_t stride_y, int64_t stride_x) const {
    const int64_t tasks = blocks(in.channels) * images;
    const int threads = static_cast<int>(std::min<int64_t>(threads_for(tasks * plane_.size() * 256), tasks));
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      thread_local Scratch scratch;
      cvec* z = take(scratch);
      const Range mine = share(tasks, omp_get_thread_num(), omp_get_num_threads());
      for (int64_t task = mine.begin; task < mine.end; task++) {
        const int64_t block = task / images, image = task % images;  // a kernel is read by one image after the other
        enter(z, at(in, image), block * VL);
        forth(z, in.rows);
        multiply(z, kernel + block * spectrum(plane_));
        back(z, out.rows, stride_y);
        leave(z, at(out, image), block * VL, stride_y, stride_x);
      }
    }
  }

 private:
  static int64_t blocks(int64_t channels) { return (channels + VL - 1) / VL; }
  static int64_t spectrum(const Plane& plane) { return static_cast<int64_t>(plane.opposite.size()) * 4 * VL; }
  static Signals at(Signals all, int64_t image) {
    all.data += image * all.size();
    return all;
  }

  cvec* take(Scratch& scratch) const { return reinterpret_cast<cvec*>(scratch.take(plane_.size() * 2 * VL)); }

  static vec& part(cvec* row, int64_t column) { return column % 2 ? row[column / 2].im : row[column / 2].re; }

  void enter(cvec* z, Signals from, int64_t channel) const {
    for (int64_t y = 0; y < plane_.down.points(); y++) {
      cvec* row = z + y * plane_.pitch;
      int64_t filled = 0;
      if (y < from.rows) {
        read(row, from, channel, y);
        filled = from.columns;
      }
      if (filled % 2) part(row, filled++) = vec{};
      for (int64_t x = filled / 2; x < plane_.across.points(); x++) row[x] = cvec{};
    }
  }

  static void read(cvec* row, Signals from, int64_t channel, int64_t y) {
    if (from.pitch) {
      const float* at = from.data + y * from.columns * from.pitch + channel;
      const Lanes lanes(from.channels - channel);
      for (int64_t x = 0; x < from.columns; x++, at += from.pitch) part(row, x) = load(at, lanes);
      return;
    }
    const int64_t count = std::min<int64_t>(from.channels - channel, VL), apart = from.rows * from.columns;
    const float* at = from.data + channel * apart + y * from.columns;
    for (int64_t x = 0; x < from.columns; x += VL) {
      vec some[VL] = {};
      const Lanes lanes(from.columns - x);
      for (int64_t i = 0; i < count; i++) some[i] = load(at + i * apart + x, lanes);
      transpose(some);
      const int64_t end = std::min<int64_t>(from.columns - x, VL);
      for (int64_t i = 0; i < end; i++) part(row, x + i) = some[i];
    }
  }

  void leave(cvec* z, Signals to, int64_t channel, int64_t stride_y, int64_t stride_x) const {
    for (int64_t y = 0; y < to.rows; y++) write(z + y * stride_y * plane_.pitch, to, channel, y, stride_x);
  }

  static void write(cvec* row, Signals to, int64_t channel, int64_t y, int64_t stride) {
    if (to.pitch) {
      float* at = to.data + y * to.columns * to.pitch + channel;
      const Lanes lanes(to.channels - channel);
      for (int64_t x = 0; x < to.columns; x++, at += to.pitch) store(at, part(row, x * stride), lanes);
      return;
    }
    const int64_t count = std::min<int64_t>(to.channels - channel, VL), apart = to.rows * to.columns;
    float* at = to.data + channel * apart + y * to.columns;
    for (int64_t x = 0; x < to.columns; x += VL) {
      vec some[VL] = {};
      const int64_t end = std::min<int64_t>(to.columns - x, VL);
      for (int64_t i = 0; i < end; i++) some[i] = part(row, (x + i) * stride);
      transpose(some);
      const Lanes lanes(to.columns - x);
      for (int64_t i = 0; i < count; i++) store(at + i * apart + x, some[i], lanes);
    }
  }

  // Rows that are all zeros stay so.
  void forth(cvec* z, int64_t rows) const {
    for (int64_t y = 0; y < rows; y++) plane_.across.run<false>(z + y * plane_.pitch, 1);
    if (plane_.down.points() > 1)
      for (int64_t x = 0; x < plane_.across.points(); x++) plane_.down.run<false>(z + x, plane_.pitch);
  }

  void back(cvec* z, int64_t rows, int64_t stride) const {
    if (plane_.down.points() > 1)
      for (int64_t x = 0; x < plane_.across.points(); x++) plane_.down.run<true>(z + x, plane_.pitch);
    for (int64_t y = 0; y < rows; y++) plane_.across.run<true>(z + y * stride * plane_.pitch, 1);
  }

  struct Parts {
    cvec even, odd;
  };

  // Twice the spectra of even and of odd columns, from the number at a frequency and the one at its negative.
  static Parts parts(cvec here, cvec there) {
    const cvec s = here, t = conj(there);
    return {s + t, turned<false>(s - t)};
  }

  // The product of polynomials in two halves: what is odd twice is even, one further.
  void multiply(cvec* z, const float* kernel) const {
    for (const auto& [p, q, c, s] : plane_.opposite) {
      const cvec even{load(kernel), load(kernel + VL)}, odd{load(kernel + 2 * VL), load(kernel + 3 * VL)};
      kernel += 4 * VL;
      const Parts x = parts(z[p], z[q]);
      const cvec twice = x.odd * odd, turn{twice.re * c - twice.im * s, twice.re * s + twice.im * c};
      const cvec a = x.even * even + turn, b = turned<true>(x.even * odd + x.odd * even);
      z[q] = conj(a - b);
      z[p] = a + b;
    }
  }

  const Plane& plane_;
};

}  // namespace torch_rewrite
