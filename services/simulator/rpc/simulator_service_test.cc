#include "services/simulator/rpc/simulator_service.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "almost/generation/v1/generation.grpc.pb.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "common/logging/trace.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "services/simulator/rpc/in_order.h"

namespace almost::simulator {
namespace {

using ::testing::HasSubstr;

// Continues any text with a word that depends on its item's seed and on the candidate's number.
class ScriptedGeneration final : public generation::v1::GenerationService::Service {
 public:
  grpc::Status Generate(grpc::ServerContext* context, const generation::v1::GenerateRequest* request,
                        generation::v1::GenerateResponse* response) override {
    const int call = calls++;
    if (holds) {
      const absl::Time give_up = absl::Now() + absl::Seconds(10);
      while (!context->IsCancelled() && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(1));
      ++(context->IsCancelled() ? cancelled : waited_in_vain);
    }
    if (!failure.ok()) return ToGrpc(failure);
    most_items = std::max(most_items.load(), request->items_size());
    for (const generation::v1::GenerateItem& item : request->items()) {
      generation::v1::GenerateItemResponse& out = *response->add_items();
      if (absl::StrContains(item.input().text(), "Long")) {
        *out.mutable_error() = ToProto(item_failure);
        continue;
      }
      const bool query = absl::EndsWith(item.input().text(), "Query:");
      for (int i = 0; i < item.sampling().n(); ++i) {
        generation::v1::Completion& completion = *out.mutable_result()->add_completions();
        completion.set_index(i);
        completion.set_text(query ? absl::StrCat(" What is ", item.sampling().seed() % 97, "?\n")
                                  : absl::StrCat(" It is ", item.sampling().seed() % 97, " and ", i, "."));
        completion.set_finish_reason(generation::v1::FINISH_REASON_STOP);
        completion.add_token_ids(1);
      }
    }
    response->set_model_digest("d");
    response->set_numerics_id(mixed_numerics ? absl::StrCat("n", call) : "n");
    return grpc::Status::OK;
  }
  std::atomic<int> calls = 0, most_items = 0;
  std::atomic<bool> holds = false;  // every call, until its client has gone
  std::atomic<int> cancelled = 0, waited_in_vain = 0;
  bool mixed_numerics = false;
  absl::Status failure, item_failure = absl::OutOfRangeError("over the context");
};

// Prefers candidate 2.
class ScriptedReward final : public reward::v1::RewardService::Service {
 public:
  grpc::Status Score(grpc::ServerContext*, const reward::v1::ScoreRequest* request,
                     reward::v1::ScoreResponse* response) override {
    for (const reward::v1::ScoreItem& item : request->items()) {
      reward::v1::ScoreResult& result = *response->add_items()->mutable_result();
      result.set_raw_score(absl::StrContains(item.response(), "and 2") ? 1 : 0);
      result.set_score(result.raw_score() * 10);
    }
    return grpc::Status::OK;
  }
};

std::unique_ptr<Server> Serve(grpc::Service& service, prometheus::Registry& registry) {
  ServerOptions options;
  options.listen = "127.0.0.1:0";
  options.drain_seconds = 1;
  auto server = Server::Start(options, {{"scripted", &service}}, registry);
  EXPECT_TRUE(server.ok()) << server.status();
  (*server)->SetReady();
  return *std::move(server);
}

std::string Address(const Server& server) { return absl::StrCat("127.0.0.1:", server.port()); }

class SimulatorServiceTest : public ::testing::Test {
 protected:
  SimulatorServiceTest() { Restart(4); }

  void Restart(int calls_in_flight) {
    server_ = nullptr;
    service_ = std::make_unique<SimulatorService>(*generation_pool_, *reward_pool_, calls_in_flight,
                                                  absl::Seconds(20), metrics_);
    server_ = Serve(*service_, registry_[2]);
    stub_ = v1::SimulatorService::NewStub(
        grpc::CreateChannel(Address(*server_), grpc::InsecureChannelCredentials()));
  }

  // The whole stream, and how it ended.
  template <typename Response, typename Request, typename Method>
  std::pair<std::vector<std::string>, absl::Status> Read(Method method, const Request& request) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(30)));
    const auto reader = ((*stub_).*method)(&context, request);
    std::vector<std::string> lines;
    for (Response response; reader->Read(&response);) lines.push_back(response.ShortDebugString());
    return {lines, FromGrpc(reader->Finish())};
  }
  auto Prompts(const v1::GeneratePromptsRequest& request) {
    return Read<v1::GeneratePromptsResponse>(&v1::SimulatorService::Stub::GeneratePrompts, request);
  }
  auto Dialogues(const v1::SimulateDialoguesRequest& request) {
    return Read<v1::SimulateDialoguesResponse>(&v1::SimulatorService::Stub::SimulateDialogues, request);
  }

  prometheus::Registry registry_[3];
  ScriptedGeneration generation_;
  ScriptedReward reward_;
  std::unique_ptr<Server> generation_server_ = Serve(generation_, registry_[0]);
  std::unique_ptr<Server> reward_server_ = Serve(reward_, registry_[1]);
  std::unique_ptr<ReplicaPool> generation_pool_ = *ReplicaPool::Create(Address(*generation_server_), {});
  std::unique_ptr<ReplicaPool> reward_pool_ = *ReplicaPool::Create(Address(*reward_server_), {});
  Metrics metrics_{registry_[2]};
  std::unique_ptr<SimulatorService> service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::SimulatorService::Stub> stub_;
};

