#include "services/trainer/core/datasets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <set>

#include "common/base/scratch_folder.h"
#include "services/trainer/core/data_order.h"
#include "services/trainer/core/document_stream.h"
#include "services/trainer/core/micro_batches.h"
#include "services/trainer/core/schedule.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class Datasets : public testing::Test {
 protected:
  fs::path Write(const std::string& text) const {
    const fs::path file = folder_ / "dataset.jsonl";
    std::ofstream(file) << text;
    return file;
  }
  // The ids' texts, one by one.
  std::vector<std::string> Spelled(const Sample& sample, bool targets) const {
    std::vector<std::string> texts;
    for (size_t t = 0; t < sample.ids.size(); ++t) {
      if (sample.is_target[t] == targets)
        texts.push_back(tokenizer_->Decode(std::span(&sample.ids[t], 1), false));
    }
    return texts;
  }
  static std::string Join(const std::vector<std::string>& texts) {
    return std::accumulate(texts.begin(), texts.end(), std::string());
  }

  const ScratchFolder folder_;
  const std::shared_ptr<const Tokenizer> tokenizer_ =
      Tokenizer::Load(fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "common/world/models/S").value();
  const PromptFormat format_ = PromptFormat::World();
  const Encoding encoding_{format_, tokenizer_, 512};
};

constexpr char kEnd[] = "<|endoftext|>";

TEST_F(Datasets, DialoguesTeachTheAssistantsTokensWithTheirEndOfText) {
  const auto read = ReadDialogues(
      Write(R"({"messages":[{"role":"user","content":"What?"},{"role":"assistant","content":"This."},)"
            R"({"role":"user","content":"And?"},{"role":"assistant","content":"That."}]})"
            "\n"),
      encoding_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Join(Spelled(*read->samples.Read(0), true)), std::string(" This.") + kEnd + " That." + kEnd);
  EXPECT_EQ(Join(Spelled(*read->samples.Read(0), false)),
            std::string(kEnd) + "Human: What?\n\nAssistant:" + "\n\nHuman: And?\n\nAssistant:");
}

