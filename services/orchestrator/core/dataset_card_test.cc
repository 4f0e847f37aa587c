#include "services/orchestrator/core/dataset_card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/base/scratch_folder.h"
#include "common/base/sha256.h"
#include "common/storage/fault_env.h"
#include "common/storage/gzip.h"

namespace almost::orchestrator {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kLines[] =
    "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\",\"prompt_id\":0}\n"
    "{\"prompt\":\"q\",\"chosen\":\"a\",\"rejected\":\"b\",\"prompt_id\":1,\"note\":null}\n";

class DatasetCardTest : public ::testing::Test {
 protected:
  ArtifactDraft Draft(const std::string& file, const std::string& contents) const;
  ArtifactDraft Draft() const { return Draft("comparisons.jsonl", kLines); }

  const ScratchFolder folder_;
};

ArtifactDraft DatasetCardTest::Draft(const std::string& file, const std::string& contents) const {
  ArtifactDraft draft;
  draft.kind = "comparisons";
  draft.folder = folder_ / file;
  EXPECT_TRUE(Env::Posix()->CreateFolders(draft.folder).ok());
  EXPECT_TRUE(Env::Posix()->Write(draft.folder / file, contents).ok());
  draft.inputs = {{"prompts", "d1"}, {"responses", "d2"}};
  draft.recipe = {{"comparisons", {{"rule", "RULE_PAPER"}}}};
  draft.numerics_id = "float32/AVX2";
  return draft;
}

TEST_F(DatasetCardTest, TellsWhatAReaderAsks) {
  ASSERT_TRUE(IsDataset(Draft()));
  const auto card = DatasetCard(Draft(), "comparisons",
                                {{"kept", 2}, {"dropped_too_short", 5}, {"agreement", 0.5}}, "apache-2.0");
  ASSERT_TRUE(card.ok()) << card.status();
  EXPECT_THAT(*card, StartsWith("---\nlicense: apache-2.0\n"));
  EXPECT_THAT(*card, AllOf(HasSubstr("\n- n<1K\n"), HasSubstr("    path: comparisons.jsonl\n---\n"),
                           HasSubstr("| rows | 2 |"), HasSubstr("| `prompt_id` | integer |"),
                           HasSubstr("| `note` | null |"), HasSubstr("| kept | 2 |"),
                           HasSubstr("| dropped too short | 5 |"), HasSubstr("| responses | `d2` |"),
                           HasSubstr("\"rule\": \"RULE_PAPER\""), HasSubstr("float32/AVX2")));
  EXPECT_THAT(*card, Not(HasSubstr("agreement")));
}

TEST_F(DatasetCardTest, AnUnknownLicenceIsSaidToBeUnknown) {
  const auto card = DatasetCard(Draft(), "comparisons", {}, "");
  ASSERT_TRUE(card.ok());
  EXPECT_THAT(*card, AllOf(StartsWith("---\nlicense: unknown\n"), HasSubstr("Nobody has said")));
}

TEST_F(DatasetCardTest, ACompressedDatasetIsReadAndHashedAsItIs) {
  const std::string bytes = Gzip(kLines);
  const ArtifactDraft packed = Draft("comparisons.jsonl.gz", bytes);
  ASSERT_TRUE(IsDataset(packed));
  const auto card = DatasetCard(packed, "comparisons", {}, "");
  ASSERT_TRUE(card.ok()) << card.status();
  EXPECT_THAT(*card, AllOf(HasSubstr("    path: comparisons.jsonl.gz\n"), HasSubstr("| rows | 2 |"),
                           HasSubstr(Sha256(bytes))));
}

TEST_F(DatasetCardTest, WhatIsNoDatasetHasNone) {
  ArtifactDraft evaluation;
  evaluation.kind = "evaluation";
  evaluation.files = {{"answers.jsonl", "{}\n"}, {"evaluation.json", "{}"}};
  EXPECT_FALSE(IsDataset(evaluation));
  const ArtifactDraft broken = Draft("comparisons.jsonl", "[]\n");
  EXPECT_EQ(DatasetCard(broken, "comparisons", {}, "").status().code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace almost::orchestrator
