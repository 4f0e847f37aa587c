#include "services/trainer/rpc/reward_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "absl/strings/str_cat.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "common/rpc/server.h"

namespace almost::trainer {
namespace {

// A scorer whose device has failed.
class BrokenScorer final : public reward::v1::RewardService::Service {
 public:
  grpc::Status Score(grpc::ServerContext*, const reward::v1::ScoreRequest*,
                     reward::v1::ScoreResponse*) override {
    ++calls;
    return ToGrpc(absl::InternalError("cuda:0 has failed"));
  }
  grpc::Status GetModel(grpc::ServerContext*, const types::v1::GetModelRequest* request,
                        types::v1::Model* response) override {
    if (request->name() != "models/RM") return ToGrpc(absl::NotFoundError(request->name()));
    response->set_context_tokens(512);
    response->set_vocab_size(1000);
    return grpc::Status::OK;
  }
  std::atomic<int> calls{0};
};

class RewardClientTest : public testing::Test {
 protected:
  RewardClientTest() {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.drain_seconds = 1;
    server_ =
        *Server::Start(options, {{reward::v1::RewardService::service_full_name(), &scorer_}}, registry_);
    server_->SetReady();
    target_ = absl::StrCat("127.0.0.1:", server_->port());
  }

  prometheus::Registry registry_;
  BrokenScorer scorer_;
  std::unique_ptr<Server> server_;
  std::string target_;
};

// Of the service, not of the job, whose checkpoints are kept for when it is mended.
TEST_F(RewardClientTest, AFailureOfTheServiceIsNotTheJobs) {
  const RewardFunction reward = *MakeRewardFunction(target_, "models/RM", "", {}, {}, registry_);
  const absl::Status status = reward(std::vector<RewardInput>{{"prompt", "response"}}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("cuda:0 has failed"));
  EXPECT_EQ(scorer_.calls, 1);
}

TEST_F(RewardClientTest, SaysWhatAModelCanRead) {
  const auto reader = DescribeRewardModel("reward_model", target_, "models/RM", {}, {}, registry_);
  ASSERT_TRUE(reader.ok()) << reader.status();
  EXPECT_EQ(reader->field, "reward_model");
  EXPECT_EQ(reader->context_tokens, 512);
  EXPECT_EQ(reader->vocab_size, 1000);
  EXPECT_EQ(DescribeRewardModel("reward_model", target_, "models/other", {}, {}, registry_).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace almost::trainer