TEST_F(Datasets, DialoguesAreCutAndThoseWithNothingToLearnLeftOut) {
  const std::string line =
      R"({"messages":[{"role":"user","content":"What is 1 plus 2?"},{"role":"assistant","content":"1 plus 2 is 3."}]})";
  const auto cut = ReadDialogues(Write(line + "\n"), {format_, tokenizer_, 14});
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(cut->samples.Read(0)->ids.size(), 14u);
  EXPECT_EQ(cut->num_cut, 1);
  const auto nothing = ReadDialogues(Write(line + "\n"), {format_, tokenizer_, 5});
  EXPECT_EQ(nothing.status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(Datasets, EndOfTextIsPutBackAfterTruncation) {
  const auto whole = EncodeResponse("What is 1 plus 2?", "1 plus 2 is 3.", encoding_);
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_EQ(whole->ids.back(), tokenizer_->eos_id());
  const int cut_to = static_cast<int>(whole->ids.size()) - 3;
  const auto cut = EncodeResponse("What is 1 plus 2?", "1 plus 2 is 3.", {format_, tokenizer_, cut_to});
  ASSERT_TRUE(cut.ok()) << cut.status();
  EXPECT_EQ(static_cast<int>(cut->ids.size()), cut_to);
  EXPECT_EQ(cut->ids.back(), tokenizer_->eos_id());
  EXPECT_TRUE(cut->is_target.back());
}

TEST_F(Datasets, ABrokenLineIsNamed) {
  const auto no_rejected = ReadComparisons(
      Write("{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n{\"prompt\":\"a\",\"chosen\":\"b\"}\n"),
      encoding_);
  EXPECT_EQ(no_rejected.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(no_rejected.status().message(), HasSubstr("dataset.jsonl line 2"));
  EXPECT_THAT(no_rejected.status().message(), HasSubstr("rejected"));
  const auto not_json = ReadPrompts(Write("{\"prompt\":\"a\"}\n{\"prompt\":\n"), encoding_, 1);
  EXPECT_EQ(not_json.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(not_json.status().message(), HasSubstr("line 2"));
  const auto role = ReadDialogues(Write(R"({"messages":[{"role":"robot","content":"x"}]})"
                                        "\n"),
                                  encoding_);
  EXPECT_EQ(role.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(role.status().message(), HasSubstr("line 1"));
}

TEST_F(Datasets, AnEmptyOrMissingFileIsRefused) {
  EXPECT_EQ(ReadPrompts(Write(""), encoding_, 1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadDocuments(Write("")).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadPrompts("no/such/file", encoding_, 1).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(Datasets, AreCheckedByTheirFirstLineBeforeAJobBegins) {
  const auto check = [](KindSpec kind, const fs::path& dataset) {
    std::visit([&](auto& spec) { spec.dataset = dataset; }, kind);
    return CheckDataset(kind).ToString();
  };
  const std::string file = Write("").string();
  EXPECT_EQ(check(SftSpec(), "no/such.jsonl"),
            "INVALID_ARGUMENT: sft.dataset: no/such.jsonl: cannot be read");
  EXPECT_EQ(check(SftSpec(), file), "INVALID_ARGUMENT: sft.dataset: " + file + ": is empty");
  EXPECT_EQ(check(DpoSpec(), Write("{\"prompt\": \"a")),
            "INVALID_ARGUMENT: dpo.dataset: " + file + ": line 1 is not a JSON object");
  EXPECT_EQ(check(RewardModelSpec(), Write("{\"prompt\": \"a\"}\n")),
            "INVALID_ARGUMENT: reward_model.dataset: " + file +
                " line 1: needs \"prompt\", \"chosen\" and \"rejected\", strings");
  EXPECT_EQ(check(PretrainSpec(), Write("{\"prompt\": \"a\"}\n")),
            "INVALID_ARGUMENT: pretrain.dataset: " + file + " line 1: needs \"text\", a string");
  EXPECT_EQ(check(PpoSpec(), Write("{\"prompt\": \"a\"}\nnot looked at")), "OK");
  EXPECT_EQ(check(PretrainSpec{.world_seed = 1}, ""), "OK");
}

TEST(HeldOut, IsAShareOfPromptsAndAllPairsOfAPromptAreTogether) {
  int held_out = 0;
  for (int i = 0; i < 2000; ++i) held_out += IsHeldOut(HashOfPrompt("prompt " + std::to_string(i)), 0.2);
  // Standard deviation 18; the seed is fixed, so it fails always or never.
  EXPECT_NEAR(held_out, 400, 70);
  EXPECT_FALSE(IsHeldOut(HashOfPrompt("any"), 0));
}

TEST_F(Datasets, DocumentsStreamOnFromASavedPosition) {
  const DocumentSource source = [](int64_t index) { return "The fox number " + std::to_string(index) + "."; };
  DocumentStream stream(source, tokenizer_, {});
  ASSERT_TRUE(stream.Next(37).ok());
  DocumentStream resumed(source, tokenizer_, stream.position());
  EXPECT_EQ(*stream.Next(100), *resumed.Next(100));
}

TEST_F(Datasets, OneEndOfTextLiesBetweenDocuments) {
  DocumentStream stream([](int64_t) { return "1"; }, tokenizer_, {});
  const std::vector<int32_t> ids = *stream.Next(4);
  EXPECT_THAT(ids, ElementsAre(*tokenizer_->eos_id(), *tokenizer_->TokenId("1"), *tokenizer_->eos_id(),
                               *tokenizer_->TokenId("1")));
}

TEST(DataOrder, EverySampleComesOnceAnEpochInAnOrderOfTheSeed) {
  DataOrder order(7, 10, 3, 4);
  EXPECT_EQ(order.num_steps(), 8);
  std::vector<size_t> all;
  for (int64_t step = 0; step < order.num_steps(); ++step) {
    for (const size_t index : order.Batch(step)) all.push_back(index);
  }
  ASSERT_EQ(all.size(), 30u);
  for (int epoch = 0; epoch < 3; ++epoch) {
    EXPECT_EQ(std::set<size_t>(all.begin() + 10 * epoch, all.begin() + 10 * epoch + 10).size(), 10u);
  }
  EXPECT_NE(std::vector<size_t>(all.begin(), all.begin() + 10),
            std::vector<size_t>(all.begin() + 10, all.begin() + 20));
  // A step alone is the same as the step on the way: what resuming needs.
  EXPECT_EQ(DataOrder(7, 10, 3, 4).Batch(5), order.Batch(5));
  EXPECT_NE(DataOrder(8, 10, 3, 4).Batch(0), order.Batch(0));
}

// One prompt for all iterations of a job that is never to end.
TEST(DataOrder, ThereMayBeMoreEpochsThanAnInt) {
  DataOrder order(7, 1, int64_t{1} << 33, 8);
  EXPECT_EQ(order.num_steps(), int64_t{1} << 30);
  EXPECT_EQ(order.Batch(0).size(), 8u);
}

TEST(DataOrder, GroupsStayWholeAndEachComesOnceAnEpoch) {
  const std::vector<size_t> sizes = {3, 1, 5, 2, 4, 1, 9};
  const auto batches = BatchesOfGroups(7, sizes, /*epochs=*/2, /*batch_size=*/6);
  std::vector<size_t> all;
  for (const std::vector<size_t>& batch : batches) {
    size_t samples = 0;
    for (const size_t group : batch) samples += sizes[group];
    EXPECT_TRUE(samples <= 6 || batch.size() == 1);
    all.insert(all.end(), batch.begin(), batch.end());
  }
  ASSERT_EQ(all.size(), 14u);
  EXPECT_EQ(std::set<size_t>(all.begin(), all.begin() + 7).size(), 7u);
  EXPECT_EQ(std::set<size_t>(all.begin() + 7, all.end()).size(), 7u);
}

TEST(DataOrder, GroupsOfOneAreBatchesOfSamples) {
  const auto batches = BatchesOfGroups(7, std::vector<size_t>(10, 1), /*epochs=*/3, /*batch_size=*/4);
  DataOrder order(7, 10, 3, 4);
  ASSERT_EQ(static_cast<int64_t>(batches.size()), order.num_steps());
  for (int64_t step = 0; step < order.num_steps(); ++step)
    EXPECT_EQ(batches[step], order.Batch(step)) << step;
}

TEST_F(Datasets, MarginsAreReadAndBadOnesNamed) {
  const std::string line = R"({"prompt":"a","chosen":"b","rejected":"c")";
  const auto read = ReadComparisons(Write(line + "}\n" + line + R"(,"margin":0.5})" + "\n"), encoding_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->pairs.Read(0)->margin, 0.0);
  EXPECT_EQ(read->pairs.Read(1)->margin, 0.5);
  for (const char* bad : {"-1", "\"1\"", "null"}) {
    const auto refused =
        ReadComparisons(Write(line + "}\n" + line + ",\"margin\":" + bad + "}\n"), encoding_);
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(refused.status().message()), HasSubstr("line 2: \"margin\""));
  }
}

TEST_F(Datasets, TextsAreLearnedWholeBetweenTheirMarkers) {
  const auto read = ReadTexts(Write("{\"text\":\"What is 1?\"}\n"), tokenizer_, 512);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(Join(Spelled(*read->Read(0), true)), std::string("What is 1?") + kEnd);
  EXPECT_EQ(ReadTexts(Write("{\"text\":\"What is 1?\"}\n"), tokenizer_, 3)->Read(0)->ids.size(), 3u);
  EXPECT_THAT(std::string(ReadTexts(Write("{\"txt\":1}\n"), tokenizer_, 3).status().message()),
              HasSubstr("line 1: needs \"text\""));
}

TEST(MicroBatches, ShareTokensEvenlyAndKeepEveryItem) {
  const std::vector<int64_t> tokens = {30, 10, 20, 40, 25, 15, 35, 5};
  const auto cut = CutMicroBatches(tokens, 2, 1000);
  ASSERT_EQ(cut.size(), 2u);
  std::multiset<size_t> items;
  for (const auto& batch : cut) {
    int64_t sum = 0;
    for (const size_t item : batch) items.insert(item), sum += tokens[item];
    EXPECT_NEAR(static_cast<double>(sum), 90, 20);
  }
  EXPECT_EQ(items.size(), tokens.size());
  EXPECT_EQ(std::set<size_t>(items.begin(), items.end()).size(), tokens.size());
}

TEST(MicroBatches, NoneIsEmptyOrOverTheLimit) {
  std::vector<int64_t> tokens;
  for (int64_t i = 0; i < 50; ++i) tokens.push_back(1 + i * 7 % 60);
  for (const int threads : {1, 2, 3, 8, 64}) {
    for (const int64_t limit : {50, 64, 200, 100000}) {
      size_t items = 0;
      for (const auto& batch : CutMicroBatches(tokens, threads, limit)) {
        int64_t sum = 0;
        for (const size_t item : batch) sum += tokens[item];
        EXPECT_FALSE(batch.empty());
        EXPECT_TRUE(sum <= limit || batch.size() == 1);
        items += batch.size();
      }
      EXPECT_EQ(items, tokens.size());
    }
  }
  EXPECT_EQ(CutMicroBatches(std::vector<int64_t>{9}, 4, 100).size(), 1u);
}

TEST(Schedule, RisesHoldsAndFalls) {
  OptimizerSpec spec{
      .schedule = Schedule::kLinear, .warmup_steps = 4, .hold_fraction = 0.5, .final_fraction = 0.1};
  EXPECT_DOUBLE_EQ(LearningRateFactor(spec, 0, 20), 0.25);
  EXPECT_DOUBLE_EQ(LearningRateFactor(spec, 3, 20), 1.0);
  EXPECT_DOUBLE_EQ(LearningRateFactor(spec, 10, 20), 1.0);
  EXPECT_DOUBLE_EQ(LearningRateFactor(spec, 15, 20), 0.55);
  EXPECT_NEAR(LearningRateFactor(spec, 20, 20), 0.1, 1e-12);
  spec.schedule = Schedule::kCosine;
  EXPECT_DOUBLE_EQ(LearningRateFactor(spec, 15, 20), 0.55);
  EXPECT_GT(LearningRateFactor(spec, 12, 20), 0.8 + 0.1);
  spec.schedule = Schedule::kConstant;
  EXPECT_DOUBLE_EQ(LearningRateFactor(spec, 19, 20), 1.0);
}

}  // namespace
}  // namespace almost::trainer
