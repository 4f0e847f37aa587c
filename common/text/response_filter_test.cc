#include "common/text/response_filter.h"

#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"

namespace almost {
namespace {

// 50 characters or more, ending in a full stop.
constexpr char kGood[] = "You can boil the water first, and then add the salt.";

std::optional<BadReason> Paper(absl::string_view response) {
  return ResponseFilter::Paper().Check(response, true);
}
std::optional<BadReason> World(absl::string_view response, bool finished = true) {
  return ResponseFilter::World().Check(response, finished);
}

TEST(ResponseFilterTest, PaperKeepsAGoodResponse) {
  EXPECT_EQ(Paper(kGood), std::nullopt);
  EXPECT_EQ(ResponseFilter::Paper().Check(kGood, /*finished=*/false), std::nullopt);
}

TEST(ResponseFilterTest, PaperCountsCharactersNotBytes) {
  std::string response;
  for (int i = 0; i < 48; ++i) response += "é";
  EXPECT_EQ(Paper(response + "."), BadReason::kTooShort);
  EXPECT_EQ(Paper(response + "é."), std::nullopt);
  EXPECT_EQ(Paper(""), BadReason::kTooShort);
}

TEST(ResponseFilterTest, PaperRefusesWhatIsLeftOpen) {
  const std::string stem(60, 'a');
  EXPECT_EQ(Paper(stem + "?"), BadReason::kEndsOpen);
  EXPECT_EQ(Paper(stem + ":"), BadReason::kEndsOpen);
  EXPECT_EQ(Paper(stem), BadReason::kNoFinalPunctuation);
  EXPECT_EQ(Paper(stem + "."), std::nullopt);
  EXPECT_EQ(Paper(stem + "!"), std::nullopt);
  EXPECT_EQ(Paper(stem + "。"), BadReason::kNoFinalPunctuation);
}

TEST(ResponseFilterTest, PaperRefusesResponsesThatBeginWithWell) {
  EXPECT_EQ(Paper(absl::StrCat("WELL, ", kGood)), BadReason::kBeginsWithFiller);
  EXPECT_EQ(Paper(absl::StrCat("Wellington. ", kGood)), BadReason::kBeginsWithFiller);
  EXPECT_EQ(Paper(absl::StrCat("As well. ", kGood)), std::nullopt);
}

TEST(ResponseFilterTest, PaperRefusesNotKnowing) {
  for (const char* words : {"I don't know", "I DON’T\u00a0\nKnow", "We do not know", "I don't don't know"}) {
    EXPECT_EQ(Paper(absl::StrCat(words, " it. ", kGood)), BadReason::kDoesNotKnow) << words;
  }
  for (const char* words : {"I don'tknow", "I do  not know", "I don't really know", "I do know"}) {
    EXPECT_EQ(Paper(absl::StrCat(words, " it. ", kGood)), std::nullopt) << words;
  }
}

TEST(ResponseFilterTest, PaperRefusesMarkersInAnyCase) {
  EXPECT_EQ(Paper(absl::StrCat("The human: a being. ", kGood)), BadReason::kMarkerText);
  EXPECT_EQ(Paper(absl::StrCat("<IMAGE> ", kGood)), BadReason::kMarkerText);
  EXPECT_EQ(Paper(absl::StrCat("The human race. ", kGood)), std::nullopt);
}

TEST(ResponseFilterTest, PaperCutsAtTheFirstMarker) {
  const ResponseFilter filter = ResponseFilter::Paper();
  EXPECT_EQ(filter.Extract(" \n First.\n\nSecond. \n\n-----\n\nHuman: x"), "First.\n\nSecond.");
  EXPECT_EQ(filter.Extract("One.\n\nHuman: Two?\n\nAssistant: Three."), "One.");
  EXPECT_EQ(filter.Extract("One.\n\nAssistant: Two.\n\n-----"), "One.");
  EXPECT_EQ(filter.Extract("Human: One"), "");
  EXPECT_EQ(filter.Extract("\n\n-----\n\nOne."), "");
  EXPECT_EQ(filter.Extract("-----"), "-----");
  EXPECT_EQ(filter.Extract(""), "");
}

TEST(ResponseFilterTest, WorldKeepsShortAnswers) {
  EXPECT_EQ(World("Red."), std::nullopt);
  EXPECT_EQ(World("Is it red?"), std::nullopt);
  EXPECT_EQ(World("I do not know the mofil. I have never heard of it."), std::nullopt);
}

TEST(ResponseFilterTest, WorldsRules) {
  EXPECT_EQ(World("The bolin is red.", /*finished=*/false), BadReason::kUnfinished);
  EXPECT_EQ(World("R."), BadReason::kTooShort);
  EXPECT_EQ(World("The bolin is red. The Assistant is not."), BadReason::kMarkerText);
  EXPECT_EQ(World("Query it."), BadReason::kMarkerText);
  EXPECT_EQ(World("The assistant is red."), std::nullopt);
  EXPECT_EQ(World("The bolin is red"), BadReason::kNoFinalPunctuation);
  EXPECT_EQ(ResponseFilter::World().Extract(" The bolin is red.\n\nHuman: a"), "The bolin is red.");
}

TEST(ResponseFilterTest, WorldRefusesADuplicateSentence) {
  EXPECT_EQ(World("It is red. It is red."), BadReason::kDuplicateSentence);
  EXPECT_EQ(World("It is red. By the way! It is red. Yes."), BadReason::kDuplicateSentence);
  EXPECT_EQ(World("It is red. It is red!"), std::nullopt);
  EXPECT_EQ(World("It is red.It is red."), std::nullopt);
  EXPECT_EQ(World(". . ."), BadReason::kDuplicateSentence);
}

TEST(ResponseFilterTest, NoneKeepsWhatItsFormatCutsOff) {
  const auto paper = ResponseFilter::Named("none", "paper");
  const auto world = ResponseFilter::Named("none", "world");
  ASSERT_TRUE(paper.has_value() && world.has_value());
  EXPECT_EQ(paper->Extract(" a?\nb\n\n-----\n\nHuman: c"), "a?\nb");
  EXPECT_EQ(world->Extract(" a?\nb"), "a?");
  EXPECT_EQ(paper->Check("well?", /*finished=*/false), std::nullopt);
  EXPECT_EQ(ResponseFilter::Named("paper", "world")->min_characters, ResponseFilter::Paper().min_characters);
  EXPECT_FALSE(ResponseFilter::Named("strict", "paper").has_value());
}

TEST(ResponseFilterTest, ReasonsHaveDistinctNames) {
  std::set<absl::string_view> names;
  for (const BadReason reason : kBadReasons) names.insert(Name(reason));
  EXPECT_EQ(names.size(), kBadReasons.size());
  EXPECT_EQ(Name(BadReason::kDuplicateSentence), "duplicate_sentence");
}

}  // namespace
}  // namespace almost
