#include "clients/cli/progress.h"

#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::cli {
namespace {

using testing::HasSubstr;
using State = ProgressLine::State;

TEST(ProgressLineTest, ShowsCountRateAndTimeLeft) {
  const std::string text = FormatProgressLine({"responses", State::kRunning, 600, 2400, 4.0, ""}, 0);
  EXPECT_THAT(text, HasSubstr("responses"));
  EXPECT_THAT(text, HasSubstr("█████     "));  // a quarter of 20 cells
  EXPECT_THAT(text, HasSubstr("600/2400"));
  EXPECT_THAT(text, HasSubstr("150/s"));
  EXPECT_THAT(text, HasSubstr("12.0 s left"));
}

TEST(ProgressLineTest, ShowsTimeTakenWhenDone) {
  const std::string text = FormatProgressLine({"sft", State::kDone, 240, 240, 190.4, "loss 0.61"}, 0);
  EXPECT_THAT(text, HasSubstr("3:10 min"));
  EXPECT_THAT(text, testing::EndsWith("loss 0.61"));
}

TEST(ProgressLineTest, LeavesOutWhatIsNotKnown) {
  const std::string text = FormatProgressLine({"prompts", State::kRunning, 0, 0, 0, ""}, 0);
  EXPECT_THAT(text, testing::Not(HasSubstr("/")));
  EXPECT_THAT(text, testing::Not(HasSubstr("left")));
}

TEST(ProgressLineTest, IsCutByCharactersNotBytes) {
  const std::string text = FormatProgressLine({"prompts", State::kDone, 8, 8, 1, ""}, 20);
  EXPECT_EQ(text, "prompts          ███");
}

TEST(ProgressDisplayTest, OffATerminalPrintsChangesOfStateAndOtherwiseEveryTenSeconds) {
  FILE* out = tmpfile();
  ProgressDisplay display(out);
  const absl::Time start = absl::UnixEpoch();
  ProgressLine line{"prompts", State::kRunning, 1, 100, 1, ""};
  for (int second = 0; second <= 25; ++second) {
    line.done = second;
    display.Update({line}, start + absl::Seconds(second));
  }
  line.state = State::kDone;
  display.Update({line}, start + absl::Seconds(26));
  std::string text(1 << 14, '\0');
  text.resize(static_cast<size_t>(pread(fileno(out), text.data(), text.size(), 0)));
  fclose(out);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4) << text;  // at 0, 10 and 20 seconds, and the end
  EXPECT_THAT(text, testing::Not(HasSubstr("\033")));
}

}  // namespace
}  // namespace almost::cli
