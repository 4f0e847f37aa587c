// What runs cost beyond the services they use, on services of this process that cost next to nothing.
//
//   orchestrator_bench journal [ITEMS]     a stage of 1,000,000 items (unless said otherwise), stopped
//   half-way
//                                          and resumed: items a second, memory, how long until it goes on
//   orchestrator_bench run [PROMPTS]       the whole method from 1,000,000 given prompts
//   orchestrator_bench scale [DIALOGUES]   simulation over gRPC with 1, 2 and 4 scorers that take 1 ms a
//                                          response, one at a time; then with scorers that come and go
//
// Needs a folder on a real disk: TMPDIR, or /var/tmp.

#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "almost/generation/v1/generation.grpc.pb.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/rpc/server.h"
#include "common/rpc/status.h"
#include "services/orchestrator/core/orchestrator.h"
#include "services/orchestrator/core/scripted_services.h"
#include "services/orchestrator/core/stages.h"
#include "services/orchestrator/rpc/remote_services.h"
#include "services/simulator/rpc/simulator_service.h"

namespace almost::orchestrator {
namespace {

namespace fs = std::filesystem;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "%s\n", status.ToString().c_str());
  exit(1);
}

template <typename T>
T Value(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

double PeakMegabytes() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

double Seconds(absl::Time since) { return absl::ToDoubleSeconds(absl::Now() - since); }

// The orchestrator with a journal and a store in a folder of their own.
class Bench {
 public:
  using MakeServices = std::function<std::unique_ptr<Services>(ArtifactStore*)>;

  explicit Bench(const MakeServices& make) {
    const char* const parent = getenv("TMPDIR");
    folder_ =
        fs::path(parent == nullptr ? "/var/tmp" : parent) / absl::StrCat("orchestrator-bench-", getpid());
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    store_ = Value(ArtifactStore::Open(folder_ / "store"));
    services_ = make(store_.get());
    environment_.store = store_.get();
    environment_.services = services_.get();
    environment_.observer = &observer_;
    environment_.make_stages = [](const v1::Recipe& recipe) { return MakeStages(recipe, {"reward:1"}); };
  }
  ~Bench() {
    Stop();
    fs::remove_all(folder_);
  }

  RunEnvironment& environment() { return environment_; }
  fs::path journal_file() const { return folder_ / "journal.db"; }
  Orchestrator& orchestrator() { return *orchestrator_; }

  void Start() {
    journal_ = Value(Journal::Open(journal_file()));
    placement_ = std::make_unique<ModelPlacement>(services_.get());
    environment_.journal = journal_.get();
    environment_.placement = placement_.get();
    orchestrator_ =
        std::make_unique<Orchestrator>(environment_, [](const v1::Recipe&) { return absl::OkStatus(); });
    Check(orchestrator_->Recover());
  }
  void Stop() {
    orchestrator_.reset();
    placement_.reset();
    journal_.reset();
  }
  void Create(const std::string& id, const v1::Recipe& recipe) {
    v1::CreateRunRequest request;
    request.set_run_id(id);
    *request.mutable_recipe() = recipe;
    Check(orchestrator_->Create(request).status());
  }
  v1::Run WaitForEnd(const std::string& id) {
    int64_t sequence = 0;
    for (bool ended = false; !ended;) {
      const auto events = Value(orchestrator_->Events(id, sequence, absl::Seconds(10), &ended));
      if (!events.empty()) sequence = events.back().sequence();
    }
    v1::Run run = Value(orchestrator_->Get(id));
    if (run.state() == v1::RUN_STATE_SUCCEEDED) return run;
    fprintf(stderr, "%s: %s\n", v1::RunState_Name(run.state()).c_str(), run.error().message().c_str());
    exit(1);
  }

 private:
  fs::path folder_;
  std::shared_ptr<ArtifactStore> store_;
  std::unique_ptr<Services> services_;
  RunObserver observer_;
  RunEnvironment environment_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<ModelPlacement> placement_;
  std::unique_ptr<Orchestrator> orchestrator_;
};

// Items whose results are 400 bytes each, about an answer's line.
class ItemStage : public Stage {
 public:
  ItemStage(int64_t num_items, std::atomic<int64_t>* done) : num_items_(num_items), done_(done) {}
  absl::string_view id() const override { return "items"; }
  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext&) override { return std::nullopt; }
  absl::Status Begin(StageContext&) override { return absl::OkStatus(); }
  absl::StatusOr<int64_t> NumItems(StageContext&, const ItemResults&) override { return num_items_; }
  absl::StatusOr<std::string> RunItem(StageContext&, int64_t item) override {
    done_->fetch_add(1);
    return absl::StrCat(item, std::string(392, static_cast<char>('a' + item % 26)));
  }
  absl::StatusOr<StageOutput> Publish(StageContext&, const ItemResults& results) override {
    int64_t num = 0;
    ALMOST_RETURN_IF_ERROR(results.ForEach([&](int64_t item, const absl::StatusOr<std::string>& result) {
      if (item == num++ && result.ok()) return absl::OkStatus();
      return absl::DataLossError(absl::StrCat("item ", item));
    }));
    StageOutput output;
    output.figures["results"] = static_cast<double>(num);
    return output;
  }

 private:
  const int64_t num_items_;
  std::atomic<int64_t>* const done_;
};

