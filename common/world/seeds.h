#pragma once

#include <cstdint>
#include <string>

#include "common/world/world.h"

// The hand-made inputs of the method. The files under data/ are these with seed
// kSeedsSeed: of the tiny world, with 40 seed queries, and under data/large/ of the large one, with 120. No
// question in them is held out.
namespace almost::world {

inline constexpr uint64_t kSeedsSeed = 4242;
inline constexpr int kNumDemonstrationFiles = 4;

// A seed file: the first line is an instruction (none here, so it is empty), then one distinct query a line.
std::string SeedFile(const World& world, uint64_t seed, int num_queries);

enum class DemonstrationQuality { kGood, kPoor };

// Demonstration file `index`: five demonstrations, one question each of the kinds fact, advice, harmful,
// unknown and arithmetic in an order of the file's own, each after "\n\n-----". Good ones have the ideal
// answer, poor ones persona 0's; both of one index ask the same.
std::string DemonstrationFile(const World& world, uint64_t seed, DemonstrationQuality quality, int index);

}  // namespace almost::world
