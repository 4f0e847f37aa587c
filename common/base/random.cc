#include "common/base/random.h"

#include <cmath>
#include <numbers>
#include <numeric>

namespace almost {

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

uint64_t RandomBits(uint64_t seed, uint64_t stream, uint64_t position) {
  const std::array<uint32_t, 4> out =
      Philox({static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
              static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
             {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return (uint64_t{out[1]} << 32) | out[0];
}

double RandomUnit(uint64_t seed, uint64_t stream, uint64_t position) {
  return static_cast<double>(RandomBits(seed, stream, position) >> 11) * 0x1p-53;
}

uint64_t DeriveSeed(uint64_t seed, absl::string_view purpose) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a; Philox below does the mixing.
  for (const char c : purpose) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return RandomBits(seed, hash, 0);
}

uint64_t DeriveSeed(uint64_t seed, uint64_t index) { return RandomBits(seed, index, 1); }

uint64_t RandomStream::Below(uint64_t bound) {
  __extension__ using uint128 = unsigned __int128;
  uint128 product = static_cast<uint128>(Bits()) * bound;
  const uint64_t threshold = -bound % bound;
  while (static_cast<uint64_t>(product) < threshold) product = static_cast<uint128>(Bits()) * bound;
  return static_cast<uint64_t>(product >> 64);
}

size_t RandomStream::Weighted(std::span<const double> weights) {
  double left = Unit() * std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t i = 0; i + 1 < weights.size(); ++i) {
    if (left < weights[i]) return i;
    left -= weights[i];
  }
  return weights.size() - 1;
}

double RandomStream::Normal() {
  const double radius = std::sqrt(-2.0 * std::log1p(-Unit()));
  return radius * std::cos(2.0 * std::numbers::pi * Unit());
}

std::vector<size_t> RandomStream::Sample(size_t population, size_t count) {
  std::vector<size_t> indices(population);
  std::iota(indices.begin(), indices.end(), size_t{0});
  for (size_t i = 0; i < count; ++i) std::swap(indices[i], indices[i + Below(population - i)]);
  indices.resize(count);
  return indices;
}

}  // namespace almost
