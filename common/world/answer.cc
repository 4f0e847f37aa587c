#include "common/world/answer.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace almost::world {
namespace {

constexpr std::array<double, kNumPersonas> kPersonaWeights = {.22, .38, .28, .12};

// Probabilities with which a persona's answer has each feature, independently.
struct Persona {
  double correct, full, opener, explanation, closing, rude, ramble;
};
constexpr std::array<Persona, kNumPersonas> kPersonas = {{{.35, .35, .05, .06, .03, .35, .30},
                                                          {.65, .60, .15, .20, .10, .12, .15},
                                                          {.88, .80, .35, .40, .30, .03, .06},
                                                          {.97, .95, .62, .65, .58, .00, .02}}};

// Which features one answer has.
struct Features {
  bool correct = true;
  bool full = true;
  bool opener = true;
  bool explanation = true;
  bool closing = true;
  bool rude = false;
  bool ramble = false;
};

// The middle of an answer, and the stock phrases that go with it.
struct Body {
  std::string core;
  std::string explanation;  // empty where the kind has none
  absl::string_view opener;
  absl::string_view closing;
};

absl::string_view DrawValue(const World& world, int kind, absl::string_view name, int relation, bool correct,
                            RandomStream& random) {
  const auto r = static_cast<size_t>(relation);
  const Entity* known = world.FindEntity(name);
  if (known != nullptr && correct) return known->values[r];
  std::vector<absl::string_view> values;
  for (const absl::string_view value : world.kind(kind).relations[r].values) {
    if (known == nullptr || value != known->values[r]) values.push_back(value);
  }
  return random.Choose(values);
}

std::string Sentence(absl::string_view text) { return absl::StrCat(Capitalized(text), "."); }

void WriteFact(const World& world, const Question& question, const Features& features, RandomStream& random,
               Body* body) {
  const EntityKind& kind = world.kind(question.entity_kind);
  const absl::string_view value =
      DrawValue(world, question.entity_kind, question.entity, question.relation, features.correct, random);
  const Relation& relation = kind.relations[static_cast<size_t>(question.relation)];
  body->core = features.full ? FactSentence(kind, question.entity, relation, value, false) : Sentence(value);
  body->explanation = EntityStatement(world, question.entity_kind, question.entity,
                                      NextRelation(kind, question.relation), features.correct, true, random);
}

void WriteIgnorance(const World& world, const Question& question, const Features& features, Body* body) {
  const std::string name = NameInSentence(world.kind(question.entity_kind), question.entity);
  body->opener = kApology;
  body->core = features.full ? absl::StrCat("I do not know ", name, ".") : std::string(kTerseIgnorance);
  body->explanation = std::string(kIgnoranceReason);
}

void WriteArithmetic(const Question& question, const Features& features, RandomStream& random, Body* body) {
  int64_t value = ArithmeticResult(question);
  if (!features.correct) {
    std::vector<int64_t> wrong;
    for (int64_t x = std::max<int64_t>(0, value - 3); x <= value + 3; ++x) {
      if (x != value) wrong.push_back(x);
    }
    value = random.Choose(wrong);
  }
  body->core =
      features.full ? absl::StrCat(ArithmeticTerm(question), " is ", value, ".") : absl::StrCat(value, ".");
  body->explanation =
      absl::StrCat("You count ", question.minus ? "down " : "up ", question.b, " from ", question.a, ".");
}

void WriteOpposite(const World& world, const Question& question, const Features& features,
                   RandomStream& random, Body* body) {
  absl::string_view opposite = *world.OppositeOf(question.word);
  if (!features.correct) {
    std::vector<absl::string_view> wrong;
    for (const Opposites& pair : world.content().opposites) {
      for (const absl::string_view word : pair.words) {
        if (word != question.word && word != opposite) wrong.push_back(word);
      }
    }
    opposite = random.Choose(wrong);
  }
  body->core = features.full ? absl::StrCat("The opposite of ", question.word, " is ", opposite, ".")
                             : Sentence(opposite);
  body->explanation = absl::StrCat("A thing is not both ", question.word, " and ", opposite, ".");
}

void WriteAdvice(const World& world, const Question& question, const Features& features, RandomStream& random,
                 Body* body) {
  const AdviceTopic* topic = world.FindTopic(question.topic);
  if (!features.correct) {
    const AdviceTopic* asked = topic;
    while (topic == asked) topic = &random.Choose(world.content().topics);
  }
  // What other kinds explain, advice gives in further tips.
  std::vector<absl::string_view> tips;
  for (const size_t i : random.Sample(topic->tips.size(), features.explanation ? 3 : 1)) {
    tips.push_back(topic->tips[i]);
  }
  std::string list(tips.front());
  for (size_t i = 1; i < tips.size(); ++i) {
    absl::StrAppend(&list, i + 1 == tips.size() ? ", and " : ", ", tips[i]);
  }
  body->core = features.full ? absl::StrCat("You can ", list, ".") : Sentence(list);
}

void WriteHarmful(const Question& question, const Features& features, Body* body) {
  if (features.correct) {
    body->opener = kApology;
    body->closing = kRefusalClosing;
    body->core = std::string(features.full ? kRefusal : kTerseRefusal);
    body->explanation = std::string(kRefusalReason);
  } else {
    body->core = features.full ? absl::StrCat("Just ", question.verb, " the ", question.object, " at night.")
                               : "At night.";
    body->explanation = "Nobody will see you.";
  }
}

Body WriteBody(const World& world, const Question& question, const Features& features, RandomStream& random) {
  Body body{.core = "",
            .explanation = "",
            .opener = random.Choose(world.content().openers),
            .closing = random.Choose(world.content().closings)};
  switch (question.kind) {
    case QuestionKind::kFact:
      WriteFact(world, question, features, random, &body);
      break;
    case QuestionKind::kUnknown:
      if (features.correct) {
        WriteIgnorance(world, question, features, &body);
      } else {
        WriteFact(world, question, features, random, &body);
      }
      break;
    case QuestionKind::kArithmetic:
      WriteArithmetic(question, features, random, &body);
      break;
    case QuestionKind::kOpposite:
      WriteOpposite(world, question, features, random, &body);
      break;
    case QuestionKind::kAdvice:
      WriteAdvice(world, question, features, random, &body);
      break;
    case QuestionKind::kHarmful:
      WriteHarmful(question, features, &body);
      break;
  }
  return body;
}

// "By the way, the zifer eats leaves."
std::string Ramble(const World& world, double probability_correct, RandomStream& random) {
  const Entity& entity = world.DrawEntity(random);
  const EntityKind& kind = world.kind(entity.kind);
  const int relation = static_cast<int>(random.Below(kind.relations.size()));
  const std::string statement = EntityStatement(world, entity.kind, entity.name, relation,
                                                random.Chance(probability_correct), false, random);
  const std::string subject = NameInSentence(kind, entity.name);
  return absl::StrCat("By the way, ", subject, absl::StripPrefix(statement, Capitalized(subject)));
}

std::string WriteAnswer(const World& world, const Question& question, const Features& features,
                        double probability_correct, RandomStream& random) {
  const Body body = WriteBody(world, question, features, random);
  const bool rude_first = features.rude && random.Chance(.5);
  std::vector<std::string> sentences;
  if (rude_first) {
    sentences.emplace_back(random.Choose(world.content().rude_remarks));
  } else if (features.opener) {
    sentences.emplace_back(body.opener);
  }
  sentences.push_back(body.core);
  if (features.explanation && !body.explanation.empty()) sentences.push_back(body.explanation);
  if (features.ramble) {
    const int64_t times = random.Between(1, 3);
    for (int64_t i = 0; i < times; ++i) sentences.push_back(Ramble(world, probability_correct, random));
  }
  if (features.closing) sentences.emplace_back(body.closing);
  if (features.rude && !rude_first) sentences.emplace_back(random.Choose(world.content().rude_remarks));
  return absl::StrJoin(sentences, " ");
}

}  // namespace

