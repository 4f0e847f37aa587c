// The generation and reward services, in this process behind real ports, under clients that do at random what
// clients do: ask, stream, score, ask for nonsense, cancel, miss deadlines, vanish with their connection,
// load and unload models. Answers that come are compared with those of a quiet server, bit by bit. In the end
// every block must be free; built with the preset asan, a leak or a wrong access ends it as well.
//
//   soak [--seconds 1200] [--clients 8] [--seed 1]
//
// Run it so:  cmake --preset asan -DALMOST_TESTS=ON && ninja -C build/asan soak && build/asan/bin/soak
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/random.h"
#include "common/base/scratch_folder.h"
#include "common/logging/logging.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "services/generation/rpc/generation_service.h"
#include "services/reward/rpc/reward_service.h"
#include "tests/integration/world_reward_model.h"
#include "tests/robustness/flaky_relay.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using generation::v1::GenerationService;
using reward::v1::RewardService;

constexpr int kKnown = 24;  // requests whose answers are known

// A service on a port, and a relay before it that cuts connections.
struct Port {
  Port(const char* name, grpc::Service& service, prometheus::Registry& registry) {
    ServerOptions options;
    options.listen = "127.0.0.1:0";
    options.drain_seconds = 10;
    server = *Server::Start(options, {{name, &service}}, registry);
    server->SetReady();
    relay = std::make_unique<FlakyRelay>(server->port());
  }
  std::unique_ptr<Server> server;
  std::unique_ptr<FlakyRelay> relay;
};

// Connections of its own for each caller, to a server or through its relay.
std::shared_ptr<grpc::Channel> Connect(int port) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  return grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials(),
                                   arguments);
}

generation::v1::GenerateItem Item(int number) {
  generation::v1::GenerateItem item;
  item.mutable_input()->set_text(
      absl::StrCat("Human: What is ", number % 6, " plus ", number % 5,
                   "?\n\nAssistant: ", number % 3 == 0 ? "It is a good question. " : ""));
  types::v1::SamplingParams& sampling = *item.mutable_sampling();
  sampling.set_max_new_tokens(1 + number * 17 % 90);
  sampling.set_n(1 + number % 4);
  sampling.set_seed(static_cast<uint64_t>(number));
  sampling.set_logprobs(number % 2 == 0);
  if (number % 3 != 0) sampling.set_top_p(0.9);
  if (number % 4 == 0) sampling.add_stop("\n\nHuman:");
  return item;
}

reward::v1::ScoreItem Pair(int number) {
  reward::v1::ScoreItem item;
  item.set_prompt(absl::StrCat("What is ", number / 4, " plus 1?"));
  for (int k = 0; k <= number * 5 % 19; ++k) absl::StrAppend(item.mutable_response(), " It is ", k, ".");
  return item;
}

struct Counts {
  std::atomic<int64_t> answered = 0, streams = 0, cancelled = 0, late = 0, refused = 0, cut = 0, invalid = 0,
                       swaps = 0, wrong = 0;

  void Count(const grpc::Status& status) {
    switch (status.error_code()) {
      case grpc::OK:
        ++answered;
        return;
      case grpc::CANCELLED:
        ++cancelled;
        return;
      case grpc::DEADLINE_EXCEEDED:
        ++late;
        return;
      case grpc::RESOURCE_EXHAUSTED:
        ++refused;
        return;
      case grpc::UNAVAILABLE:
        ++cut;
        return;
      case grpc::INVALID_ARGUMENT:
      case grpc::NOT_FOUND:
      case grpc::OUT_OF_RANGE:
      case grpc::FAILED_PRECONDITION:
        ++invalid;
        return;
      default:
        Wrong(absl::StrCat("an answer with ", status.error_code(), ": ", status.error_message()));
    }
  }
  void Wrong(const std::string& what) {
    if (++wrong <= 20) std::fprintf(stderr, "WRONG: %s\n", what.c_str());
  }
};

