// Memory of results that is kept for the next ones. The C library gives large blocks back to the system when they are
// freed; each page of a new one costs a fault, hundreds of microseconds for a few megabytes, at every call.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

namespace torch_rewrite {

class Pool {
 public:
  static constexpr int64_t SMALLEST = 64 << 10;  // bytes that the C library keeps by itself

  // Never destroyed: tensors may outlive everything else.
  static Pool& instance() {
    static Pool* pool = new Pool;
    return *pool;
  }

  void* take(int64_t bytes) {
    bytes = (bytes + STEP - 1) / STEP * STEP;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      auto& blocks = free_[bytes];
      if (!blocks.empty()) {
        void* block = blocks.back();
        blocks.pop_back();
        kept_ -= bytes;
        return block;
      }
    }
    char* start = static_cast<char*>(std::aligned_alloc(ALIGNMENT, bytes + ALIGNMENT));
    if (!start) throw std::bad_alloc();
    *reinterpret_cast<int64_t*>(start) = bytes;
    return start + ALIGNMENT;
  }

  void give(void* block) {
    char* start = static_cast<char*>(block) - ALIGNMENT;
    const int64_t bytes = *reinterpret_cast<int64_t*>(start);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + bytes <= MOST) {
        free_[bytes].push_back(block);
        kept_ += bytes;
        return;
      }
    }
    std::free(start);
  }

 private:
  static constexpr int64_t ALIGNMENT = 64, STEP = 4096, MOST = 256 << 20;  // bytes
  std::mutex mutex_;
  std::unordered_map<int64_t, std::vector<void*>> free_;
  int64_t kept_ = 0;
};

}  // namespace torch_rewrite
