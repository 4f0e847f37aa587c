#include <gmock/gmock.h>
#include <grpcpp/health_check_service_interface.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <sstream>

#include "absl/synchronization/notification.h"
#include "almost/judge/v1/judge.grpc.pb.h"
#include "common/logging/trace.h"
#include "common/rpc/replica_pool.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "google/rpc/error_details.pb.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

using judge::v1::CompareRequest;
using judge::v1::CompareResponse;
using judge::v1::JudgeService;
using testing::HasSubstr;

// Answers with its own name, or with `failures` errors first.
class NamedJudge final : public JudgeService::Service {
 public:
  explicit NamedJudge(std::string name, int failures = 0, absl::Status failure = {})
      : name_(std::move(name)), failures_(failures), failure_(std::move(failure)) {}
  grpc::Status Compare(grpc::ServerContext*, const CompareRequest*, CompareResponse* response) override {
    ++calls;
    if (failures_-- > 0) return ToGrpc(failure_);
    response->set_judge_id(name_);
    return grpc::Status::OK;
  }
  std::atomic<int> calls = 0;

 private:
  const std::string name_;
  std::atomic<int> failures_;
  const absl::Status failure_;
};

struct Running {
  explicit Running(std::string name, int failures = 0, absl::Status failure = {},
                   const std::string& listen = "127.0.0.1:0")
      : judge(std::move(name), failures, std::move(failure)) {
    ServerOptions options;
    options.listen = listen;
    options.drain_seconds = 1;
    auto started = Server::Start(options, {{JudgeService::service_full_name(), &judge}}, registry);
    EXPECT_TRUE(started.ok()) << started.status();
    server = std::move(*started);
    server->SetReady();
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(server->port()); }

  prometheus::Registry registry;
  NamedJudge judge;
  std::unique_ptr<Server> server;
};

absl::StatusOr<CompareResponse> Ask(ReplicaPool& pool, absl::Duration within = absl::Seconds(10)) {
  return pool.Call<JudgeService>(&JudgeService::Stub::Compare, CompareRequest(), 1, absl::Now() + within);
}

// The values of a family by one of its labels; by "" where it has none.
std::map<std::string, double> ValuesBy(const std::string& label, const std::string& name,
                                       const prometheus::Registry& registry) {
  std::map<std::string, double> values;
  for (const auto& family : registry.Collect()) {
    if (family.name != name) continue;
    for (const auto& metric : family.metric) {
      std::string key;
      for (const auto& one : metric.label) {
        if (one.name == label) key = one.value;
      }
      values[key] =
          family.type == prometheus::MetricType::Counter ? metric.counter.value : metric.gauge.value;
    }
  }
  return values;
}

TEST(StatusTest, SurvivesTheWire) {
  absl::Status status = InvalidField("sampling.top_p", "in (0, 1]", "2");
  const absl::Status back = FromGrpc(ToGrpc(status));
  EXPECT_EQ(back.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(back.message(), "sampling.top_p: must be in (0, 1], got 2");
  google::rpc::BadRequest bad;
  ASSERT_TRUE(
      bad.ParseFromString(std::string(*back.GetPayload("type.googleapis.com/google.rpc.BadRequest"))));
  EXPECT_EQ(bad.field_violations(0).field(), "sampling.top_p");
  EXPECT_GT(RetryDelay(FromGrpc(ToGrpc(absl::ResourceExhaustedError("full")))), absl::ZeroDuration());
  EXPECT_EQ(RetryDelay(FromGrpc(ToGrpc(RetryLater("full", absl::Milliseconds(2750))))),
            absl::Milliseconds(2750));
  EXPECT_EQ(RetryDelay(FromGrpc(ToGrpc(absl::UnavailableError("away")))), absl::ZeroDuration());
}

TEST(ReplicaPoolTest, SpreadsCallsAndOutlivesADeadReplica) {
  auto a = std::make_unique<Running>("a"), b = std::make_unique<Running>("b");
  auto pool = *ReplicaPool::Create(a->address() + "," + b->address(), {});
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Ask(*pool).ok());
  EXPECT_GT(a->judge.calls, 5);
  EXPECT_GT(b->judge.calls, 5);
  a.reset();
  for (int i = 0; i < 20; ++i) {
    const auto answer = Ask(*pool);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->judge_id(), "b");
  }
}

TEST(ReplicaPoolTest, WaitsForAReplicaThatComesBack) {
  auto first = std::make_unique<Running>("first");
  const std::string address = first->address();
  auto pool = *ReplicaPool::Create(address, {.max_tries = 50});
  ASSERT_TRUE(Ask(*pool).ok());
  first.reset();
  std::jthread later([&] {
    absl::SleepFor(absl::Milliseconds(300));
    first = std::make_unique<Running>("second", 0, absl::OkStatus(), address);
  });
  const auto answer = Ask(*pool, absl::Seconds(30));
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->judge_id(), "second");
}