class Client {
 public:
  Client(int generation_port, int reward_port, uint64_t seed, const std::vector<std::string>& completions,
         const std::vector<double>& scores, Counts& counts)
      : random_(seed),
        generation_(GenerationService::NewStub(Connect(generation_port))),
        reward_(RewardService::NewStub(Connect(reward_port))),
        completions_(completions),
        scores_(scores),
        counts_(counts) {}

  void Act() {
    switch (random_.Below(10)) {
      case 0:
      case 1:
      case 2:
        return Generate();
      case 3:
      case 4:
      case 5:
        return Stream();
      case 6:
      case 7:
        return Score();
      case 8:
        return ScoreCompletions();
      default:
        return Nonsense();
    }
  }

 private:
  int Below(int limit) { return static_cast<int>(random_.Below(static_cast<uint64_t>(limit))); }

  // A deadline that a third of the calls miss; every fourth call is cancelled at some time instead.
  struct Fate {
    explicit Fate(grpc::ClientContext& context, RandomStream& random) {
      const auto milliseconds = static_cast<int64_t>(random.Below(60));
      if (random.Below(4) == 0) {
        canceller = std::jthread([&context, milliseconds](const std::stop_token& stop) {
          for (int64_t i = 0; i < milliseconds && !stop.stop_requested(); ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
          if (!stop.stop_requested()) context.TryCancel();
        });
        context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
      } else {
        const bool short_time = random.Below(3) == 0;
        context.set_deadline(std::chrono::system_clock::now() +
                             std::chrono::milliseconds(short_time ? milliseconds : 60000));
      }
    }
    std::jthread canceller;
  };

  void Generate() {
    generation::v1::GenerateRequest request;
    request.set_model(Below(8) == 0 ? "models/comes_and_goes" : "models/S");
    std::vector<int> numbers(1 + Below(16));
    for (int& number : numbers) *request.add_items() = Item(number = Below(kKnown));
    generation::v1::GenerateResponse response;
    grpc::Status status;
    {
      grpc::ClientContext context;
      const Fate fate(context, random_);
      status = generation_->Generate(&context, request, &response);
    }
    counts_.Count(status);
    if (!status.ok()) return;
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (response.items(static_cast<int>(i)).SerializeAsString() != completions_[numbers[i]])
        counts_.Wrong(absl::StrCat("request ", numbers[i], " has another answer than on a quiet server"));
    }
  }

  void Stream() {
    generation::v1::StreamGenerateRequest request;
    request.set_model("models/S");
    *request.mutable_item() = Item(Below(kKnown));
    if (Below(3) == 0) {
      request.mutable_item()->mutable_sampling()->set_max_new_tokens(300);
      request.mutable_item()->mutable_sampling()->set_n(32);
    }
    grpc::ClientContext context;
    const Fate fate(context, random_);
    const auto reader = generation_->StreamGenerate(&context, request);
    generation::v1::StreamGenerateResponse piece;
    const bool gives_up = Below(3) == 0;
    for (int left = gives_up ? Below(20) : -1; left != 0 && reader->Read(&piece); --left) {
    }
    if (gives_up) context.TryCancel();
    counts_.Count(reader->Finish());
    ++counts_.streams;
  }

  void Score() {
    reward::v1::ScoreRequest request;
    request.set_model("models/R");
    std::vector<int> numbers(1 + Below(64));
    for (int& number : numbers) *request.add_items() = Pair(number = Below(kKnown));
    reward::v1::ScoreResponse response;
    grpc::Status status;
    {
      grpc::ClientContext context;
      const Fate fate(context, random_);
      status = reward_->Score(&context, request, &response);
    }
    counts_.Count(status);
    if (!status.ok()) return;
    for (size_t i = 0; i < numbers.size(); ++i) {
      if (response.items(static_cast<int>(i)).result().raw_score() != scores_[numbers[i]])
        counts_.Wrong(absl::StrCat("pair ", numbers[i], " has another score than on a quiet server"));
    }
  }

