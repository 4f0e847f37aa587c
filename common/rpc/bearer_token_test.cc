#include "common/rpc/bearer_token.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <fstream>
#include <future>

#include "absl/time/clock.h"
#include "almost/judge/v1/judge.grpc.pb.h"
#include "common/base/scratch_folder.h"
#include "common/rpc/replica_pool.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/generic/generic_stub.h"

namespace almost {
namespace {

using judge::v1::CompareRequest;
using judge::v1::CompareResponse;
using judge::v1::JudgeService;
using testing::HasSubstr;
using testing::Not;

constexpr char kToken[] = "kBq9-lE~1.0/correct+horse";

std::string TokenFile(const std::string& name, const std::string& content) {
  static const ScratchFolder folder;
  const std::string path = folder / name;
  std::ofstream(path) << content;
  return path;
}

class CountingJudge final : public JudgeService::Service {
 public:
  grpc::Status Compare(grpc::ServerContext*, const CompareRequest*, CompareResponse*) override {
    ++calls;
    return grpc::Status::OK;
  }
  std::atomic<int> calls = 0;
};

class BearerTokenTest : public testing::Test {
 protected:
  BearerTokenTest() {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.drain_seconds = 1;
    options.token_file = TokenFile("token", std::string(kToken) + "\n");
    auto started = Server::Start(options, {{JudgeService::service_full_name(), &judge_}}, registry_);
    EXPECT_TRUE(started.ok()) << started.status();
    server_ = std::move(*started);
    server_->SetReady();
    channel_ = grpc::CreateChannel(Address(), grpc::InsecureChannelCredentials());
  }

  std::string Address() const { return "127.0.0.1:" + std::to_string(server_->port()); }

  // The code of a call with these authorization headers.
  grpc::StatusCode CodeWith(const std::vector<std::string>& headers) {
    grpc::ClientContext context;
    for (const std::string& header : headers) context.AddMetadata("authorization", header);
    CompareResponse response;
    return JudgeService::NewStub(channel_)->Compare(&context, CompareRequest(), &response).error_code();
  }
  // The code of a call without headers of the unary method `path`.
  grpc::StatusCode CodeOf(const std::string& path) {
    grpc::TemplatedGenericStub<CompareRequest, CompareResponse> stub(channel_);
    grpc::ClientContext context;
    const CompareRequest request;
    CompareResponse response;
    std::promise<grpc::StatusCode> code;
    stub.UnaryCall(&context, path, grpc::StubOptions(), &request, &response,
                   [&](const grpc::Status& status) { code.set_value(status.error_code()); });
    return code.get_future().get();
  }

  prometheus::Registry registry_;
  CountingJudge judge_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(BearerTokenTest, OnlyTheTokenOpensTheDoor) {
  const std::string header = std::string("Bearer ") + kToken;
  EXPECT_EQ(CodeWith({header}), grpc::OK);
  EXPECT_EQ(judge_.calls, 1);
  const std::vector<std::vector<std::string>> refused = {
      {},
      {""},
      {"Bearer "},
      {kToken},
      {"Basic " + std::string(kToken)},
      {header.substr(0, header.size() - 1)},
      {header + "x"},
      {"Bearer another token"},
      {"Bearer wrong-but-well-formed", header},
  };
  for (const std::vector<std::string>& headers : refused) {
    EXPECT_EQ(CodeWith(headers), grpc::UNAUTHENTICATED) << testing::PrintToString(headers);
  }
  EXPECT_EQ(judge_.calls, 1) << "a refused call reached its handler";
  EXPECT_EQ(RejectedRequests(registry_, "unauthenticated").Value(), refused.size());
}

TEST_F(BearerTokenTest, ProbesNeedNone) {
  EXPECT_EQ(CodeOf("/grpc.health.v1.Health/Check"), grpc::OK);
  // Bidirectional, so that a unary call has no answer to read; but it is let in.
  EXPECT_NE(CodeOf("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"), grpc::UNAUTHENTICATED);
  EXPECT_EQ(CodeOf("/almost.judge.v1.JudgeService/NoSuchMethod"), grpc::UNAUTHENTICATED);
  EXPECT_EQ(CodeOf("/almost.grpc.health.v1.Health/Check"), grpc::UNAUTHENTICATED);
}

TEST_F(BearerTokenTest, APoolShowsTheTokenOfItsFile) {
  const auto ask = [&](const std::string& token_file) {
    ReplicaPoolOptions options;
    options.token_file = token_file;
    auto pool = *ReplicaPool::Create(Address(), options);
    return pool
        ->Call<JudgeService>(&JudgeService::Stub::Compare, CompareRequest(), 1,
                             absl::Now() + absl::Seconds(10))
        .status()
        .code();
  };
  EXPECT_EQ(ask(TokenFile("same", kToken)), absl::StatusCode::kOk);
  EXPECT_EQ(ask(TokenFile("other", "another-token-of-more-than-16")), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(ask(""), absl::StatusCode::kUnauthenticated);
}

TEST(BearerTokenFileTest, AFileWithoutATokenIsRefused) {
  EXPECT_EQ(BearerToken::Read("/no/such/file").status().code(), absl::StatusCode::kNotFound);
  for (const char* content :
       {"", "\n", "too short", "with spaces between the words", "caf\xc3\xa9-caf\xc3\xa9-caf\xc3\xa9"}) {
    const absl::Status status = BearerToken::Read(TokenFile("bad", content)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << content;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr("words")));
  }
  EXPECT_EQ(BearerToken::Read(TokenFile("good", "  0123456789abcdef\r\n"))->header(),
            "Bearer 0123456789abcdef");
}

}  // namespace
}  // namespace almost