void BenchJournal(int64_t num_items) {
  Bench bench([](ArtifactStore* store) { return std::make_unique<ScriptedServices>(store); });
  std::atomic<int64_t> done{0};
  bench.environment().make_stages = [&](const v1::Recipe&) {
    std::vector<std::unique_ptr<Stage>> stages;
    stages.push_back(std::make_unique<ItemStage>(num_items, &done));
    return stages;
  };
  bench.Start();
  absl::Time start = absl::Now();
  bench.Create("r", v1::Recipe());
  while (done < num_items / 2) absl::SleepFor(absl::Milliseconds(1));
  bench.Stop();
  const double first = Seconds(start);
  printf("%ld of %ld items, each with intent and result durable: %.1f s, %.0f items/s\n", done.load(),
         num_items, first, static_cast<double>(done) / first);

  const int64_t before = done;
  start = absl::Now();
  bench.Start();
  while (done == before) absl::SleepFor(absl::Milliseconds(1));
  printf("resumed: %.2f s until the first new item\n", Seconds(start));
  start = absl::Now();
  int64_t next = 0;
  Value(bench.orchestrator().List(0, 100, &next));
  Value(bench.orchestrator().Get("r"));
  printf("listed and shown while it works: %.4f s\n", Seconds(start));
  start = absl::Now();
  const v1::Run run = bench.WaitForEnd("r");
  printf("to the end, all results read once more: %.1f s; %ld items done twice\n", Seconds(start),
         done.load() - num_items);
  bench.Stop();
  start = absl::Now();
  bench.Start();
  printf("opened again: %.2f s, %.0f MB of journal\n", Seconds(start),
         static_cast<double>(fs::file_size(bench.journal_file())) / 1e6);
  printf("peak memory: %.0f MB\n", PeakMegabytes());
}

void BenchRun(int64_t num_prompts) {
  Bench bench([](ArtifactStore* store) { return std::make_unique<ScriptedServices>(store); });
  bench.Start();
  v1::Recipe recipe = ScriptedRecipe(7);
  for (int64_t i = 0; i < num_prompts; ++i) {
    recipe.mutable_prompts()->add_given_prompts(absl::StrCat("What is the answer to question ", i, "?"));
  }
  recipe.mutable_comparisons()->set_rule(v1::ComparisonStage::RULE_PAPER);
  const absl::Time start = absl::Now();
  bench.Create("r", recipe);
  const int64_t num_answers = num_prompts * recipe.responses().configurations_size();
  recipe = v1::Recipe();  // whoever asks for a run is another process
  const v1::Run run = bench.WaitForEnd("r");
  printf("%ld prompts, %ld answers: %.1f s, peak memory %.0f MB, %.0f MB of journal\n", num_prompts,
         num_answers, Seconds(start), PeakMegabytes(),
         static_cast<double>(fs::file_size(bench.journal_file())) / 1e6);
  for (const v1::Stage& stage : run.stages()) {
    printf("  %-15s %7.1f s, %ld items\n", stage.id().c_str(), stage.seconds(), stage.items_done());
  }
}