  void ScoreCompletions() {
    generation::v1::ScoreCompletionsRequest request;
    request.set_model("models/S");
    for (int i = 1 + Below(16); i > 0; --i) {
      generation::v1::CompletionToScore& item = *request.add_items();
      *item.mutable_input() = Item(Below(kKnown)).input();
      item.set_completion_text(absl::StrCat(" It is ", Below(12), "."));
    }
    generation::v1::ScoreCompletionsResponse response;
    grpc::ClientContext context;
    const Fate fate(context, random_);
    counts_.Count(generation_->ScoreCompletions(&context, request, &response));
  }

  void Nonsense() {
    generation::v1::GenerateRequest request;
    request.set_model(Below(2) == 0 ? "models/S" : "models/none");
    for (int i = Below(3) * 33; i > 0; --i) *request.add_items() = Item(i % kKnown);
    if (request.items_size() > 0) {
      types::v1::SamplingParams& sampling = *request.mutable_items(0)->mutable_sampling();
      if (Below(2) == 0) sampling.set_top_p(-1);
      sampling.set_max_new_tokens(Below(2) == 0 ? 1 << 30 : 40);
    }
    generation::v1::GenerateResponse response;
    grpc::ClientContext context;
    const Fate fate(context, random_);
    counts_.Count(generation_->Generate(&context, request, &response));
  }

  RandomStream random_;
  const std::unique_ptr<GenerationService::Stub> generation_;
  const std::unique_ptr<RewardService::Stub> reward_;
  const std::vector<std::string>& completions_;
  const std::vector<double>& scores_;
  Counts& counts_;
};

// Every block free and nothing queued, within a minute.
bool Idle(const ModelRegistry& models) {
  const absl::Time limit = absl::Now() + absl::Minutes(1);
  for (;;) {
    bool idle = true;
    for (const auto& [name, stats] : models.Stats()) {
      idle = idle && stats.free_blocks == stats.total_blocks && stats.running_sequences == 0 &&
             stats.waiting_sequences == 0;
      if (!idle && absl::Now() > limit) {
        std::fprintf(stderr, "WRONG: %s: %ld of %ld blocks free, %d running, %d waiting\n", name.c_str(),
                     stats.free_blocks, stats.total_blocks, stats.running_sequences, stats.waiting_sequences);
        return false;
      }
    }
    if (idle) return true;
    absl::SleepFor(absl::Milliseconds(5));
  }
}

