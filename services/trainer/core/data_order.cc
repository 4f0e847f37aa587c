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

}  // namespace almost::trainer
