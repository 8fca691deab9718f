// Layers one behind the other in one call. Between them there is no interpreter and no allocation: all intermediate
// results have places in one block of memory, assigned when the program was made. What is split or concatenated along
// the channels is not copied: layers read and write parts of wider images.
#pragma once

#include <cstring>
#include <stdexcept>
#include <vector>

#include "convolution.h"
#include "depthwise.h"
#include "excitation.h"
#include "pool.h"
#include "winograd.h"

namespace torch_rewrite {

// One layer, in the order in which codegen/native/sequences.py has its numbers.
struct Step {
  enum Kind : int64_t { convolution, depthwise, winograd, excitation, copy };
  enum Where : int64_t { nowhere, given, between, result };
  struct Place {
    int64_t where, number;  // the number of a tensor that is given or a result, a distance in floats between
    int64_t channel;        // the first one, of a wider image
  };
  int64_t kind;
  Place from, residual, to;
  int64_t weights[4];  // distances in floats, negative for none: kernel and bias, or two matrices each with its bias
  Image in, out;
  int64_t residual_pitch;
  Window window;
  int64_t activation, hidden, inner;
};

class Sequence {
 public:
  static constexpr int64_t NUMBERS = sizeof(Step) / sizeof(int64_t);

  Sequence(std::vector<const float*> given, std::vector<float*> results, const float* weights, int64_t weights_size,
           int64_t memory)
      : given_(std::move(given)), results_(std::move(results)), weights_(weights), weights_size_(weights_size),
        memory_(static_cast<float*>(Pool::instance().take(std::max<int64_t>(memory, 1) * sizeof(float)))) {}
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;
  ~Sequence() { Pool::instance().give(memory_); }

  void run(const Step& step) const {
    switch (step.kind) {
      case Step::convolution: return convolve<Convolution>(step);
      case Step::depthwise: return convolve<Depthwise>(step);
      case Step::winograd: return convolve<Winograd>(step);
      case Step::excitation: {
        const int64_t hidden = step.hidden, channels = step.in.channels;
        return Excitation(at(step.from), step.in, weights(step.weights[0], channels * filled(hidden)),
                          weights(step.weights[1], hidden), weights(step.weights[2], hidden * filled(channels)),
                          weights(step.weights[3], channels), hidden, static_cast<Activation>(step.inner),
                          static_cast<Activation>(step.activation), at(step.to), step.out.pitch)
            .run();
      }
      case Step::copy: return copy(step);
      default: throw std::invalid_argument("a sequence has a step of an unknown kind");
    }
  }

 private:
  template <typename Kernel>
  void convolve(const Step& step) const {
    const Epilogue epilogue{weights(step.weights[1], step.out.channels), at(step.residual), step.residual_pitch,
                            static_cast<Activation>(step.activation)};
    const float* kernel = weights(step.weights[0], Kernel::packed(step.in, step.window, step.out));
    Kernel({at(step.from), step.in, step.window, kernel, step.out, at(step.to), epilogue}).run();
  }

  void copy(const Step& step) const {
    const int threads = threads_for(step.in.pixels() * step.in.channels);
    const float* from = at(step.from);
    float* to = at(step.to);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      const Range mine = share(step.in.pixels(), omp_get_thread_num(), omp_get_num_threads());
      for (int64_t pixel = mine.begin; pixel < mine.end; pixel++)
        std::memcpy(to + pixel * step.out.pitch, from + pixel * step.in.pitch, step.in.channels * sizeof(float));
    }
  }

  const float* weights(int64_t from, int64_t count) const {
    if (from + count > weights_size_) throw std::invalid_argument("the weights of a sequence have another size");
    return from < 0 ? nullptr : weights_ + from;
  }

  float* at(Step::Place place) const {
    switch (place.where) {
      case Step::nowhere: return nullptr;
      case Step::given: return const_cast<float*>(given_.at(place.number)) + place.channel;  // is only read
      case Step::between: return memory_ + place.number + place.channel;
      case Step::result: return results_.at(place.number) + place.channel;
      default: throw std::invalid_argument("a sequence has a value at an unknown place");
    }
  }

  std::vector<const float*> given_;
  std::vector<float*> results_;
  const float* weights_;
  int64_t weights_size_;
  float* memory_;
};

}  // namespace torch_rewrite
