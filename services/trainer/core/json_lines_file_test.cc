#include "services/trainer/core/json_lines_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "common/base/scratch_folder.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;

class JsonLinesFileTest : public testing::Test {
 protected:
  static absl::StatusOr<bool> All(const JsonLinesFile::Json&) { return true; }
  void Write(const std::string& text) const { std::ofstream(file_) << text; }

  const ScratchFolder folder_;
  const fs::path file_ = folder_ / "lines.jsonl";
};

TEST_F(JsonLinesFileTest, HasTheLinesThatAreKeptInTheirOrder) {
  Write("{\"n\":0}\n{\"n\":1,\"text\":\"ä\\n\"}\n{\"n\":2}\n{\"n\":3}");  // the last without its end
  const auto opened = JsonLinesFile::Open(
      file_, [](const JsonLinesFile::Json& line) -> absl::StatusOr<bool> { return line["n"] != 2; });
  ASSERT_TRUE(opened.ok()) << opened.status();
  ASSERT_EQ((*opened)->size(), 3u);
  EXPECT_EQ((*opened)->Read(2)->at("n"), 3);
  EXPECT_EQ((*opened)->Read(1)->at("text"), "ä\n");
  EXPECT_EQ((*opened)->Read(0)->at("n"), 0);
}

TEST_F(JsonLinesFileTest, NamesTheLineThatIsNoObject) {
  Write("{\"n\":0}\n\n{\"n\":1}\n");
  EXPECT_EQ(JsonLinesFile::Open(file_, All).status(),
            absl::DataLossError(file_.string() + ": line 2 is not a JSON object"));
}

TEST_F(JsonLinesFileTest, NamesTheLineThatIsRefused) {
  Write("{\"n\":0}\n{\"n\":1}\n");
  const auto opened = JsonLinesFile::Open(file_, [](const JsonLinesFile::Json& line) -> absl::StatusOr<bool> {
    if (line["n"] == 1) return absl::InvalidArgumentError("no");
    return true;
  });
  EXPECT_EQ(opened.status(), absl::InvalidArgumentError(file_.string() + " line 2: no"));
}

// A job that reads samples from a file that someone writes to must not train on half of each.
TEST_F(JsonLinesFileTest, ALineThatHasChangedIsAnError) {
  Write("{\"n\":0}\n{\"n\":1}\n");
  const auto opened = JsonLinesFile::Open(file_, All);
  ASSERT_TRUE(opened.ok()) << opened.status();
  std::fstream(file_) << "{\"n\":7}";  // in its place
  EXPECT_EQ((*opened)->Read(0).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ((*opened)->Read(1)->at("n"), 1);
  fs::resize_file(file_, 10);
  EXPECT_EQ((*opened)->Read(1).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace almost::trainer
