// The operators: torch's tensors in, torch's tensors out, by torch's stable interface, which compiles in seconds.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fft.h"
#include "pool.h"
#include "sequence.h"

namespace torch_rewrite {
namespace {

using torch::stable::Tensor;

const float* data(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }
float* writable(Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

const torch::stable::Device CPU(torch::headeronly::DeviceType::CPU);

// `leaves`: callers may give a result that leaves the program another size, which only torch's own memory takes.
Tensor empty(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, int64_t count, bool leaves) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  if (bytes >= Pool::SMALLEST && !leaves)
    return torch::stable::from_blob(Pool::instance().take(bytes), sizes, strides, CPU,
                                    torch::headeronly::ScalarType::Float,
                                    [](void* block) { Pool::instance().give(block); });
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                               aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, &handle))
    throw std::runtime_error("torch could not allocate a result");
  return Tensor(handle);
}

Tensor empty(const Image& image, bool leaves) {
  const auto [n, h, w, c, pitch] = image;
  return empty({n, c, h, w}, {h * w * c, 1, w * c, c}, n * h * w * c, leaves);
}

void require_floats(const Tensor& x) {
  if (x.scalar_type() != torch::headeronly::ScalarType::Float)
    throw std::invalid_argument("native kernels take float32");
}

// From a place of [N, C, ...] to the next one, with channels last.
int64_t pitch_of(const Tensor& x) {
  for (int64_t i = x.dim() - 1; i > 1; i--)
    if (x.size(i) > 1) return x.stride(i);
  return x.size(0) > 1 ? x.stride(0) : x.size(1);
}

// The sizes of a tensor with channels last, [N, C, H, W], which may be some of more channels.
Image image(const Tensor& x) {
  require_floats(x);
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), pitch = pitch_of(x);
  const std::array<int64_t, 4> wanted{h * w * pitch, 1, w * pitch, pitch};
  for (int i = 0; i < 4; i++)
    if (pitch < c || (x.size(i) > 1 && x.stride(i) != wanted[i]))
      throw std::invalid_argument("native kernels take images in channels-last layout, pixel by pixel");
  return {n, h, w, c, pitch};
}

struct Geometry {
  Image out;
  Window window;
  Activation activation;
  bool leaves;
};

// [channels, height, width] of the result; [height, width], [stride], [top, left], [dilation], groups of the kernel;
// the activation; whether the result leaves the program.
Geometry geometry(int64_t batch, const std::vector<int64_t>& of) {
  if (of.size() != 14) throw std::invalid_argument("geometry has 14 numbers");
  return {{batch, of[1], of[2], of[0], of[0]},
          {of[3], of[4], of[5], of[6], of[7], of[8], of[9], of[10], of[11]},
          static_cast<Activation>(of[12]),
          of[13] != 0};
}

const float* weights(const Tensor& tensor, int64_t count, const char* what) {
  if (tensor.numel() != count || !tensor.is_contiguous() || tensor.scalar_type() != torch::headeronly::ScalarType::Float)
    throw std::invalid_argument(std::string(what) + " of a native kernel has another size, or is not dense");
  return data(tensor);
}

const float* vector(const std::optional<Tensor>& bias, int64_t channels) {
  return bias ? weights(*bias, channels, "the bias") : nullptr;
}

Epilogue epilogue(const std::optional<Tensor>& bias, const std::optional<Tensor>& residual, Image out,
                  Activation activation) {
  if (!residual) return {vector(bias, out.channels), nullptr, 0, activation};
  Image added = image(*residual);
  const int64_t pitch = std::exchange(added.pitch, out.pitch);
  if (added != out) throw std::invalid_argument("what is added has another shape than the result");
  return {vector(bias, out.channels), data(*residual), pitch, activation};
}

Tensor pack_matrices(Tensor matrices) {
  const int64_t taps = matrices.size(0), depth = matrices.size(1), columns = matrices.size(2);
  const int64_t count = packed_size(taps, depth, columns);
  Tensor packed = empty({count}, {1}, count, true);
  pack(data(matrices), taps, depth, columns, writable(packed));
  return packed;
}

