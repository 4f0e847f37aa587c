#include "clients/cli/dataset_rows.h"

#include <gtest/gtest.h>

namespace almost::cli {
namespace {

using nlohmann::ordered_json;

TEST(RowOfTest, AComparisonSaysWhoIsBetterAndByHowMuchLonger) {
  const ordered_json row = RowOf("dropped", 7,
                                 {{"prompt", "p"},
                                  {"chosen", "éé"},
                                  {"rejected", "abcd"},
                                  {"meta", "L-3-good-vs-S-0"},
                                  {"prompt_id", 4},
                                  {"drop_reason", "scorer_disagrees"}});
  EXPECT_EQ(row["better"], "L-3-good");
  EXPECT_EQ(row["worse"], "S-0");
  EXPECT_EQ(row["length_difference"], -2);
  EXPECT_EQ(row["outcome"], "scorer_disagrees");
  EXPECT_EQ(row["line"], 7);
  EXPECT_EQ(row["prompt_id"], 4);
  EXPECT_FALSE(row.contains("meta") || row.contains("drop_reason"));
}

TEST(RowOfTest, ADialogueShowsItsCandidates) {
  const ordered_json messages = {{{"role", "user"}, {"content", "q"}},
                                 {{"role", "assistant"}, {"content", "abc"}}};
  const ordered_json turns = {{{"candidates",
                                {{{"text", "abc"}, {"score", 2.5}},
                                 {{"text", "x"}, {"score", nullptr}},
                                 {{"text", "y"}, {"score", -1}}}}}};
  const ordered_json row =
      RowOf("candidates", 0, {{"messages", messages}, {"turns", turns}, {"drop_reason", ""}});
  EXPECT_EQ(row["answer_length"], 3);
  EXPECT_EQ(row["turns"], 1);
  EXPECT_EQ(row["candidates"], "2.5  abc\n–  x\n-1  y");
  EXPECT_EQ(row["score_spread"], 3.5);
  EXPECT_EQ(row["outcome"], "kept");
}

TEST(RowOfTest, CandidatesOfAnotherFormAreLeftOut) {
  const ordered_json messages = {{{"role", "user"}, {"content", "q"}}};
  const std::vector<ordered_json> others = {
      {"turn"},
      {{{"candidates", "text"}}},
      {{{"candidates", {{"text", "a"}}}}},
      {{{"candidates", {"text", 1, {{"text", 5}, {"score", "high"}}}}}}};
  for (const ordered_json& turns : others) {
    EXPECT_EQ(RowOf("f", 0, {{"messages", messages}, {"turns", turns}})["score_spread"], 0) << turns;
  }
}

TEST(RowOfTest, WhatItDoesNotKnowComesAlong) {
  const ordered_json row = RowOf("f", 0, {{"messages", "none"}, {"x", {1, 2}}});
  EXPECT_EQ(row["x"], (ordered_json{1, 2}));
  EXPECT_EQ(RowOf("f", 0, {{"response", "ab"}, {"bad_reason", "too_short"}})["outcome"], "too_short");
}

TEST(MarkNearDuplicatesTest, NamesTheFirstLikeOneForEveryRowOfThePrompt) {
  std::vector<ordered_json> rows;
  for (const char* prompt :
       {"how do I bake bread at home", "where is the sea", "how do I bake good bread at home",
        "how do I bake bread at home", "how do I bake good bread at home"}) {
    rows.push_back({{"prompt", prompt}});
  }
  rows.push_back({{"other", 1}});
  int64_t last = 0;
  MarkNearDuplicates(rows, 0.8, [&](int64_t done, int64_t) { last = done; });
  EXPECT_FALSE(rows[0].contains("near_duplicate_of"));
  EXPECT_FALSE(rows[1].contains("near_duplicate_of"));
  EXPECT_EQ(rows[2]["near_duplicate_of"], "how do I bake bread at home");
  EXPECT_FALSE(rows[3].contains("near_duplicate_of")) << "the same prompt again is no near duplicate";
  EXPECT_EQ(rows[4]["near_duplicate_of"], "how do I bake bread at home");
  EXPECT_EQ(last, 6);
}

}  // namespace
}  // namespace almost::cli