// Generation that costs nothing.
class StubGeneration final : public generation::v1::GenerationService::Service {
 public:
  explicit StubGeneration(ArtifactStore* store) : scripted_(store) {}
  grpc::Status Generate(grpc::ServerContext*, const generation::v1::GenerateRequest* request,
                        generation::v1::GenerateResponse* response) override {
    return Answer(scripted_.Generate({}, *request), response);
  }
  grpc::Status LoadModel(grpc::ServerContext*, const types::v1::LoadModelRequest* request,
                         types::v1::Model* response) override {
    return Answer(scripted_.LoadModel({}, ModelHost::kGeneration, *request), response);
  }

 private:
  ScriptedServices scripted_;
};

// A scorer of fixed speed: a response a millisecond, one at a time.
class StubReward final : public reward::v1::RewardService::Service {
 public:
  explicit StubReward(ArtifactStore* store) : scripted_(store) {}
  grpc::Status Score(grpc::ServerContext*, const reward::v1::ScoreRequest* request,
                     reward::v1::ScoreResponse* response) override {
    const absl::MutexLock lock(&one_at_a_time_);
    absl::SleepFor(absl::Milliseconds(1) * request->items_size());
    scored_ += request->items_size();
    return Answer(scripted_.Score({}, *request, ""), response);
  }
  grpc::Status LoadModel(grpc::ServerContext*, const types::v1::LoadModelRequest* request,
                         types::v1::Model* response) override {
    return Answer(scripted_.LoadModel({}, ModelHost::kReward, *request), response);
  }
  int64_t scored() const { return scored_; }

 private:
  absl::Mutex one_at_a_time_;
  std::atomic<int64_t> scored_{0};
  ScriptedServices scripted_;
};

// Models and simulation over gRPC, the rest in this process.
class HalfRemoteServices : public ScriptedServices {
 public:
  HalfRemoteServices(ArtifactStore* store, std::unique_ptr<RemoteServices> remote)
      : ScriptedServices(store), remote_(std::move(remote)) {}
  int num_replicas(ModelHost host) const override { return remote_->num_replicas(host); }
  absl::StatusOr<types::v1::Model> LoadModel(const CallOptions& options, ModelHost host,
                                             const types::v1::LoadModelRequest& request) override {
    ALMOST_RETURN_IF_ERROR(ScriptedServices::LoadModel(options, host, request).status());
    return remote_->LoadModel(options, host, request);
  }
  absl::StatusOr<std::vector<simulator::v1::SimulateDialoguesResponse>> SimulateDialogues(
      const CallOptions& options, const simulator::v1::SimulateDialoguesRequest& request) override {
    return remote_->SimulateDialogues(options, request);
  }

 private:
  const std::unique_ptr<RemoteServices> remote_;
};

class Scale {
 public:
  Scale(int num_scorers, int64_t num_dialogues) : recipe_(ScriptedRecipe(7)) {
    recipe_.mutable_prompts()->set_num_prompts(static_cast<int32_t>(num_dialogues));
    recipe_.mutable_prompts()->set_attempts_per_round(4096);
    recipe_.mutable_demonstration()->set_num_prompts(static_cast<int32_t>(num_dialogues));
    recipe_.mutable_demonstration()->set_max_turns(1);
    bench_ = std::make_unique<Bench>([&](ArtifactStore* store) {
      generation_ = std::make_unique<StubGeneration>(store);
      generation_server_ = Serve(generation::v1::GenerationService::service_full_name(), *generation_, 0);
      std::vector<std::string> scorers;
      for (int i = 0; i < num_scorers; ++i) {
        scorers_.push_back(std::make_unique<StubReward>(store));
        servers_.push_back(Serve(reward::v1::RewardService::service_full_name(), *scorers_.back(), 0));
        ports_.push_back(servers_.back()->port());
        scorers.push_back(absl::StrCat("127.0.0.1:", ports_.back()));
      }
      const std::string generation = absl::StrCat("127.0.0.1:", generation_server_->port());
      const std::string reward = absl::StrJoin(scorers, ",");
      generation_pool_ = Value(ReplicaPool::Create(generation, {}));
      reward_pool_ = Value(ReplicaPool::Create(reward, {}));
      simulator_ = std::make_unique<simulator::SimulatorService>(*generation_pool_, *reward_pool_, 4,
                                                                 absl::Minutes(2), metrics_);
      simulator_server_ = Serve(simulator::v1::SimulatorService::service_full_name(), *simulator_, 0);
      Targets targets;
      targets.generation = generation;
      targets.reward = reward;
      targets.simulator = absl::StrCat("127.0.0.1:", simulator_server_->port());
      return std::make_unique<HalfRemoteServices>(store, Value(RemoteServices::Create(targets, {}, nullptr)));
    });
    bench_->Start();
  }
  ~Scale() { bench_.reset(); }

