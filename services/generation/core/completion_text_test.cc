#include "services/generation/core/completion_text.h"

#include <gtest/gtest.h>

#include "common/base/random.h"

namespace almost::generation {
namespace {

const Tokenizer& WorldTokenizer() {
  static const auto* tokenizer = new std::shared_ptr<const Tokenizer>(
      *Tokenizer::Load(std::string(getenv("ALMOST_SOURCE_DIR")) + "/common/world/models/S"));
  return **tokenizer;
}

// Feeds `text`'s tokens; returns the pieces joined and, in `completion`, the whole.
std::string Stream(const std::string& text, const std::vector<std::string>& stop, std::string& completion) {
  CompletionText assembled(WorldTokenizer(), stop);
  std::string pieces;
  for (const int32_t token : WorldTokenizer().Encode(text, false)) {
    const bool ended = assembled.Append(token);
    const std::string piece = assembled.TakeSettled();
    pieces += piece;
    if (ended) break;
  }
  assembled.Finish();
  pieces += assembled.TakeSettled();
  completion = assembled.text();
  return pieces;
}

TEST(CompletionTextTest, CutsAtAStopStringThatSpansTokens) {
  std::string text;
  EXPECT_EQ(Stream("The rabul is red.\n\nHuman: more", {"\n\nHuman:"}, text), "The rabul is red.");
  EXPECT_EQ(text, "The rabul is red.");
}

TEST(CompletionTextTest, HandsOutWhatOnlyLookedLikeAStop) {
  std::string text;
  EXPECT_EQ(Stream("one\n\nHum two", {"\n\nHuman:"}, text), "one\n\nHum two");
}

TEST(CompletionTextTest, TheEarliestStopWins) {
  std::string text;
  Stream("abc def ghi", {"ghi", "de", "def"}, text);
  EXPECT_EQ(text, "abc ");
}

TEST(CompletionTextTest, PiecesJoinToTheWholeForAnyText) {
  const std::vector<std::string> alphabet = {"a", "b", "\n", " ", "é", "👩‍🚀", "中", "ab", "\n\n"};
  for (uint64_t seed = 0; seed < 300; ++seed) {
    RandomStream random(seed);
    std::string input;
    for (int i = 0; i < 20; ++i) input += random.Choose(alphabet);
    const std::vector<std::string> stop = {"ab\n", "\n中", "é👩"};
    std::string text;
    const std::string pieces = Stream(input, stop, text);
    EXPECT_EQ(pieces, text);
    size_t cut = input.size();
    for (const std::string& s : stop) cut = std::min(cut, input.find(s));
    EXPECT_EQ(text, input.substr(0, cut)) << input;
  }
}

}  // namespace
}  // namespace almost::generation
