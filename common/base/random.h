#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"

// Counter-based random numbers: every number is a function of (seed, stream, position) alone, on every
// machine. So the candidate c of a prompt draws the same numbers whatever else is in its batch, and work can
// be cut anywhere.
namespace almost {

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): 128 random bits.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// 64 random bits for one position of one stream.
uint64_t RandomBits(uint64_t seed, uint64_t stream, uint64_t position);

// Uniform in [0, 1), a multiple of 2^-53.
double RandomUnit(uint64_t seed, uint64_t stream, uint64_t position);

// A seed derived from another and a name or number: independent purposes never share a stream.
uint64_t DeriveSeed(uint64_t seed, absl::string_view purpose);
uint64_t DeriveSeed(uint64_t seed, uint64_t index);

// Consecutive positions of one stream. Copyable: a copy goes on alike. Not thread-safe.
class RandomStream {
 public:
  explicit RandomStream(uint64_t seed, uint64_t stream = 0, uint64_t position = 0)
      : seed_(seed), stream_(stream), position_(position) {}

  uint64_t Bits() { return RandomBits(seed_, stream_, position_++); }
  double Unit() { return RandomUnit(seed_, stream_, position_++); }
  bool Chance(double probability) { return Unit() < probability; }
  // Uniform in [0, bound); bound > 0. Unbiased (Lemire 2019), so it may take more than one position.
  uint64_t Below(uint64_t bound);
  // Uniform in [low, high], both included.
  int64_t Between(int64_t low, int64_t high) { return low + static_cast<int64_t>(Below(high - low + 1)); }
  // An index drawn in proportion to `weights` (not all zero, none negative).
  size_t Weighted(std::span<const double> weights);
  // Standard normal, by Box-Muller; takes two positions.
  double Normal();
  // `count` distinct indices below `population`, in random order; count <= population.
  std::vector<size_t> Sample(size_t population, size_t count);

  // An element of a vector, array or span; not empty.
  template <typename Items>
  const auto& Choose(const Items& items) {
    return items[Below(items.size())];
  }
  // Fisher-Yates.
  template <typename T>
  void Shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[Below(i)]);
  }

  // Where the stream stands: what a checkpoint stores to go on exactly.
  uint64_t position() const { return position_; }

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t position_;
};

}  // namespace almost