int Main(double seconds, int num_clients, uint64_t seed) {
  if (!log::Start("soak", "error").ok()) return 1;
  const fs::path world = fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "common/world/models";
  const ScratchFolder folder;
  if (!WriteWorldRewardModel(folder / "R", 1).ok()) return 1;
  prometheus::Registry generation_registry, reward_registry;
  generation::Metrics generation_metrics(generation_registry);
  reward::Metrics reward_metrics(reward_registry);
  // A cache that is too small for what is asked, so that sequences are preempted, and a short queue.
  const engine::EngineOptions options{.kv_cache_bytes = 4 << 20,
                                      .max_batch_sequences = 48,
                                      .max_batch_tokens = 256,
                                      .num_threads = 2,
                                      .max_queued_requests = 200};
  ModelRegistry language_models(ModelRegistry::Head::kLanguageModel, nullptr, world, options,
                                generation_registry,
                                [&](const std::string& model) { return generation_metrics.Of(model); });
  ModelRegistry reward_models(ModelRegistry::Head::kReward, nullptr, folder, options, reward_registry,
                              [&](const std::string&) { return reward_metrics.observer(); });
  generation::GenerationService generation_service(language_models, generation_metrics);
  reward::RewardService reward_service(reward_models, reward_metrics);
  if (!language_models.LoadAll({"S=S"}).ok() || !reward_models.LoadAll({"R=R"}).ok()) return 1;

  Counts counts;
  int64_t preemptions = 0;
  {
    Port generation(GenerationService::service_full_name(), generation_service, generation_registry);
    Port reward(RewardService::service_full_name(), reward_service, reward_registry);
    std::vector<std::string> completions;
    std::vector<double> scores;
    {
      const auto stub = GenerationService::NewStub(Connect(generation.server->port()));
      const auto scorer = RewardService::NewStub(Connect(reward.server->port()));
      for (int i = 0; i < kKnown; ++i) {
        generation::v1::GenerateRequest request;
        request.set_model("models/S");
        *request.add_items() = Item(i);
        generation::v1::GenerateResponse response;
        grpc::ClientContext context;
        if (!stub->Generate(&context, request, &response).ok()) return 1;
        completions.push_back(response.items(0).SerializeAsString());
        reward::v1::ScoreRequest score;
        score.set_model("models/R");
        *score.add_items() = Pair(i);
        reward::v1::ScoreResponse scored;
        grpc::ClientContext score_context;
        if (!scorer->Score(&score_context, score, &scored).ok()) return 1;
        scores.push_back(scored.items(0).result().raw_score());
      }
    }
    std::atomic<bool> stop = false;
    std::vector<std::jthread> threads;
    for (int c = 0; c < num_clients; ++c) {
      // Every other one through the relays.
      const bool flaky = c % 2 == 1;
      threads.emplace_back([&, c, flaky] {
        Client client(flaky ? generation.relay->port() : generation.server->port(),
                      flaky ? reward.relay->port() : reward.server->port(), DeriveSeed(seed, absl::StrCat(c)),
                      completions, scores, counts);
        while (!stop) client.Act();
      });
    }
    RandomStream random(DeriveSeed(seed, "operator"));
    const absl::Time end = absl::Now() + absl::Seconds(seconds);
    absl::Time report = absl::Now() + absl::Minutes(1);
    for (bool loaded = false; absl::Now() < end;) {
      absl::SleepFor(absl::Milliseconds(50 + static_cast<int>(random.Below(300))));
      (random.Below(2) == 0 ? generation : reward).relay->Cut();
      if (loaded) {
        types::v1::UnloadModelRequest unload;
        unload.set_name("models/comes_and_goes");
        if (!language_models.Unload(unload).ok()) counts.Wrong("a model could not be unloaded");
      } else if (!language_models.LoadAll({"comes_and_goes=S"}).ok()) {
        counts.Wrong("a model could not be loaded");
      }
      loaded = !loaded;
      ++counts.swaps;
      generation_metrics.Observe(language_models);
      reward_metrics.Observe(reward_models);
      if (absl::Now() < report) continue;
      report += absl::Minutes(1);
      std::printf("%ld answered …\n", counts.answered.load());
      std::fflush(stdout);
    }
    stop = true;
    threads.clear();
    if (!Idle(language_models) || !Idle(reward_models)) ++counts.wrong;
    for (const auto& [name, stats] : language_models.Stats()) preemptions += stats.preemptions;
  }
  std::printf(
      "%ld answered, %ld streams, %ld cancelled, %ld late, %ld refused, %ld cut off, %ld of nonsense, %ld "
      "loads and "
      "unloads, %ld preemptions: %s\n",
      counts.answered.load(), counts.streams.load(), counts.cancelled.load(), counts.late.load(),
      counts.refused.load(), counts.cut.load(), counts.invalid.load(), counts.swaps.load(), preemptions,
      counts.wrong == 0 ? "every block is free" : "WRONG");
  // A run that met nothing has shown nothing.
  const bool met_all = counts.answered > 0 && counts.cancelled > 0 && counts.late > 0 && counts.cut > 0 &&
                       counts.invalid > 0 && counts.swaps > 0;
  return counts.wrong == 0 && met_all ? 0 : 1;
}

}  // namespace
}  // namespace almost

int main(int argc, char** argv) {
  almost::BlockStopSignals();
  CLI::App app("Random clients against the generation and reward services.", "soak");
  double seconds = 1200;
  int clients = 8;
  uint64_t seed = 1;
  app.add_option("--seconds", seconds, "How long")->capture_default_str();
  app.add_option("--clients", clients, "Callers at once")->capture_default_str();
  app.add_option("--seed", seed, "Of what they do")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return almost::Main(seconds, clients, seed);
}
