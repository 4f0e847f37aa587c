#include "services/generation/rpc/generation_service.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "services/generation/vllm_metrics.h"

namespace almost::generation {
namespace {

using testing::HasSubstr;

// The service with the world's S, behind a real port.
class GenerationServiceTest : public testing::Test {
 protected:
  explicit GenerationServiceTest(const engine::EngineOptions& engine_options = {})
      : metrics_(registry_),
        models_(ModelRegistry::Head::kLanguageModel, nullptr,
                std::string(getenv("ALMOST_SOURCE_DIR")) + "/common/world/models", engine_options, registry_,
                [this](const std::string& model) { return metrics_.Of(model); }),
        service_(models_, metrics_) {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.drain_seconds = 1;
    server_ = *Server::Start(options, {{v1::GenerationService::service_full_name(), &service_}}, registry_);
    EXPECT_TRUE(models_.LoadAll({"S=S"}).ok());
    stub_ = v1::GenerationService::NewStub(grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                                               grpc::InsecureChannelCredentials()));
  }

  static v1::GenerateItem Item(int i) {
    v1::GenerateItem item;
    item.mutable_input()->set_text("Human: What is " + std::to_string(i % 6) + " plus " +
                                   std::to_string(i % 5) + "?\n\nAssistant:");
    types::v1::SamplingParams& sampling = *item.mutable_sampling();
    sampling.set_max_new_tokens(40);
    sampling.set_n(1 + i % 3);
    sampling.set_seed(static_cast<uint64_t>(i));
    sampling.set_logprobs(true);
    sampling.add_stop("\n\nHuman:");
    if (i % 2 == 0) sampling.set_top_p(0.9);
    return item;
  }

  absl::StatusOr<v1::GenerateResponse> Generate(const std::vector<v1::GenerateItem>& items,
                                                const std::string& model = "models/S") {
    v1::GenerateRequest request;
    request.set_model(model);
    for (const v1::GenerateItem& item : items) *request.add_items() = item;
    grpc::ClientContext context;
    v1::GenerateResponse response;
    const grpc::Status status = stub_->Generate(&context, request, &response);
    if (!status.ok()) return FromGrpc(status);
    return response;
  }