v1::GeneratePromptsRequest PromptsRequest() {
  v1::GeneratePromptsRequest request;
  request.mutable_model()->set_name("models/l");
  for (int i = 0; i < 12; ++i) request.add_seeds(absl::StrCat("Seed ", i, "?"));
  request.set_num_attempts(200);
  request.set_num_wanted(200);
  request.set_take_all_lines(true);
  request.mutable_filter()->set_preset(v1::PromptFilter::PRESET_WORLD);
  request.mutable_filter()->set_max_repeats(1);
  request.mutable_filter()->set_max_opening_share(1);
  return request;
}

v1::SimulateDialoguesRequest DialoguesRequest() {
  v1::SimulateDialoguesRequest request;
  request.mutable_assistant()->set_name("models/l");
  request.mutable_user()->set_name("models/l");
  request.mutable_reward_model()->set_name("models/rm");
  request.add_demonstrations()->set_text("\n\n-----\n\nHuman: q\n\nAssistant: a\n\n-----\n");
  request.set_shots(1);
  for (int i = 0; i < 100; ++i) {
    v1::DialogueSeed& seed = *request.add_seeds();
    seed.set_prompt_id(i * 3);
    seed.set_prompt(absl::StrCat("What is ", i, "?"));
  }
  request.set_response_filter("world");
  request.set_prompt_format("world");
  return request;
}

TEST_F(SimulatorServiceTest, StreamsARoundInItemOrderWhateverIsInFlight) {
  const auto [lines, status] = Prompts(PromptsRequest());
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(lines.size(), 200);
  EXPECT_THAT(lines[7], HasSubstr("attempt: 7"));
  EXPECT_EQ(generation_.calls, 4);
  EXPECT_EQ(generation_.most_items, 64);
  int repeated = 0;
  for (const std::string& line : lines) repeated += absl::StrContains(line, "drop_reason: \"repeated\"");
  EXPECT_GE(repeated, 200 - 97);  // no more than 97 texts there are
  Restart(1);
  EXPECT_EQ(Prompts(PromptsRequest()).first, lines);
  v1::GeneratePromptsRequest other = PromptsRequest();
  other.set_round(1);
  EXPECT_NE(Prompts(other).first, lines);
}

TEST(InOrderTest, ItsThreadsWorkForTheCallersTrace) {
  const TraceScope scope(Trace::New());
  const absl::Status status = InOrder<std::string>(
      3, 2, [] { return false; },
      [](int, const std::stop_token&) -> absl::StatusOr<std::string> { return CurrentTrace().trace_id; },
      [](std::string trace_id) {
        EXPECT_EQ(trace_id, CurrentTrace().trace_id);
        return absl::OkStatus();
      });
  EXPECT_EQ(status, absl::OkStatus());
}

TEST_F(SimulatorServiceTest, StreamsDialoguesInOrderWithEveryCandidate) {
  v1::SimulateDialoguesRequest request = DialoguesRequest();
  request.mutable_seeds(1)->set_prompt("Long?");
  const auto [lines, status] = Dialogues(request);
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(lines.size(), 100);
  v1::SimulateDialoguesResponse response;
  grpc::ClientContext context;
  const auto reader = stub_->SimulateDialogues(&context, request);
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.messages_size(), 2);  // "It is … and 0." is no question, so the user's turn is refused
  ASSERT_EQ(response.turns_size(), 1);
  ASSERT_EQ(response.turns(0).candidates_size(), 4);
  EXPECT_EQ(response.turns(0).chosen(), 2);
  EXPECT_EQ(response.turns(0).candidates(2).score(), 10);
  EXPECT_EQ(response.messages(1).content(), response.turns(0).candidates(2).text());
  ASSERT_TRUE(reader->Read(&response));
  EXPECT_EQ(response.prompt_id(), 3);
  EXPECT_EQ(response.drop_reason(), "too_long");
  while (reader->Read(&response)) {
  }
  EXPECT_EQ(response.prompt_id(), 297);
  EXPECT_TRUE(reader->Finish().ok());
  Restart(1);
  EXPECT_EQ(Dialogues(request).first, lines);
  // A dialogue does not depend on which others are asked for.
  v1::SimulateDialoguesRequest tail = request;
  tail.mutable_seeds()->DeleteSubrange(0, 90);
  EXPECT_EQ(Dialogues(tail).first, std::vector<std::string>(lines.begin() + 90, lines.end()));
}

