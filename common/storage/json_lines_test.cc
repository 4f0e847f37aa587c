#include "common/storage/json_lines.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "common/base/random.h"

namespace almost {
namespace {

using nlohmann::ordered_json;

TEST(JsonLinesTest, KeepsTheOrderOfKeysAndTheBitsOfNumbers) {
  std::vector<double> numbers = {0.1, 1.0 / 3.0, 5e-324, 1.7976931348623157e308, -0.0, 1e22};
  RandomStream random(1);
  for (int i = 0; i < 1000; ++i) numbers.push_back(random.Normal());
  std::string lines;
  for (const double number : numbers) {
    ASSERT_TRUE(AppendJsonLine({{"z", number}, {"a", "\u00fc\n"}}, &lines).ok());
  }
  EXPECT_EQ(lines.substr(0, lines.find('\n')), "{\"z\":0.1,\"a\":\"\u00fc\\n\"}");
  ASSERT_TRUE(ForEachJsonLine("x", lines, [&](int64_t number, const ordered_json& value) {
                EXPECT_EQ(value.at("z").get<double>(), numbers[static_cast<size_t>(number)]);
                return absl::OkStatus();
              }).ok());
}

TEST(JsonLinesTest, RefusesWhatJsonCannotHold) {
  std::string lines;
  EXPECT_EQ(AppendJsonLine({{"a", "\xff"}}, &lines).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(AppendJsonLine({{"a", {1.0, std::numeric_limits<double>::quiet_NaN()}}}, &lines).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(lines, "");
}

TEST(JsonLinesTest, NamesTheDamagedLine) {
  for (const char* const lines : {"{}\n{\"a\":\n", "{}\n\n{}\n", "{}\n[1]\n"}) {
    const absl::Status status = ForEachJsonLine(
        "prompts.jsonl", lines, [](int64_t, const ordered_json&) { return absl::OkStatus(); });
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("prompts.jsonl: line 2"));
  }
}

}  // namespace
}  // namespace almost
