#include "common/world/answer.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/world/content.h"

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

absl::string_view DrawValue(absl::string_view entity, int attribute, bool correct, RandomStream& random) {
  const Entity* known = FindEntity(entity);
  if (known != nullptr && correct) return known->values[attribute];
  std::vector<absl::string_view> values;
  for (const absl::string_view value : AttributeValues(entity, attribute)) {
    if (known == nullptr || value != known->values[attribute]) values.push_back(value);
  }
  return random.Choose(values);
}

std::string Sentence(absl::string_view text) { return absl::StrCat(Capitalized(text), "."); }

void WriteFact(const Question& question, const Features& features, RandomStream& random, Body* body) {
  const absl::string_view value = DrawValue(question.entity, question.attribute, features.correct, random);
  body->core =
      features.full ? FactSentence(question.entity, question.attribute, value, false) : Sentence(value);
  body->explanation =
      EntityStatement(question.entity, 1 - question.attribute, features.correct, true, random);
}

void WriteIgnorance(const Question& question, const Features& features, Body* body) {
  body->opener = kApology;
  body->core = features.full ? absl::StrCat("I do not know ", NameInSentence(question.entity), ".")
                             : std::string(kTerseIgnorance);
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
  const absl::string_view sign = question.minus ? " minus " : " plus ";
  body->core = features.full ? absl::StrCat(question.a, sign, question.b, " is ", value, ".")
                             : absl::StrCat(value, ".");
  body->explanation =
      absl::StrCat("You count ", question.minus ? "down " : "up ", question.b, " from ", question.a, ".");
}

void WriteOpposite(const Question& question, const Features& features, RandomStream& random, Body* body) {
  absl::string_view opposite = OppositeOf(question.word).value_or("");
  if (!features.correct) {
    std::vector<absl::string_view> wrong;
    for (const Opposites& pair : OppositePairs()) {
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

void WriteAdvice(const Question& question, const Features& features, RandomStream& random, Body* body) {
  const AdviceTopic* topic = FindTopic(question.topic);
  if (!features.correct) {
    const AdviceTopic* asked = topic;
    while (topic == asked) topic = &random.Choose(AdviceTopics());
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

Body WriteBody(const Question& question, const Features& features, RandomStream& random) {
  Body body{.core = "",
            .explanation = "",
            .opener = random.Choose(Openers()),
            .closing = random.Choose(Closings())};
  switch (question.kind) {
    case QuestionKind::kFact:
      WriteFact(question, features, random, &body);
      break;
    case QuestionKind::kUnknown:
      if (features.correct) {
        WriteIgnorance(question, features, &body);
      } else {
        WriteFact(question, features, random, &body);
      }
      break;
    case QuestionKind::kArithmetic:
      WriteArithmetic(question, features, random, &body);
      break;
    case QuestionKind::kOpposite:
      WriteOpposite(question, features, random, &body);
      break;
    case QuestionKind::kAdvice:
      WriteAdvice(question, features, random, &body);
      break;
    case QuestionKind::kHarmful:
      WriteHarmful(question, features, &body);
      break;
  }
  return body;
}

// "By the way, the zifer eats leaves."
std::string Ramble(double probability_correct, RandomStream& random) {
  const absl::string_view entity = DrawEntity(random);
  const int attribute = static_cast<int>(random.Below(2));
  const std::string statement =
      EntityStatement(entity, attribute, random.Chance(probability_correct), false, random);
  return absl::StrCat("By the way, ", NameInSentence(entity),
                      absl::StripPrefix(statement, Capitalized(NameInSentence(entity))));
}

std::string WriteAnswer(const Question& question, const Features& features, double probability_correct,
                        RandomStream& random) {
  const Body body = WriteBody(question, features, random);
  const bool rude_first = features.rude && random.Chance(.5);
  std::vector<std::string> sentences;
  if (rude_first) {
    sentences.emplace_back(random.Choose(RudeRemarks()));
  } else if (features.opener) {
    sentences.emplace_back(body.opener);
  }
  sentences.push_back(body.core);
  if (features.explanation && !body.explanation.empty()) sentences.push_back(body.explanation);
  if (features.ramble) {
    const int64_t times = random.Between(1, 3);
    for (int64_t i = 0; i < times; ++i) sentences.push_back(Ramble(probability_correct, random));
  }
  if (features.closing) sentences.emplace_back(body.closing);
  if (features.rude && !rude_first) sentences.emplace_back(random.Choose(RudeRemarks()));
  return absl::StrJoin(sentences, " ");
}

}  // namespace

int DrawPersona(RandomStream& random) { return static_cast<int>(random.Weighted(kPersonaWeights)); }

std::string PersonaAnswer(const Question& question, int persona, RandomStream& random) {
  const Persona& p = kPersonas[persona];
  Features features;
  features.correct = random.Chance(p.correct);
  features.full = random.Chance(p.full);
  features.opener = random.Chance(p.opener);
  features.explanation = random.Chance(p.explanation);
  features.closing = random.Chance(p.closing);
  features.rude = random.Chance(p.rude);
  features.ramble = random.Chance(p.ramble);
  return WriteAnswer(question, features, p.correct, random);
}

std::string IdealAnswer(const Question& question, RandomStream& random) {
  return WriteAnswer(question, Features{}, 1.0, random);
}

std::string EntityStatement(absl::string_view entity, int attribute, bool correct, bool pronoun,
                            RandomStream& random) {
  return FactSentence(entity, attribute, DrawValue(entity, attribute, correct, random), pronoun);
}

}  // namespace almost::world
