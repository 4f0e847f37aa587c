#include "services/orchestrator/core/orchestrator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/scratch_folder.h"
#include "common/logging/logging.h"
#include "common/storage/fault_env.h"
#include "common/storage/faulting_disk.h"
#include "common/storage/gzip.h"
#include "services/orchestrator/core/few_shot_configuration.h"
#include "services/orchestrator/core/lineage.h"
#include "services/orchestrator/core/recipe_check.h"
#include "services/orchestrator/core/retrying_services.h"
#include "services/orchestrator/core/run_jobs.h"
#include "services/orchestrator/core/scripted_services.h"
#include "services/orchestrator/core/stages.h"

namespace almost::orchestrator {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class OrchestratorTest : public ::testing::Test {
 protected:
  OrchestratorTest() {
    EXPECT_TRUE(log::Start("orchestrator_test", "error").ok());
    FaultingDisk::FailAt(-1, SQLITE_OK);
    Reset();
  }
  ~OrchestratorTest() override {
    FaultingDisk::Heal();
    Stop();
  }

  // Everything anew.
  void Reset() {
    Stop();
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    store_ = ArtifactStore::Open(folder_ / "store", &env_).value();
    services_ = std::make_unique<ScriptedServices>(store_.get());
  }
  // The orchestrator's process ends; the others go on.
  void Stop() {
    orchestrator_.reset();
    placement_.reset();
    journal_.reset();
  }
  absl::Status Start() {
    auto journal = Journal::Open(folder_ / "journal.db");
    if (!journal.ok()) return journal.status();
    journal_ = *std::move(journal);
    placement_ = std::make_unique<ModelPlacement>(services_.get());
    RunEnvironment environment;
    environment.journal = journal_.get();
    environment.store = store_.get();
    environment.services = services_.get();
    environment.placement = placement_.get();
    environment.observer = &observer_;
    environment.make_stages = [](const v1::Recipe& recipe) { return MakeStages(recipe, {"reward:1"}); };
    environment.retry.first_backoff = absl::Milliseconds(1);
    environment.retry.max_backoff = absl::Milliseconds(2);
    environment.retry.retries_per_second = 1000;
    environment.retry.pause_after = absl::Milliseconds(20);
    environment.progress_interval = absl::ZeroDuration();
    environment.concurrent_items = concurrent_items_;
    orchestrator_ = std::make_unique<Orchestrator>(environment, check_);
    return orchestrator_->Recover();
  }
  absl::StatusOr<v1::Run> Create(const std::string& id, const v1::Recipe& recipe, bool validate_only = false,
                                 bool recompute = false) {
    v1::CreateRunRequest request;
    request.set_run_id(id);
    *request.mutable_recipe() = WithDefaults(recipe);
    request.set_validate_only(validate_only);
    request.set_recompute(recompute);
    return orchestrator_->Create(request);
  }
  v1::RunState WaitForEnd(const std::string& id) {
    int64_t sequence = 0;
    for (bool ended = false; !ended;) {
      const auto events = orchestrator_->Events(id, sequence, absl::Seconds(30), &ended).value();
      if (!events.empty()) sequence = events.back().sequence();
    }
    return orchestrator_->Get(id)->state();
  }
  std::map<std::string, std::string> Hashes(const std::string& id) {
    std::map<std::string, std::string> hashes;
    const auto artifacts = orchestrator_->Artifacts(id).value();
    for (const auto& each : artifacts) hashes[each.stage + "/" + each.name] = each.digest;
    return hashes;
  }
  std::map<std::string, std::string> UndisturbedHashes() {
    EXPECT_TRUE(Start().ok());
    EXPECT_TRUE(Create("r", ScriptedRecipe(7)).ok());
    EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
    return Hashes("r");
  }
  std::vector<std::string> Messages(const std::string& id) {
    bool ended = false;
    std::vector<std::string> messages;
    const auto events = orchestrator_->Events(id, 0, absl::ZeroDuration(), &ended).value();
    for (const v1::RunEvent& event : events) messages.push_back(event.message());
    return messages;
  }

  const ScratchFolder folder_;
  int concurrent_items_ = 8;
  Orchestrator::RecipeCheck check_ = [](const v1::Recipe&) { return absl::OkStatus(); };
  FaultEnv env_;
  RunObserver observer_;
  std::shared_ptr<ArtifactStore> store_;
  std::unique_ptr<ScriptedServices> services_;
  std::unique_ptr<Journal> journal_;
  std::unique_ptr<ModelPlacement> placement_;
  std::unique_ptr<Orchestrator> orchestrator_;
};

// The ids of the stages that were done, not taken over.
std::vector<std::string> Done(const v1::Run& run) {
  std::vector<std::string> done;
  for (const v1::Stage& stage : run.stages()) {
    if (stage.cached_from().empty()) done.push_back(stage.id());
  }
  return done;
}

// What answers is the same, whether or not the process is stopped while the second model does.
TEST_F(OrchestratorTest, ModelsThatAnswerInTurnAreInMemoryOneByOne) {
  const auto hashes = UndisturbedHashes();
  Reset();
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_responses()->set_one_model_at_a_time(true);
  absl::Mutex mutex;
  size_t most = 0;
  std::set<std::string> seen;
  absl::Notification second;
  services_->SetScript([&](absl::string_view method, const CallOptions&) -> absl::Status {
    if (method != "Generate") return absl::OkStatus();
    const std::set<std::string> models = services_->models();
    const absl::MutexLock lock(&mutex);
    most = std::max(most, models.size());
    seen.insert(models.begin(), models.end());
    if (seen.size() == 2 && !second.HasBeenNotified()) second.Notify();
    return absl::OkStatus();
  });
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Create("r", recipe).ok());
  second.WaitForNotification();
  Stop();
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_EQ(Hashes("r"), hashes);
  EXPECT_EQ(most, 1u);
}

TEST_F(OrchestratorTest, RunsTheMethodFromPromptsToRl) {
  const auto hashes = UndisturbedHashes();
  std::vector<std::string> names;
  for (const auto& [name, digest] : hashes) names.push_back(name);
  EXPECT_THAT(
      names, ElementsAre("comparisons/comparisons", "comparisons/dropped", "demonstrations/candidates",
                         "demonstrations/demonstrations", "prompts/dropped", "prompts/prompts",
                         "responses/responses", "reward_model/model", "rl/model", "rl/prompts", "sft/model"));
  const v1::Run run = orchestrator_->Get("r").value();
  ASSERT_EQ(run.stages_size(), 8);
  for (const v1::Stage& stage : run.stages()) EXPECT_EQ(stage.state(), v1::STAGE_STATE_SUCCEEDED);
  EXPECT_EQ(run.stages(0).figures().at("kept"), 70);
  EXPECT_EQ(run.stages(0).items_done(), 3);  // rounds: 27 of 40 are kept in each
  EXPECT_EQ(run.stages(1).figures().at("responses"), 210);
  EXPECT_EQ(run.stages(1).items_done(), 6);  // 3 configurations of 2 chunks
  EXPECT_EQ(run.stages(2).figures().at("kept"), 60);
  EXPECT_EQ(run.stages(3).figures().at("loss"), 0.5);

  // Lines stand in item order, whatever order the answers came in.
  const std::string responses = store_->ReadFile(hashes.at("responses/responses"), "responses.jsonl").value();
  int64_t id = 0;
  for (const absl::string_view line : absl::StrSplit(responses, '\n', absl::SkipEmpty())) {
    EXPECT_EQ(nlohmann::json::parse(line.begin(), line.end()).at("id"), id++);
  }
  // Nothing stays in memory for nobody.
  EXPECT_TRUE(services_->models().empty());
  EXPECT_TRUE(fs::exists(folder_ / "store/runs/r/sft/curves.jsonl"));
  EXPECT_TRUE(fs::exists(folder_ / "store/runs/r/rl/model/model.safetensors"));
  EXPECT_TRUE(fs::exists(folder_ / "store/runs/r/report.html"));
  const nlohmann::json summary = nlohmann::json::parse(run.summary_json());
  EXPECT_EQ(summary.at("artifact_hashes"), nlohmann::json(hashes));
  EXPECT_EQ(summary.at("stage_seconds").size(), 7);
}

