#include "common/text/rouge_l.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/random.h"

namespace almost {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// By the definition, O(nm).
size_t PlainLcs(const std::vector<std::string>& a, const std::vector<std::string>& b) {
  std::vector<std::vector<size_t>> table(a.size() + 1, std::vector<size_t>(b.size() + 1, 0));
  for (size_t i = 1; i <= a.size(); ++i) {
    for (size_t j = 1; j <= b.size(); ++j) {
      table[i][j] =
          a[i - 1] == b[j - 1] ? table[i - 1][j - 1] + 1 : std::max(table[i - 1][j], table[i][j - 1]);
    }
  }
  return table[a.size()][b.size()];
}

double PlainRougeL(const std::string& a, const std::string& b) {
  const std::vector<std::string> tokens_a = RougeTokens(a), tokens_b = RougeTokens(b);
  return RougeLF1(PlainLcs(tokens_a, tokens_b), tokens_a.size(), tokens_b.size());
}

// Words of a skewed distribution, as in language; some texts are longer than one or two blocks of 64 words.
std::string RandomText(RandomStream& random) {
  const int64_t length = random.Chance(0.1) ? random.Between(60, 200) : random.Between(0, 20);
  const uint64_t vocabulary = random.Chance(0.5) ? 8 : 60;
  std::vector<std::string> words;
  for (int64_t i = 0; i < length; ++i) {
    const double u = random.Unit();
    words.push_back(absl::StrCat("w", static_cast<uint64_t>(u * u * static_cast<double>(vocabulary))));
  }
  return absl::StrJoin(words, " ");
}

TEST(RougeTokensTest, AreThoseOfRougeScore) {
  EXPECT_THAT(RougeTokens("Don't PANIC: x_1, 3.5%!"), ElementsAre("don", "t", "panic", "x", "1", "3", "5"));
  EXPECT_THAT(RougeTokens("a\u00a0b\u2003c \u201cd\u201d\u2026 e\u2019f 5\u20ac \U0001F642"),
              ElementsAre("a", "b", "c", "d", "e", "f", "5"));
  EXPECT_THAT(RougeTokens("naïve café, cafe\u0301, Straße, Việt"),
              ElementsAre("na", "ve", "caf", "cafe", "stra", "e", "vi", "t"));
  // The two characters outside ASCII whose lower case begins with an ASCII letter.
  EXPECT_THAT(RougeTokens("1\u212A 1\u0130x"), ElementsAre("1k", "1i", "x"));
  EXPECT_THAT(RougeTokens(" ...\n"), IsEmpty());
}

// For which rouge_score has no words.
TEST(RougeTokensTest, AreWordsOfOtherScriptsToo) {
  EXPECT_THAT(RougeTokens("Что такое GPU-карта? ¿Que? «да»"),
              ElementsAre("Что", "такое", "gpu", "карта", "que", "да"));
  EXPECT_THAT(RougeTokens("नमस्ते दुनिया। مرحبا، يا عالم؟"),
              ElementsAre("नमस्ते", "दुनिया", "مرحبا", "يا", "عالم"));
  EXPECT_THAT(RougeTokens("한국어 텍스트."), ElementsAre("한국어", "텍스트"));
  // Scripts without blanks: each character.
  EXPECT_THAT(RougeTokens("你好，GPU。カナ！𠮷"), ElementsAre("你", "好", "gpu", "カ", "ナ", "𠮷"));
  EXPECT_THAT(RougeTokens("\xE4x"), ElementsAre("x"));  // no UTF-8
}

TEST(RougeLTest, TellsPromptsOfOtherScriptsApart) {
  EXPECT_EQ(RougeL("Как приготовить борщ?", "Как приготовить борщ?"), 1);
  EXPECT_EQ(RougeL("如何种植番茄？", "如何种植番茄？"), 1);
  EXPECT_LT(RougeL("Почему моя GPU так греется?", "Расскажи подробно про GPU."), 0.5);
}

TEST(RougeLTest, MatchesValuesOfRougeScore) {
  // rouge_score 0.1.2, RougeScorer(["rougeL"]).score(a, b)["rougeL"].fmeasure.
  EXPECT_EQ(RougeL("The quick brown fox jumps over the lazy dog", "The lazy fox jumps over a brown dog"),
            0.58823529411764708);
  EXPECT_EQ(RougeL("How do I boil an egg?", "How do I boil water?"), 0.72727272727272718);
  EXPECT_EQ(RougeL("a b c", "a b c"), 1.0);
  EXPECT_EQ(RougeL("a", "b"), 0.0);
  EXPECT_EQ(RougeL("", ""), 0.0);
}

TEST(RougeLTest, EqualsThePlainOneOnRandomTexts) {
  RandomStream random(1);
  for (int i = 0; i < 3000; ++i) {
    const std::string a = RandomText(random), b = RandomText(random);
    EXPECT_EQ(RougeL(a, b), PlainRougeL(a, b)) << a << "\n" << b;
  }
}

TEST(RougeLIndexTest, FindsWhatComparingWithEachFinds) {
  RandomStream random(2);
  RougeLIndex index;
  std::vector<std::string> texts;
  int found = 0;
  for (int i = 0; i < 500; ++i) {
    const std::string query = RandomText(random);
    // Thresholds at which equality happens, and any.
    const double threshold = random.Chance(0.5) ? 0.5 : random.Unit() * 0.99 + 0.01;
    std::optional<RougeLIndex::Match> first, nearest;
    for (size_t t = 0; t < texts.size(); ++t) {
      const double f1 = PlainRougeL(query, texts[t]);
      if (!first.has_value() && f1 >= threshold) first = {t, f1};
      if (!nearest.has_value() || f1 > nearest->f1) nearest = {t, f1};
    }
    const auto match = index.FirstAtLeast(query, threshold);
    ASSERT_EQ(match.has_value(), first.has_value()) << query;
    if (match.has_value()) {
      ++found;
      EXPECT_EQ(match->index, first->index);
      EXPECT_EQ(match->f1, first->f1);
    }
    const auto best = index.Nearest(query);
    ASSERT_EQ(best.has_value(), nearest.has_value());
    if (best.has_value()) {
      EXPECT_EQ(best->index, nearest->index);
      EXPECT_EQ(best->f1, nearest->f1);
    }
    index.Add(query);
    texts.push_back(query);
  }
  EXPECT_GT(found, 100);
  EXPECT_LT(found, 490);
}

}  // namespace
}  // namespace almost
