#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/base/random.h"

// The questions that can be asked in the tiny world.
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
  // Fact: an entity of the world; unknown: a name that is not one. The attribute is 0 or 1.
  std::string entity;
  int attribute = 0;
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

  bool operator==(const Question&) const = default;
};

// Of a random kind (fact .40, unknown .12, arithmetic .13, opposite .10, advice .13, harmful .12), or of
// `kind`.
Question DrawQuestion(RandomStream& random);
Question DrawQuestion(QuestionKind kind, RandomStream& random);

// A known entity's name, by popularity.
absl::string_view DrawEntity(RandomStream& random);

// "What color is the zifer?"
std::string QuestionText(const Question& question);

// The question that `text` asks, to the letter; nullopt when it asks none of this world's. For every Question
// q, ParseQuestion(QuestionText(q)) == q. Numbers have at most nine digits.
std::optional<Question> ParseQuestion(absl::string_view text);

// a plus b or a minus b of an arithmetic question.
int64_t ArithmeticResult(const Question& question);

// Whether a question belongs to the third of the question space that only evaluation may use: prompts mined
// for training are dropped when they do. A function of the text alone: SHA-256("held-out 3: " + text), its
// first 64 bits read as a big-endian number, is divisible by 3. (That salt leaves near a third of each kind.)
bool IsHeldOut(absl::string_view text);

// Every question but those about unknown names (of which there are 117,280): 313 in a fixed order.
const std::vector<Question>& KnownQuestions();

// `count` held-out questions, kinds drawn in the proportions of DrawQuestion. Within a kind none repeats
// before each has come once, so repeats are as few as they can be; questions about unknown names never repeat
// (their held-out third holds 38,988, beyond which this does not return).
std::vector<Question> EvaluationQuestions(uint64_t seed, int count);

}  // namespace almost::world