TEST_F(OrchestratorTest, AScorerThatMustAgreeIsLoadedForItsStageAlone) {
  ASSERT_TRUE(Start().ok());
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_agreeing_scorer("models/as-is");
  recipe.mutable_comparisons()->set_agreeing_source("as-is");
  recipe.mutable_comparisons()->set_max_pairs(0);
  ASSERT_TRUE(Create("r", recipe).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_TRUE(services_->models().empty());
  const auto hashes = Hashes("r");
  const std::string kept =
      store_->ReadFile(hashes.at("comparisons/comparisons"), "comparisons.jsonl").value();
  const std::string dropped = store_->ReadFile(hashes.at("comparisons/dropped"), "dropped.jsonl").value();
  EXPECT_THAT(dropped, HasSubstr("\"drop_reason\":\"scorer_disagrees\""));
  EXPECT_THAT(kept, ::testing::Not(HasSubstr("drop_reason")));
  const Artifact comparisons = store_->Get(hashes.at("comparisons/comparisons")).value();
  EXPECT_TRUE(comparisons.inputs.contains("agreeing_scorer")) << comparisons.manifest_json;
  const auto plan = Create("plan", recipe, /*validate_only=*/true);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT(Done(*plan), ElementsAre("report"));
  EXPECT_TRUE(services_->models().empty());
}

// The first call of `method` that has several items answers one of them with an error.
class FaultyServices : public ScriptedServices {
 public:
  FaultyServices(ArtifactStore* store, std::string method, absl::StatusCode code)
      : ScriptedServices(store), method_(std::move(method)), code_(code) {}

  absl::StatusOr<generation::v1::GenerateResponse> Generate(
      const CallOptions& options, const generation::v1::GenerateRequest& request) override {
    return WithFault("Generate", ScriptedServices::Generate(options, request));
  }
  absl::StatusOr<reward::v1::ScoreResponse> Score(const CallOptions& options,
                                                  const reward::v1::ScoreRequest& request,
                                                  absl::string_view target) override {
    return WithFault("Score", ScriptedServices::Score(options, request, target));
  }
  absl::StatusOr<judge::v1::CompareResponse> Compare(const CallOptions& options, absl::string_view target,
                                                     const judge::v1::CompareRequest& request) override {
    return WithFault("Compare", ScriptedServices::Compare(options, target, request));
  }

 private:
  template <typename Response>
  absl::StatusOr<Response> WithFault(absl::string_view method, absl::StatusOr<Response> answer) {
    if (answer.ok() && answer->items_size() > 1 && method == method_ && !done_.exchange(true)) {
      answer->mutable_items(0)->mutable_error()->set_code(static_cast<int>(code_));
      answer->mutable_items(0)->mutable_error()->set_message("of item 0");
    }
    return answer;
  }

  const std::string method_;
  const absl::StatusCode code_;
  std::atomic<bool> done_{false};
};

// Only an error of an item's own content becomes content.
TEST_F(OrchestratorTest, ADeviceThatFailsChangesNoArtifact) {
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_agreeing_scorer("models/as-is");
  recipe.mutable_comparisons()->set_agreeing_source("as-is");
  v1::EvaluationStage& evaluation = *recipe.mutable_evaluation();
  evaluation.set_world_questions(5);
  *evaluation.mutable_baseline() = recipe.responses().configurations(0);
  evaluation.set_judge_target("judge");
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Create("r", recipe).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  const auto hashes = Hashes("r");
  for (const char* const method : {"Generate", "Score", "Compare"}) {
    for (const auto code : {absl::StatusCode::kInternal, absl::StatusCode::kDataLoss}) {
      Reset();
      services_ = std::make_unique<FaultyServices>(store_.get(), method, code);
      ASSERT_TRUE(Start().ok());
      ASSERT_TRUE(Create("r", recipe).ok());
      EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED) << method;
      EXPECT_EQ(orchestrator_->Get("r")->error().code(), static_cast<int>(code)) << method;
      EXPECT_THAT(orchestrator_->Get("r")->error().message(), HasSubstr("of item 0"));
      EXPECT_TRUE(orchestrator_->Resume("r").ok());
      EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
      EXPECT_EQ(Hashes("r"), hashes) << method;
    }
    Reset();
    services_ = std::make_unique<FaultyServices>(store_.get(), method, absl::StatusCode::kUnavailable);
    ASSERT_TRUE(Start().ok());
    ASSERT_TRUE(Create("r", recipe).ok());
    EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
    EXPECT_EQ(Hashes("r"), hashes) << method;
  }
  Reset();
  services_ = std::make_unique<FaultyServices>(store_.get(), "Generate", absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Create("r", recipe).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_EQ(orchestrator_->Get("r")->stages(1).figures().at("bad_error"), 1);
}

TEST_F(OrchestratorTest, CollectsOnlyWhatNothingRefersTo) {
  const auto hashes = UndisturbedHashes();
  ArtifactDraft draft;
  draft.kind = "model";
  draft.files["model.safetensors"] = "nobody's";
  const std::string lost = store_->Publish(draft)->digest;
  draft.files["model.safetensors"] = "served elsewhere";
  const std::string elsewhere = store_->Publish(draft)->digest;
  draft.files["model.safetensors"] = "base of a model trained by hand";
  const std::string base = store_->Publish(draft)->digest;
  draft.files["model.safetensors"] = "what its value function begins as";
  const std::string values = store_->Publish(draft)->digest;
  trainer::v1::CreateJobRequest by_hand;
  by_hand.set_job_id("by-hand");
  by_hand.mutable_spec()->set_base_model("artifacts/" + base);
  by_hand.mutable_spec()->mutable_ppo()->set_value_model("artifacts/" + values);
  ASSERT_TRUE(services_->CreateJob({}, by_hand).ok());
  ASSERT_TRUE(services_
                  ->CancelJob({},
                              [] {
                                trainer::v1::CancelJobRequest cancel;
                                cancel.set_name("jobs/by-hand");
                                return cancel;
                              }())
                  .ok());

  v1::CollectGarbageRequest request;
  EXPECT_EQ(orchestrator_->CollectGarbage(request)->garbage_size(), 0) << "all of it is young";
  request.mutable_min_age();
  request.add_keep("artifacts/" + elsewhere);
  v1::CollectGarbageResponse response = orchestrator_->CollectGarbage(request).value();
  ASSERT_EQ(response.garbage_size(), 1);
  EXPECT_EQ(response.garbage(0).name(), "artifacts/" + lost);
  EXPECT_EQ(response.garbage(0).kind(), "model");
  EXPECT_GT(response.garbage(0).size_bytes(), 7);
  EXPECT_TRUE(store_->Get(lost).ok()) << "it was only named";

  request.set_remove(true);
  EXPECT_EQ(orchestrator_->CollectGarbage(request)->garbage_size(), 1);
  EXPECT_EQ(store_->Get(lost).status().code(), absl::StatusCode::kNotFound);
  for (const auto& [name, digest] : hashes) EXPECT_TRUE(store_->Path(digest).ok()) << name;
  EXPECT_TRUE(store_->Path(elsewhere).ok());
  EXPECT_TRUE(store_->Path(base).ok());
  EXPECT_TRUE(store_->Path(values).ok());
  EXPECT_EQ(orchestrator_->CollectGarbage(request)->garbage_size(), 0);

  // Candidates that were not chosen may go before the demonstrations that were.
  request.mutable_candidates_age();
  response = orchestrator_->CollectGarbage(request).value();
  ASSERT_EQ(response.garbage_size(), 1);
  EXPECT_EQ(response.garbage(0).name(), "artifacts/" + hashes.at("demonstrations/candidates"));
  const std::string demonstration = "artifacts/" + hashes.at("demonstrations/demonstrations") + "/3";
  const auto without_candidates = Lineage(*store_, demonstration, false);
  ASSERT_TRUE(without_candidates.ok()) << without_candidates.status();
  const auto is_gone = [&](const v1::LineageNode& node) {
    return node.name() == response.garbage(0).name() && node.kind() == "source";
  };
  EXPECT_EQ(std::count_if(without_candidates->nodes().begin(), without_candidates->nodes().end(), is_gone),
            1);

  request.mutable_min_age()->set_seconds(-1);
  EXPECT_EQ(orchestrator_->CollectGarbage(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.mutable_min_age()->set_seconds(0);
  request.add_keep("artifacts/x");
  EXPECT_EQ(orchestrator_->CollectGarbage(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.clear_keep();
  services_->SetScript([](absl::string_view method, const CallOptions&) -> absl::Status {
    return method == "ListJobs" ? absl::UnavailableError("away") : absl::OkStatus();
  });
  EXPECT_EQ(orchestrator_->CollectGarbage(request).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(store_->Get(elsewhere).ok()) << "nothing goes unless all who may refer to it have been asked";
}

TEST_F(OrchestratorTest, CollectsWhatFailedJobsOfDeletedRunsHaveKept) {
  ASSERT_TRUE(Start().ok());
  services_->SetScript([](absl::string_view method, const CallOptions&) {
    return method == "Train" ? absl::ResourceExhaustedError("no space left") : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  v1::CollectGarbageRequest request;
  request.set_remove(true);
  ASSERT_TRUE(orchestrator_->CollectGarbage(request).ok());
  EXPECT_EQ(services_->calls("CancelJob"), 0) << "the run may be resumed";
  ASSERT_TRUE(orchestrator_->Delete("r").ok());
  request.set_remove(false);
  ASSERT_TRUE(orchestrator_->CollectGarbage(request).ok());
  EXPECT_EQ(services_->calls("CancelJob"), 0);
  request.set_remove(true);
  ASSERT_TRUE(orchestrator_->CollectGarbage(request).ok());
  EXPECT_EQ(services_->calls("CancelJob"), 1);
}

TEST_F(OrchestratorTest, CollectsNothingNewWhileARunIsAtWork) {
  ASSERT_TRUE(Start().ok());
  services_->HoldJobs(true);
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  v1::CollectGarbageRequest request;
  request.mutable_min_age()->set_seconds(60);
  request.set_remove(true);
  EXPECT_EQ(orchestrator_->CollectGarbage(request).status().code(), absl::StatusCode::kFailedPrecondition);
  request.mutable_min_age()->set_seconds(3600);
  EXPECT_TRUE(orchestrator_->CollectGarbage(request).ok());
  services_->HoldJobs(false);
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
}

TEST_F(OrchestratorTest, EverySampleLeadsToItsSourcesAndOn) {
  const auto hashes = UndisturbedHashes();
  const std::string prompts = "artifacts/" + hashes.at("prompts/prompts");
  const std::string responses = "artifacts/" + hashes.at("responses/responses");
  const std::string comparison = "artifacts/" + hashes.at("comparisons/comparisons") + "/0";
  const std::string demonstrations = "artifacts/" + hashes.at("demonstrations/demonstrations");

  const auto back = Lineage(*store_, comparison, false).value();
  const auto line = nlohmann::json::parse(back.nodes(0).json());
  std::vector<std::string> names;
  for (const v1::LineageNode& node : back.nodes()) names.push_back(node.name());
  for (const char* const key : {"chosen_id", "rejected_id"}) {
    EXPECT_THAT(names, Contains(absl::StrCat(responses, "/", line.at(key).get<int64_t>())));
  }
  EXPECT_THAT(names, Contains(absl::StrCat(prompts, "/", line.at("prompt_id").get<int64_t>())));

  const auto player = Lineage(*store_, demonstrations + "/3", false).value();
  names.clear();
  for (const v1::LineageNode& node : player.nodes()) names.push_back(node.name());
  EXPECT_THAT(names, Contains("artifacts/" + hashes.at("reward_model/model")));
  // All its candidates with their scores, the one chosen among them.
  const v1::LineageNode& candidates = player.nodes(1);
  EXPECT_EQ(candidates.kind(), "candidates");
  EXPECT_EQ(player.nodes(0).input_roles(0), "prompt_id");
  const auto shown = nlohmann::json::parse(player.nodes(0).json());
  const auto turn = nlohmann::json::parse(candidates.json()).at("turns").at(0);
  const std::string packed =
      store_->ReadFile(hashes.at("demonstrations/candidates"), "candidates.jsonl.gz").value();
  const std::string unpacked = Gunzip(packed).value();
  EXPECT_EQ(std::count(unpacked.begin(), unpacked.end(), '\n'), 50);
  EXPECT_LT(packed.size(), unpacked.size() / 2);
  // What was not scored has no score.
  int num_unscored = 0;
  for (const absl::string_view each : absl::StrSplit(unpacked, '\n', absl::SkipEmpty())) {
    const auto dialogue = nlohmann::json::parse(each);
    for (const auto& candidate : dialogue.at("turns").at(0).at("candidates")) {
      const bool scored = candidate.at("bad_reason") != "too_long";
      EXPECT_EQ(candidate.at("score").is_number(), scored);
      EXPECT_EQ(candidate.at("raw_score").is_number(), scored);
      num_unscored += !scored;
    }
  }
  EXPECT_EQ(num_unscored, 30);
  EXPECT_EQ(turn.at("candidates").size(), 4);
  EXPECT_EQ(turn.at("candidates").at(turn.at("chosen").get<size_t>()).at("text"),
            shown.at("messages").back().at("content"));
  EXPECT_EQ(turn.at("candidates").at(turn.at("chosen").get<size_t>()).at("score"), shown.at("score"));

  // How candidates and responses were sampled, so that they can be made again.
  const auto sampled = nlohmann::json::parse(candidates.sampling_json());
  EXPECT_EQ(sampled.at("turn_seeds").at(0), turn.at("seed"));
  EXPECT_EQ(sampled.at("configuration").at("id"), "player");
  EXPECT_EQ(sampled.at("sampling").at("n"), 4);
  EXPECT_FALSE(sampled.at("sampling").at("stop").empty());
  for (const v1::LineageNode& node : back.nodes()) {
    if (node.kind() != "responses" || node.json().empty()) continue;
    const auto response = nlohmann::json::parse(node.json());
    const auto sampling = nlohmann::json::parse(node.sampling_json());
    EXPECT_EQ(sampling.at("configuration").at("id"), response.at("config"));
    EXPECT_EQ(sampling.at("sampling").at("seed"),
              SampleSeed(7, "responses", response.at("config").get<std::string>(), response.at("prompt_id")));
  }

  // Page by page it is the same.
  v1::GetLineageResponse paged;
  std::string token = "0";
  do {
    const auto page = Lineage(*store_, demonstrations + "/3", false, std::stoll(token), 2).value();
    EXPECT_LE(page.nodes_size(), 2);
    paged.mutable_nodes()->MergeFrom(page.nodes());
    token = page.next_page_token();
  } while (!token.empty());
  EXPECT_EQ(paged.SerializeAsString(), player.SerializeAsString());

  const int64_t prompt = nlohmann::json::parse(player.nodes(0).json()).at("prompt_id");
  const auto onward = Lineage(*store_, absl::StrCat(prompts, "/", prompt), true).value();
  names.clear();
  for (const v1::LineageNode& node : onward.nodes()) names.push_back(node.name());
  EXPECT_THAT(names, Contains(demonstrations + "/3"));
  std::map<std::string, int> kinds;
  for (const v1::LineageNode& node : onward.nodes()) ++kinds[node.kind()];
  EXPECT_EQ(kinds["responses"], 3) << "one of each configuration";
  EXPECT_GE(kinds["comparisons"] + kinds["dropped"], 1);
  EXPECT_EQ(kinds["candidates"], 1);
  EXPECT_GE(kinds["model"], 1) << "and the models that learned from them";

  EXPECT_EQ(Lineage(*store_, "artifacts/x/y", false).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Lineage(*store_, prompts + "/70", false).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(OrchestratorTest, EqualSeedsGiveEqualHashesAndOthersDoNot) {
  const auto first = UndisturbedHashes();
  ASSERT_TRUE(Create("again", ScriptedRecipe(7), false, /*recompute=*/true).ok());
  ASSERT_TRUE(Create("other", ScriptedRecipe(8)).ok());
  EXPECT_EQ(WaitForEnd("again"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(WaitForEnd("other"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Hashes("again"), first);
  const auto other = Hashes("other");
  for (const auto& [name, digest] : first) EXPECT_NE(other.at(name), digest) << name;
}

TEST_F(OrchestratorTest, ARunsPriorityReachesItsJobs) {
  ASSERT_TRUE(Start().ok());
  v1::CreateRunRequest request;
  request.set_run_id("urgent");
  *request.mutable_recipe() = WithDefaults(ScriptedRecipe(7));
  request.set_priority(3);
  ASSERT_TRUE(orchestrator_->Create(request).ok());
  Stop();  // and over a restart
  ASSERT_TRUE(Start().ok());
  ASSERT_EQ(WaitForEnd("urgent"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(orchestrator_->Get("urgent")->priority(), 3);
  ASSERT_EQ(services_->specs().size(), 3u);
  for (const trainer::v1::JobSpec& spec : services_->specs()) EXPECT_EQ(spec.priority(), 3);
}

TEST_F(OrchestratorTest, ARunThatFailsLeavesOthersAlone) {
  const auto hashes = UndisturbedHashes();
  Reset();
  ASSERT_TRUE(Start().ok());
  v1::Recipe missing = ScriptedRecipe(7);
  missing.mutable_models(0)->set_source("missing");
  ASSERT_TRUE(Create("bad", missing).ok());
  ASSERT_TRUE(Create("good", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("bad"), v1::RUN_STATE_FAILED);
  EXPECT_THAT(orchestrator_->Get("bad")->error().message(), HasSubstr("no folder \"missing\""));
  EXPECT_EQ(WaitForEnd("good"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Hashes("good"), hashes);
}

TEST_F(OrchestratorTest, VanillaModelsAreEvaluatedWithoutAnyOtherStage) {
  ASSERT_TRUE(Start().ok());
  v1::Recipe recipe = ScriptedRecipe(7);
  v1::EvaluationStage& evaluation = *recipe.mutable_evaluation();
  evaluation.add_prompts("which way?");
  *evaluation.mutable_baseline() = recipe.responses().configurations(0);
  *evaluation.mutable_sampling() = recipe.responses().sampling();
  evaluation.set_judge_target("judge");
  recipe.clear_responses();
  recipe.clear_comparisons();
  recipe.clear_reward_model();
  recipe.clear_demonstration();
  recipe.clear_sft();
  recipe.clear_rl();
  ASSERT_TRUE(Create("vanilla", recipe).ok());
  EXPECT_EQ(WaitForEnd("vanilla"), v1::RUN_STATE_SUCCEEDED)
      << orchestrator_->Get("vanilla")->error().message();
  const std::string file =
      store_->ReadFile(Hashes("vanilla").at("evaluation/evaluation"), "evaluation.json").value();
  EXPECT_EQ(nlohmann::json::parse(file).at("systems").size(), 1);
}

TEST_F(OrchestratorTest, WhatNeedsAStageThatIsLeftOutIsLeftOutWithIt) {
  ASSERT_TRUE(Start().ok());
  v1::Recipe recipe = ScriptedRecipe(7);
  v1::EvaluationStage& evaluation = *recipe.mutable_evaluation();
  evaluation.set_world_questions(5);
  *evaluation.mutable_baseline() = recipe.responses().configurations(0);
  recipe.clear_demonstration();  // which SFT learns from, and RL begins with
  ASSERT_TRUE(Create("r", recipe).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  const v1::Run run = orchestrator_->Get("r").value();
  EXPECT_THAT(Done(run),
              ElementsAre("prompts", "responses", "comparisons", "reward_model", "evaluation", "report"));
  const std::string answers =
      store_->ReadFile(Hashes("r").at("evaluation/evaluation"), "answers.jsonl").value();
  EXPECT_THAT(answers, HasSubstr("\"reward\":"));
  EXPECT_THAT(answers, ::testing::Not(HasSubstr("\"sft\":")));
  EXPECT_FALSE(run.recipe().has_sft() || run.recipe().has_rl());
}

// With the paper's pairs, which depend on their prompt alone, and a scorer that has to agree.
v1::Recipe PaperRecipe() {
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_rule(v1::ComparisonStage::RULE_PAPER);
  recipe.mutable_comparisons()->set_agreeing_scorer("models/as-is");
  recipe.mutable_comparisons()->set_max_pairs(20);
  return recipe;
}

TEST_F(OrchestratorTest, ComparisonsStartWhileResponsesStillCome) {
  concurrent_items_ = 1;  // items in their order
  ASSERT_TRUE(Start().ok());
  types::v1::LoadModelRequest scorer;
  scorer.set_name("models/as-is");
  scorer.set_source("as-is");
  ASSERT_TRUE(services_->LoadModel({}, ModelHost::kReward, scorer).ok());
  absl::Notification scored;
  std::atomic<int> generated{0};
  services_->SetScript([&](absl::string_view method, const CallOptions&) -> absl::Status {
    if (method == "Score" && !scored.HasBeenNotified()) scored.Notify();
    // The first chunk of the prompts has all its three answers; the second one's last waits.
    if (method == "Generate" && ++generated == 6) {
      EXPECT_TRUE(scored.WaitForNotificationWithTimeout(absl::Seconds(30)));
    }
    return absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", PaperRecipe()).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_EQ(generated, 6);
  const auto hashes = Hashes("r");
  const v1::Run run = orchestrator_->Get("r").value();
  EXPECT_GT(run.stages(2).figures().at("dropped_scorer_disagrees"), 0);
  EXPECT_EQ(run.stages(2).figures().at("kept"), 20);
  EXPECT_TRUE(journal_->GetItems("r", "responses", 0, 10, true)->front().result.empty());

  // The same from responses that were there before.
  Reset();
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(services_->LoadModel({}, ModelHost::kReward, scorer).ok());
  v1::Recipe other = PaperRecipe();
  other.mutable_comparisons()->set_max_pairs(10);
  ASSERT_TRUE(Create("other", other).ok());
  ASSERT_EQ(WaitForEnd("other"), v1::RUN_STATE_SUCCEEDED);
  ASSERT_TRUE(Create("r", PaperRecipe()).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(orchestrator_->Get("r")->stages(1).cached_from(), "runs/other");
  EXPECT_EQ(orchestrator_->Get("r")->stages(2).cached_from(), "");
  EXPECT_EQ(Hashes("r"), hashes);
}

TEST_F(OrchestratorTest, AStageThatFailsEndsTheOneItFollows) {
  ASSERT_TRUE(Start().ok());
  types::v1::LoadModelRequest scorer;
  scorer.set_name("models/as-is");
  scorer.set_source("as-is");
  ASSERT_TRUE(services_->LoadModel({}, ModelHost::kReward, scorer).ok());
  absl::Notification failed;
  std::atomic<int> generated{0};
  std::atomic<bool> fails{true};
  services_->SetScript([&](absl::string_view method, const CallOptions& options) -> absl::Status {
    if (method == "Score" && fails) return absl::FailedPreconditionError("another scorer");
    if (method != "Generate" || ++generated != 6 || !fails) return absl::OkStatus();
    // The last answer does not come before the run ends.
    const std::stop_callback on_stop(options.stop, [&failed] { failed.Notify(); });
    EXPECT_TRUE(failed.WaitForNotificationWithTimeout(absl::Seconds(30)));
    return absl::CancelledError("stopped");
  });
  concurrent_items_ = 1;
  Stop();
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Create("r", PaperRecipe()).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_EQ(orchestrator_->Get("r")->error().message(), "comparisons: another scorer");
  EXPECT_EQ(orchestrator_->Get("r")->stages(1).state(), v1::STAGE_STATE_WAITING);
  EXPECT_EQ(orchestrator_->Get("r")->stages(2).state(), v1::STAGE_STATE_FAILED);
  fails = false;
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
}

TEST_F(OrchestratorTest, AStageThatHasBeenDoneIsTakenOver) {
  const auto hashes = UndisturbedHashes();
  const int64_t generated = services_->calls("Generate");
  const v1::Run first = orchestrator_->Get("r").value();
  ASSERT_TRUE(Create("again", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("again"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("again")->error().message();
  EXPECT_EQ(services_->calls("Generate"), generated);
  EXPECT_EQ(Hashes("again"), hashes);
  const v1::Run again = orchestrator_->Get("again").value();
  EXPECT_THAT(Done(again), ElementsAre("report"));
  EXPECT_EQ(again.stages(1).cached_from(), "runs/r");
  EXPECT_EQ(again.stages(1).figures().at("responses"), first.stages(1).figures().at("responses"));
  EXPECT_EQ(again.stages(1).items_done(), first.stages(1).items_done());
  EXPECT_TRUE(fs::exists(folder_ / "store/runs/again/sft/curves.jsonl"));
  EXPECT_TRUE(fs::exists(folder_ / "store/runs/again/rl/model/model.safetensors"));
  // In the journal too.
  Stop();
  ASSERT_TRUE(Start().ok());
  EXPECT_THAT(Done(*orchestrator_->Get("again")), ElementsAre("report"));
  ASSERT_TRUE(Create("anew", ScriptedRecipe(7), false, /*recompute=*/true).ok());
  ASSERT_EQ(WaitForEnd("anew"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Done(*orchestrator_->Get("anew")).size(), 8u);
  EXPECT_EQ(Hashes("anew"), hashes);
  EXPECT_TRUE(orchestrator_->Get("anew")->recompute());
}

TEST_F(OrchestratorTest, ChangingOneFilterDoesAgainOnlyWhatFollowsIt) {
  UndisturbedHashes();
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_min_rank_gap(2);
  ASSERT_TRUE(Create("gap", recipe).ok());
  ASSERT_EQ(WaitForEnd("gap"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Done(*orchestrator_->Get("gap")),
              ElementsAre("comparisons", "reward_model", "demonstrations", "sft", "rl", "report"));
  recipe = ScriptedRecipe(7);
  recipe.mutable_demonstration()->set_drop_lowest_share(0.3);
  ASSERT_TRUE(Create("share", recipe).ok());
  ASSERT_EQ(WaitForEnd("share"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Done(*orchestrator_->Get("share")), ElementsAre("demonstrations", "sft", "rl", "report"));
  // What is taken over is what doing it again would have made.
  const auto hashes = Hashes("share");
  ASSERT_TRUE(Create("anew", recipe, false, /*recompute=*/true).ok());
  ASSERT_EQ(WaitForEnd("anew"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Hashes("anew"), hashes);
}

v1::Recipe DpoRecipe() {
  v1::Recipe recipe = ScriptedRecipe(7);
  v1::RlStage& rl = *recipe.mutable_rl();
  rl.set_algorithm(v1::RlStage::ALGORITHM_DPO);
  rl.set_only_unseen_prompts(false);
  rl.mutable_dpo()->set_epochs(2);
  rl.mutable_dpo()->set_batch_size(8);
  rl.mutable_dpo()->set_max_tokens(64);
  rl.mutable_dpo()->set_beta(0.1);
  rl.set_min_margin(0.25);
  return recipe;
}

TEST_F(OrchestratorTest, DpoLearnsFromPairsOfTheDemonstrationsCandidates) {
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Create("r", DpoRecipe()).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  const auto hashes = Hashes("r");
  EXPECT_FALSE(hashes.contains("rl/prompts"));
  const std::string candidates =
      Gunzip(store_->ReadFile(hashes.at("demonstrations/candidates"), "candidates.jsonl.gz").value()).value();
  std::vector<nlohmann::json> dialogues;
  for (const absl::string_view line : absl::StrSplit(candidates, '\n', absl::SkipEmpty())) {
    dialogues.push_back(nlohmann::json::parse(line.begin(), line.end()));
  }
  const std::string text = store_->ReadFile(hashes.at("rl/pairs"), "pairs.jsonl").value();
  int num_pairs = 0;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const auto pair = nlohmann::json::parse(line.begin(), line.end());
    const auto dialogue = std::find_if(dialogues.begin(), dialogues.end(), [&](const nlohmann::json& each) {
      return each.at("prompt_id") == pair.at("prompt_id");
    });
    ASSERT_NE(dialogue, dialogues.end());
    EXPECT_EQ(dialogue->at("drop_reason"), "");
    EXPECT_EQ(pair.at("prompt"), dialogue->at("messages")[0].at("content"));
    EXPECT_EQ(pair.at("chosen"), dialogue->at("messages")[1].at("content")) << "what SFT learned";
    EXPECT_GT(pair.at("chosen_score").get<double>(), pair.at("rejected_score").get<double>() + 0.25);
    ++num_pairs;
  }
  const v1::Run run = orchestrator_->Get("r").value();
  const auto& figures = run.stages(6).figures();
  EXPECT_EQ(figures.at("kept"), num_pairs);
  const auto card = store_->ReadFile(hashes.at("rl/pairs"), "README.md");
  ASSERT_TRUE(card.ok()) << card.status();
  EXPECT_THAT(*card, testing::AllOf(HasSubstr("\n- preference\n"), HasSubstr("worst of its candidates"),
                                    HasSubstr(absl::StrCat("| rows | ", num_pairs, " |")),
                                    HasSubstr(absl::StrCat("| kept | ", num_pairs, " |"))));
  EXPECT_GT(figures.at("dropped_no_margin"), 0);
  EXPECT_EQ(figures.at("kept") + figures.at("dropped_no_margin"), run.stages(4).figures().at("kept"));

  int num_jobs = 0;
  for (const trainer::v1::JobSpec& spec : services_->specs()) {
    EXPECT_FALSE(spec.has_ppo());
    if (!spec.has_dpo()) continue;
    ++num_jobs;
    EXPECT_EQ(spec.base_model(), "artifacts/" + hashes.at("sft/model"));
    EXPECT_EQ(spec.dpo().dataset(), "artifacts/" + hashes.at("rl/pairs"));
    EXPECT_EQ(spec.dpo().beta(), 0.1);
  }
  EXPECT_EQ(num_jobs, 1);
  // From a pair to its candidates, with the seeds they were sampled by, and to their prompt.
  const auto back = Lineage(*store_, "artifacts/" + hashes.at("rl/pairs") + "/0", false).value();
  EXPECT_EQ(back.nodes(0).stage(), "rl");
  EXPECT_EQ(back.nodes(1).kind(), "candidates");
  EXPECT_FALSE(back.nodes(1).sampling_json().empty());
  const auto onward = Lineage(*store_, "artifacts/" + hashes.at("rl/pairs"), true).value();
  EXPECT_EQ(onward.nodes(1).name(), "artifacts/" + hashes.at("rl/model"));
}

TEST_F(OrchestratorTest, DpoWithoutAPairSaysWhichFieldLeftNone) {
  ASSERT_TRUE(Start().ok());
  v1::Recipe recipe = DpoRecipe();
  recipe.mutable_rl()->set_min_margin(2);  // the scripted scores are in [0, 1)
  ASSERT_TRUE(Create("r", recipe).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_THAT(orchestrator_->Get("r")->error().message(), StartsWith("rl: rl.min_margin: no demonstration"));
}

TEST_F(OrchestratorTest, AnotherAlgorithmDoesTheLastStageAgainAndNoOther) {
  // As a recipe of before there was a choice.
  v1::CreateRunRequest request;
  request.set_run_id("older");
  *request.mutable_recipe() = WithDefaults(ScriptedRecipe(7));
  request.mutable_recipe()->mutable_rl()->clear_algorithm();
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(orchestrator_->Create(request).ok());
  ASSERT_EQ(WaitForEnd("older"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Done(*Create("ppo", ScriptedRecipe(7), /*validate_only=*/true)), ElementsAre("report"));

  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_rl()->set_algorithm(v1::RlStage::ALGORITHM_GRPO);
  recipe.mutable_rl()->mutable_spec()->set_group_size(2);
  recipe.mutable_rl()->mutable_spec()->clear_value_learning_rate();
  ASSERT_TRUE(Create("grpo", recipe).ok());
  ASSERT_EQ(WaitForEnd("grpo"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Done(*orchestrator_->Get("grpo")), ElementsAre("rl", "report"));
  EXPECT_EQ(Hashes("grpo").at("rl/prompts"), Hashes("older").at("rl/prompts"));
  EXPECT_NE(Hashes("grpo").at("rl/model"), Hashes("older").at("rl/model"));
  const auto specs = services_->specs();
  EXPECT_EQ(std::count_if(specs.begin(), specs.end(),
                          [](const auto& spec) { return spec.has_grpo() && spec.grpo().group_size() == 2; }),
            1);

  // Nothing has measured DPO's pace, and it needs no reward model.
  const v1::Run plan = Create("dpo", DpoRecipe(), /*validate_only=*/true).value();
  EXPECT_THAT(Done(plan), ElementsAre("rl", "report"));
  EXPECT_EQ(plan.stages(6).plan().measured_by(), "");
  EXPECT_EQ(plan.stages(6).plan().models_size(), 0);
  ASSERT_TRUE(Create("dpo", DpoRecipe()).ok());
  ASSERT_EQ(WaitForEnd("dpo"), v1::RUN_STATE_SUCCEEDED);
  // What is unused decides nothing.
  recipe = DpoRecipe();
  recipe.mutable_rl()->clear_spec();
  EXPECT_THAT(Done(*Create("again", recipe, /*validate_only=*/true)), ElementsAre("report"));
}

TEST_F(OrchestratorTest, OtherNumericsOrALostArtifactAreReasonsToDoAStageAgain) {
  const auto hashes = UndisturbedHashes();
  fs::remove(folder_ / "store/objects" / hashes.at("sft/model"));  // its manifest
  ASSERT_TRUE(Create("lost", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("lost"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("lost")->error().message();
  EXPECT_THAT(Done(*orchestrator_->Get("lost")), ElementsAre("sft", "report"));
  EXPECT_EQ(Hashes("lost"), hashes);
  services_->SetNumerics("numerics-2");
  ASSERT_TRUE(Create("other", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("other"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Done(*orchestrator_->Get("other")), Contains("prompts"));
}

TEST_F(OrchestratorTest, ADeletedRunLeavesWhatOthersReferTo) {
  const auto hashes = UndisturbedHashes();
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_min_rank_gap(2);
  ASSERT_TRUE(Create("gap", recipe).ok());
  ASSERT_EQ(WaitForEnd("gap"), v1::RUN_STATE_SUCCEEDED);
  const auto gap = Hashes("gap");
  ASSERT_EQ(gap.at("responses/responses"), hashes.at("responses/responses"));

  ASSERT_TRUE(orchestrator_->Delete("r").ok());
  EXPECT_EQ(orchestrator_->Get("r").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(orchestrator_->Delete("r").code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(fs::exists(folder_ / "store/runs/r"));
  const std::set<std::string> kept = orchestrator_->KeptArtifacts(absl::InfiniteDuration()).value();
  for (const auto& [name, digest] : gap) EXPECT_TRUE(kept.contains(digest)) << name;
  EXPECT_FALSE(kept.contains(hashes.at("sft/model")));
  EXPECT_TRUE(store_->Get(hashes.at("sft/model")).ok());  // until garbage is collected
  const std::string candidates = gap.at("demonstrations/candidates");
  EXPECT_FALSE(orchestrator_->KeptArtifacts(absl::ZeroDuration())->contains(candidates));

  // Its id is free, and what it did is still known.
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Done(*orchestrator_->Get("r")), ElementsAre("report"));
  EXPECT_EQ(Hashes("r"), hashes);

  services_->HoldJobs(true);
  v1::Recipe based = ScriptedRecipe(8);
  based.mutable_models(1)->set_source("artifacts/base");
  ASSERT_TRUE(Create("working", based).ok());
  EXPECT_EQ(orchestrator_->Delete("working").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(orchestrator_->KeptArtifacts(absl::InfiniteDuration())->contains("base"));
}

TEST(RetryBudgetTest, GivesABurstAndThenSoManyASecond) {
  RetryPolicy policy;
  policy.retry_burst = 3;
  policy.retries_per_second = 2;
  RetryBudget budget(policy);
  const absl::Time start = absl::FromUnixSeconds(1000);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(budget.Take(start), absl::ZeroDuration());
  EXPECT_EQ(budget.Take(start), absl::Seconds(0.5));
  EXPECT_EQ(budget.Take(start), absl::Seconds(1));  // behind the one before
  EXPECT_EQ(budget.Take(start + absl::Seconds(1.5)), absl::ZeroDuration());
  EXPECT_EQ(budget.Take(start + absl::Seconds(100)), absl::ZeroDuration());
  EXPECT_EQ(budget.Take(start), absl::ZeroDuration());  // the clock was set back
}

TEST(ItemSlotsTest, TheHighestPriorityGoesFirstAndEqualsShare) {
  ItemSlots slots(2);
  std::optional<ItemSlots::Slot> first(slots.Acquire("a", 0, {}).value());
  const ItemSlots::Slot second = slots.Acquire("a", 0, {}).value();
  std::vector<std::string> order;
  absl::Mutex mutex;
  std::vector<std::jthread> threads;
  const auto until_waiting = [&](int num) {
    while (slots.num_waiting() < num) std::this_thread::yield();
  };
  for (const auto& [run, priority] : {std::pair("a", 0), std::pair("b", 0), std::pair("c", 5)}) {
    threads.emplace_back([&, name = std::string(run), priority = priority] {
      const auto slot = slots.Acquire(name, priority, {});
      const absl::MutexLock lock(&mutex);
      order.push_back(name);
    });
    until_waiting(static_cast<int>(threads.size()));
  }
  std::stop_source stop;
  std::jthread stopped(
      [&] { EXPECT_TRUE(absl::IsCancelled(slots.Acquire("d", 9, stop.get_token()).status())); });
  until_waiting(4);
  stop.request_stop();
  stopped.join();
  first.reset();
  threads.clear();
  EXPECT_THAT(order, ElementsAre("c", "b", "a"));
}

TEST_F(OrchestratorTest, CountsWhatTheServicesDid) {
  UndisturbedHashes();
  const v1::Run run = orchestrator_->Get("r").value();
  const v1::Cost& responses = run.stages(1).cost();
  EXPECT_EQ(responses.generated_tokens(), static_cast<int64_t>(run.stages(1).figures().at("tokens")));
  EXPECT_EQ(run.stages(4).cost().scored_items(), 50 * 4 - 30);  // as many were too long
  EXPECT_EQ(run.stages(4).cost().generated_tokens(), 50 * 4 * 9);
  EXPECT_EQ(run.stages(5).cost().trained_tokens(), 3 * 100);  // sft
  for (int stage : {0, 1, 3, 4, 5, 6}) EXPECT_GT(run.stages(stage).cost().device_seconds(), 0) << stage;
  EXPECT_EQ(run.cost().generated_tokens(), run.stages(0).cost().generated_tokens() +
                                               responses.generated_tokens() +
                                               run.stages(4).cost().generated_tokens());
  const nlohmann::json summary = nlohmann::json::parse(run.summary_json());
  EXPECT_EQ(summary.at("cost").at("scored_items"), 50 * 4 - 30);
  // The journal has it, and what is taken over costs nothing.
  Stop();
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(orchestrator_->Get("r")->cost().generated_tokens(), run.cost().generated_tokens());
  ASSERT_TRUE(Create("again", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("again"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(orchestrator_->Get("again")->cost().generated_tokens(), 0);
}

TEST_F(OrchestratorTest, ADryRunForeseesTheRunAndChangesNothing) {
  ASSERT_TRUE(Start().ok());
  const v1::Run fresh = Create("plan", ScriptedRecipe(7), /*validate_only=*/true).value();
  ASSERT_EQ(fresh.stages_size(), 8);
  EXPECT_EQ(Done(fresh).size(), 8u);
  const v1::StagePlan& demonstrations = fresh.stages(4).plan();
  ASSERT_EQ(demonstrations.models_size(), 2);
  EXPECT_EQ(demonstrations.models(0).service(), "generation");
  EXPECT_EQ(demonstrations.models(1).id(), "reward_model");
  EXPECT_EQ(demonstrations.models(1).service(), "reward");
  EXPECT_EQ(demonstrations.models(1).context_tokens(), 512);  // of S, from which it would be trained
  for (const v1::Stage& stage : fresh.stages()) EXPECT_EQ(stage.plan().measured_by(), "");
  EXPECT_TRUE(services_->models().empty());
  EXPECT_EQ(services_->calls("CreateJob") + services_->calls("Generate"), 0);
  EXPECT_TRUE(store_->List()->empty());

  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Done(*Create("plan", ScriptedRecipe(7), true)), ElementsAre("report"));
  EXPECT_EQ(Done(*Create("plan", ScriptedRecipe(7), true, /*recompute=*/true)).size(), 8u);

  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_min_rank_gap(2);
  recipe.mutable_demonstration()->set_num_prompts(25);  // of 50
  const v1::Run changed = Create("plan", recipe, true).value();
  EXPECT_THAT(Done(changed),
              ElementsAre("comparisons", "reward_model", "demonstrations", "sft", "rl", "report"));
  EXPECT_EQ(changed.stages(4).plan().measured_by(), "runs/r");
  EXPECT_EQ(changed.stages(4).plan().cost().scored_items(), (50 * 4 - 30) / 2);
  EXPECT_GT(changed.stages(4).plan().seconds(), 0);
  EXPECT_EQ(changed.stages(1).plan().seconds(), 0);  // taken over

  services_->SetScript([](absl::string_view method, const CallOptions&) {
    return method == "ValidateJob" ? absl::UnavailableError("gone") : absl::OkStatus();
  });
  EXPECT_EQ(Create("plan", ScriptedRecipe(7), true).status(), absl::UnavailableError("gone"));
}

TEST_F(OrchestratorTest, SaysWhenTheSameStageCameToSomethingElse) {
  UndisturbedHashes();
  services_->SetSalt("another build");
  ASSERT_TRUE(Create("other", ScriptedRecipe(7), false, /*recompute=*/true).ok());
  ASSERT_EQ(WaitForEnd("other"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Messages("other"), Contains(HasSubstr("with other artifacts than runs/r has")));
}

// The process dies at a write to its journal, at every one in turn; the next process ends the run with the
// same artifacts. Where comparisons follow the responses, and where they do not.
class OrchestratorCrashTest : public OrchestratorTest, public ::testing::WithParamInterface<bool> {};

INSTANTIATE_TEST_SUITE_P(Following, OrchestratorCrashTest, ::testing::Bool());

TEST_P(OrchestratorCrashTest, ACrashBetweenAnyTwoRecordsChangesNothing) {
  v1::Recipe recipe = ScriptedRecipe(7);
  if (GetParam()) recipe.mutable_comparisons()->set_rule(v1::ComparisonStage::RULE_PAPER);
  FaultingDisk::FailAt(1 << 30, SQLITE_IOERR_WRITE);
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Create("r", recipe).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  const auto hashes = Hashes("r");
  const int num_writes = FaultingDisk::writes();
  ASSERT_GT(num_writes, 100);
  // A record is some pairs of writes (a frame's head and body): an odd stride meets every kind.
  int crashes = 0;
  for (int write = 0; write < num_writes; write += 3) {
    Reset();
    FaultingDisk::FailAt(write, SQLITE_IOERR_WRITE);
    if (Start().ok() && Create("r", recipe).ok()) WaitForEnd("r");
    if (FaultingDisk::writes() > write) ++crashes;
    Stop();
    FaultingDisk::FailAt(-1, SQLITE_OK);
    ASSERT_TRUE(Start().ok()) << write;
    ASSERT_TRUE(Create("r", recipe).ok()) << write;
    ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED)
        << write << ": " << orchestrator_->Get("r")->error().message();
    ASSERT_EQ(Hashes("r"), hashes) << write;
  }
  EXPECT_GT(crashes, 10);
}

TEST_F(OrchestratorTest, FinishedItemsAreNotDoneAgain) {
  ASSERT_TRUE(Start().ok());
  std::atomic<int> calls{0};
  services_->SetScript([&](absl::string_view method, const CallOptions&) -> absl::Status {
    if (method == "Generate" && ++calls > 3) return absl::UnavailableError("gone");
    return absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  bool ended = false;
  for (int64_t sequence = 0; orchestrator_->Get("r")->state() != v1::RUN_STATE_PAUSED;) {
    const auto events = orchestrator_->Events("r", sequence, absl::Seconds(30), &ended).value();
    if (!events.empty()) sequence = events.back().sequence();
    ASSERT_FALSE(ended);
  }
  const double seconds = orchestrator_->Get("r")->stages(0).seconds();
  Stop();
  services_->SetScript(nullptr);
  const int64_t before = services_->calls("Generate");
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(services_->calls("Generate") - before, 3);  // of 6 items
  EXPECT_EQ(services_->calls("GeneratePrompts"), 3);
  // Time counts over restarts.
  EXPECT_GT(seconds, 0);
  EXPECT_EQ(orchestrator_->Get("r")->stages(0).seconds(), seconds);
  EXPECT_GT(orchestrator_->Get("r")->stages(1).seconds(), 0.02);  // it had paused for longer
}

TEST_F(OrchestratorTest, PausesWhileServicesAreAwayAndGoesOnByItself) {
  const auto hashes = UndisturbedHashes();
  Reset();
  ASSERT_TRUE(Start().ok());
  std::atomic<bool> away{true};
  services_->SetScript([&](absl::string_view method, const CallOptions&) -> absl::Status {
    if (away && (method == "SimulateDialogues" || method == "CreateJob"))
      return absl::UnavailableError("gone");
    return absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  bool ended = false;
  for (int64_t sequence = 0; orchestrator_->Get("r")->state() != v1::RUN_STATE_PAUSED;) {
    const auto events = orchestrator_->Events("r", sequence, absl::Seconds(30), &ended).value();
    if (!events.empty()) sequence = events.back().sequence();
  }
  EXPECT_EQ(orchestrator_->Get("r")->error().message(), "gone");
  EXPECT_THAT(Messages("r"), Contains("waiting for services: gone"));
  services_->LoseModels();  // they were restarted
  away = false;
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_THAT(Messages("r"), Contains("services are back"));
  EXPECT_EQ(Hashes("r"), hashes);
}

TEST_F(OrchestratorTest, AStreamThatIsTooSlowIsGivenLonger) {
  concurrent_items_ = 1;
  ASSERT_TRUE(Start().ok());
  std::atomic<int> late{0};
  services_->SetScript([&](absl::string_view method, const CallOptions& options) -> absl::Status {
    if (method != "SimulateDialogues" || options.timeout >= absl::Minutes(25)) return absl::OkStatus();
    return ++late < 10 ? absl::DeadlineExceededError("too slow") : absl::FailedPreconditionError("for ever");
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_EQ(late, 2) << "of the first item, with 10 and 20 minutes; the second begins with what was enough";
}

TEST_F(OrchestratorTest, BringsBackModelsThatAServiceHasLost) {
  const auto hashes = UndisturbedHashes();
  Reset();
  ASSERT_TRUE(Start().ok());
  std::atomic<int> calls{0};
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    if (method != "LoadModel" && ++calls % 5 == 0) services_->LoseModels();
    return absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_EQ(Hashes("r"), hashes);
}

TEST_F(OrchestratorTest, KeepsModelsInMemoryWhileNobodyAsksForThem) {
  RetryPolicy policy;
  policy.restore_every = absl::Milliseconds(1);
  const auto ignore = [](const absl::Status&) {};
  CostMeter meter;
  RetryBudget budget(policy);
  RetryingServices stage(services_.get(), policy, &budget, std::stop_token(), &meter, ignore, ignore);
  types::v1::LoadModelRequest request;
  request.set_name("models/RM");
  request.set_source("RM");
  ASSERT_TRUE(stage.PlaceModel(ModelHost::kReward, request).ok());
  services_->LoseModels();
  absl::Notification restored;
  std::atomic<int> loads{0};
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    if (method == "LoadModel" && ++loads == 2) restored.Notify();  // the first one has had its answer
    return absl::OkStatus();
  });
  ASSERT_TRUE(restored.WaitForNotificationWithTimeout(absl::Seconds(30)));
  EXPECT_THAT(services_->models(), Contains("models/RM"));
}

TEST_F(OrchestratorTest, CancelStopsWithinSecondsAndTheTrainerToo) {
  ASSERT_TRUE(Start().ok());
  services_->HoldJobs(true);
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  bool ended = false;
  for (int64_t sequence = 0; services_->calls("WatchJob") == 0;) {
    const auto events = orchestrator_->Events("r", sequence, absl::Seconds(30), &ended).value();
    if (!events.empty()) sequence = events.back().sequence();
  }
  const absl::Time start = absl::Now();
  EXPECT_EQ(orchestrator_->Cancel("r")->state(), v1::RUN_STATE_CANCELLED);
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  ASSERT_EQ(services_->jobs().size(), 1u);
  EXPECT_EQ(services_->jobs().begin()->second, trainer::v1::JOB_STATE_CANCELLED);
  EXPECT_TRUE(services_->models().empty());

  // A restart leaves it be; Resume goes on, with a job of its own.
  Stop();
  services_->HoldJobs(false);
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(orchestrator_->Get("r")->state(), v1::RUN_STATE_CANCELLED);
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(orchestrator_->Resume("r").status().code(), absl::StatusCode::kFailedPrecondition);
  const auto hashes = Hashes("r");
  Reset();
  EXPECT_EQ(UndisturbedHashes(), hashes);
}

TEST_F(OrchestratorTest, PauseStopsWhatIsUnderWayAndLastsUntilResume) {
  const auto hashes = UndisturbedHashes();
  Reset();
  concurrent_items_ = 1;  // a second call would notify again
  ASSERT_TRUE(Start().ok());
  absl::Notification generating;
  std::atomic<bool> holds{true};
  services_->SetScript([&](absl::string_view method, const CallOptions& options) -> absl::Status {
    if (method != "Generate" || !holds) return absl::OkStatus();
    if (!generating.HasBeenNotified()) generating.Notify();
    absl::Notification stopped;  // no other answer comes
    const std::stop_callback on_stop(options.stop, [&stopped] { stopped.Notify(); });
    EXPECT_TRUE(stopped.WaitForNotificationWithTimeout(absl::Seconds(30)));
    return absl::CancelledError("stopped");
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  ASSERT_TRUE(generating.WaitForNotificationWithTimeout(absl::Seconds(30)));
  v1::Run run = orchestrator_->Pause("r").value();
  EXPECT_EQ(run.state(), v1::RUN_STATE_PAUSED_BY_USER);
  EXPECT_EQ(run.end_time().seconds(), 0);
  EXPECT_EQ(run.stages(0).state(), v1::STAGE_STATE_SUCCEEDED);
  EXPECT_EQ(run.stages(1).state(), v1::STAGE_STATE_WAITING);
  EXPECT_TRUE(services_->models().empty());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_PAUSED_BY_USER) << "who watches is let go";
  EXPECT_EQ(Messages("r").back(), "paused");
  EXPECT_EQ(orchestrator_->Pause("r")->state(), v1::RUN_STATE_PAUSED_BY_USER);
  EXPECT_EQ(orchestrator_->Delete("r").code(), absl::StatusCode::kFailedPrecondition);

  // A restart leaves it be, unlike a run whose services are away.
  Stop();
  const int64_t calls = services_->calls("Generate");
  holds = false;
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(orchestrator_->Get("r")->state(), v1::RUN_STATE_PAUSED_BY_USER);
  EXPECT_EQ(orchestrator_->Pause("r")->state(), v1::RUN_STATE_PAUSED_BY_USER);
  EXPECT_EQ(services_->calls("Generate"), calls);
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_EQ(Hashes("r"), hashes);
  EXPECT_EQ(services_->calls("GeneratePrompts"), 3) << "what was done is not done again";
  EXPECT_EQ(orchestrator_->Pause("r").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(orchestrator_->Pause("none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(OrchestratorTest, PauseKeepsTheJobAndCancelGivesItUp) {
  ASSERT_TRUE(Start().ok());
  const auto pause_in_training = [&](const std::string& id) {
    services_->HoldJobs(true);
    const int64_t watches = services_->calls("WatchJob");
    ASSERT_TRUE(Create(id, ScriptedRecipe(7), false, /*recompute=*/true).ok());
    bool ended = false;
    for (int64_t sequence = 0; services_->calls("WatchJob") == watches;) {
      const auto events = orchestrator_->Events(id, sequence, absl::Seconds(30), &ended).value();
      if (!events.empty()) sequence = events.back().sequence();
    }
    EXPECT_EQ(orchestrator_->Pause(id)->state(), v1::RUN_STATE_PAUSED_BY_USER);
  };
  // Another run's job stays at work, though the first 80 characters of their ids are the same.
  const std::string id(90, 'a');
  trainer::v1::CreateJobRequest other;
  other.mutable_spec()->set_seed(1);
  other.set_job_id(RunJobId(id + "b", "sft", other.spec(), 0));
  ASSERT_TRUE(services_->CreateJob({}, other).ok());
  pause_in_training(id);
  auto jobs = services_->jobs();
  ASSERT_EQ(jobs.size(), 2u);
  EXPECT_EQ(jobs.at("jobs/" + other.job_id()), trainer::v1::JOB_STATE_RUNNING);
  jobs.erase("jobs/" + other.job_id());
  EXPECT_EQ(jobs.begin()->second, trainer::v1::JOB_STATE_PAUSED);

  services_->HoldJobs(false);
  ASSERT_TRUE(orchestrator_->Resume(id).ok());
  EXPECT_EQ(WaitForEnd(id), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get(id)->error().message();
  EXPECT_EQ(services_->calls("ResumeJob"), 1);
  EXPECT_EQ(services_->jobs().size(), 4u) << "three, one of which was paused, and the other run's";
  EXPECT_EQ(services_->jobs().at(jobs.begin()->first), trainer::v1::JOB_STATE_SUCCEEDED);

  for (const bool restarted : {false, true}) {
    const std::string cancelled = restarted ? "restarted" : "cancelled";
    pause_in_training(cancelled);
    if (restarted) {
      Stop();
      ASSERT_TRUE(Start().ok());
    }
    EXPECT_EQ(orchestrator_->Cancel(cancelled)->state(), v1::RUN_STATE_CANCELLED);
    EXPECT_EQ(WaitForEnd(cancelled), v1::RUN_STATE_CANCELLED);
    for (const auto& [name, state] : services_->jobs()) {
      EXPECT_NE(state, trainer::v1::JOB_STATE_PAUSED) << name;
    }
    EXPECT_TRUE(orchestrator_->Delete(cancelled).ok());
  }
}

TEST_F(OrchestratorTest, CancelGivesUpWhatTheJobOfAFailedRunHasKept) {
  ASSERT_TRUE(Start().ok());
  services_->SetScript([](absl::string_view method, const CallOptions&) {
    return method == "Train" ? absl::ResourceExhaustedError("no space left") : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_EQ(services_->calls("CancelJob"), 0) << "the run may be resumed";
  EXPECT_EQ(orchestrator_->Cancel("r")->state(), v1::RUN_STATE_FAILED);
  EXPECT_EQ(services_->calls("CancelJob"), 1);
}

TEST_F(OrchestratorTest, ADeterministicErrorFailsTheStageAndCanBeResumed) {
  ASSERT_TRUE(Start().ok());
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    return method == "Generate" ? absl::OutOfRangeError("longer than the context") : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  const v1::Run run = orchestrator_->Get("r").value();
  EXPECT_THAT(run.error().message(), HasSubstr("responses: "));
  EXPECT_THAT(run.error().message(), HasSubstr("longer than the context"));
  EXPECT_EQ(run.stages(1).state(), v1::STAGE_STATE_FAILED);
  EXPECT_EQ(run.stages(2).state(), v1::STAGE_STATE_WAITING);
  services_->SetScript(nullptr);
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
}

TEST_F(OrchestratorTest, AStageRefusesToMixNumerics) {
  ASSERT_TRUE(Start().ok());
  std::atomic<int> calls{0};
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    if (method == "Generate" && ++calls == 3) services_->SetNumerics("numerics-2");
    return absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_EQ(orchestrator_->Get("r")->error().code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(orchestrator_->Get("r")->error().message(), HasSubstr("does not mix two"));
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
}

// Asked where it runs, not loaded for the stage: no model of the run's is loaded with other numerics.
TEST_F(OrchestratorTest, AResumedRunScoresPairsAnewWhoseScorerChanged) {
  concurrent_items_ = 1;
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_agreeing_scorer("models/as-is");
  ASSERT_TRUE(Start().ok());
  types::v1::LoadModelRequest scorer;
  scorer.set_name("models/as-is");
  scorer.set_source("as-is");
  ASSERT_TRUE(services_->LoadModel({}, ModelHost::kReward, scorer).ok());
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    // Whoever the stage asked first, and the first of its items, had the numerics before.
    if (method == "Score" && services_->calls("Score") == 3) services_->SetNumerics("numerics-2");
    return absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", recipe).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_EQ(orchestrator_->Get("r")->error().code(), static_cast<int>(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(orchestrator_->Get("r")->error().message(), HasSubstr("comparisons.agreeing_scorer: "));
  EXPECT_THAT(orchestrator_->Get("r")->error().message(), HasSubstr("resume the run"));
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
}

// What had ended stays; of the stage at work, and of the one that follows it, nothing does.
TEST_F(OrchestratorTest, AResumedRunDoesAStageAnewWhoseNumericsChanged) {
  concurrent_items_ = 1;
  v1::Recipe recipe = ScriptedRecipe(7);
  recipe.mutable_comparisons()->set_rule(v1::ComparisonStage::RULE_PAPER);
  const auto upgrade = [this] {
    services_->SetNumerics("numerics-2");
    services_->SetSalt("numerics-2");
  };
  ASSERT_TRUE(Start().ok());
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    if (method == "LoadModel" && services_->calls("GeneratePrompts") == 3) upgrade();  // after the prompts
    return absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", recipe).ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  const auto hashes = Hashes("r");

  Reset();
  ASSERT_TRUE(Start().ok());
  services_->SetScript([&](absl::string_view method, const CallOptions&) -> absl::Status {
    return method == "Generate" && services_->calls(method) > 4 ? absl::UnavailableError("being replaced")
                                                                : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", recipe).ok());
  // The first chunk has its three answers, and they are paired.
  const auto is_paired = [this] {
    const auto items = journal_->GetItems("r", "comparisons", 0, 1, /*results=*/false).value();
    return !items.empty() && items[0].state == ItemState::kDone;
  };
  while (!is_paired()) absl::SleepFor(absl::Milliseconds(1));
  Stop();
  upgrade();
  services_->SetScript(nullptr);
  ASSERT_TRUE(Start().ok());
  // By itself the run does not give up what was done.
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_THAT(orchestrator_->Get("r")->error().message(), HasSubstr("a stage does not mix two"));
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  ASSERT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
  EXPECT_EQ(Hashes("r"), hashes);
  EXPECT_THAT(Messages("r"), Contains(HasSubstr("now has numerics numerics-2, not numerics-1")));
}

TEST_F(OrchestratorTest, AFailedJobIsTriedAgainOnlyWhenTheWorldFailed) {
  ASSERT_TRUE(Start().ok());
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    return method == "CreateJob" ? absl::InvalidArgumentError("spec.epochs: must be above 0")
                                 : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_EQ(services_->calls("CreateJob"), 1);
  EXPECT_THAT(orchestrator_->Get("r")->error().message(), HasSubstr("reward_model: "));
}

TEST_F(OrchestratorTest, AJobThatFailsForAFullDiskWaitsForAResume) {
  const auto hashes = UndisturbedHashes();
  Reset();
  ASSERT_TRUE(Start().ok());
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    return method == "Train" ? absl::ResourceExhaustedError("no space for model.safetensors")
                             : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  EXPECT_EQ(services_->calls("CreateJob"), 1);
  services_->SetScript([](absl::string_view, const CallOptions&) { return absl::OkStatus(); });
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Hashes("r"), hashes);
  EXPECT_EQ(services_->calls("ResumeJob"), 1);
  EXPECT_EQ(services_->jobs().size(), 3u) << "the one that failed has gone on, no other began anew";
}

TEST_F(OrchestratorTest, AJobThatAnOutageEndedGoesOnWithinItsRun) {
  const auto hashes = UndisturbedHashes();
  const int64_t tokens = orchestrator_->Get("r")->cost().trained_tokens();
  Reset();
  ASSERT_TRUE(Start().ok());
  std::atomic<int> left{2};
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    return method == "Train" && left-- > 0 ? absl::UnavailableError("reward: nobody there")
                                           : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Hashes("r"), hashes);
  EXPECT_EQ(services_->calls("ResumeJob"), 2);
  EXPECT_EQ(services_->jobs().size(), 3u);
  EXPECT_EQ(orchestrator_->Get("r")->cost().trained_tokens(), tokens) << "no step counts twice";
}

// As when the trainer is another machine, or has other files: where that was mended the job goes on, and
// where it was not the run's next attempt is another job.
TEST_F(OrchestratorTest, AJobThatTheTrainersStateFailedGoesOnWhenResumedOrBeginsAnew) {
  for (const int failures : {1, 2}) {
    Reset();
    ASSERT_TRUE(Start().ok());
    std::atomic<int> left{failures};
    services_->SetScript([&](absl::string_view method, const CallOptions&) {
      return method == "Train" && left-- > 0 ? absl::FailedPreconditionError("made with other numerics")
                                             : absl::OkStatus();
    });
    ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
    EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
    EXPECT_EQ(services_->calls("CreateJob"), 1);
    ASSERT_TRUE(orchestrator_->Resume("r").ok());
    EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED) << orchestrator_->Get("r")->error().message();
    EXPECT_EQ(services_->calls("ResumeJob"), 1);
    EXPECT_EQ(services_->calls("CancelJob"), failures - 1) << "nobody goes on from its checkpoints";
    EXPECT_EQ(services_->jobs().size(), failures == 1 ? 3u : 4u);
  }
}

// Nothing is there to go on from: the work was given up, or the job failed of itself.
TEST_F(OrchestratorTest, AJobThatCannotGoOnIsFollowedByAnother) {
  ASSERT_TRUE(Start().ok());
  std::atomic<int> left{1};
  services_->SetScript([&](absl::string_view method, const CallOptions&) {
    return method == "Train" && left-- > 0 ? absl::NotFoundError("reward: no models/RM") : absl::OkStatus();
  });
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(services_->jobs().size(), 4u);
}

TEST_F(OrchestratorTest, CreateIsHarmlessToRepeat) {
  ASSERT_TRUE(Start().ok());
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(Create("r", ScriptedRecipe(8)).status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(Create("../r", ScriptedRecipe(7)).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(orchestrator_->Get("nothing").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Create("v", ScriptedRecipe(7), /*validate_only=*/true)->stages_size(), 8);
  EXPECT_EQ(orchestrator_->Get("v").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  int64_t next = 0;
  EXPECT_EQ(orchestrator_->List(0, 10, &next)->size(), 1u);
  EXPECT_EQ(next, 0);
}

TEST_F(OrchestratorTest, ARunThatIsAskedForTwiceAtOnceIsOne) {
  std::latch both_inside(2);
  check_ = [&](const v1::Recipe&) {
    both_inside.arrive_and_wait();
    return absl::OkStatus();
  };
  ASSERT_TRUE(Start().ok());
  std::vector<std::jthread> clients;
  for (int i = 0; i < 2; ++i) {
    clients.emplace_back([this] {
      const auto run = Create("r", ScriptedRecipe(7));
      ASSERT_TRUE(run.ok()) << run.status();
      EXPECT_EQ(run->name(), "runs/r");
    });
  }
  clients.clear();
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
}

TEST_F(OrchestratorTest, ARunWhoseClientHasGoneIsNotBegun) {
  ASSERT_TRUE(Start().ok());
  v1::CreateRunRequest request;
  request.set_run_id("r");
  *request.mutable_recipe() = WithDefaults(ScriptedRecipe(7));
  const auto run = orchestrator_->Create(request, [] { return true; });
  EXPECT_EQ(run.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(orchestrator_->Get("r").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(OrchestratorTest, AFullDiskOfTheStoreFailsTheRunByName) {
  const auto hashes = UndisturbedHashes();
  // In the middle of an artifact; an operation that only tidies up may fail without harm.
  v1::RunState state = v1::RUN_STATE_SUCCEEDED;
  for (int operation = 12; state == v1::RUN_STATE_SUCCEEDED && operation < 20; ++operation) {
    Reset();
    ASSERT_TRUE(Start().ok());
    env_.FailAt(operation, FaultEnv::Fault::kFull);
    ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
    state = WaitForEnd("r");
  }
  ASSERT_EQ(state, v1::RUN_STATE_FAILED);
  EXPECT_EQ(orchestrator_->Get("r")->error().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(orchestrator_->Get("r")->error().message(), HasSubstr("no space for"));
  env_.Heal();
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Hashes("r"), hashes);
}

TEST_F(OrchestratorTest, AFullDiskOfTheJournalEndsTheRunForThoseWhoWatch) {
  const auto hashes = UndisturbedHashes();
  Reset();
  ASSERT_TRUE(Start().ok());
  FaultingDisk::FailFrom(60, SQLITE_FULL);
  ASSERT_TRUE(Create("r", ScriptedRecipe(7)).ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_FAILED);
  bool ended = false;
  const auto events = orchestrator_->Events("r", 0, absl::ZeroDuration(), &ended).value();
  EXPECT_TRUE(ended);
  EXPECT_EQ(events.back().state(), v1::RUN_STATE_FAILED);
  EXPECT_EQ(events.back().error().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(events.back().error().message(), HasSubstr("journal.db"));
  FaultingDisk::Heal();
  ASSERT_TRUE(orchestrator_->Resume("r").ok());
  EXPECT_EQ(WaitForEnd("r"), v1::RUN_STATE_SUCCEEDED);
  EXPECT_EQ(Hashes("r"), hashes);
}

}  // namespace
}  // namespace almost::orchestrator
