#include "services/reward/rpc/reward_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"
#include "common/engine/cpu_model.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "tests/integration/world_reward_model.h"

namespace almost::reward {
namespace {

namespace fs = std::filesystem;

// The service with two versions of the world's S with a reward head, behind a real port.
class RewardServiceTest : public testing::Test {
 protected:
  explicit RewardServiceTest(const engine::EngineOptions& options = {})
      : metrics_(registry_),
        models_(ModelRegistry::Head::kReward, nullptr, root_, options, registry_,
                [this](const std::string&) { return metrics_.observer(); }),
        service_(models_, metrics_) {
    for (const int version : {1, 2}) {
      EXPECT_TRUE(WriteWorldRewardModel(root_ / absl::StrCat("v", version), version).ok());
    }
    ServerOptions server;
    server.listen = "127.0.0.1:0";
    server.drain_seconds = 1;
    server_ = *Server::Start(server, {{v1::RewardService::service_full_name(), &service_}}, registry_);
    EXPECT_TRUE(models_.LoadAll({"v1=v1"}).ok());
    stub_ = v1::RewardService::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials()));
  }

  // Answers of mixed lengths, four to a prompt.
  static v1::ScoreItem Item(int i) {
    v1::ScoreItem item;
    item.set_prompt(absl::StrCat("What is ", i / 4 % 6 + 1, " plus ", i / 24 + 1, "?"));
    for (int k = 0; k <= i * 7 % 23; ++k)
      absl::StrAppend(item.mutable_response(), k == 0 ? "" : " ", "It is ", k);
    return item;
  }

  absl::StatusOr<v1::ScoreResponse> Score(const std::vector<int>& items,
                                          const std::string& model = "models/v1",
                                          absl::Duration time = absl::Seconds(60)) {
    v1::ScoreRequest request;
    request.set_model(model);
    for (const int i : items) *request.add_items() = Item(i);
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + time));
    v1::ScoreResponse response;
    const grpc::Status status = stub_->Score(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  const ScratchFolder root_;
  prometheus::Registry registry_;
  Metrics metrics_;
  ModelRegistry models_;
  RewardService service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::RewardService::Stub> stub_;
};

TEST_F(RewardServiceTest, AScoreHasTheSameBitsInBatchesOf1To64InAnyOrder) {
  std::vector<int> all(64);
  for (int i = 0; i < 64; ++i) all[i] = i;
  std::vector<double> alone;
  for (const int i : all) alone.push_back(Score({i})->items(0).result().raw_score());
  EXPECT_NE(alone[0], alone[1]);
  for (const size_t batch : {2, 3, 7, 16, 64}) {
    std::reverse(all.begin(), all.end());
    std::rotate(all.begin(), all.begin() + 5, all.end());
    for (size_t begin = 0; begin < all.size(); begin += batch) {
      const std::vector<int> items(all.begin() + begin, all.begin() + std::min(begin + batch, all.size()));
      const auto response = Score(items);
      ASSERT_TRUE(response.ok()) << response.status();
      for (size_t i = 0; i < items.size(); ++i) {
        EXPECT_EQ(response->items(i).result().raw_score(), alone[items[i]]) << batch << " " << items[i];
      }
    }
  }
}

TEST_F(RewardServiceTest, AnswersToOnePromptComputeItOnce) {
  v1::ScoreRequest request;
  request.set_model("models/v1");
  for (int i = 0; i < 8; ++i) {
    v1::ScoreItem& item = *request.add_items();
    for (int k = 0; k < 40; ++k) absl::StrAppend(item.mutable_prompt(), "What is 2 plus 3? ");
    item.set_response(absl::StrCat("It is ", i));
  }
  grpc::ClientContext context;
  v1::ScoreResponse response;
  ASSERT_TRUE(stub_->Score(&context, request, &response).ok());
  const engine::EngineStats stats = models_.Stats()["models/v1"];
  // All but the first found the prompt's whole blocks; its end and the answer are at most two blocks.
  const int prompt_tokens = response.items(0).result().num_tokens() - 32;
  EXPECT_GE(stats.prefix_hit_tokens, 7 * prompt_tokens);
  EXPECT_GT(prompt_tokens, 200);
  EXPECT_EQ(stats.free_blocks, stats.total_blocks);
}