  void Begin() { bench_->Create("r", recipe_); }
  // The demonstration stage.
  v1::Stage End() { return bench_->WaitForEnd("r").stages(4); }
  v1::Stage Now() { return Value(bench_->orchestrator().Get("r")).stages(4); }
  void Remove(size_t scorer) { servers_[scorer].reset(); }
  void Add(size_t scorer) {
    servers_[scorer] =
        Serve(reward::v1::RewardService::service_full_name(), *scorers_[scorer], ports_[scorer]);
  }
  int64_t scored(size_t scorer) const { return scorers_[scorer]->scored(); }

 private:
  std::unique_ptr<Server> Serve(const std::string& name, grpc::Service& service, int port) {
    ServerOptions options;
    options.listen = absl::StrCat("127.0.0.1:", port);
    options.drain_seconds = 2;
    auto server = Value(Server::Start(options, {{name, &service}}, registry_));
    server->SetReady();
    return server;
  }

  v1::Recipe recipe_;
  prometheus::Registry registry_;
  simulator::Metrics metrics_{registry_};
  std::unique_ptr<StubGeneration> generation_;
  std::unique_ptr<Server> generation_server_;
  std::vector<std::unique_ptr<StubReward>> scorers_;
  std::vector<std::unique_ptr<Server>> servers_;
  std::vector<int> ports_;
  std::unique_ptr<ReplicaPool> generation_pool_;
  std::unique_ptr<ReplicaPool> reward_pool_;
  std::unique_ptr<simulator::SimulatorService> simulator_;
  std::unique_ptr<Server> simulator_server_;
  std::unique_ptr<Bench> bench_;
};

void BenchScale(int64_t num_dialogues) {
  double alone = 0;
  for (const int num_scorers : {1, 2, 4}) {
    Scale scale(num_scorers, num_dialogues);
    scale.Begin();
    const double rate = static_cast<double>(num_dialogues) / scale.End().seconds();
    if (alone == 0) alone = rate;
    printf("%d scorers: %.0f dialogues/s, %.2f times that of one\n", num_scorers, rate, rate / alone);
  }
  // One; two more in the second third of the dialogues, when the first one leaves; then only the third.
  Scale scale(3, num_dialogues);
  scale.Remove(1);
  scale.Remove(2);
  scale.Begin();
  const auto wait_for_share = [&](double share) {
    while (true) {
      const v1::Stage stage = scale.Now();
      if (stage.items_total() > 0 &&
          static_cast<double>(stage.items_done()) >= share * static_cast<double>(stage.items_total())) {
        return;
      }
      absl::SleepFor(absl::Milliseconds(20));
    }
  };
  wait_for_share(0.2);
  scale.Add(1);
  scale.Add(2);
  wait_for_share(0.5);
  scale.Remove(0);
  wait_for_share(0.8);
  scale.Remove(1);
  const v1::Stage stage = scale.End();
  printf("scorers that came and went scored %ld, %ld and %ld; %ld items set aside, the run succeeded\n",
         scale.scored(0), scale.scored(1), scale.scored(2), stage.items_failed());
}

}  // namespace
}  // namespace almost::orchestrator

int main(int argc, char** argv) {
  using namespace almost::orchestrator;
  const std::string what = argc > 1 ? argv[1] : "";
  int64_t size = what == "scale" ? 2048 : 1'000'000;
  if (argc > 2 && !absl::SimpleAtoi(argv[2], &size)) return 2;
  Check(almost::log::Start("orchestrator_bench", "error"));
  if (what == "journal") {
    BenchJournal(size);
  } else if (what == "run") {
    BenchRun(size);
  } else if (what == "scale") {
    BenchScale(size);
  } else {
    fprintf(stderr, "orchestrator_bench journal|run|scale [SIZE]\n");
    return 2;
  }
  return 0;
}
