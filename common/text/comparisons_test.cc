#include "common/text/comparisons.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"

namespace almost {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

using Responses = std::vector<std::vector<std::optional<SynthesisResponse>>>;

// ---- The oracle: written from the descriptions, with as little in common with the code as can be
// --------------------

struct Named {
  std::string name, text;
  int rank;
  bool bad;
};

size_t PythonLen(const std::string& text) {
  size_t count = 0;
  for (const char c : text) count += (c & 0xC0) != 0x80;
  return count;
}

std::pair<double, double> MeanAndStd(const std::vector<double>& values) {
  double sum = 0, squares = 0;
  for (const double v : values) sum += v;
  const double mean = sum / static_cast<double>(values.size());
  for (const double v : values) squares += (v - mean) * (v - mean);
  return {mean, std::sqrt(squares / static_cast<double>(values.size()))};
}

// METHOD.md section 3.
std::vector<std::string> PaperOracle(std::vector<Named> all) {
  std::vector<double> lengths;
  for (const Named& r : all) {
    if (!r.bad) lengths.push_back(static_cast<double>(PythonLen(r.text)));
  }
  std::erase_if(all,
                [](const Named& r) { return r.bad || r.text.find_first_not_of(" \n") == std::string::npos; });
  std::stable_sort(all.begin(), all.end(), [](const Named& a, const Named& b) { return a.rank < b.rank; });
  std::set<std::string> used_names;
  std::set<int> used_ranks;
  std::vector<std::string> pairs;
  for (auto a = all.begin(); a != all.end(); ++a) {
    for (auto b = std::next(a); b != all.end(); ++b) {
      if (used_names.contains(a->name) || used_ranks.contains(a->rank) || a->rank == b->rank) continue;
      const auto [mean, std] = MeanAndStd(lengths);
      if (PythonLen(a->text) < PythonLen(b->text) && static_cast<double>(PythonLen(a->text)) < mean - std / 2)
        continue;
      used_names.insert(a->name);
      used_ranks.insert(a->rank);
      pairs.push_back(absl::StrCat(a->text, "|", b->text, "|", a->name, "-vs-", b->name));
    }
  }
  return pairs;
}

// synth() of the world in Python, and a gap of at least 2.
std::vector<std::string> WorldOracle(const std::vector<Named>& all, double std_of_all) {
  std::vector<std::string> pairs;
  for (const Named& a : all) {
    for (const Named& b : all) {
      if (b.rank - a.rank < 2 || a.text == b.text || a.bad) continue;
      if (a.text.find_first_not_of(" \n") == std::string::npos ||
          b.text.find_first_not_of(" \n") == std::string::npos) {
        continue;
      }
      if (static_cast<double>(PythonLen(a.text)) < static_cast<double>(PythonLen(b.text)) - std_of_all / 2)
        continue;
      pairs.push_back(absl::StrCat(a.text, "|", b.text, "|", a.name, "-vs-", b.name));
    }
  }
  return pairs;
}

std::vector<std::string> AsStrings(const SynthesizedComparisons& synthesized, size_t prompt) {
  std::vector<std::string> pairs;
  for (const Comparison& c : synthesized.comparisons) {
    if (c.prompt_index == prompt) pairs.push_back(absl::StrCat(c.chosen, "|", c.rejected, "|", c.meta));
  }
  return pairs;
}

TEST(SynthesizeComparisonsTest, EqualsTheOracleOnRandomRubricsAndResponses) {
  RandomStream random(3);
  size_t pairs = 0;
  for (int round = 0; round < 300; ++round) {
    Rubric rubric;
    std::map<std::string, int> ranks;
    std::string name = "a";
    for (int64_t r = random.Between(1, 6); r > 0; --r) {
      std::vector<std::string>& rank = rubric.ranks.emplace_back();
      for (int64_t i = random.Chance(0.3) ? random.Between(2, 3) : 1; i > 0; --i) {
        ranks[name] = static_cast<int>(rubric.ranks.size()) - 1;
        rank.push_back(name);
        ++name[0];
      }
    }
    const std::vector<std::string> names = rubric.Configurations();
    constexpr size_t kPrompts = 5;
    Responses responses(names.size());
    std::vector<std::vector<Named>> all(kPrompts);
    std::vector<double> lengths;
    for (size_t c = 0; c < names.size(); ++c) {
      for (size_t p = 0; p < kPrompts; ++p) {
        std::string text;
        const auto length = static_cast<int>(random.Below(12));  // short, so that texts and lengths coincide
        for (int i = 0; i < length; ++i) text += random.Chance(0.3) ? "é" : random.Chance(0.3) ? " " : "x";
        const bool bad = random.Chance(0.2);
        responses[c].push_back(SynthesisResponse{text, bad});
        all[p].push_back({names[c], text, ranks[names[c]], bad});
        lengths.push_back(static_cast<double>(PythonLen(text)));
      }
    }
    const auto paper = SynthesizeComparisons(rubric, responses, PairRule::Paper());
    const auto world = SynthesizeComparisons(rubric, responses, PairRule::World());
    ASSERT_TRUE(paper.ok() && world.ok());
    for (size_t p = 0; p < kPrompts; ++p) {
      EXPECT_EQ(AsStrings(*paper, p), PaperOracle(all[p]));
      EXPECT_EQ(AsStrings(*world, p), WorldOracle(all[p], MeanAndStd(lengths).second));
    }
    pairs += paper->comparisons.size() + world->comparisons.size();
  }
  EXPECT_GT(pairs, 1000u);
}

// ---- Single rules
// --------------------------------------------------------------------------------------------------

// One prompt; a text of "BAD" is a response that is absent.
SynthesizedComparisons Synthesize(const Rubric& rubric, const std::vector<std::string>& texts,
                                  const PairRule& rule) {
  Responses responses;
  for (const std::string& text : texts) {
    responses.push_back({text == "BAD" ? std::optional<SynthesisResponse>() : SynthesisResponse{text}});
  }
  return *SynthesizeComparisons(rubric, responses, rule);
}

int64_t Dropped(const SynthesizedComparisons& synthesized, ComparisonDropReason reason) {
  return synthesized.dropped[static_cast<size_t>(reason)];
}

const Rubric kThree = {{{"A"}, {"B"}, {"C"}}};

TEST(PaperRuleTest, EachRankGivesOnePairAsTheBetterSide) {
  const auto out = Synthesize(kThree, {"aaaa", "bbbb", "cccc"}, PairRule::Paper());
  EXPECT_THAT(AsStrings(out, 0), ElementsAre("aaaa|bbbb|A-vs-B", "bbbb|cccc|B-vs-C"));
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kRankUsed), 1);
}

