#include "common/text/comparison_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"

namespace almost {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ComparisonFilesTest : public testing::Test {
 protected:
  void SetUp() override {
    Write("prompts.txt", "Why?\nHow?\r\n");
    Write("a.json", R"(["one", "BAD"])");
    Write("b.json", R"(["two", "zw\u00f6lf"])");
  }
  void Write(const char* name, absl::string_view contents) { std::ofstream(folder_ / name) << contents; }
  absl::Status ReadStatus() { return ResponseFolder::Read(folder_, rubric_).status(); }

  const ScratchFolder folder_;
  Rubric rubric_ = {{{"a"}, {"b"}}};
};

TEST_F(ComparisonFilesTest, ReadsTheOfficialFolder) {
  const auto files = ResponseFolder::Read(folder_, rubric_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_THAT(files->prompts, ElementsAre("Why?", "How?"));
  ASSERT_EQ(files->responses.size(), 2u);
  EXPECT_EQ(files->responses[0][0]->text, "one");
  EXPECT_FALSE(files->responses[0][1].has_value());
  EXPECT_EQ(files->responses[1][1]->text, "zwölf");
}

TEST_F(ComparisonFilesTest, NamesTheFileAndThePlace) {
  Write("b.json", "[\"two\",\n \"three\"\n \"four\"]");
  EXPECT_EQ(ReadStatus().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ReadStatus().message(), AllOf(HasSubstr("b.json"), HasSubstr("line 3")));
  Write("b.json", R"(["two", null])");
  EXPECT_THAT(ReadStatus().message(), AllOf(HasSubstr("b.json: [1]"), HasSubstr("null")));
  Write("b.json", R"(["two"])");
  EXPECT_THAT(ReadStatus().message(), AllOf(HasSubstr("b.json"), HasSubstr("holds 1")));
  Write("b.json", R"({"a": 1})");
  EXPECT_THAT(ReadStatus().message(), HasSubstr("b.json"));
  std::filesystem::remove(folder_ / "b.json");
  EXPECT_EQ(ReadStatus().code(), absl::StatusCode::kNotFound);
  Write("prompts.txt", "");
  EXPECT_EQ(ReadStatus().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(ComparisonFilesTest, RubricErrorsNameTheFile) {
  Write("rubric.json", R"(["a", 1])");
  const auto rubric = ReadRubric(folder_ / "rubric.json");
  EXPECT_EQ(rubric.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(rubric.status().message(), AllOf(HasSubstr("rubric.json"), HasSubstr("rubric[1]")));
  EXPECT_EQ(ReadRubric(folder_ / "none.json").status().code(), absl::StatusCode::kNotFound);
}

TEST(ComparisonsAsJsonTest, IsWhatPythonsJsonDumpWrites) {
  const std::vector<std::string> prompts = {"Why \"so\"?", "tab\tand\x7f/"};
  const std::vector<Comparison> comparisons = {{0, 0, 1, "é\n", "😀\x01", "a-vs-b"},
                                               {1, 1, 2, "\\", "z", "b-vs-c"}};
  // json.dumps of the same objects with Python 3.11.
  EXPECT_EQ(
      ComparisonsAsJson(prompts, comparisons),
      R"([{"prompt": "Why \"so\"?", "chosen": "\u00e9\n", "rejected": "\ud83d\ude00\u0001", "meta": "a-vs-b"}, )"
      R"({"prompt": "tab\tand\u007f/", "chosen": "\\", "rejected": "z", "meta": "b-vs-c"}])");
  EXPECT_EQ(ComparisonsAsJson(prompts, {}), "[]");
}

TEST(ComparisonsAsJsonLinesTest, KeepsUtf8) {
  EXPECT_EQ(ComparisonsAsJsonLines({"Wie?"}, {{0, 0, 1, "é", "z", "a-vs-b"}}),
            "{\"prompt\": \"Wie?\", \"chosen\": \"é\", \"rejected\": \"z\", \"meta\": \"a-vs-b\"}\n");
}

}  // namespace
}  // namespace almost
