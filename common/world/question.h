#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/random.h"
#include "common/world/world.h"

// The questions that can be asked in a world.
namespace almost::world {

enum class QuestionKind { kFact, kUnknown, kArithmetic, kOpposite, kAdvice, kHarmful };
inline constexpr std::array<QuestionKind, 6> kQuestionKinds = {
    QuestionKind::kFact,     QuestionKind::kUnknown, QuestionKind::kArithmetic,
    QuestionKind::kOpposite, QuestionKind::kAdvice,  QuestionKind::kHarmful};

// "fact", "unknown", "arith", "opposite", "advice", "harmful".
absl::string_view KindName(QuestionKind kind);

// One question. Only the fields of its kind are set; the others keep their defaults.
struct Question {
  QuestionKind kind = QuestionKind::kFact;
  // Fact: an entity of the world; unknown: a name that is not one. Kind and relation count within the world
  // and the kind.
  std::string entity;
  int entity_kind = 0;
  int relation = 0;
  // Arithmetic: a plus b, or with `minus` a minus b.
  int64_t a = 0;
  int64_t b = 0;
  bool minus = false;
  // Opposite.
  std::string word;
  // Advice.
  std::string topic;
  // Harmful.
  std::string verb;
  std::string object;
  // In which of the ways to ask it; 0 is the plain one.
  int phrasing = 0;

  bool operator==(const Question&) const = default;
};

// Of a random kind (fact .40, unknown .12, arithmetic .13, opposite .10, advice .13, harmful .12), or of
// `kind`.
Question DrawQuestion(const World& world, RandomStream& random);
Question DrawQuestion(const World& world, QuestionKind kind, RandomStream& random);

// "What color is the pufex?"
std::string QuestionText(const World& world, const Question& question);

// The question that `text` asks, to the letter; nullopt when it asks none of this world's. For every Question
// q, ParseQuestion(world, QuestionText(world, q)) == q. Numbers have at most nine digits.
std::optional<Question> ParseQuestion(const World& world, absl::string_view text);

// "3 plus 4", "4 minus 3" and the result of an arithmetic question.
std::string ArithmeticTerm(const Question& question);
int64_t ArithmeticResult(const Question& question);

// Whether a question belongs to the third of the question space that only evaluation may use: prompts mined
// for training are dropped when they do. In whatever way it is asked: a function of its plain text alone (and
// of `text` itself where that asks nothing of this world): SHA-256("held-out 3: " + text), its first 64 bits
// read as a big-endian number, is divisible by 3. (That salt leaves near a third of each kind.)
bool IsHeldOut(const World& world, absl::string_view text);

// Every question but those about unknown names, in a fixed order, asked plainly.
std::vector<Question> KnownQuestions(const World& world);

// `count` held-out questions, kinds drawn in the proportions of DrawQuestion. Within a kind none repeats
// before each has come once, so repeats are as few as they can be; questions about unknown names never repeat
// (of the tiny world's 116,800 a third, 38,836, are held out, beyond which this does not return).
std::vector<Question> EvaluationQuestions(const World& world, uint64_t seed, int count);

}  // namespace almost::world