// A kernel over images.
template <typename Kernel>
Tensor convolved(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> residual,
                 std::vector<int64_t> numbers) {
  const Image in = image(x);
  const auto [out, window, activation, leaves] = geometry(in.batch, numbers);
  Tensor result = empty(out, leaves);
  const float* kernel = weights(packed, Kernel::packed(in, window, out), "the kernel");
  Kernel({data(x), in, window, kernel, out, writable(result), epilogue(bias, residual, out, activation)}).run();
  return result;
}

// A linear layer over the last dimension: a convolution of as many images of one pixel as there are rows.
Tensor linear(Tensor x, Tensor packed, std::optional<Tensor> bias, std::optional<Tensor> residual,
              std::vector<int64_t> numbers) {
  const auto [out, window, activation, leaves] = geometry(1, numbers);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  const int64_t channels = sizes.back();
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < sizes.size(); i++) rows *= sizes[i];
  sizes.back() = out.channels;
  require_floats(x);
  if (residual) require_floats(*residual);
  if (!x.is_contiguous() || (residual && (!residual->is_contiguous() || residual->numel() != rows * out.channels)))
    throw std::invalid_argument("native linear layers take rows that lie one behind the other, densely");
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; i--) strides[i - 1] = strides[i] * sizes[i];
  Tensor result = empty(sizes, strides, rows * out.channels, leaves);
  const Epilogue after{vector(bias, out.channels), residual ? data(*residual) : nullptr, out.channels, activation};
  const float* kernel = weights(packed, packed_size(1, channels, out.channels), "the matrix");
  Convolution({data(x), {rows, 1, 1, channels, channels}, window, kernel,
               {rows, 1, 1, out.channels, out.channels}, writable(result), after})
      .run();
  return result;
}

// `geometry`: the hidden channels and both activations. Convolutions read the result: it does not leave the program.
Tensor excitation(Tensor x, Tensor reduce, std::optional<Tensor> reduce_bias, Tensor expand,
                  std::optional<Tensor> expand_bias, std::vector<int64_t> geometry) {
  if (geometry.size() != 3) throw std::invalid_argument("geometry has 3 numbers");
  const Image in = image(x);
  const int64_t hidden = geometry[0];
  Tensor result = empty(in, false);
  Excitation(data(x), in, weights(reduce, in.channels * filled(hidden), "the first matrix"),
             vector(reduce_bias, hidden), weights(expand, hidden * filled(in.channels), "the second matrix"),
             vector(expand_bias, in.channels), hidden, static_cast<Activation>(geometry[1]),
             static_cast<Activation>(geometry[2]), writable(result), in.channels)
      .run();
  return result;
}

// `shapes`: [N, C, H, W] of each result, and whether it leaves the program.
std::vector<Tensor> sequence(std::vector<Tensor> images, Tensor weights, Tensor steps, int64_t memory,
                             std::vector<int64_t> shapes) {
  if (steps.dim() != 2 || steps.size(1) != Sequence::NUMBERS || !steps.is_contiguous() ||
      steps.scalar_type() != torch::headeronly::ScalarType::Long)
    throw std::invalid_argument("the steps of a sequence have other numbers");
  const Step* first = static_cast<const Step*>(steps.data_ptr());
  const Step* last = first + steps.size(0);
  std::vector<const float*> given;
  for (size_t i = 0; i < images.size(); i++) {
    const Image found = image(images[i]);
    const auto is_read = [&](Step::Place place, const Image& size, int64_t pitch) {
      if (place.where != Step::given || place.number != static_cast<int64_t>(i)) return true;
      return found == Image{size.batch, size.height, size.width, found.channels, pitch} &&
             place.channel + size.channels <= found.channels;
    };
    for (const Step* step = first; step < last; step++)
      if (!is_read(step->from, step->in, step->in.pitch) || !is_read(step->residual, step->out, step->residual_pitch))
        throw std::invalid_argument("an image has another size than the steps of a sequence");
    given.push_back(data(images[i]));
  }
  std::vector<Tensor> results;
  std::vector<float*> memories;
  for (size_t i = 0; i + 4 < shapes.size(); i += 5) {
    const Image found{shapes[i], shapes[i + 2], shapes[i + 3], shapes[i + 1], shapes[i + 1]};
    results.push_back(empty(found, shapes[i + 4] != 0));
    memories.push_back(writable(results.back()));
  }
  const Sequence sequence(std::move(given), std::move(memories), data(weights), weights.numel(), memory);
  for (const Step* step = first; step < last; step++) sequence.run(*step);
  return results;
}