  prometheus::Registry registry_;
  Metrics metrics_;
  ModelRegistry models_;
  GenerationService service_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::GenerationService::Stub> stub_;
};

TEST_F(GenerationServiceTest, AnItemHasTheSameBytesAloneAndAmong64) {
  std::vector<v1::GenerateItem> items;
  for (int i = 0; i < 64; ++i) items.push_back(Item(i));
  const v1::GenerateResponse together = *Generate(items);
  for (int i = 0; i < 64; ++i) {
    const v1::GenerateResponse alone = *Generate({items[i]});
    EXPECT_EQ(alone.items(0).SerializeAsString(), together.items(i).SerializeAsString()) << i;
  }
}

TEST_F(GenerationServiceTest, CandidatesAskedForLaterAreTheOnesOfBefore) {
  v1::GenerateItem all = Item(1), later = Item(1);
  all.mutable_sampling()->set_n(4);
  later.mutable_sampling()->set_n(2);
  later.mutable_sampling()->set_first_candidate(2);
  const v1::GenerateResponse response = *Generate({all, later});
  for (int c = 0; c < 2; ++c) {
    EXPECT_EQ(response.items(0).result().completions(2 + c).SerializeAsString(),
              response.items(1).result().completions(c).SerializeAsString());
  }
}

TEST_F(GenerationServiceTest, AStreamsPiecesJoinToTheUnaryAnswer) {
  for (int i = 0; i < 6; ++i) {
    v1::StreamGenerateRequest request;
    request.set_model("models/S");
    *request.mutable_item() = Item(i);
    grpc::ClientContext context;
    const auto reader = stub_->StreamGenerate(&context, request);
    std::map<int, v1::Completion> streamed;
    for (v1::StreamGenerateResponse piece; reader->Read(&piece);) {
      v1::Completion& completion = streamed[piece.index()];
      completion.set_index(piece.index());
      completion.set_text(completion.text() + piece.text());
      completion.mutable_token_ids()->MergeFrom(piece.token_ids());
      completion.mutable_logprobs()->MergeFrom(piece.logprobs());
      completion.mutable_sampled_logprobs()->MergeFrom(piece.sampled_logprobs());
      if (piece.finish_reason() != v1::FINISH_REASON_UNSPECIFIED)
        completion.set_finish_reason(piece.finish_reason());
    }
    ASSERT_TRUE(reader->Finish().ok());
    const v1::GenerateResponse unary = *Generate({Item(i)});
    ASSERT_EQ(streamed.size(), size_t(unary.items(0).result().completions_size()));
    for (const v1::Completion& completion : unary.items(0).result().completions()) {
      EXPECT_EQ(streamed[completion.index()].SerializeAsString(), completion.SerializeAsString());
    }
  }
}

TEST_F(GenerationServiceTest, ABadItemLeavesTheOthersBe) {
  v1::GenerateItem empty, invalid = Item(1), long_prompt = Item(2), bad_top_p = Item(3);
  invalid.mutable_input()->mutable_token_ids()->add_ids(1344);
  for (int i = 0; i < 600; ++i) *long_prompt.mutable_input()->mutable_text() += " red";
  bad_top_p.mutable_sampling()->set_top_p(1.5);
  const v1::GenerateResponse response = *Generate({empty, invalid, Item(0), long_prompt, bad_top_p});
  EXPECT_THAT(response.items(0).error().message(), HasSubstr("input"));
  EXPECT_THAT(response.items(1).error().message(), HasSubstr("token 1344"));
  EXPECT_TRUE(response.items(2).has_result());
  EXPECT_THAT(response.items(3).error().message(), HasSubstr("context"));
  EXPECT_THAT(response.items(4).error().message(), HasSubstr("top_p"));
  for (const int i : {0, 1, 4}) {
    EXPECT_EQ(response.items(i).error().code(), static_cast<int>(absl::StatusCode::kInvalidArgument)) << i;
  }
  EXPECT_EQ(response.items(3).error().code(), static_cast<int>(absl::StatusCode::kOutOfRange));
}

TEST_F(GenerationServiceTest, ABadItemToScoreLeavesTheOthersBe) {
  v1::ScoreCompletionsRequest request;
  request.set_model("models/S");
  for (int i = 0; i < 5; ++i) {
    v1::CompletionToScore& item = *request.add_items();
    *item.mutable_input() = Item(i).input();
    item.set_completion_text(" It is 3.");
  }
  request.mutable_items(1)->mutable_input()->mutable_token_ids()->add_ids(1344);
  request.mutable_items(2)->mutable_completion_ids()->add_ids(1344);
  for (int i = 0; i < 600; ++i) *request.mutable_items(3)->mutable_completion_text() += " red";
  grpc::ClientContext context;
  v1::ScoreCompletionsResponse response;
  const grpc::Status status = stub_->ScoreCompletions(&context, request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_LT(response.items(0).result().sum_logprob(), 0);
  EXPECT_THAT(response.items(1).error().message(), HasSubstr("prompt_ids: token 1344"));
  EXPECT_THAT(response.items(2).error().message(), HasSubstr("completion_ids: token 1344"));
  EXPECT_EQ(response.items(3).error().code(), static_cast<int>(absl::StatusCode::kOutOfRange));
  EXPECT_LT(response.items(4).result().sum_logprob(), 0);
}

TEST_F(GenerationServiceTest, RefusesWhatIsOutOfRangeByName) {
  EXPECT_EQ(Generate({Item(0)}, "models/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Generate({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Generate(std::vector<v1::GenerateItem>(65, Item(0))).status().code(),
            absl::StatusCode::kInvalidArgument);
  v1::GenerateItem many = Item(0);
  many.mutable_sampling()->set_n(64);
  EXPECT_THAT(std::string(Generate(std::vector<v1::GenerateItem>(17, many)).status().message()),
              HasSubstr("sampling.n"));
}

TEST_F(GenerationServiceTest, LoadingPinsDigestsAndStaysBeneathItsRoot) {
  types::v1::LoadModelRequest request;
  request.set_name("models/S");
  request.set_source("S");
  const types::v1::Model again = *models_.Load(request);  // harmless
  EXPECT_EQ(again.digest().size(), 64u);
  EXPECT_EQ(again.weight_bytes(), 4 * again.num_parameters());
  request.set_source("M");
  EXPECT_EQ(models_.Load(request).status().code(), absl::StatusCode::kAlreadyExists);
  request.set_name("models/other");
  request.set_device("cuda:99");
  EXPECT_THAT(models_.Load(request).status().ToString(), testing::HasSubstr("cuda"));
  request.set_device("gpu");
  EXPECT_THAT(models_.Load(request).status().ToString(),
              testing::HasSubstr("device: must be cpu or cuda:N, got gpu"));
  request.clear_device();
  request.set_dtype(types::v1::DTYPE_BFLOAT16);
  EXPECT_THAT(models_.Load(request).status().ToString(),
              testing::HasSubstr("dtype: must be DTYPE_FLOAT32 on cpu"));
  request.clear_dtype();
  request.set_expected_digest(again.digest());
  EXPECT_EQ(models_.Load(request).status().code(), absl::StatusCode::kFailedPrecondition);
  request.clear_expected_digest();
  request.set_source("../data");
  EXPECT_EQ(models_.Load(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.set_source("none");
  EXPECT_EQ(models_.Load(request).status().code(), absl::StatusCode::kNotFound);
  request.set_name("models/..");
  EXPECT_EQ(models_.Load(request).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(models_.Find("models/S", "another").status().code(), absl::StatusCode::kFailedPrecondition);
}

// As one does that keeps a model where it is: its folder is not read and hashed each time.
TEST_F(GenerationServiceTest, AskingAgainForALoadedDigestReadsNothing) {
  types::v1::LoadModelRequest request;
  request.set_name("models/S");
  request.set_source("gone");
  request.set_expected_digest((*models_.Find("models/S"))->digest());
  const auto again = models_.Load(request);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->digest(), request.expected_digest());
}

// Who has given up does not know of the model, and would never unload it.
TEST_F(GenerationServiceTest, AModelThatNobodyWaitsForIsNotLoaded) {
  types::v1::LoadModelRequest request;
  request.set_name("models/M");
  request.set_source("M");
  for (int looks = 0; looks < 3; ++looks) {  // at one look after the other
    int left = looks;
    EXPECT_EQ(models_.Load(request, [&] { return left-- > 0; }).status().code(),
              absl::StatusCode::kCancelled);
    EXPECT_EQ(models_.Find("models/M").status().code(), absl::StatusCode::kNotFound);
  }
  EXPECT_TRUE(models_.Load(request, [] { return true; }).ok());
}

TEST_F(GenerationServiceTest, AClientThatLeavesGivesItsBlocksBack) {
  v1::StreamGenerateRequest request;
  request.set_model("models/S");
  *request.mutable_item() = Item(0);
  request.mutable_item()->mutable_sampling()->set_max_new_tokens(480);
  request.mutable_item()->mutable_sampling()->set_n(64);
  request.mutable_item()->mutable_sampling()->clear_stop();
  grpc::ClientContext context;
  const auto reader = stub_->StreamGenerate(&context, request);
  v1::StreamGenerateResponse piece;
  ASSERT_TRUE(reader->Read(&piece));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  const absl::Time limit = absl::Now() + absl::Seconds(20);
  while (models_.Stats()["models/S"].running_sequences > 0 && absl::Now() < limit)
    absl::SleepFor(absl::Milliseconds(1));
  const engine::EngineStats stats = models_.Stats()["models/S"];
  EXPECT_EQ(stats.free_blocks, stats.total_blocks);
}

// A reader that takes nothing holds back neither the engine, which gets its blocks back, nor other clients.
// Its pieces are about two megabytes, more than the transport holds for it.
TEST_F(GenerationServiceTest, AReaderThatTakesNothingHoldsBackNobody) {
  v1::StreamGenerateRequest request;
  request.set_model("models/S");
  *request.mutable_item() = Item(0);
  request.mutable_item()->mutable_sampling()->set_max_new_tokens(480);
  request.mutable_item()->mutable_sampling()->set_n(64);
  request.mutable_item()->mutable_sampling()->clear_stop();
  grpc::ClientContext context;
  const auto reader = stub_->StreamGenerate(&context, request);
  v1::StreamGenerateResponse piece;
  ASSERT_TRUE(reader->Read(&piece));
  std::vector<v1::GenerateItem> items;
  for (int i = 0; i < 8; ++i) items.push_back(Item(i));
  EXPECT_TRUE(Generate(items).ok());
  const absl::Time limit = absl::Now() + absl::Seconds(60);
  while (models_.Stats()["models/S"].running_sequences > 0 && absl::Now() < limit)
    absl::SleepFor(absl::Milliseconds(1));
  const engine::EngineStats stats = models_.Stats()["models/S"];
  EXPECT_EQ(stats.running_sequences, 0);
  EXPECT_EQ(stats.free_blocks, stats.total_blocks);
  // What was kept for it is all there.
  std::map<int, int> tokens = {{piece.index(), piece.token_ids_size()}};
  int finished = 0;
  while (reader->Read(&piece)) {
    tokens[piece.index()] += piece.token_ids_size();
    finished += piece.finish_reason() != v1::FINISH_REASON_UNSPECIFIED;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(finished, 64);
  EXPECT_EQ(tokens.size(), 64u);
}

// Of all its members the sum, or the number of what a histogram observed; -1: there are none.
double Sum(const prometheus::Registry& registry, const std::string& family_name) {
  double sum = 0;
  for (const auto& family : registry.Collect()) {
    if (family.name != family_name) continue;
    for (const auto& metric : family.metric) {
      sum += metric.counter.value + metric.gauge.value + static_cast<double>(metric.histogram.sample_count);
    }
    return family.metric.empty() ? -1 : sum;
  }
  return -1;
}

TEST_F(GenerationServiceTest, ObservesACompletionOnceInEveryHistogram) {
  std::vector<v1::GenerateItem> items;
  for (int i = 0; i < 12; ++i) items.push_back(Item(i));  // 24 completions
  ASSERT_TRUE(Generate(items).ok());
  metrics_.Observe(models_);
  for (const char* name : {"queue_seconds", "prefill_seconds", "decode_seconds", "e2e_latency_seconds",
                           "time_to_first_token_seconds", "request_prompt_tokens", "finished_total"}) {
    EXPECT_EQ(Sum(registry_, std::string("almost_generation_") + name), 24) << name;
  }
  EXPECT_GT(Sum(registry_, "almost_generation_batch_tokens"), 0);
  EXPECT_EQ(Sum(registry_, "almost_generation_prefix_cache_queries_total"),
            Sum(registry_, "almost_generation_prompt_tokens_total"));
}

// Each with the members and values of what it stands for.
TEST_F(GenerationServiceTest, ExportsItsSeriesUnderTheNamesOfVllmToo) {
  ASSERT_TRUE(Generate({Item(0)}).ok());
  metrics_.Observe(models_);
  const std::vector<prometheus::MetricFamily> own = registry_.Collect(),
                                              both = VllmMetrics(registry_).Collect();
  size_t num_generation = 0;
  for (const prometheus::MetricFamily& family : own) {
    num_generation += absl::StartsWith(family.name, "almost_generation_") ? 1 : 0;
  }
  EXPECT_EQ(both.size(), own.size() + num_generation);
  const auto tokens = std::find_if(both.begin(), both.end(),
                                   [](const auto& f) { return f.name == "vllm:generation_tokens_total"; });
  ASSERT_NE(tokens, both.end());
  ASSERT_EQ(tokens->metric.size(), 1u);
  EXPECT_EQ(tokens->metric[0].counter.value, Sum(registry_, "almost_generation_output_tokens_total"));
  ASSERT_EQ(tokens->metric[0].label.size(), 1u);
  EXPECT_EQ(tokens->metric[0].label[0].name, "model_name");
}

TEST_F(GenerationServiceTest, CountsItemsThatAreTooLarge) {
  v1::GenerateItem large = Item(0);
  large.mutable_sampling()->set_max_new_tokens(100000);
  ASSERT_TRUE(Generate({large, Item(1), large}).ok());
  EXPECT_EQ(RejectedRequests(registry_, "too_large").Value(), 2);
}

TEST_F(GenerationServiceTest, AnUnloadedModelsGaugesGoAtOnceAndTheRestAfterAWhile) {
  ASSERT_TRUE(Generate({Item(0)}).ok());
  const auto now = Metrics::Clock::now();
  metrics_.Observe(models_, now);
  EXPECT_EQ(Sum(registry_, "almost_generation_requests_running"), 0);
  const double tokens = Sum(registry_, "almost_generation_output_tokens_total");
  EXPECT_GT(tokens, 0);

  types::v1::UnloadModelRequest unload;
  unload.set_name("models/S");
  ASSERT_TRUE(models_.Unload(unload).ok());
  metrics_.Observe(models_, now);
  EXPECT_EQ(Sum(registry_, "almost_generation_requests_running"), -1);
  EXPECT_EQ(Sum(registry_, "almost_generation_output_tokens_total"), tokens);

  // Loaded again its counters go on.
  ASSERT_TRUE(models_.LoadAll({"S=S"}).ok());
  ASSERT_TRUE(Generate({Item(0)}).ok());
  metrics_.Observe(models_, now);
  EXPECT_EQ(Sum(registry_, "almost_generation_output_tokens_total"), 2 * tokens);

  ASSERT_TRUE(models_.Unload(unload).ok());
  metrics_.Observe(models_, now);
  metrics_.Observe(models_, now + Metrics::kKeptAfterUnload - std::chrono::seconds(1));
  EXPECT_EQ(Sum(registry_, "almost_generation_finished_total"), 2);
  metrics_.Observe(models_, now + Metrics::kKeptAfterUnload);
  EXPECT_EQ(Sum(registry_, "almost_generation_finished_total"), -1);
}

// A batch of one, so that a second request waits for the first.
class FullBatchTest : public GenerationServiceTest {
 protected:
  FullBatchTest() : GenerationServiceTest({.max_batch_sequences = 1}) {}
};

TEST_F(FullBatchTest, ADeadlineThatPassesInTheQueueIsARejection) {
  v1::StreamGenerateRequest request;
  request.set_model("models/S");
  *request.mutable_item() = Item(0);
  request.mutable_item()->mutable_sampling()->set_max_new_tokens(480);
  request.mutable_item()->mutable_sampling()->set_n(64);
  request.mutable_item()->mutable_sampling()->clear_stop();
  // Tokens at random, of which hardly one ends an answer: the call takes seconds.
  request.mutable_item()->mutable_sampling()->set_temperature(10);
  request.mutable_item()->mutable_sampling()->set_top_p(1);
  grpc::ClientContext first;
  const auto reader = stub_->StreamGenerate(&first, request);
  v1::StreamGenerateResponse piece;
  ASSERT_TRUE(reader->Read(&piece));

  grpc::ClientContext second;
  second.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  v1::GenerateRequest waiting;
  waiting.set_model("models/S");
  *waiting.add_items() = Item(1);
  v1::GenerateResponse response;
  EXPECT_EQ(stub_->Generate(&second, waiting, &response).error_code(), grpc::DEADLINE_EXCEEDED);
  // What the server makes of the second; with the first out of the way it might still be answered.
  while (Sum(registry_, "almost_inflight_requests") > 1) absl::SleepFor(absl::Milliseconds(1));
  first.TryCancel();
  reader->Finish();
  server_->Drain();  // waits for the handlers
  EXPECT_EQ(RejectedRequests(registry_, "deadline").Value(), 1);
  EXPECT_EQ(Sum(registry_, "almost_requests_cancelled_total"), 1);  // the first, by its client
  EXPECT_LT(Sum(registry_, "almost_generation_queue_seconds"), 64);
}

}  // namespace
}  // namespace almost::generation
