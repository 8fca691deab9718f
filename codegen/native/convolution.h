// Convolutions of images with channels last as products of gathered rows with packed panels ("The Indirect Convolution
// Algorithm", Dukhan 2019): nothing is copied, and what follows a sum is done while it is in registers.
#pragma once

#include <vector>

#include "parallel.h"
#include "tile.h"

namespace torch_rewrite {

// With channels last, which may be some of more channels.
struct Image {
  int64_t batch, height, width, channels;
  int64_t pitch;  // from a pixel to the next one
  int64_t pixels() const { return batch * height * width; }
  bool operator==(const Image&) const = default;
};

struct Window {
  int64_t height, width, stride_y, stride_x, top, left, dilation_y, dilation_x, groups;
  int64_t taps() const { return height * width; }
};

// [taps, depth, columns] in the order in which tiles read it: panel by panel.
inline int64_t packed_size(int64_t taps, int64_t depth, int64_t columns) {
  return taps * depth * Panels(columns).vectors * VL;
}

inline void pack(const float* from, int64_t taps, int64_t depth, int64_t columns, float* to) {
  const Panels panels(columns);
  for (int64_t p = 0; p < panels.count; p++) {
    const int64_t first = panels.first(p) * VL, width = panels.width(p) * VL;
    for (int64_t row = 0; row < taps * depth; row++)
      for (int64_t j = 0; j < width; j++)
        *to++ = first + j < columns ? from[row * columns + first + j] : 0.0f;
  }
}

// What a kernel reads and writes.
struct Operands {
  const float* x_;
  Image in_;
  Window window_;
  const float* packed_;  // the weights, in the kernel's order
  Image out_;
  float* result_;
  Epilogue epilogue_;
};

// The outputs along one dimension whose taps all lie inside the image.
inline Range inner(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t low, int64_t dilation) {
  const int64_t last = size - 1 - dilation * (taps - 1) + low;  // the last place where a kernel may begin, with zeros
  return {(low + stride - 1) / stride, last < 0 ? 0 : std::min(last / stride + 1, outputs)};
}

class Convolution : Operands {
 public:
  // The kernel is [taps, channels, out channels], packed, for each group.
  static int64_t packed(Image in, Window window, Image out) {
    return window.groups * packed_size(window.taps(), in.channels / window.groups, out.channels / window.groups);
  }

  explicit Convolution(const Operands& operands)
      : Operands(operands), depth_(in_.channels / window_.groups), columns_(out_.channels / window_.groups),
        panels_(columns_), bounds_(epilogue_.activation), zeros_(depth_, 0.0f),
        inner_y_(inner(in_.height, out_.height, window_.height, window_.stride_y, window_.top, window_.dilation_y)),
        inner_x_(inner(in_.width, out_.width, window_.width, window_.stride_x, window_.left, window_.dilation_x)),
        pointwise_(window_.taps() == 1 && window_.stride_y == 1 && window_.stride_x == 1 && window_.top == 0 &&
                   window_.left == 0 && in_.height == out_.height && in_.width == out_.width) {
    // pixels with few channels are read as one: the taps of a row lie one behind the other
    by_rows_ = window_.width > 1 && window_.dilation_x == 1 && window_.groups == 1 && depth_ < VL &&
               in_.pitch == in_.channels;
    for (int64_t ky = 0; ky < window_.height; ky++)
      for (int64_t kx = 0; kx < window_.width; kx++)
        away_.push_back((ky * window_.dilation_y * in_.width + kx * window_.dilation_x) * in_.pitch);
  }

  void run() {
    const int64_t pixels = out_.pixels();
    const int64_t panels = window_.groups * panels_.count;
    const int threads = threads_for(pixels * window_.taps() * depth_ * out_.channels);
    // the larger operand is what threads should not read twice
    const bool by_columns = out_.channels > pixels;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const int64_t me = omp_get_thread_num(), team = omp_get_num_threads();  // there may be fewer than were asked for
      const int64_t across = by_columns ? std::min(team, panels) : 1, along = team / across;
      if (me < across * along)
        part(share(pixels, me / across, along), share(panels, me % across, across));
    }
  }

 private:
  static constexpr int64_t CACHE = 48 * 1024;  // floats of the input that should stay in a core's cache

