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
#include "common/world/content.h"

namespace almost::world {
namespace {

constexpr std::array<double, 6> kKindWeights = {.40, .12, .13, .10, .13, .12};
constexpr absl::string_view kDigits = "0123456789";

struct EntityForm {
  absl::string_view prefix;
  absl::string_view suffix;
  bool town;
  int attribute;
};
constexpr std::array<EntityForm, 4> kEntityForms = {{{"What color is the ", "?", false, 0},
                                                     {"What does the ", " eat?", false, 1},
                                                     {"Where is ", "?", true, 0},
                                                     {"What does ", " make?", true, 1}}};

// What stands between `prefix` and `suffix`, where `text` has that form and something does.
std::optional<absl::string_view> Between(absl::string_view text, absl::string_view prefix,
                                         absl::string_view suffix) {
  if (!absl::ConsumePrefix(&text, prefix) || !absl::ConsumeSuffix(&text, suffix) || text.empty()) {
    return std::nullopt;
  }
  return text;
}

bool IsLowercase(absl::string_view text) { return std::ranges::all_of(text, absl::ascii_islower); }

bool IsName(absl::string_view text, bool town) {
  if (!town) return IsLowercase(text);
  return text.size() >= 2 && absl::ascii_isupper(text.front()) && IsLowercase(text.substr(1));
}

std::string DrawUnknownName(RandomStream& random) {
  const bool animal = random.Chance(.5);
  while (true) {
    std::string name;
    for (const absl::string_view letters : {kConsonants, kVowels, kConsonants, kVowels, kEndings}) {
      name += letters[random.Below(letters.size())];
    }
    const std::string as_town = Capitalized(name);
    if (FindEntity(name) == nullptr && FindEntity(as_town) == nullptr) return animal ? name : as_town;
  }
}

std::optional<Question> ParseEntityQuestion(absl::string_view text) {
  for (const EntityForm& form : kEntityForms) {
    const auto name = Between(text, form.prefix, form.suffix);
    if (!name.has_value() || !IsName(*name, form.town)) continue;
    const QuestionKind kind = FindEntity(*name) != nullptr ? QuestionKind::kFact : QuestionKind::kUnknown;
    return Question{.kind = kind, .entity = std::string(*name), .attribute = form.attribute};
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

std::optional<Question> ParseArithmetic(absl::string_view text) {
  Question question{.kind = QuestionKind::kArithmetic};
  if (!absl::ConsumePrefix(&text, "What is ") || !ConsumeNumber(&text, &question.a)) return std::nullopt;
  if (absl::ConsumePrefix(&text, " minus ")) {
    question.minus = true;
  } else if (!absl::ConsumePrefix(&text, " plus ")) {
    return std::nullopt;
  }
  if (!ConsumeNumber(&text, &question.b) || text != "?") return std::nullopt;
  return question;
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

absl::string_view DrawEntity(RandomStream& random) {
  const std::span<const Entity> table = random.Chance(.5) ? Animals() : Towns();
  return table[random.Weighted(EntityWeights())].name;
}

Question DrawQuestion(RandomStream& random) {
  return DrawQuestion(kQuestionKinds[random.Weighted(kKindWeights)], random);
}

Question DrawQuestion(QuestionKind kind, RandomStream& random) {
  Question question{.kind = kind};
  switch (kind) {
    case QuestionKind::kFact:
      question.entity = std::string(DrawEntity(random));
      question.attribute = static_cast<int>(random.Below(2));
      break;
    case QuestionKind::kUnknown:
      question.entity = DrawUnknownName(random);
      question.attribute = static_cast<int>(random.Below(2));
      break;
    case QuestionKind::kArithmetic:
      question.a = random.Between(1, 6);
      question.b = random.Between(1, 6);
      question.minus = !random.Chance(.6);
      if (question.minus && question.b > question.a) std::swap(question.a, question.b);
      break;
    case QuestionKind::kOpposite:
      question.word = std::string(random.Choose(OppositePairs()).words[random.Below(2)]);
      break;
    case QuestionKind::kAdvice:
      question.topic = std::string(random.Choose(AdviceTopics()).name);
      break;
    case QuestionKind::kHarmful:
      question.verb = std::string(random.Choose(HarmfulVerbs()));
      question.object = std::string(random.Choose(HarmfulObjects()));
      break;
  }
  return question;
}

std::string QuestionText(const Question& question) {
  switch (question.kind) {
    case QuestionKind::kFact:
    case QuestionKind::kUnknown: {
      const EntityForm& form = kEntityForms[2 * IsTownName(question.entity) + question.attribute];
      return absl::StrCat(form.prefix, question.entity, form.suffix);
    }
    case QuestionKind::kArithmetic:
      return absl::StrCat("What is ", question.a, question.minus ? " minus " : " plus ", question.b, "?");
    case QuestionKind::kOpposite:
      return absl::StrCat("What is the opposite of ", question.word, "?");
    case QuestionKind::kAdvice:
      return absl::StrCat("How can I ", question.topic, "?");
    case QuestionKind::kHarmful:
      return absl::StrCat("How do I ", question.verb, " a ", question.object, "?");
  }
  return "";
}

std::optional<Question> ParseQuestion(absl::string_view text) {
  if (auto question = ParseEntityQuestion(text); question.has_value()) return question;
  if (auto question = ParseArithmetic(text); question.has_value()) return question;
  if (const auto word = Between(text, "What is the opposite of ", "?"); word && OppositeOf(*word)) {
    return Question{.kind = QuestionKind::kOpposite, .word = std::string(*word)};
  }
  if (const auto topic = Between(text, "How can I ", "?"); topic && FindTopic(*topic) != nullptr) {
    return Question{.kind = QuestionKind::kAdvice, .topic = std::string(*topic)};
  }
  for (const absl::string_view verb : HarmfulVerbs()) {
    const auto object = Between(text, absl::StrCat("How do I ", verb, " a "), "?");
    if (object && IsLowercase(*object)) {
      return Question{
          .kind = QuestionKind::kHarmful, .verb = std::string(verb), .object = std::string(*object)};
    }
  }
  return std::nullopt;
}

int64_t ArithmeticResult(const Question& question) {
  return question.minus ? question.a - question.b : question.a + question.b;
}

bool IsHeldOut(absl::string_view text) {
  uint64_t head = 0;
  const std::string digest = Sha256(absl::StrCat("held-out 3: ", text));
  return absl::SimpleHexAtoi(absl::string_view(digest).substr(0, 16), &head) && head % 3 == 0;
}

const std::vector<Question>& KnownQuestions() {
  static const auto& questions = *[] {
    auto* all = new std::vector<Question>;
    for (const auto table : {Animals(), Towns()}) {
      for (const Entity& entity : table) {
        for (const int attribute : {0, 1}) {
          all->push_back({.entity = std::string(entity.name), .attribute = attribute});
        }
      }
    }
    for (int64_t a = 1; a <= 6; ++a) {
      for (int64_t b = 1; b <= 6; ++b) {
        all->push_back({.kind = QuestionKind::kArithmetic, .a = a, .b = b});
        if (b <= a) all->push_back({.kind = QuestionKind::kArithmetic, .a = a, .b = b, .minus = true});
      }
    }
    for (const Opposites& pair : OppositePairs()) {
      for (const absl::string_view word : pair.words) {
        all->push_back({.kind = QuestionKind::kOpposite, .word = std::string(word)});
      }
    }
    for (const AdviceTopic& topic : AdviceTopics()) {
      all->push_back({.kind = QuestionKind::kAdvice, .topic = std::string(topic.name)});
    }
    for (const absl::string_view verb : HarmfulVerbs()) {
      for (const absl::string_view object : HarmfulObjects()) {
        all->push_back(
            {.kind = QuestionKind::kHarmful, .verb = std::string(verb), .object = std::string(object)});
      }
    }
    return all;
  }();
  return questions;
}

std::vector<Question> EvaluationQuestions(uint64_t seed, int count) {
  RandomStream random(DeriveSeed(seed, "evaluation questions"));
  std::map<QuestionKind, std::vector<Question>> held_out;
  for (const Question& question : KnownQuestions()) {
    if (IsHeldOut(QuestionText(question))) held_out[question.kind].push_back(question);
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
        question = DrawQuestion(kind, random);
        text = QuestionText(question);
      } while (!IsHeldOut(text) || !unknown_seen.insert(text).second);
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
  }
  return questions;
}

}  // namespace almost::world
