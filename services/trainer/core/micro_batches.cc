#include "services/trainer/core/micro_batches.h"

#include <algorithm>
#include <numeric>

namespace almost::trainer {

std::vector<std::vector<size_t>> CutMicroBatches(std::span<const int64_t> item_tokens, int num_threads,
                                                 int64_t max_tokens) {
  std::vector<size_t> order(item_tokens.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return item_tokens[a] > item_tokens[b]; });
  const int64_t total = std::accumulate(item_tokens.begin(), item_tokens.end(), int64_t{0});
  const int64_t rounds =
      std::max<int64_t>(1, (total + num_threads * max_tokens - 1) / (num_threads * max_tokens));
  const int64_t wanted = std::min<int64_t>(rounds * num_threads, static_cast<int64_t>(order.size()));

  std::vector<std::vector<size_t>> batches;
  int64_t taken = 0, in_batch = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    const int64_t tokens = item_tokens[order[i]];
    // A batch ends where its share of the tokens does, and early enough that every later one gets an item.
    const auto begun = static_cast<int64_t>(batches.size());
    const bool full = in_batch > 0 && (taken + tokens / 2 >= total * begun / std::max<int64_t>(1, wanted) ||
                                       in_batch + tokens > max_tokens ||
                                       static_cast<int64_t>(order.size() - i) <= wanted - begun);
    if (batches.empty() || (full && (begun < wanted || in_batch + tokens > max_tokens))) {
      batches.emplace_back();
      in_batch = 0;
    }
    batches.back().push_back(order[i]);
    taken += tokens;
    in_batch += tokens;
  }
  return batches;
}

}  // namespace almost::trainer
