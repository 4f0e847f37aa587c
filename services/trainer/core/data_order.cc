#include "services/trainer/core/data_order.h"

#include <algorithm>
#include <numeric>

#include "common/base/random.h"

namespace almost::trainer {

std::vector<size_t> DataOrder::Batch(int64_t step) {
  std::vector<size_t> batch;
  const int64_t end = std::min((step + 1) * batch_size_, num_samples_ * epochs_);
  for (int64_t position = step * batch_size_; position < end; ++position) {
    if (position / num_samples_ != epoch_) {
      epoch_ = position / num_samples_;
      permutation_.resize(num_samples_);
      std::iota(permutation_.begin(), permutation_.end(), size_t{0});
      RandomStream random(DeriveSeed(seed_, "data order"), static_cast<uint64_t>(epoch_));
      random.Shuffle(permutation_);
    }
    batch.push_back(permutation_[position % num_samples_]);
  }
  return batch;
}

std::vector<std::vector<size_t>> BatchesOfGroups(uint64_t seed, std::span<const size_t> sizes, int epochs,
                                                 int batch_size) {
  DataOrder order(seed, static_cast<int64_t>(sizes.size()), epochs, /*batch_size=*/1);
  std::vector<std::vector<size_t>> batches;
  size_t samples = 0;  // of the last batch
  for (int64_t step = 0; step < order.num_steps(); ++step) {
    const size_t group = order.Batch(step).front();
    if (batches.empty() || samples + sizes[group] > static_cast<size_t>(batch_size)) {
      batches.emplace_back();
      samples = 0;
    }
    batches.back().push_back(group);
    samples += sizes[group];
  }
  return batches;
}

}  // namespace almost::trainer
