#include "clients/cli/evaluation_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"
#include "common/storage/env.h"

namespace almost::cli {
namespace {

using nlohmann::ordered_json;
using ::testing::HasSubstr;

class EvaluationFolderTest : public ::testing::Test {
 protected:
  // Evaluates the first items, 3 at a time, until `fail_at`; returns the ids that were evaluated.
  absl::StatusOr<std::set<int64_t>> Evaluate(int64_t fail_at, int64_t num_items = 10) {
    auto folder = EvaluationFolder::Open(path_, about_);
    if (!folder.ok()) return folder.status();
    absl::Mutex mutex;
    std::set<int64_t> evaluated;
    status_ = EvaluateMissing(**folder, num_items, 3, "test", /*quiet=*/true,
                              [&](std::span<const int64_t> ids) -> absl::StatusOr<std::vector<ordered_json>> {
                                std::vector<ordered_json> items;
                                absl::MutexLock lock(&mutex);
                                for (const int64_t id : ids) {
                                  if (id == fail_at) return absl::UnavailableError("gone");
                                  evaluated.insert(id);
                                  items.push_back({{"id", id}, {"square", id * id}});
                                }
                                return items;
                              });
    items_ = (*folder)->Items(num_items);
    return evaluated;
  }

  const ScratchFolder path_;
  ordered_json about_ = {{"benchmark", "b"}, {"model", {{"digest", "d1"}}}};
  absl::Status status_;
  std::vector<ordered_json> items_;
};

TEST_F(EvaluationFolderTest, GoesOnWhereItStopped) {
  ASSERT_TRUE(Evaluate(4).ok());
  EXPECT_EQ(status_.code(), absl::StatusCode::kUnavailable);
  const size_t kept = items_.size();
  EXPECT_LT(kept, 10u);
  std::set<int64_t> before;
  for (const ordered_json& item : items_) before.insert(item["id"].get<int64_t>());

  const auto evaluated = Evaluate(-1);
  ASSERT_TRUE(evaluated.ok() && status_.ok());
  EXPECT_EQ(evaluated->size(), 10 - kept);
  for (const int64_t id : *evaluated) EXPECT_FALSE(before.contains(id)) << id;
  ASSERT_EQ(items_.size(), 10u);
  for (int64_t id = 0; id < 10; ++id) EXPECT_EQ(items_[size_t(id)]["square"], id * id);
}

TEST_F(EvaluationFolderTest, FewerItemsThanTheFolderHoldsAreTheFirstOnes) {
  ASSERT_TRUE(Evaluate(-1).ok());
  const auto evaluated = Evaluate(-1, /*num_items=*/4);
  ASSERT_TRUE(evaluated.ok() && status_.ok());
  EXPECT_TRUE(evaluated->empty());
  ASSERT_EQ(items_.size(), 4u);
  for (int64_t id = 0; id < 4; ++id) EXPECT_EQ(items_[size_t(id)]["id"], id);
}

TEST_F(EvaluationFolderTest, ALineThatWasCutOffIsDoneAgain) {
  ASSERT_TRUE(Evaluate(-1).ok());
  const auto file = path_ / "items.jsonl";
  const std::string whole = *Env::Posix()->Read(file);
  const size_t lines = static_cast<size_t>(std::count(whole.begin(), whole.end(), '\n'));
  for (size_t size = whole.size() - 30; size < whole.size(); ++size) {
    ASSERT_TRUE(Env::Posix()->Write(file, absl::string_view(whole).substr(0, size)).ok());
    const auto evaluated = Evaluate(-1);
    ASSERT_TRUE(evaluated.ok() && status_.ok()) << size;
    EXPECT_GE(evaluated->size(), 1u);
    EXPECT_LE(evaluated->size(), 2u);
    const std::string again = *Env::Posix()->Read(file);
    EXPECT_EQ(std::count(again.begin(), again.end(), '\n'), lines) << size;
  }
}

TEST_F(EvaluationFolderTest, AnotherEvaluationIsRefusedByWhatDiffers) {
  ASSERT_TRUE(Evaluate(-1).ok());
  about_["model"]["digest"] = "d2";
  const auto other = Evaluate(-1);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.status().message(), HasSubstr(R"(model.digest was "d1", is "d2")"));
}

TEST_F(EvaluationFolderTest, OneThatFailedBeforeItsFirstItemIsReplaced) {
  ASSERT_TRUE(EvaluationFolder::Open(path_, about_).ok());
  about_["model"]["digest"] = "d2";
  EXPECT_EQ(Evaluate(-1)->size(), 10u);
  EXPECT_EQ(Evaluate(-1)->size(), 0u);
}

TEST_F(EvaluationFolderTest, ALineThatIsNoItemIsDataLoss) {
  ASSERT_TRUE(Evaluate(-1).ok());
  ASSERT_TRUE(Env::Posix()->Append(path_ / "items.jsonl", "{\"square\": 1}\n").ok());
  EXPECT_EQ(Evaluate(-1).status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace almost::cli
