#include "services/orchestrator/core/preference_pairs.h"

#include <gtest/gtest.h>

namespace almost::orchestrator {
namespace {

using nlohmann::ordered_json;

// A dialogue whose first turn has candidates of these scores, "a" the first.
ordered_json Dialogue(const std::vector<double>& scores) {
  ordered_json candidates = ordered_json::array();
  for (const double score : scores) {
    const std::string text(1, static_cast<char>('a' + candidates.size()));
    candidates.push_back({{"text", text}, {"score", score}, {"bad_reason", ""}});
  }
  const ordered_json second = {{"candidates", {{{"text", "later"}, {"score", 9.0}, {"bad_reason", ""}}}}};
  return {{"prompt_id", 5},
          {"messages", {{{"role", "user"}, {"content", "Why?"}}}},
          {"turns", {{{"candidates", candidates}}, second}}};
}

TEST(PreferencePairTest, SetsTheHighestScoreAgainstTheLowest) {
  EXPECT_EQ(PreferencePair(Dialogue({0.25, 1.5, -0.5, 1.5}), 0)->dump(),
            R"({"prompt":"Why?","chosen":"b","rejected":"c","prompt_id":5,)"
            R"("chosen_score":1.5,"rejected_score":-0.5})");
}

TEST(PreferencePairTest, LeavesOutWhatIsNotFurtherApartThanTheMargin) {
  EXPECT_TRUE(PreferencePair(Dialogue({0, 1}), 0.5).has_value());
  EXPECT_FALSE(PreferencePair(Dialogue({0, 1}), 1).has_value());
  EXPECT_FALSE(PreferencePair(Dialogue({1, 1}), 0).has_value());
  EXPECT_FALSE(PreferencePair(Dialogue({1}), 0).has_value());
  EXPECT_FALSE(PreferencePair(Dialogue({}), 0).has_value());
}

TEST(PreferencePairTest, LooksAtNoBadAnswer) {
  ordered_json dialogue = Dialogue({0, 1, 2, -1});
  dialogue["turns"][0]["candidates"][2]["bad_reason"] = "too_short";
  dialogue["turns"][0]["candidates"][3]["bad_reason"] = "unfinished";
  EXPECT_EQ(PreferencePair(dialogue, 0)->at("chosen"), "b");
  EXPECT_EQ(PreferencePair(dialogue, 0)->at("rejected"), "a");
  dialogue["turns"] = ordered_json::array();
  EXPECT_FALSE(PreferencePair(dialogue, 0).has_value());
}

}  // namespace
}  // namespace almost::orchestrator
