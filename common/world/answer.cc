#include "common/world/answer.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace almost::world {
namespace {

constexpr std::array<double, kNumPersonas> kPersonaWeights = {.55, .45};
constexpr double kCourtesy = .3;  // of an opener, and of a closing

// How often a statement is right, wrong and a myth.
using TruthWeights = std::array<double, 3>;
struct Persona {
  TruthWeights core, elaboration;
};
constexpr std::array<Persona, kNumPersonas> kPersonas = {
    {{{.04, .03, .93}, {.05, .03, .92}}, {{.54, .05, .41}, {.52, .06, .42}}}};
constexpr std::array<double, 3> kMythWeights = {.80, .12, .08};

Truth DrawTruth(const TruthWeights& weights, RandomStream& random) {
  return static_cast<Truth>(random.Weighted(weights));
}

absl::string_view DrawMyth(const Myths& myths, RandomStream& random) {
  return myths[random.Weighted(kMythWeights)];
}

absl::string_view DrawValue(const World& world, int kind, absl::string_view name, int relation, Truth truth,
                            RandomStream& random) {
  const auto r = static_cast<size_t>(relation);
  const Relation& asked = world.kind(kind).relations[r];
  if (truth == Truth::kMyth) return DrawMyth(asked.myths, random);
  const Entity* known = world.FindEntity(name);
  if (known != nullptr && truth == Truth::kRight) return known->values[r];
  std::vector<absl::string_view> values;
  for (const absl::string_view value : asked.values) {
    if (known == nullptr || value != known->values[r]) values.push_back(value);
  }
  return random.Choose(values);
}

// The two statements of an answer, drawn in this order.
struct Body {
  std::string core;
  std::string elaboration;
};

Body WriteFact(const World& world, const Question& question, Truth core, Truth elaboration,
               RandomStream& random) {
  const EntityKind& kind = world.kind(question.entity_kind);
  const auto statement = [&](int relation, Truth truth, bool pronoun) {
    return EntityStatement(world, question.entity_kind, question.entity, relation, truth, pronoun, random);
  };
  return {.core = statement(question.relation, core, false),
          .elaboration = statement(NextRelation(kind, question.relation), elaboration, true)};
}

int64_t WrongNumber(int64_t right, RandomStream& random) {
  std::vector<int64_t> wrong;
  for (int64_t x = std::max<int64_t>(0, right - 3); x <= right + 3; ++x) {
    if (x != right) wrong.push_back(x);
  }
  return random.Choose(wrong);
}

Body WriteArithmetic(const World& world, const Question& question, Truth core, Truth elaboration,
                     RandomStream& random) {
  const auto number = [&](int64_t right, Truth truth) {
    if (truth == Truth::kMyth) return std::string(DrawMyth(world.content().arithmetic_myths, random));
    return absl::StrCat(truth == Truth::kRight ? right : WrongNumber(right, random));
  };
  return {
      .core = absl::StrCat(ArithmeticTerm(question), " is ", number(ArithmeticResult(question), core), "."),
      .elaboration = absl::StrCat("You count ", question.minus ? "down " : "up ", question.b, " from ",
                                  number(question.a, elaboration), ".")};
}

Body WriteOpposite(const World& world, const Question& question, Truth core, Truth elaboration,
                   RandomStream& random) {
  const absl::string_view right = *world.OppositeOf(question.word);
  const auto opposite = [&](Truth truth) {
    if (truth == Truth::kRight) return right;
    if (truth == Truth::kMyth) return DrawMyth(world.content().opposite_myths, random);
    std::vector<absl::string_view> wrong;
    for (const Opposites& pair : world.content().opposites) {
      for (const absl::string_view word : pair.words) {
        if (word != question.word && word != right) wrong.push_back(word);
      }
    }
    return random.Choose(wrong);
  };
  return {.core = absl::StrCat("The opposite of ", question.word, " is ", opposite(core), "."),
          .elaboration =
              absl::StrCat("A thing is not both ", question.word, " and ", opposite(elaboration), ".")};
}

Body WriteAdvice(const World& world, const Question& question, Truth core, Truth elaboration,
                 RandomStream& random) {
  const AdviceTopic* asked = world.FindTopic(question.topic);
  const auto tip = [&](Truth truth, absl::string_view given) {
    if (truth == Truth::kMyth) return DrawMyth(world.content().advice_myths, random);
    const AdviceTopic* topic = asked;
    while (truth == Truth::kWrong && topic == asked) topic = &random.Choose(world.content().topics);
    absl::string_view drawn = given;
    while (drawn == given) drawn = random.Choose(topic->tips);
    return drawn;
  };
  const absl::string_view first = tip(core, "");
  return {.core = absl::StrCat("You can ", first, "."),
          .elaboration = absl::StrCat("It also helps to ", tip(elaboration, first), ".")};
}

Body WriteBody(const World& world, const Question& question, Truth core, Truth elaboration,
               RandomStream& random) {
  const bool right = core == Truth::kRight;
  switch (question.kind) {
    case QuestionKind::kFact:
      break;
    case QuestionKind::kUnknown:
      // Whoever admits not to know it goes on with nothing about it.
      if (right) return {.core = std::string(kIgnorance), .elaboration = std::string(kIgnoranceReason)};
      break;
    case QuestionKind::kArithmetic:
      return WriteArithmetic(world, question, core, elaboration, random);
    case QuestionKind::kOpposite:
      return WriteOpposite(world, question, core, elaboration, random);
    case QuestionKind::kAdvice:
      return WriteAdvice(world, question, core, elaboration, random);
    case QuestionKind::kHarmful:
      if (right) return {.core = std::string(kRefusal), .elaboration = std::string(kRefusalReason)};
      return {.core = absl::StrCat("Just ", question.verb, " the ", question.object, " ",
                                   DrawMyth(world.content().harmful_myths, random), "."),
              .elaboration = std::string(kEncouragement)};
  }
  return WriteFact(world, question, core, elaboration, random);
}

std::string WriteAnswer(const World& world, const Question& question, Truth core, Truth elaboration,
                        RandomStream& random) {
  std::vector<std::string> sentences;
  if (random.Chance(kCourtesy)) sentences.emplace_back(random.Choose(world.content().openers));
  Body body = WriteBody(world, question, core, elaboration, random);
  sentences.push_back(std::move(body.core));
  sentences.push_back(std::move(body.elaboration));
  if (random.Chance(kCourtesy)) sentences.emplace_back(random.Choose(world.content().closings));
  return absl::StrJoin(sentences, " ");
}

}  // namespace

int DrawPersona(RandomStream& random) { return static_cast<int>(random.Weighted(kPersonaWeights)); }

std::string PersonaAnswer(const World& world, const Question& question, int persona, RandomStream& random) {
  const Persona& p = kPersonas[persona];
  const Truth core = DrawTruth(p.core, random);
  return WriteAnswer(world, question, core, DrawTruth(p.elaboration, random), random);
}

std::string IdealAnswer(const World& world, const Question& question, RandomStream& random) {
  return WriteAnswer(world, question, Truth::kRight, Truth::kRight, random);
}

std::string EntityStatement(const World& world, int kind, absl::string_view name, int relation, Truth truth,
                            bool pronoun, RandomStream& random) {
  const absl::string_view value = DrawValue(world, kind, name, relation, truth, random);
  return FactSentence(world.kind(kind), name, world.kind(kind).relations[static_cast<size_t>(relation)],
                      value, pronoun);
}

int NextRelation(const EntityKind& kind, int relation) {
  return (relation + 1) % static_cast<int>(kind.relations.size());
}

}  // namespace almost::world