  void part(Range pixels, Range panels) const {
    const int64_t taps = window_.taps(), chunk = std::max<int64_t>(CACHE / in_.channels, 2 * MAX_ROWS);
    const int64_t chunks = (pixels.end - pixels.begin + chunk - 1) / chunk;
    std::vector<const float*> rows(taps * MAX_ROWS);
    for (int64_t c = 0; c < chunks; c++) {
      Range some = share(pixels.end - pixels.begin, c, chunks);
      some.begin += pixels.begin, some.end += pixels.begin;
      for (int64_t p = panels.begin; p < panels.end; p++) {
        const int64_t group = p / panels_.count, column = panels_.first(p % panels_.count) * VL;
        const int vectors = panels_.width(p % panels_.count), most = rows_for(vectors);
        const int64_t tiles = (some.end - some.begin + most - 1) / most;
        const float* panel = packed_ + taps * depth_ * (group * panels_.vectors * VL + column);
        for (int64_t t = 0; t < tiles; t++) {
          const Range range = share(some.end - some.begin, t, tiles);
          const int count = static_cast<int>(range.end - range.begin);
          const int64_t joined = gather(some.begin + range.begin, count, group * depth_, rows.data());
          multiply(TILES.of[vectors][count], rows.data(), taps / joined, joined * depth_, panel, count, vectors,
                   places(some.begin + range.begin, count), group * columns_ + column, (group + 1) * columns_);
        }
      }
    }
  }

  // A tile's results, from a column on that lies before `end`.
  void multiply(Tile tile, const float* const* rows, int64_t taps, int64_t depth, const float* panel, int count,
                int vectors, const Places& places, int64_t column, int64_t end) const {
    if (bounds_.exact) {
      tile(rows, taps, depth, panel,
           {result_ + column, places.results, Lanes(end - column - (vectors - 1) * VL),
            epilogue_.bias ? epilogue_.bias + column : nullptr,
            epilogue_.residual ? epilogue_.residual + column : nullptr, places.residuals, bounds_});
      return;
    }
    alignas(64) float sums[MAX_ROWS * MAX_VECTORS * VL];
    int64_t within[MAX_ROWS];
    for (int r = 0; r < count; r++) within[r] = r * vectors * VL;
    tile(rows, taps, depth, panel, {sums, within, Lanes(VL), nullptr, nullptr, nullptr, Bounds(Activation::none)});
    finish(sums, count, vectors, result_, places, column, end, epilogue_);
  }

  // Where the results of some pixels go, and what is added to them lies.
  Places places(int64_t pixel, int count) const {
    Places found;
    for (int r = 0; r < count; r++) found.results[r] = (pixel + r) * out_.pitch;
    if (epilogue_.residual)
      for (int r = 0; r < count; r++) found.residuals[r] = (pixel + r) * epilogue_.residual_pitch;
    return found;
  }

  // Where the inputs of some pixels lie, from a channel on; how many taps are one.
  int64_t gather(int64_t pixel, int count, int64_t channel, const float** rows) const {
    if (pointwise_) {
      for (int r = 0; r < count; r++) rows[r] = x_ + (pixel + r) * in_.pitch + channel;
      return 1;
    }
    int64_t x = pixel % out_.width, y = pixel / out_.width % out_.height, n = pixel / (out_.width * out_.height);
    const bool rowwise = by_rows_ && y >= inner_y_.begin && y < inner_y_.end && x >= inner_x_.begin &&
                         x + count <= inner_x_.end;
    const int64_t joined = rowwise ? window_.width : 1;
    for (int r = 0; r < count; r++) {
      if (rowwise || (y >= inner_y_.begin && y < inner_y_.end && x >= inner_x_.begin && x < inner_x_.end)) {
        const float* corner = x_ + channel + ((n * in_.height + y * window_.stride_y - window_.top) * in_.width +
                                              x * window_.stride_x - window_.left) * in_.pitch;
        for (int64_t tap = 0, at = 0; tap < window_.taps(); tap += joined, at++)
          rows[at * MAX_ROWS + r] = corner + away_[tap];
      } else {
        border(n, y, x, channel, rows + r);
      }
      if (++x == out_.width) {
        x = 0;
        if (++y == out_.height) y = 0, n++;
      }
    }
    return joined;
  }

  // The inputs of a pixel that may meet zeros around the image.
  void border(int64_t n, int64_t y, int64_t x, int64_t channel, const float** rows) const {
    for (int64_t ky = 0, tap = 0; ky < window_.height; ky++) {
      const int64_t from_y = y * window_.stride_y - window_.top + ky * window_.dilation_y;
      for (int64_t kx = 0; kx < window_.width; kx++, tap++) {
        const int64_t from_x = x * window_.stride_x - window_.left + kx * window_.dilation_x;
        const bool inside = from_y >= 0 && from_y < in_.height && from_x >= 0 && from_x < in_.width;
        rows[tap * MAX_ROWS] =
            inside ? x_ + ((n * in_.height + from_y) * in_.width + from_x) * in_.pitch + channel : zeros_.data();
      }
    }
  }

  int64_t depth_, columns_;  // of a group
  Panels panels_;
  Bounds bounds_;
  std::vector<float> zeros_;
  Range inner_y_, inner_x_;
  std::vector<int64_t> away_;  // of each tap from the first
  bool pointwise_, by_rows_;
};

}  // namespace torch_rewrite
