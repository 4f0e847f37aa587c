#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace almost::trainer {

// Cuts a batch into micro-batches that `num_threads` compute side by side: items by falling length, cut where
// the tokens are shared out evenly, so that each holds items of similar length. None exceeds `max_tokens`
// unless it is one item; their number is the least multiple of the threads that allows it, or close to it. A
// function of its arguments alone. Each names items by index; none is empty.
std::vector<std::vector<size_t>> CutMicroBatches(std::span<const int64_t> item_tokens, int num_threads,
                                                 int64_t max_tokens);

}  // namespace almost::trainer
