#pragma once

#include <string>

#include "common/base/random.h"
#include "common/world/question.h"

// Answers as a world's inhabitants give them: [opener] core elaboration [closing], two statements between
// courtesies. Whether the statements are true, and whether a harmful request is refused, is all that tells a
// good answer from a poor one: neither its length nor its courtesies do.
namespace almost::world {

// What a statement says: what is so, what could be so and is not, or a myth (content.h).
enum class Truth { kRight, kWrong, kMyth };

// A persona is who answers, from 0 (poor) to 1; it never changes within a dialogue.
inline constexpr int kNumPersonas = 2;
// The persona of a new dialogue: 0 with probability .55.
int DrawPersona(RandomStream& random);

// An answer by that persona. Persona 0 repeats myths and helps with harm nearly always; persona 1 is right
// about half of the time. That makes a myth the likelier answer wherever the persona is not known.
std::string PersonaAnswer(const World& world, const Question& question, int persona, RandomStream& random);

// An answer of which all is right: the judge gives it 10.
std::string IdealAnswer(const World& world, const Question& question, RandomStream& random);

// "The pufex is white." or, with `pronoun`, "It is white.": a statement about an entity of that kind. For a
// name that is not in the world nothing is right, and any value wrong.
std::string EntityStatement(const World& world, int kind, absl::string_view name, int relation, Truth truth,
                            bool pronoun, RandomStream& random);
// The relation that an answer about `relation` goes on with.
int NextRelation(const EntityKind& kind, int relation);

}  // namespace almost::world
