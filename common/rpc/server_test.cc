#include "common/rpc/server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <future>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "almost/judge/v1/judge.grpc.pb.h"
#include "common/base/scratch_folder.h"
#include "common/rpc/replica_pool.h"

// A server's end, and who may speak to it.
namespace almost {
namespace {

namespace fs = std::filesystem;
using judge::v1::CompareRequest;
using judge::v1::CompareResponse;
using judge::v1::JudgeService;

// Takes until it is told to finish, or its call is cancelled.
class SlowJudge final : public JudgeService::Service {
 public:
  grpc::Status Compare(grpc::ServerContext* context, const CompareRequest*, CompareResponse*) override {
    if (!begun.HasBeenNotified()) begun.Notify();
    while (!finish.WaitForNotificationWithTimeout(absl::Milliseconds(5))) {
      if (context->IsCancelled()) return {grpc::StatusCode::CANCELLED, "cut off"};
    }
    return grpc::Status::OK;
  }
  absl::Notification begun, finish;
};

absl::StatusOr<CompareResponse> Ask(ReplicaPool& pool) {
  return pool.Call<JudgeService>(&JudgeService::Stub::Compare, CompareRequest(), 1,
                                 absl::Now() + absl::Seconds(10));
}

class DrainTest : public testing::Test {
 protected:
  void Start(double drain_seconds) {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.drain_seconds = drain_seconds;
    server_ = *Server::Start(options, {{JudgeService::service_full_name(), &judge_}}, registry_);
    server_->SetReady();
    pool_ = *ReplicaPool::Create(absl::StrCat("127.0.0.1:", server_->port()), {.max_tries = 1});
  }
  ~DrainTest() override {
    if (!judge_.finish.HasBeenNotified()) judge_.finish.Notify();
  }

  prometheus::Registry registry_;
  SlowJudge judge_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<ReplicaPool> pool_;
};

TEST_F(DrainTest, ACallUnderWayEndsWellAndNewOnesAreTurnedAway) {
  Start(/*drain_seconds=*/20);
  auto answer = std::async(std::launch::async, [&] { return Ask(*pool_).status(); });
  judge_.begun.WaitForNotification();
  auto drained = std::async(std::launch::async, [&] { server_->Drain(); });
  auto late = *ReplicaPool::Create(absl::StrCat("127.0.0.1:", server_->port()), {.max_tries = 1});
  absl::Status refused;
  // Drain closes the port at some moment of its own.
  while (refused.code() != absl::StatusCode::kUnavailable) {
    refused = late->Call<JudgeService>(&JudgeService::Stub::Compare, CompareRequest(), 1,
                                       absl::Now() + absl::Milliseconds(200))
                  .status();
    ASSERT_FALSE(refused.ok());
  }
  EXPECT_EQ(drained.wait_for(std::chrono::seconds(0)), std::future_status::timeout);
  judge_.finish.Notify();
  EXPECT_TRUE(answer.get().ok());
  drained.wait();
}

TEST_F(DrainTest, WhatTakesLongerThanTheDeadlineIsCutOff) {
  Start(/*drain_seconds=*/0.05);
  auto answer = std::async(std::launch::async, [&] { return Ask(*pool_).status(); });
  judge_.begun.WaitForNotification();
  server_->Drain();  // returns, though nobody told the call to finish
  EXPECT_FALSE(answer.get().ok());
}

// A certificate authority, a server "localhost" and a client of its, and a client of nobody's.
class TlsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Certify("ca", "-x509 -days 2");
    for (const char* name : {"server", "client"}) {
      Certify(name, "");
      Run(absl::StrCat("openssl x509 -req -days 2 -in ", name,
                       ".pem -CA ca.pem -CAkey ca.key -CAcreateserial -out ", name, ".pem -extfile san"));
    }
    Certify("stranger", "-x509 -days 2");
  }

  static const fs::path& Folder() {
    static const ScratchFolder folder;
    return folder;
  }
  static std::string File(const std::string& name) { return (Folder() / name).string(); }
  static void Run(const std::string& command) {
    ASSERT_EQ(std::system(absl::StrCat("cd ", Folder().string(), " && ", command, " 2>log").c_str()), 0)
        << command;
  }
  // A key and a request for it, or with -x509 a certificate that vouches for itself.
  static void Certify(const std::string& name, const std::string& how) {
    std::ofstream(Folder() / "san") << "subjectAltName=DNS:localhost\n";
    Run(absl::StrCat("openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=", name,
                     " -keyout ", name, ".key -out ", name, ".pem ", how));
  }

  void Start(bool mutual) {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.tls_cert = File("server.pem");
    options.tls_key = File("server.key");
    if (mutual) options.tls_client_ca = File("ca.pem");
    judge_.finish.Notify();
    server_ = *Server::Start(options, {{JudgeService::service_full_name(), &judge_}}, registry_);
    server_->SetReady();
  }
  absl::StatusCode AskWith(const ReplicaPoolOptions& options) {
    auto pool = *ReplicaPool::Create(absl::StrCat("dns:///localhost:", server_->port()), options);
    return Ask(*pool).status().code();
  }

  prometheus::Registry registry_;
  SlowJudge judge_;
  std::unique_ptr<Server> server_;
};

TEST_F(TlsTest, IsForThoseWhoTrustTheServer) {
  Start(/*mutual=*/false);
  EXPECT_EQ(AskWith({.tls = {.ca = File("ca.pem")}, .max_tries = 1}), absl::StatusCode::kOk);
  EXPECT_EQ(AskWith({.tls = {.ca = File("stranger.pem")}, .max_tries = 1}), absl::StatusCode::kUnavailable);
  EXPECT_EQ(AskWith({.max_tries = 1}), absl::StatusCode::kUnavailable);  // plain text
}

TEST_F(TlsTest, MutualIsForClientsOfTheAuthorityAlone) {
  Start(/*mutual=*/true);
  const std::string ca = File("ca.pem");
  EXPECT_EQ(
      AskWith({.tls = {.ca = ca, .cert = File("client.pem"), .key = File("client.key")}, .max_tries = 1}),
      absl::StatusCode::kOk);
  EXPECT_EQ(AskWith({.tls = {.ca = ca}, .max_tries = 1}), absl::StatusCode::kUnavailable);
  EXPECT_EQ(
      AskWith({.tls = {.ca = ca, .cert = File("stranger.pem"), .key = File("stranger.key")}, .max_tries = 1}),
      absl::StatusCode::kUnavailable);
}

TEST_F(TlsTest, OptionsThatDoNotGoTogetherAreNamed) {
  const auto refused = [&](const ServerOptions& options) {
    return Server::Start(options, {{JudgeService::service_full_name(), &judge_}}, registry_).status();
  };
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.tls_cert = File("server.pem");
  EXPECT_EQ(refused(options).code(), absl::StatusCode::kInvalidArgument);
  options.tls_key = File("nowhere.key");
  EXPECT_EQ(refused(options).code(), absl::StatusCode::kNotFound);
  options.tls_cert = options.tls_key = "";
  options.tls_client_ca = File("ca.pem");
  EXPECT_EQ(refused(options).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace almost