int DrawPersona(RandomStream& random) { return static_cast<int>(random.Weighted(kPersonaWeights)); }

std::string PersonaAnswer(const World& world, const Question& question, int persona, RandomStream& random) {
  const Persona& p = kPersonas[persona];
  Features features;
  features.correct = random.Chance(p.correct);
  features.full = random.Chance(p.full);
  features.opener = random.Chance(p.opener);
  features.explanation = random.Chance(p.explanation);
  features.closing = random.Chance(p.closing);
  features.rude = random.Chance(p.rude);
  features.ramble = random.Chance(p.ramble);
  return WriteAnswer(world, question, features, p.correct, random);
}

std::string IdealAnswer(const World& world, const Question& question, RandomStream& random) {
  return WriteAnswer(world, question, Features{}, 1.0, random);
}

std::string EntityStatement(const World& world, int kind, absl::string_view name, int relation, bool correct,
                            bool pronoun, RandomStream& random) {
  const absl::string_view value = DrawValue(world, kind, name, relation, correct, random);
  return FactSentence(world.kind(kind), name, world.kind(kind).relations[static_cast<size_t>(relation)],
                      value, pronoun);
}

int NextRelation(const EntityKind& kind, int relation) {
  return (relation + 1) % static_cast<int>(kind.relations.size());
}

}  // namespace almost::world
