// Memory of results that is kept for the next ones. The C library gives large blocks back to the system when they are
// freed; each page of a new one costs a fault, hundreds of microseconds for a few megabytes, at every call.
#pragma once

#include <pthread.h>

#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
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
      // the smallest that is large enough, unless most of it were empty
      const auto found = free_.lower_bound(bytes);
      if (found != free_.end() && found->first <= 2 * bytes) {
        void* block = found->second.back();
        found->second.pop_back();
        kept_ -= found->first;
        if (found->second.empty()) free_.erase(found);
        return block;
      }
    }
    char* made = static_cast<char*>(std::aligned_alloc(ALIGNMENT, bytes + ALIGNMENT));
    if (!made) throw std::bad_alloc();
    *reinterpret_cast<int64_t*>(made) = bytes;
    return made + ALIGNMENT;
  }

  // Called where tensors die, so nothing may be thrown.
  void give(void* block) noexcept {
    const int64_t bytes = *reinterpret_cast<int64_t*>(start(block));
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (kept_ + bytes > MOST) clear();  // sizes of other times
      if (bytes <= MOST) {
        free_[bytes].push_back(block);
        kept_ += bytes;
        return;
      }
    } catch (const std::bad_alloc&) {
    }
    std::free(start(block));
  }

 private:
  static constexpr int64_t ALIGNMENT = 64, STEP = 4096, MOST = 256 << 20;  // bytes

  // A process that is forked while another thread is in here would find the lock taken for ever.
  Pool() {
    pthread_atfork([] { instance().mutex_.lock(); }, [] { instance().mutex_.unlock(); },
                   [] { instance().mutex_.unlock(); });
  }

  static char* start(void* block) { return static_cast<char*>(block) - ALIGNMENT; }

  void clear() {
    for (auto& [bytes, blocks] : free_)
      for (void* block : blocks) std::free(start(block));
    free_.clear();
    kept_ = 0;
  }

  std::mutex mutex_;
  std::map<int64_t, std::vector<void*>> free_;
  int64_t kept_ = 0;
};

}  // namespace torch_rewrite