// Clients go from version to version as the operator says. None of their calls fails, and each gets the
// scores of the version it asked for, while models come and go.
TEST_F(RewardServiceTest, ModelsAreLoadedAndUnloadedByVersionUnderLoad) {
  ASSERT_TRUE(models_.LoadAll({"v2=v2"}).ok());
  const std::vector<int> items = {0, 1, 2, 3, 40};
  const std::vector<std::string> names = {"models/v1", "models/v2"};
  std::vector<std::string> expected;
  for (const std::string& name : names) expected.push_back(Score(items, name)->SerializeAsString());
  EXPECT_NE(expected[0], expected[1]);

  constexpr int kClients = 4;
  std::atomic<int> current = 0;
  std::atomic<bool> stop = false;
  std::array<std::atomic<int>, kClients> calls = {};
  std::atomic<int> failed = 0;
  std::vector<std::jthread> clients;
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      while (!stop) {
        const int version = current;
        const auto response = Score(items, names[version]);
        failed += !response.ok() || response->SerializeAsString() != expected[version];
        ++calls[c];
      }
    });
  }
  // Every client's next call but one has begun after `current` was set.
  const auto wait_for_all = [&] {
    for (int c = 0; c < kClients; ++c) {
      const int before = calls[c];
      while (calls[c] < before + 2) std::this_thread::yield();
    }
  };
  for (int round = 0; round < 6; ++round) {
    const int next = 1 - current;
    types::v1::LoadModelRequest load;
    load.set_name(names[next]);
    load.set_source(absl::StrCat("v", next + 1));
    EXPECT_TRUE(models_.Load(load).ok());
    current = next;
    wait_for_all();
    types::v1::UnloadModelRequest unload;
    unload.set_name(names[1 - next]);
    EXPECT_TRUE(models_.Unload(unload).ok());
    wait_for_all();
  }
  stop = true;
  clients.clear();
  EXPECT_EQ(failed, 0);
}

TEST_F(RewardServiceTest, ExportsWhatItsReplicasAreScaledOn) {
  ASSERT_TRUE(Score({0, 1, 2}).ok());
  metrics_.Observe(models_);
  std::set<std::string> names;
  uint64_t waits = 0;
  for (const prometheus::MetricFamily& family : registry_.Collect()) {
    if (!family.metric.empty()) names.insert(family.name);
    if (family.name == "almost_reward_queue_seconds") waits = family.metric[0].histogram.sample_count;
  }
  EXPECT_TRUE(names.contains("almost_queue_depth"));
  EXPECT_TRUE(names.contains("almost_queue_tokens"));
  EXPECT_TRUE(names.contains("almost_queue_tokens_limit"));
  EXPECT_EQ(waits, 3u);
}

class SmallQueueTest : public RewardServiceTest {
 protected:
  SmallQueueTest() : RewardServiceTest({.max_queued_requests = 5}) {}
};

TEST_F(SmallQueueTest, RefusesMoreThanItsQueueHoldsAndSaysWhenToTryAgain) {
  EXPECT_TRUE(Score({0, 1, 2, 3, 4}).ok());
  const absl::Status refused = Score({0, 1, 2, 3, 4, 5}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GT(RetryDelay(refused), absl::ZeroDuration());
  EXPECT_EQ(RejectedRequests(registry_, "queue_full").Value(), 1);
  EXPECT_TRUE(Score({0, 1, 2, 3, 4}).ok());
}

class SmallCacheTest : public RewardServiceTest {
 protected:
  SmallCacheTest() : RewardServiceTest({.kv_cache_bytes = 12 * BlockBytes()}) {}

  static int64_t BlockBytes() {
    const fs::path folder = fs::path(getenv("ALMOST_SOURCE_DIR")) / "common/world/models/S";
    return engine::KvCache::BlockBytes(ModelConfig::FromFolder(folder).value());
  }
};

TEST_F(SmallCacheTest, AnItemThatItCannotHoldLeavesTheOthersBe) {
  v1::ScoreRequest request;
  request.set_model("models/v1");
  for (int i = 0; i < 3; ++i) *request.add_items() = Item(i);
  for (int i = 0; i < 250; ++i) request.mutable_items(1)->mutable_response()->append(" red");
  grpc::ClientContext context;
  v1::ScoreResponse response;
  const grpc::Status status = stub_->Score(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(response.items(0).has_result());
  EXPECT_EQ(response.items(1).error().code(), static_cast<int>(absl::StatusCode::kOutOfRange));
  EXPECT_THAT(response.items(1).error().message(), testing::HasSubstr("KV cache"));
  EXPECT_EQ(response.items(2).result().score(), Score({2})->items(0).result().score());
}

TEST_F(RewardServiceTest, ADeadlineThatHasPassedReachesNoModel) {
  const int64_t before = models_.Stats()["models/v1"].prompt_tokens;
  EXPECT_EQ(Score({0}, "models/v1", -absl::Seconds(1)).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(models_.Stats()["models/v1"].prompt_tokens, before);
}

TEST(CallStatus, AClientThatHangsUpAtItsDeadlineBeforeAnyWorkHasExpired) {
  absl::Status untouched = absl::CancelledError("nobody waits for it");
  const absl::Status begun = untouched;
  untouched.SetPayload(std::string(engine::kNothingComputed), absl::Cord());
  const absl::Time soon = absl::Now() + absl::Milliseconds(100), later = absl::Now() + absl::Minutes(1);
  EXPECT_TRUE(ExpiredBeforeWork(ToGrpc(CallStatus(untouched, soon))));
  EXPECT_EQ(CallStatus(untouched, later), untouched);
  EXPECT_EQ(CallStatus(begun, soon), begun);
}

}  // namespace
}  // namespace almost::reward
