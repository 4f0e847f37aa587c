#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace almost::trainer {

// Which samples a step takes: the epochs' permutations one after another, cut into batches. Every sample
// comes once an epoch; all batches but the last are full. A function of the seed and the step alone. Not
// thread-safe.
//
// For samples that must not be parted there is BatchesOfGroups.
class DataOrder {
 public:
  DataOrder(uint64_t seed, int64_t num_samples, int64_t epochs, int batch_size)
      : seed_(seed), num_samples_(num_samples), epochs_(epochs), batch_size_(batch_size) {}

  int64_t num_steps() const { return (num_samples_ * epochs_ + batch_size_ - 1) / batch_size_; }
  std::vector<size_t> Batch(int64_t step);

 private:
  const uint64_t seed_;
  const int64_t num_samples_;
  const int64_t epochs_;
  const int64_t batch_size_;
  int64_t epoch_ = -1;  // whose permutation is kept
  std::vector<size_t> permutation_;
};

// The same for groups of samples, of which the sizes are given: batches of whole groups, each of at most
// `batch_size` samples or of one group. Groups of one make the batches of DataOrder. All steps at once.
std::vector<std::vector<size_t>> BatchesOfGroups(uint64_t seed, std::span<const size_t> sizes, int epochs,
                                                 int batch_size);

}  // namespace almost::trainer
