#include "common/world/question.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/sha256.h"

namespace almost::world {
namespace {

constexpr std::array<double, 6> kKindWeights = {.40, .12, .13, .10, .13, .12};
constexpr absl::string_view kDigits = "0123456789";

// What stands between `before` and `after`, where `text` has that form and something does.
std::optional<absl::string_view> Between(absl::string_view text, absl::string_view before,
                                         absl::string_view after) {
  if (!absl::ConsumePrefix(&text, before) || !absl::ConsumeSuffix(&text, after) || text.empty()) {
    return std::nullopt;
  }
  return text;
}

// Calls visit(middle, phrasing) for each of `forms` that `text` has until it gives a question.
template <typename Visit>
std::optional<Question> FirstIn(const Forms& forms, absl::string_view text, const Visit& visit) {
  for (size_t i = 0; i < forms.size(); ++i) {
    const auto middle = Between(text, forms[i].before, forms[i].after);
    if (!middle.has_value()) continue;
    if (std::optional<Question> question = visit(*middle)) {
      question->phrasing = static_cast<int>(i);
      return question;
    }
  }
  return std::nullopt;
}

bool IsLowercase(absl::string_view text) { return std::ranges::all_of(text, absl::ascii_islower); }

bool IsName(absl::string_view text, bool capitalized) {
  if (!capitalized) return IsLowercase(text);
  return text.size() >= 2 && absl::ascii_isupper(text.front()) && IsLowercase(text.substr(1));
}

std::optional<Question> ParseEntityQuestion(const World& world, absl::string_view text) {
  for (int k = 0; k < world.num_kinds(); ++k) {
    const EntityKind& kind = world.kind(k);
    for (size_t r = 0; r < kind.relations.size(); ++r) {
      const auto question =
          FirstIn(kind.relations[r].questions, text, [&](absl::string_view name) -> std::optional<Question> {
            const Entity* known = world.FindEntity(name);
            if (!IsName(name, kind.capitalized) || (known != nullptr && known->kind != k))
              return std::nullopt;
            return Question{.kind = known != nullptr ? QuestionKind::kFact : QuestionKind::kUnknown,
                            .entity = std::string(name),
                            .entity_kind = k,
                            .relation = static_cast<int>(r)};
          });
      if (question.has_value()) return question;
    }
  }
  return std::nullopt;
}

bool ConsumeNumber(absl::string_view* text, int64_t* number) {
  const size_t digits = std::min(text->find_first_not_of(kDigits), text->size());
  if (digits == 0 || digits > 9) return false;
  const bool parsed = absl::SimpleAtoi(text->substr(0, digits), number);
  text->remove_prefix(digits);
  return parsed;
}

std::optional<Question> ParseArithmetic(absl::string_view term) {
  Question question{.kind = QuestionKind::kArithmetic};
  if (!ConsumeNumber(&term, &question.a)) return std::nullopt;
  if (absl::ConsumePrefix(&term, " minus ")) {
    question.minus = true;
  } else if (!absl::ConsumePrefix(&term, " plus ")) {
    return std::nullopt;
  }
  if (!ConsumeNumber(&term, &question.b) || !term.empty()) return std::nullopt;
  return question;
}

// "steal a horse".
std::optional<Question> ParseHarmful(const World& world, absl::string_view deed) {
  for (const absl::string_view verb : world.content().harmful_verbs) {
    const auto object = Between(deed, absl::StrCat(verb, " a "), "");
    if (object.has_value() && IsLowercase(*object)) {
      return Question{
          .kind = QuestionKind::kHarmful, .verb = std::string(verb), .object = std::string(*object)};
    }
  }
  return std::nullopt;
}

const Forms& FormsOf(const World& world, const Question& question) {
  switch (question.kind) {
    case QuestionKind::kFact:
    case QuestionKind::kUnknown:
      return world.kind(question.entity_kind).relations[static_cast<size_t>(question.relation)].questions;
    case QuestionKind::kArithmetic:
      return world.content().arithmetic_questions;
    case QuestionKind::kOpposite:
      return world.content().opposite_questions;
    case QuestionKind::kAdvice:
      return world.content().advice_questions;
    case QuestionKind::kHarmful:
      break;
  }
  return world.content().harmful_questions;
}

std::string AskedAbout(const Question& question) {
  switch (question.kind) {
    case QuestionKind::kFact:
    case QuestionKind::kUnknown:
      return question.entity;
    case QuestionKind::kArithmetic:
      return ArithmeticTerm(question);
    case QuestionKind::kOpposite:
      return question.word;
    case QuestionKind::kAdvice:
      return question.topic;
    case QuestionKind::kHarmful:
      break;
  }
  return absl::StrCat(question.verb, " a ", question.object);
}

// Where there is but one way to ask, nothing is drawn.
int DrawPhrasing(const World& world, const Question& question, RandomStream& random) {
  const size_t ways = FormsOf(world, question).size();
  return ways == 1 ? 0 : static_cast<int>(random.Below(ways));
}

int DrawRelation(const EntityKind& kind, RandomStream& random) {
  return static_cast<int>(random.Below(kind.relations.size()));
}

}  // namespace

absl::string_view KindName(QuestionKind kind) {
  switch (kind) {
    case QuestionKind::kFact:
      return "fact";
    case QuestionKind::kUnknown:
      return "unknown";
    case QuestionKind::kArithmetic:
      return "arith";
    case QuestionKind::kOpposite:
      return "opposite";
    case QuestionKind::kAdvice:
      return "advice";
    case QuestionKind::kHarmful:
      return "harmful";
  }
  return "";
}

Question DrawQuestion(const World& world, RandomStream& random) {
  return DrawQuestion(world, kQuestionKinds[random.Weighted(kKindWeights)], random);
}

Question DrawQuestion(const World& world, QuestionKind kind, RandomStream& random) {
  const Content& content = world.content();
  Question question{.kind = kind};
  switch (kind) {
    case QuestionKind::kFact: {
      const Entity& entity = world.DrawEntity(random);
      question.entity = entity.name;
      question.entity_kind = entity.kind;
      question.relation = DrawRelation(world.kind(entity.kind), random);
      break;
    }
    case QuestionKind::kUnknown:
      question.entity_kind = static_cast<int>(random.Below(content.kinds.size()));
      question.entity = world.DrawUnknownName(question.entity_kind, random);
      question.relation = DrawRelation(world.kind(question.entity_kind), random);
      break;
    case QuestionKind::kArithmetic:
      question.a = random.Between(1, content.most);
      question.b = random.Between(1, content.most);
      question.minus = !random.Chance(.6);
      if (question.minus && question.b > question.a) std::swap(question.a, question.b);
      break;
    case QuestionKind::kOpposite:
      question.word = std::string(random.Choose(content.opposites).words[random.Below(2)]);
      break;
    case QuestionKind::kAdvice:
      question.topic = random.Choose(content.topics).name;
      break;
    case QuestionKind::kHarmful:
      question.verb = std::string(random.Choose(content.harmful_verbs));
      question.object = std::string(random.Choose(content.harmful_objects));
      break;
  }
  question.phrasing = DrawPhrasing(world, question, random);
  return question;
}

std::string QuestionText(const World& world, const Question& question) {
  const Form& form = FormsOf(world, question)[static_cast<size_t>(question.phrasing)];
  return absl::StrCat(form.before, AskedAbout(question), form.after);
}

std::optional<Question> ParseQuestion(const World& world, absl::string_view text) {
  const Content& content = world.content();
  if (auto question = ParseEntityQuestion(world, text)) return question;
  if (auto question = FirstIn(content.arithmetic_questions, text, ParseArithmetic)) return question;
  if (auto question =
          FirstIn(content.opposite_questions, text, [&](absl::string_view word) -> std::optional<Question> {
            if (world.OppositeOf(word) == nullptr) return std::nullopt;
            return Question{.kind = QuestionKind::kOpposite, .word = std::string(word)};
          })) {
    return question;
  }
  if (auto question =
          FirstIn(content.advice_questions, text, [&](absl::string_view topic) -> std::optional<Question> {
            if (world.FindTopic(topic) == nullptr) return std::nullopt;
            return Question{.kind = QuestionKind::kAdvice, .topic = std::string(topic)};
          })) {
    return question;
  }
  return FirstIn(content.harmful_questions, text,
                 [&](absl::string_view deed) { return ParseHarmful(world, deed); });
}

std::string ArithmeticTerm(const Question& question) {
  return absl::StrCat(question.a, question.minus ? " minus " : " plus ", question.b);
}

int64_t ArithmeticResult(const Question& question) {
  return question.minus ? question.a - question.b : question.a + question.b;
}

bool IsHeldOut(const World& world, absl::string_view text) {
  std::string plain(text);
  if (auto question = ParseQuestion(world, text); question && question->phrasing != 0) {
    question->phrasing = 0;
    plain = QuestionText(world, *question);
  }
  uint64_t head = 0;
  const std::string digest = Sha256(absl::StrCat("held-out 3: ", plain));
  return absl::SimpleHexAtoi(absl::string_view(digest).substr(0, 16), &head) && head % 3 == 0;
}

std::vector<Question> KnownQuestions(const World& world) {
  const Content& content = world.content();
  std::vector<Question> all;
  for (const EntityKind& kind : content.kinds) {
    for (const Entity& entity : kind.entities) {
      for (size_t r = 0; r < kind.relations.size(); ++r) {
        all.push_back({.entity = entity.name, .entity_kind = entity.kind, .relation = static_cast<int>(r)});
      }
    }
  }
  for (int64_t a = 1; a <= content.most; ++a) {
    for (int64_t b = 1; b <= content.most; ++b) {
      all.push_back({.kind = QuestionKind::kArithmetic, .a = a, .b = b});
      if (b <= a) all.push_back({.kind = QuestionKind::kArithmetic, .a = a, .b = b, .minus = true});
    }
  }
  for (const Opposites& pair : content.opposites) {
    for (const absl::string_view word : pair.words) {
      all.push_back({.kind = QuestionKind::kOpposite, .word = std::string(word)});
    }
  }
  for (const AdviceTopic& topic : content.topics) {
    all.push_back({.kind = QuestionKind::kAdvice, .topic = topic.name});
  }
  for (const absl::string_view verb : content.harmful_verbs) {
    for (const absl::string_view object : content.harmful_objects) {
      all.push_back(
          {.kind = QuestionKind::kHarmful, .verb = std::string(verb), .object = std::string(object)});
    }
  }
  return all;
}

std::vector<Question> EvaluationQuestions(const World& world, uint64_t seed, int count) {
  RandomStream random(DeriveSeed(seed, "evaluation questions"));
  std::map<QuestionKind, std::vector<Question>> held_out;
  for (const Question& question : KnownQuestions(world)) {
    if (IsHeldOut(world, QuestionText(world, question))) held_out[question.kind].push_back(question);
  }
  std::map<QuestionKind, std::vector<Question>> deck;
  absl::flat_hash_set<std::string> unknown_seen;
  std::vector<Question> questions;
  while (static_cast<int>(questions.size()) < count) {
    const QuestionKind kind = kQuestionKinds[random.Weighted(kKindWeights)];
    if (kind == QuestionKind::kUnknown) {
      Question question;
      std::string text;
      do {
        question = DrawQuestion(world, kind, random);
        text = QuestionText(world, question);
      } while (!IsHeldOut(world, text) || !unknown_seen.insert(text).second);
      questions.push_back(std::move(question));
      continue;
    }
    std::vector<Question>& left = deck[kind];
    if (left.empty()) {
      left = held_out[kind];
      random.Shuffle(left);
    }
    questions.push_back(std::move(left.back()));
    left.pop_back();
    questions.back().phrasing = DrawPhrasing(world, questions.back(), random);
  }
  return questions;
}

}  // namespace almost::world