TEST_F(SimulatorServiceTest, PassesOnWhatIsNoFaultOfAnItem) {
  generation_.failure = absl::NotFoundError("no models/l");
  EXPECT_EQ(Prompts(PromptsRequest()).second.code(), absl::StatusCode::kNotFound);
  generation_.failure = absl::OkStatus();
  generation_.item_failure = absl::InvalidArgumentError("top_p: must be at most 1");
  v1::SimulateDialoguesRequest request = DialoguesRequest();
  request.mutable_seeds(50)->set_prompt("Long?");
  const absl::Status status = Dialogues(request).second;
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("top_p"));
}

// Else the services would compute on for nobody, and a drain would wait for them.
TEST_F(SimulatorServiceTest, AClientThatGoesTakesItsCallsWithIt) {
  const auto wait_for = [](const std::atomic<int>& count, int wanted) {
    const absl::Time give_up = absl::Now() + absl::Seconds(20);
    while (count < wanted && absl::Now() < give_up) absl::SleepFor(absl::Milliseconds(1));
    return count.load();
  };
  generation_.holds = true;
  grpc::ClientContext prompts;
  const auto stream = stub_->GeneratePrompts(&prompts, PromptsRequest());
  ASSERT_EQ(wait_for(generation_.calls, 4), 4);
  absl::Time gone = absl::Now();
  prompts.TryCancel();
  EXPECT_EQ(wait_for(generation_.cancelled, 4), 4);
  EXPECT_LT(absl::Now() - gone, absl::Seconds(1));
  EXPECT_EQ(FromGrpc(stream->Finish()).code(), absl::StatusCode::kCancelled);

  // A server that stops cancels what is left after drain_seconds, which are 1 here.
  grpc::ClientContext dialogues;
  const auto other = stub_->SimulateDialogues(&dialogues, DialoguesRequest());
  ASSERT_EQ(wait_for(generation_.calls, 8), 8);
  gone = absl::Now();
  server_->Drain();
  EXPECT_LT(absl::Now() - gone, absl::Seconds(2));
  EXPECT_EQ(wait_for(generation_.cancelled, 8), 8);
  EXPECT_EQ(generation_.waited_in_vain, 0);
}

TEST_F(SimulatorServiceTest, RefusesToMixNumerics) {
  generation_.mixed_numerics = true;
  const absl::Status status = Prompts(PromptsRequest()).second;
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("replicas differ"));
}

TEST_F(SimulatorServiceTest, RefusesBadRequestsByField) {
  const auto refused = [&](auto request, auto change, absl::string_view field,
                           absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    change(request);
    absl::Status status;
    if constexpr (std::is_same_v<decltype(request), v1::GeneratePromptsRequest>) {
      status = Prompts(request).second;
    } else {
      status = Dialogues(request).second;
    }
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::string(field)));
  };
  const auto prompts = PromptsRequest();
  refused(prompts, [](auto& r) { r.clear_model(); }, "model.name");
  refused(prompts, [](auto& r) { r.set_num_attempts(0); }, "num_attempts");
  refused(prompts, [](auto& r) { r.set_num_attempts(4097); }, "num_attempts");
  refused(prompts, [](auto& r) { r.set_num_shots(13); }, "num_shots");
  refused(prompts, [](auto& r) { r.mutable_filter()->set_max_rouge_l(0); }, "filter.max_rouge_l");
  refused(prompts, [](auto& r) { r.mutable_filter()->set_max_opening_share(2); }, "filter.max_opening_share");
  refused(prompts, [](auto& r) { r.mutable_filter()->set_world("huge"); }, "filter.world");
  const auto dialogues = DialoguesRequest();
  refused(dialogues, [](auto& r) { r.clear_seeds(); }, "seeds");
  refused(dialogues, [](auto& r) { r.mutable_seeds(0)->set_prompt_id(-1); }, "seeds.prompt_id");
  refused(dialogues, [](auto& r) { r.set_num_candidates(65); }, "num_candidates");
  refused(dialogues, [](auto& r) { r.set_max_turns(9); }, "max_turns");
  refused(dialogues, [](auto& r) { r.set_response_filter("strict"); }, "response_filter");
  refused(dialogues, [](auto& r) { r.set_prompt_format("none"); }, "prompt format");
  refused(dialogues, [](auto& r) { r.set_world("huge"); }, "world");
  refused(dialogues, [](auto& r) { r.mutable_demonstrations(0)->set_text("none"); }, "demonstrations[0]");
  refused(dialogues, [](auto& r) { r.set_shots(2); }, "shots", absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace almost::simulator
