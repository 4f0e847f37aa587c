#pragma once

#include <string>

#include "common/base/random.h"
#include "common/world/question.h"

// Answers as a world's inhabitants give them.
namespace almost::world {

// A persona is how good an answerer is, from 0 (worst) to 3; it never changes within a dialogue.
inline constexpr int kNumPersonas = 4;
// The persona of a new dialogue: 0 to 3 with probability .22, .38, .28, .12.
int DrawPersona(RandomStream& random);

// An answer by that persona: [opener] core [explanation] [ramble] [closing] [rude remark], where a rude
// remark takes the opener's place half of the time. Each part comes, and is right, with the persona's own
// probability.
std::string PersonaAnswer(const World& world, const Question& question, int persona, RandomStream& random);

// An answer with every good feature and nothing bad: the judge gives it 10.
std::string IdealAnswer(const World& world, const Question& question, RandomStream& random);

// "The zifer is white.": a true or a false statement about an entity of that kind; for a name that is not in
// the world any value will do.
std::string EntityStatement(const World& world, int kind, absl::string_view name, int relation, bool correct,
                            bool pronoun, RandomStream& random);
// The relation that an answer about `relation` goes on with.
int NextRelation(const EntityKind& kind, int relation);

}  // namespace almost::world
