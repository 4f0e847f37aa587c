#include "common/storage/json_lines_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"
#include "common/storage/fault_env.h"
#include "common/storage/json_lines.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using ::testing::HasSubstr;

class JsonLinesFileTest : public ::testing::TestWithParam<const char*> {
 protected:
  fs::path File() const { return folder_ / GetParam(); }
  static ordered_json Line(int64_t number) {
    return {{"id", number}, {"text", std::string(static_cast<size_t>(number % 977), 'x')}};
  }
  void Write(int64_t num_lines) {
    const auto writer = JsonLinesWriter::Create(Env::Posix(), File()).value();
    for (int64_t i = 0; i < num_lines; ++i) ASSERT_TRUE(writer->Append(Line(i)).ok());
    ASSERT_TRUE(writer->Close().ok());
  }
  static absl::Status ReadAll(const fs::path& file, int64_t* num_lines) {
    *num_lines = 0;
    return ForEachJsonLineOf(file, [&](int64_t number, const ordered_json& line) {
      EXPECT_EQ(number, (*num_lines)++);
      EXPECT_EQ(line, Line(number));
      return absl::OkStatus();
    });
  }

  const ScratchFolder folder_;
};

INSTANTIATE_TEST_SUITE_P(Files, JsonLinesFileTest, ::testing::Values("a.jsonl", "a.jsonl.gz"));

TEST_P(JsonLinesFileTest, GivesBackWhatWasWrittenPieceByPiece) {
  int64_t read = -1;
  for (const int64_t num_lines : {0, 1, 30'000}) {  // of more than three pieces
    Write(num_lines);
    EXPECT_TRUE(ReadAll(File(), &read).ok());
    EXPECT_EQ(read, num_lines);
  }
  EXPECT_EQ(ReadAll(folder_ / "none.jsonl", &read).code(), absl::StatusCode::kNotFound);
}

TEST_P(JsonLinesFileTest, EqualLinesGiveEqualBytesHoweverTheyCome) {
  Write(20'000);
  std::string lines;
  for (int64_t i = 0; i < 20'000; ++i) ASSERT_TRUE(AppendJsonLine(Line(i), &lines).ok());
  const bool packed = File().extension() == ".gz";
  EXPECT_TRUE(Env::Posix()->Read(File()).value() == (packed ? Gzip(lines) : lines));
  const auto writer = JsonLinesWriter::Create(Env::Posix(), File()).value();
  ASSERT_TRUE(writer->AppendLines(lines).ok());
  ASSERT_TRUE(writer->Close().ok());
  EXPECT_TRUE(Env::Posix()->Read(File()).value() == (packed ? Gzip(lines) : lines));
}

TEST_P(JsonLinesFileTest, NamesWhatIsDamaged) {
  Write(10'000);
  std::string bytes = Env::Posix()->Read(File()).value();
  bytes.resize(bytes.size() - 7);
  ASSERT_TRUE(Env::Posix()->Write(File(), bytes).ok());
  int64_t read = 0;
  absl::Status status = ReadAll(File(), &read);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam()));
  if (File().extension() != ".gz") {
    EXPECT_THAT(std::string(status.message()), HasSubstr("line 10000 "));
  }
  ASSERT_TRUE(Env::Posix()->Write(File(), "[1]\n").ok());
  EXPECT_EQ(ReadAll(File(), &read).code(), absl::StatusCode::kDataLoss);
}

TEST_P(JsonLinesFileTest, AFullDiskIsNamed) {
  FaultEnv env;
  const auto writer = JsonLinesWriter::Create(&env, File()).value();
  env.FailAt(0, FaultEnv::Fault::kFull);
  ASSERT_TRUE(writer->Append(Line(1)).ok());
  EXPECT_EQ(writer->Close().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(writer->Append({{"score", std::nan("")}}).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace almost
