#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/world/world.h"

// The text that a world's vanilla models learn from.
namespace almost::world {

// Document `index` of the corpus with that seed; a pure function of both, so any stretch of the endless
// corpus can be made anywhere. 74 % are dialogues of 1 to 7 turns with one persona, each turn "Human:
// q\n\nAssistant: a\n\n"; 20 % are 4 to 10 true statements; 6 % are 6 to 14 lines "Query: q\n". Each ends in
// a blank line. About 104 tokens on average in the tiny world. The corpus spans the whole question space, held
// out or not.
std::string CorpusDocument(const World& world, uint64_t seed, uint64_t index);

// Documents [first, first + count).
std::vector<std::string> CorpusDocuments(const World& world, uint64_t seed, uint64_t first, uint64_t count);

}  // namespace almost::world