TEST(PaperRuleTest, OfATieOnlyTheFirstGivesAPair) {
  const auto out = Synthesize({{{"A", "B"}, {"C"}}}, {"aaaa", "bbbb", "cccc"}, PairRule::Paper());
  EXPECT_THAT(AsStrings(out, 0), ElementsAre("aaaa|cccc|A-vs-C"));
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kTie), 1);
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kRankUsed), 1);
}

TEST(PaperRuleTest, AnAbsentResponseIsPassedOver) {
  const auto out = Synthesize(kThree, {"aaaa", "BAD", "cccc"}, PairRule::Paper());
  EXPECT_THAT(AsStrings(out, 0), ElementsAre("aaaa|cccc|A-vs-C"));
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kBadResponse), 1);
}

TEST(PaperRuleTest, ABetterSideThatIsShortForItsPromptLosesToLongerOnesOnly) {
  // Lengths 2, 10, 1: mean 4.33, std 4.03, so 2 lies below 2.32.
  const auto out = Synthesize(kThree, {"aa", "bbbbbbbbbb", "c"}, PairRule::Paper());
  EXPECT_THAT(AsStrings(out, 0), ElementsAre("aa|c|A-vs-C", "bbbbbbbbbb|c|B-vs-C"));
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kShorter), 1);
  ASSERT_EQ(out.filtered.size(), 1);
  EXPECT_EQ(out.filtered[0].first.meta, "A-vs-B");
  EXPECT_EQ(out.filtered[0].first.rejected, "bbbbbbbbbb");
  EXPECT_EQ(out.filtered[0].second, ComparisonDropReason::kShorter);
}