// [N, C, L] or [N, C, H, W].
Signals signals(const Tensor& x) {
  const int64_t dims = x.dim();
  require_floats(x);
  if (dims != 3 && dims != 4) throw std::invalid_argument("signals have three or four dimensions");
  const int64_t c = x.size(1), h = dims == 4 ? x.size(2) : 1, w = x.size(dims - 1);
  const auto lies = [&](std::array<int64_t, 4> strides) {
    if (dims == 3) strides = {strides[0], strides[1], strides[3], 0};
    for (int64_t i = 0; i < dims; i++)
      if (x.size(i) > 1 && x.stride(i) != strides[i]) return false;
    return true;
  };
  float* data = static_cast<float*>(x.data_ptr());
  if (lies({c * h * w, h * w, w, 1})) return {data, c, h, w, 0};
  const int64_t pitch = pitch_of(x);  // they may be some of more channels
  if (pitch < c || !lies({h * w * pitch, 1, w * pitch, pitch}))
    throw std::invalid_argument("native transforms take signals with channels behind the batch, densely, or last");
  return {data, c, h, w, pitch};
}

// `kernel`: [channels, rows, columns].
Tensor pack_fft(Tensor kernel) {
  const int64_t channels = kernel.size(0), rows = kernel.size(1), columns = kernel.size(2);
  const Plane& plane = Plane::of(rows, columns);
  const int64_t count = FftConvolution::packed(plane, channels);
  weights(kernel, channels * rows * columns, "the kernel");
  Tensor packed = empty({count}, {1}, count, true);
  FftConvolution(plane).pack({writable(kernel), channels, rows, columns, 0}, writable(packed));
  return packed;
}

// `geometry`: [rows, columns] of the circle, of the result, strides, and whether the result leaves the program.
Tensor fft_convolution(Tensor x, Tensor packed, std::vector<int64_t> geometry) {
  if (geometry.size() != 7) throw std::invalid_argument("geometry has 7 numbers");
  const Signals in = signals(x);
  const Plane& plane = Plane::of(geometry[0], geometry[1]);
  const int64_t images = x.size(0), rows = geometry[2], columns = geometry[3];
  if (in.rows > geometry[0] || in.columns > geometry[1] || (rows - 1) * geometry[4] >= geometry[0] ||
      (columns - 1) * geometry[5] >= geometry[1])
    throw std::invalid_argument("signals and results have to lie on the circle");
  const int64_t c = in.channels;
  Signals out{nullptr, c, rows, columns, in.pitch ? c : 0};
  std::vector<int64_t> sizes{images, c, rows, columns};
  std::vector<int64_t> strides = in.pitch ? std::vector<int64_t>{out.size(), 1, columns * c, c}
                                         : std::vector<int64_t>{out.size(), rows * columns, columns, 1};
  if (x.dim() == 3) sizes.erase(sizes.begin() + 2), strides.erase(strides.begin() + 2);
  Tensor result = empty(sizes, strides, images * out.size(), geometry[6] != 0);
  out.data = writable(result);
  FftConvolution(plane).run(in, images, weights(packed, FftConvolution::packed(plane, c), "the spectrum"), out,
                            geometry[4], geometry[5]);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(torch_rewrite, CPU, library) {
  library.impl("native_pack", TORCH_BOX(&pack_matrices));
  library.impl("native_convolution", TORCH_BOX(&convolved<Convolution>));
  library.impl("native_linear", TORCH_BOX(&linear));
  library.impl("native_depthwise", TORCH_BOX(&convolved<Depthwise>));
  library.impl("native_winograd", TORCH_BOX(&convolved<Winograd>));
  library.impl("native_excitation", TORCH_BOX(&excitation));
  library.impl("native_sequence", TORCH_BOX(&sequence));
  library.impl("native_pack_fft", TORCH_BOX(&pack_fft));
  library.impl("native_fft_convolution", TORCH_BOX(&fft_convolution));
}

}  // namespace torch_rewrite
