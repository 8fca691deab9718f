// Shares of work among OpenMP's threads.
#pragma once

#include <omp.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace torch_rewrite {

struct Range {
  int64_t begin, end;
};

// Part `index` of `count` even parts of `total`.
inline Range share(int64_t total, int64_t index, int64_t count) {
  return {total * index / count, total * (index + 1) / count};
}

// How many of torch's threads so many multiplications are worth.
inline int threads_for(int64_t multiplications) {
  if (omp_in_parallel()) return 1;
  const int64_t most = std::max<int64_t>(torch::stable::get_num_threads(), 1);
  return static_cast<int>(std::clamp<int64_t>(multiplications >> 16, 1, most));
}

// Memory that a thread keeps from call to call, aligned for vectors.
class Scratch {
 public:
  float* take(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      size_ = 0;
      data_ = static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
    }
    return data_;
  }
  ~Scratch() { std::free(data_); }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace torch_rewrite
