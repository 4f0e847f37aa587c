#include "common/evaluation/benchmarks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"

namespace almost {
namespace {

using nlohmann::ordered_json;

constexpr BootstrapSettings kFew{.resamples = 200, .seed = 1};

TEST(FillInTest, ReplacesKnownNamesOnceAndLeavesTheRest) {
  EXPECT_EQ(FillIn("{a}-{b}{c} {a", {{"a", "{b}"}, {"b", "2"}}), "{b}-2{c} {a");
  EXPECT_EQ(FillIn("", {{"a", "x"}}), "");
}

TEST(ParseJudgeScoresTest, TakesTwoNumbersOnTheFirstLineAndNothingElse) {
  EXPECT_EQ(ParseJudgeScores("8 7.5\nBecause"), std::pair(8.0, 7.5));
  EXPECT_EQ(ParseJudgeScores("8, 9"), std::pair(8.0, 9.0));
  for (const char* bad : {"", "8", "8 9 10", "Scores: 8 9", "eight nine", "\n8 9", "nan 3", "inf 1"}) {
    EXPECT_FALSE(ParseJudgeScores(bad).has_value()) << bad;
  }
}

// What naver-ai/ALMoST, eval, counts of judge answers: its run_vicuna_eval over its parse_score, written anew
// from the description. One count a review; an answer that cannot be read scores -1 on both sides, so it is a
// tie there.
struct OfficialCounts {
  int64_t win = 0, tie = 0, loss = 0;
};
OfficialCounts Official(const std::vector<std::pair<std::string, std::string>>& answers) {
  OfficialCounts counts;
  for (const bool ours_is_second : {true, false}) {
    for (const auto& [a_second, a_first] : answers) {
      std::string line = (ours_is_second ? a_second : a_first);
      line = line.substr(0, line.find('\n'));
      std::vector<std::string> parts(1);
      for (const char c : line) {
        if (c == ' ' || c == ',') {
          parts.emplace_back();
        } else {
          parts.back() += c;
        }
      }
      double first = -1, second = -1;
      if (parts.size() == 2) {
        char *end_first, *end_second;
        const double x = std::strtod(parts[0].c_str(), &end_first),
                     y = std::strtod(parts[1].c_str(), &end_second);
        if (!parts[0].empty() && !parts[1].empty() && !*end_first && !*end_second)
          std::tie(first, second) = std::tie(x, y);
      }
      const double ours = ours_is_second ? second : first, other = ours_is_second ? first : second;
      ++(ours > other ? counts.win : ours == other ? counts.tie : counts.loss);
    }
  }
  return counts;
}

TEST(PairwiseFiguresTest, ReviewsAddUpAsTheOfficialCodeDoesButForTheUnparsable) {
  RandomStream random(11);
  const std::vector<std::string> tails = {"", "\nBecause the first says more.", "\n\n9 1"};
  for (int round = 0; round < 50; ++round) {
    std::vector<std::pair<std::string, std::string>> answers;  // when a is second, when a is first
    std::vector<PairwiseOutcome> outcomes;
    int64_t unreadable = 0;
    for (int i = 0; i < 80; ++i) {
      const auto answer = [&] {
        if (random.Chance(0.1)) {
          ++unreadable;
          return std::string(
              random.Choose(std::vector<std::string>{"Both are good.", "8", "Scores: 8 7", "8 7 6"}));
        }
        return absl::StrCat(random.Between(1, 10), random.Chance(0.5) ? " " : ",", random.Between(1, 10),
                            random.Choose(tails));
      };
      answers.emplace_back(answer(), answer());
      const auto verdict = [](const std::string& text, bool a_is_first) -> std::string {
        const auto scores = ParseJudgeScores(text);
        if (!scores) return "unparsable";
        return a_is_first ? VerdictOf(scores->first, scores->second)
                          : VerdictOf(scores->second, scores->first);
      };
      outcomes.push_back(
          {"", verdict(answers.back().second, true), verdict(answers.back().first, false), 10, 10});
    }
    const OfficialCounts official = Official(answers);
    const ordered_json ours = PairwiseFigures(outcomes, {.resamples = 0})["all"]["reviews"];
    EXPECT_EQ(ours["win"], official.win);
    EXPECT_EQ(ours["loss"], official.loss);
    EXPECT_EQ(ours["unparsable"], unreadable);
    EXPECT_EQ(ours["tie"].get<int64_t>() + unreadable, official.tie);
  }
}

TEST(PairwiseFiguresTest, BothOrdersMakeOneVerdictAndShowThePositionBias) {
  const std::vector<PairwiseOutcome> outcomes = {
      {"x", "win", "win", 30, 10},   {"x", "win", "loss", 10, 10},  // whoever was first
      {"x", "win", "loss", 10, 20},  {"y", "loss", "win", 10, 10},  // whoever was second
      {"y", "loss", "loss", 10, 30}, {"y", "tie", "win", 10, 10},  {"y", "unparsable", "win", 10, 10},
  };
  const ordered_json out = PairwiseFigures(outcomes, kFew);
  const ordered_json& all = out["all"];
  EXPECT_EQ(all["counts"], (ordered_json{{"win", 1}, {"tie", 4}, {"loss", 1}, {"unparsable", 1}}));
  EXPECT_DOUBLE_EQ(all["win_rate"]["value"], 0.5);
  EXPECT_EQ(all["win_rate"]["n"], 6) << "unparsable is not a tie";
  EXPECT_EQ(all["decided"]["n"], 2);
  EXPECT_EQ(all["position"]["first"], 2);
  EXPECT_EQ(all["position"]["second"], 1);
  EXPECT_EQ(all["position"]["same"], 2);
  EXPECT_DOUBLE_EQ(all["longer"]["value"], 1);
  EXPECT_EQ(all["reviews"]["unparsable"], 1);
  EXPECT_EQ(out["categories"]["x"]["counts"]["win"], 1);
  EXPECT_EQ(out["categories"]["y"]["counts"]["loss"], 1);
}

TEST(PreferenceFiguresTest, StandsBesideAlwaysPickTheLonger) {
  const std::vector<ScoredPreference> pairs = {
      {"a", 2, 1, 5, 10},   // right, longer right
      {"a", 2, 1, -5, 10},  // right, longer wrong
      {"b", 1, 2, 0, 10},   // wrong, longer undecided
      {"b", 1, 1, 5, 10},   // undecided
  };
  const ordered_json out = PreferenceFigures(pairs, kFew);
  const ordered_json& all = out["all"];
  EXPECT_DOUBLE_EQ(all["accuracy"]["value"], 2.5 / 4);
  EXPECT_EQ(all["right"], 2);
  EXPECT_EQ(all["tied"], 1);
  EXPECT_EQ(all["wrong"], 1);
  EXPECT_DOUBLE_EQ(all["longer"]["value"], 2.5 / 4);
  EXPECT_EQ(all["versus_longer"]["only_scorer_right"], 1);
  EXPECT_EQ(all["versus_longer"]["only_longer_right"], 0);
  EXPECT_DOUBLE_EQ(all["versus_longer"]["difference"]["value"], 0);
  EXPECT_DOUBLE_EQ(out["types"]["a"]["accuracy"]["value"], 1);
  EXPECT_DOUBLE_EQ(out["types"]["b"]["longer"]["value"], 0.75);
}

TEST(PreferenceFiguresTest, AScorerThatIsLengthIsSeenThrough) {
  RandomStream random(4);
  std::vector<ScoredPreference> pairs;
  for (int i = 0; i < 300; ++i) {
    const int64_t chosen = random.Between(10, 400), rejected = random.Between(10, 300);
    pairs.push_back({"", double(chosen), double(rejected), chosen - rejected, chosen});
  }
  const ordered_json all = PreferenceFigures(pairs, kFew)["all"];
  EXPECT_NEAR(all["score_length_correlation"], 1, 1e-12);
  EXPECT_DOUBLE_EQ(all["versus_longer"]["difference"]["value"], 0);
  EXPECT_EQ(all["versus_longer"]["mcnemar_p"], 1);
}

TEST(ChoiceFiguresTest, TheFirstOfEqualScoresIsTheAnswer) {
  const std::vector<ChoiceAnswer> answers = {{{0.5, 0.5, 0.1}, {1, 9, 2}, 0},
                                             {{0.1, 0.9}, {5, 3}, 1},
                                             {{0.9, 0.1}, {2, 8}, 1},
                                             {{0.2, 0.3, 0.1, 0.0}, {1, 1, 1, 2}, 3}};
  const ordered_json out = ChoiceFigures(answers, kFew);
  EXPECT_DOUBLE_EQ(out["accuracy"]["value"], 0.5);
  EXPECT_DOUBLE_EQ(out["chance"], (1.0 / 3 + 0.5 + 0.5 + 0.25) / 4);
  EXPECT_DOUBLE_EQ(out["longest"]["value"], 0.5);
}

TEST(PerplexityFiguresTest, WeighsDocumentsByTheirTokens) {
  const std::vector<DocumentScore> documents = {{10 * std::log(2.0), 10, 40, 5},
                                                {30 * std::log(8.0), 30, 40, 5}};
  const ordered_json out = PerplexityFigures(documents, kFew);
  EXPECT_NEAR(out["perplexity"]["value"], std::exp((10 * std::log(2.0) + 30 * std::log(8.0)) / 40), 1e-12);
  EXPECT_NEAR(out["bits_per_byte"]["value"], (10 + 90) / 80.0, 1e-12);
  EXPECT_NEAR(out["word_perplexity"]["value"], std::pow(2, 100 / 10.0), 1e-9);
}

}  // namespace
}  // namespace almost