TEST(ReplicaPoolTest, TriesAgainOnlyWhatMayPass) {
  Running busy("busy", 2, absl::ResourceExhaustedError("the queue is full"));
  EXPECT_TRUE(Ask(**ReplicaPool::Create(busy.address(), {})).ok());
  EXPECT_EQ(busy.judge.calls, 3);
  Running wrong("wrong", 1, absl::FailedPreconditionError("another digest"));
  EXPECT_EQ(Ask(**ReplicaPool::Create(wrong.address(), {})).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(wrong.judge.calls, 1);
  EXPECT_EQ(ReplicaPool::Create("nohost", {}).status().code(), absl::StatusCode::kInvalidArgument);
}

// Trailers are limited to 8 KiB, and what says what was wrong with a request may repeat all of it.
TEST(ReplicaPoolTest, AnErrorArrivesHoweverLongItsMessageAndWhateverItsBytes) {
  std::string umlauts, any = "caf\xe9 \xf0\x9f\x98";
  for (int i = 0; i < 50'000; ++i) umlauts += "\xc3\xa4";
  for (int byte = 0; byte < 256; ++byte) any.push_back(static_cast<char>(byte));
  for (const std::string& value : {std::string(100'000, 'x'), umlauts, any}) {
    Running wrong("wrong", 1, InvalidField("items[0]", "short", value));
    const absl::Status status = Ask(**ReplicaPool::Create(wrong.address(), {})).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(wrong.judge.calls, 1);
    const std::string message(status.message());
    EXPECT_THAT(message, HasSubstr("items[0]: must be short, got "));
    EXPECT_GT(message.size(), 200);
    EXPECT_NO_THROW(nlohmann::json(message).dump()) << "not UTF-8";
    google::rpc::BadRequest bad;
    ASSERT_TRUE(status.GetPayload("type.googleapis.com/google.rpc.BadRequest").has_value());
    EXPECT_TRUE(
        bad.ParseFromString(std::string(*status.GetPayload("type.googleapis.com/google.rpc.BadRequest"))));
  }
}

TEST(ReplicaPoolTest, AsksTheOthersBeforeAModelIsNotThere) {
  Running old("old"), fresh("fresh", 1000, absl::NotFoundError("no models/RM"));
  auto pool =
      *ReplicaPool::Create(old.address() + "," + fresh.address(), {.avoid_for = absl::ZeroDuration()});
  for (int i = 0; i < 10; ++i) {
    const auto answer = Ask(*pool);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->judge_id(), "old");
  }
  EXPECT_GT(fresh.judge.calls, 0);

  Running other("other", 1000, absl::NotFoundError("no models/RM"));
  auto without = *ReplicaPool::Create(other.address() + "," + fresh.address(), {});
  const int before = fresh.judge.calls;
  EXPECT_EQ(Ask(*without).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(other.judge.calls, 1);
  EXPECT_EQ(fresh.judge.calls, before + 1);
}

TEST(ReplicaPoolTest, PassesOverAReplicaThatLacksAModelForAWhile) {
  Running old("old"), fresh("fresh", 1000, absl::NotFoundError("no models/RM"));
  auto pool = *ReplicaPool::Create(old.address() + "," + fresh.address(), {.avoid_for = absl::Hours(1)});
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(Ask(*pool).ok());
  EXPECT_EQ(fresh.judge.calls, 1);
}

TEST(ReplicaPoolTest, TriesAgainWhatAStoppingServerCutsOff) {
  Running a("a", 1, absl::CancelledError("the server stops")), b("b");
  auto pool = *ReplicaPool::Create(a.address() + "," + b.address(), {});
  for (int i = 0; i < 4; ++i) {
    const auto answer = Ask(*pool);
    ASSERT_TRUE(answer.ok()) << answer.status();
  }
  EXPECT_GT(a.judge.calls, 0);
}

// Holds a call until its client has gone.
class WaitingJudge final : public JudgeService::Service {
 public:
  grpc::Status Compare(grpc::ServerContext* context, const CompareRequest*, CompareResponse*) override {
    inside.Notify();
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return ToGrpc(absl::CancelledError("the client has gone"));
  }
  absl::Notification inside;
};

// Where the caller gives up, that is the answer: at once, in the middle of a try and between two.
TEST(ReplicaPoolTest, EndsWhatItsCallerGivesUp) {
  const auto expect_given_up = [](ReplicaPool& pool, const std::function<void()>& until) {
    std::stop_source stop;
    absl::Time given_up;
    std::jthread caller([&] {
      until();
      given_up = absl::Now();
      stop.request_stop();
    });
    const auto answer = pool.Call<JudgeService>(&JudgeService::Stub::Compare, CompareRequest(), 1,
                                                absl::Now() + absl::Seconds(10), stop.get_token());
    caller.join();
    EXPECT_EQ(answer.status().code(), absl::StatusCode::kCancelled);
    EXPECT_LT(absl::Now() - given_up, absl::Seconds(1));
  };
  prometheus::Registry registry;
  WaitingJudge waiting;
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.drain_seconds = 1;
  const auto server = *Server::Start(options, {{JudgeService::service_full_name(), &waiting}}, registry);
  expect_given_up(**ReplicaPool::Create("127.0.0.1:" + std::to_string(server->port()), {}),
                  [&] { waiting.inside.WaitForNotification(); });

  Running busy("busy", 1, RetryLater("the queue is full", absl::Seconds(8)));
  expect_given_up(**ReplicaPool::Create(busy.address(), {}), [&] {
    while (busy.judge.calls == 0) absl::SleepFor(absl::Milliseconds(1));
  });
  EXPECT_EQ(busy.judge.calls, 1);
}

TEST(ReplicaPoolTest, ResolvesNames) {
  Running server("named");
  auto pool = *ReplicaPool::Create("dns:///localhost:" + std::to_string(server.server->port()), {});
  EXPECT_EQ(Ask(*pool)->judge_id(), "named");
}

// Notes what it is called with and asks the next judge, if there is one.
class TracingJudge final : public JudgeService::Service {
 public:
  explicit TracingJudge(ReplicaPool* next) : next_(next) {}
  grpc::Status Compare(grpc::ServerContext* context, const CompareRequest*, CompareResponse*) override {
    const auto found = context->client_metadata().find("traceparent");
    if (found != context->client_metadata().end()) {
      received.emplace_back(found->second.data(), found->second.size());
    }
    traces.push_back(CurrentTrace());
    if (next_ == nullptr) return ToGrpc(absl::NotFoundError("the chain ends here"));
    return ToGrpc(Ask(*next_).status());
  }
  std::vector<std::string> received;
  std::vector<Trace> traces;

 private:
  ReplicaPool* const next_;
};

TEST(TraceTest, GoesFromCallToCall) {
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.drain_seconds = 1;
  const auto address = [](const Server& server) { return "127.0.0.1:" + std::to_string(server.port()); };
  prometheus::Registry registry_a, registry_b;
  TracingJudge b(nullptr);
  const auto server_b = *Server::Start(options, {{JudgeService::service_full_name(), &b}}, registry_b);
  const auto pool_b = *ReplicaPool::Create(address(*server_b), {});
  TracingJudge a(pool_b.get());
  const auto server_a = *Server::Start(options, {{JudgeService::service_full_name(), &a}}, registry_a);

  const auto channel = grpc::CreateChannel(address(*server_a), grpc::InsecureChannelCredentials());
  const auto call = [&](const char* traceparent) {
    grpc::ClientContext context;
    if (traceparent != nullptr) context.AddMetadata("traceparent", traceparent);
    CompareResponse response;
    testing::internal::CaptureStderr();
    const auto code =
        JudgeService::NewStub(channel)->Compare(&context, CompareRequest(), &response).error_code();
    EXPECT_EQ(code, grpc::NOT_FOUND);
    return testing::internal::GetCapturedStderr();
  };

  constexpr char kTrace[] = "4bf92f3577b34da6a3ce929d0e0e4736";
  const std::string lines = call("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
  EXPECT_EQ(a.traces[0].trace_id, kTrace);
  EXPECT_EQ(b.traces[0].trace_id, kTrace);
  const auto sent = Trace::Parse(b.received.at(0));
  ASSERT_TRUE(sent.has_value());
  EXPECT_EQ(sent->trace_id, kTrace);
  EXPECT_NE(sent->span_id, "00f067aa0ba902b7");
  // B's line of the call is written before its answer is sent, and A's before the client has one.
  std::istringstream text(lines);
  int num_lines = 0;
  for (std::string line; std::getline(text, line); ++num_lines) {
    const auto json = nlohmann::json::parse(line);
    EXPECT_EQ(json.at("event"), "call");
    EXPECT_EQ(json.at("method"), "/almost.judge.v1.JudgeService/Compare");
    EXPECT_EQ(json.at("code"), "NOT_FOUND");
    EXPECT_EQ(json.at("trace_id"), kTrace);
  }
  EXPECT_EQ(num_lines, 2);

  // Without one, and with one that is malformed, the first server begins a trace.
  for (const char* header : {static_cast<const char*>(nullptr), "00-not-a-trace-01"}) {
    call(header);
    EXPECT_EQ(a.traces.back().trace_id.size(), 32);
    EXPECT_NE(a.traces.back().trace_id, a.traces.front().trace_id);
    EXPECT_EQ(b.traces.back().trace_id, a.traces.back().trace_id);
  }
  // A pool used outside of any call begins one, too.
  EXPECT_EQ(Ask(*pool_b).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Trace::Parse(b.received.back()).has_value());
  EXPECT_EQ(CurrentTrace().trace_id, "");
}

TEST(ServerTest, APortInUseIsNamed) {
  Running first("first");
  ServerOptions options;
  options.listen = first.address();
  prometheus::Registry registry;
  NamedJudge judge("second");
  const absl::Status status =
      Server::Start(options, {{JudgeService::service_full_name(), &judge}}, registry).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr(first.address()));
}

TEST(ServerTest, CountsCallsByCode) {
  Running server("counted", 1, absl::NotFoundError("no such model"));
  auto pool = *ReplicaPool::Create(server.address(), {});
  EXPECT_EQ(Ask(*pool).status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(Ask(*pool).ok());
  const auto handled = ValuesBy("grpc_code", "grpc_server_handled_total", server.registry);
  EXPECT_EQ(handled.at("NOT_FOUND"), 1);
  EXPECT_EQ(handled.at("OK"), 1);
}

// A counter that appears with its first value has not increased: Prometheus would miss the first failures.
TEST(ServerTest, CountsOfFailuresAreThereBeforeTheFirst) {
  Running server("counted");
  std::map<std::string, double> none;
  for (const char* code : {"UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
    none[code] = 0;
  EXPECT_EQ(ValuesBy("grpc_code", "grpc_server_handled_total", server.registry), none);
  EXPECT_TRUE(ValuesBy("grpc_method", "grpc_server_handled_total", server.registry).contains("Compare"));
}

TEST(ServerTest, CountsWhatIsRefusedByItsReason) {
  const auto refused = [](const absl::Status& status, const char* reason) {
    Running server("refuses", 1, status);
    auto pool = *ReplicaPool::Create(server.address(), {.max_tries = 1});
    EXPECT_EQ(Ask(*pool).status().code(), status.code());
    for (const auto& [name, value] : ValuesBy("reason", "almost_requests_rejected_total", server.registry)) {
      EXPECT_EQ(value, name == reason ? 1 : 0) << name << " when it is " << reason;
    }
  };
  refused(absl::ResourceExhaustedError("the queue is full"), "queue_full");
  refused(absl::OutOfRangeError("more tokens than the context"), "too_large");
  refused(absl::NotFoundError("no such model"), "");
}

TEST(ServerTest, CountsWhatWasNotAnsweredByItsCause) {
  Running busy("busy", 1, absl::ResourceExhaustedError("the queue is full"));
  EXPECT_TRUE(Ask(**ReplicaPool::Create(busy.address(), {})).ok());
  EXPECT_EQ(RejectedRequests(busy.registry, "queue_full").Value(), 1);

  // A client hangs up when its own deadline passes, which may be before the server's has: that began when the
  // call arrived.
  const absl::Duration kEarlier = absl::Milliseconds(30);
  for (const auto& [cause, hangs_up] :
       {std::pair<std::string, bool>{"client", true}, {"deadline", false}, {"deadline", true}}) {
    prometheus::Registry registry;
    WaitingJudge judge;
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    const auto server = *Server::Start(options, {{JudgeService::service_full_name(), &judge}}, registry);
    const auto stub = JudgeService::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(server->port()),
                                                                grpc::InsecureChannelCredentials()));
    const auto gauge = [&](const char* name) { return ValuesBy("", name, registry).at(""); };
    grpc::ClientContext context;
    const absl::Time deadline = absl::Now() + absl::Milliseconds(300);
    if (cause == "deadline") context.set_deadline(absl::ToChronoTime(deadline));
    std::jthread canceller([&] {
      judge.inside.WaitForNotification();
      EXPECT_EQ(gauge("almost_inflight_requests"), 1);
      if (cause == "deadline") absl::SleepFor(deadline - kEarlier - absl::Now());
      if (hangs_up) context.TryCancel();
    });
    CompareResponse response;
    EXPECT_FALSE(stub->Compare(&context, CompareRequest(), &response).ok());
    canceller.join();
    EXPECT_EQ(gauge("almost_draining"), 0);
    server->Drain();  // waits for the handler
    EXPECT_EQ(gauge("almost_draining"), 1);
    EXPECT_EQ(gauge("almost_inflight_requests"), 0);
    for (const auto& [name, value] : ValuesBy("cause", "almost_requests_cancelled_total", registry)) {
      EXPECT_EQ(value, name == cause ? 1 : 0)
          << name << " when it is " << cause << (hangs_up ? ", hung up" : "");
    }
  }
}

}  // namespace
}  // namespace almost