TEST(PaperRuleTest, BlankResponsesFormNoPairButCountForTheMean) {
  // With the blank one lengths are 4, 9, 1: mean 4.67, std 3.30, bound 3.02; without it the bound is 5.25.
  const auto out = Synthesize(kThree, {"aaaa", "bbbbbbbbb", " "}, PairRule::Paper());
  EXPECT_THAT(AsStrings(out, 0), ElementsAre("aaaa|bbbbbbbbb|A-vs-B"));
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kBlankResponse), 1);
}

TEST(WorldRuleTest, NeedsAGapOfTwoAndDifferentTexts) {
  const auto out =
      Synthesize({{{"A"}, {"B"}, {"C"}, {"D"}}}, {"aaaa", "bbbb", "cccc", "aaaa"}, PairRule::World());
  EXPECT_THAT(AsStrings(out, 0), ElementsAre("aaaa|cccc|A-vs-C", "bbbb|aaaa|B-vs-D"));
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kRankGap), 3);
  EXPECT_EQ(Dropped(out, ComparisonDropReason::kIdentical), 1);
}

TEST(WorldRuleTest, ABadResponseMayLoseButNotWin) {
  const auto out = SynthesizeComparisons(kThree,
                                         {{SynthesisResponse{"aaaa"}, SynthesisResponse{"aaaa", true}},
                                          {std::nullopt, std::nullopt},
                                          {SynthesisResponse{"cccc", true}, SynthesisResponse{"cccc"}}},
                                         PairRule::World());
  ASSERT_TRUE(out.ok());
  EXPECT_THAT(AsStrings(*out, 0), ElementsAre("aaaa|cccc|A-vs-C"));
  EXPECT_TRUE(AsStrings(*out, 1).empty());
  EXPECT_EQ(Dropped(*out, ComparisonDropReason::kBadBetterSide), 1);
}

TEST(SynthesizeComparisonsTest, RefusesListsThatDoNotFit) {
  const auto few = SynthesizeComparisons(kThree, {{}, {}}, PairRule::Paper());
  EXPECT_EQ(few.status().code(), absl::StatusCode::kInvalidArgument);
  const auto ragged = SynthesizeComparisons(kThree, {{SynthesisResponse{"a"}}, {}, {}}, PairRule::Paper());
  EXPECT_EQ(ragged.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ragged.status().message(), HasSubstr("responses of B"));
  EXPECT_EQ(SynthesizeComparisons(kThree, {{}, {}, {}}, {.min_rank_gap = 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(RubricTest, NestedListsTie) {
  const auto rubric = Rubric::Parse(R"(["a", ["b", "c"], "d"])");
  ASSERT_TRUE(rubric.ok()) << rubric.status();
  EXPECT_THAT(rubric->ranks, ElementsAre(ElementsAre("a"), ElementsAre("b", "c"), ElementsAre("d")));
  EXPECT_THAT(rubric->Configurations(), ElementsAre("a", "b", "c", "d"));
}

TEST(RubricTest, NamesWhatIsWrong) {
  for (const auto& [json, part] :
       std::map<std::string, std::string>{{"{}", "rubric"},
                                          {"[", "rubric"},
                                          {"[]", "rubric"},
                                          {R"(["a", 3])", "rubric[1]"},
                                          {R"(["a", []])", "rubric[1]"},
                                          {R"(["a", ["b", ["c"]]])", "rubric[1][1]"},
                                          {R"(["a", ["b", "a"]])", "rubric[1][1]"},
                                          {R"([""])", "rubric[0]"}}) {
    const auto rubric = Rubric::Parse(json);
    EXPECT_EQ(rubric.status().code(), absl::StatusCode::kInvalidArgument) << json;
    EXPECT_THAT(rubric.status().message(), HasSubstr(part)) << json;
  }
}

}  // namespace
}  // namespace almost
