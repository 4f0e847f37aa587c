#include "services/orchestrator/core/orchestrator.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/ids.h"
#include "common/base/status_macros.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "services/orchestrator/core/garbage.h"
#include "services/orchestrator/core/run_jobs.h"
#include "services/orchestrator/core/run_plan.h"

namespace almost::orchestrator {
namespace {

constexpr absl::Duration kStopWait = absl::Seconds(10);
constexpr int64_t kEventsPage = 256;
constexpr absl::string_view kArtifacts = "artifacts/";

// Equal recipes have equal bytes.
std::string Serialize(const v1::Recipe& recipe) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream coded(&stream);
  coded.SetSerializationDeterministic(true);
  recipe.SerializeToCodedStream(&coded);
  coded.Trim();
  return bytes;
}

absl::StatusOr<v1::Recipe> ParseRecipe(const RunRecord& record) {
  v1::Recipe recipe;
  if (!recipe.ParseFromString(record.recipe)) {
    return absl::DataLossError(absl::StrCat("the journal's recipe of run ", record.id, " is damaged"));
  }
  return recipe;
}

// What a run keeps of its request besides id and recipe.
v1::CreateRunRequest Settings(const v1::CreateRunRequest& request) {
  v1::CreateRunRequest settings;
  settings.set_recompute(request.recompute());
  settings.set_priority(request.priority());
  return settings;
}

v1::Run Shown(const RunRecord& record) {
  v1::Run run;
  v1::CreateRunRequest settings;
  settings.ParseFromString(record.settings);
  run.set_recompute(settings.recompute());
  run.set_priority(settings.priority());
  run.set_name(absl::StrCat("runs/", record.id));
  run.set_state(static_cast<v1::RunState>(record.state));
  if (!record.error.empty()) run.mutable_error()->ParseFromString(record.error);
  run.mutable_create_time()->set_seconds(absl::ToUnixSeconds(record.create_time));
  if (record.end_time != absl::InfiniteFuture()) {
    run.mutable_end_time()->set_seconds(absl::ToUnixSeconds(record.end_time));
  }
  return run;
}

bool AtWork(int64_t state) { return state == v1::RUN_STATE_RUNNING || state == v1::RUN_STATE_PAUSED; }

}  // namespace

Orchestrator::Orchestrator(const RunEnvironment& environment, RecipeCheck check)
    : slots_(environment.total_items),
      environment_([this, &environment] {
        RunEnvironment own = environment;
        own.slots = &slots_;
        own.sweep = &sweep_;
        return own;
      }()),
      check_(std::move(check)) {}

Orchestrator::~Orchestrator() {
  const absl::MutexLock lock(&mutex_);
  for (const auto& [id, run] : active_) run->RequestStop(RunExecution::StopKind::kShutdown);
  active_.clear();
}

absl::Status Orchestrator::Recover() {
  const absl::MutexLock start_lock(&start_mutex_);
  for (int64_t before = 0;;) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<RunRecord> runs, environment_.journal->ListRuns(before, 100));
    if (runs.empty()) return absl::OkStatus();
    for (const RunRecord& listed : runs) {
      before = listed.number;
      if (!AtWork(listed.state)) continue;
      ALMOST_ASSIGN_OR_RETURN(RunRecord record, environment_.journal->GetRun(listed.id));
      environment_.observer->StateChanged(record.id, v1::RUN_STATE_UNSPECIFIED, v1::RUN_STATE_RUNNING);
      ALMOST_RETURN_IF_ERROR(Start(std::move(record), /*may_redo=*/false));
    }
  }
}

absl::Status Orchestrator::Start(RunRecord record, bool may_redo) {
  Journal& journal = *environment_.journal;
  ALMOST_ASSIGN_OR_RETURN(v1::Recipe recipe, ParseRecipe(record));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<StageRecord> stage_records, journal.GetStages(record.id));
  std::vector<StageProgress> stages;
  for (const StageRecord& stage : stage_records) {
    ALMOST_ASSIGN_OR_RETURN(StageProgress progress, StageProgress::FromRecord(stage));
    stages.push_back(std::move(progress));
  }
  int64_t num_events = 0;
  while (true) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<EventRecord> events,
                            journal.GetEvents(record.id, num_events, kEventsPage));
    if (events.empty()) break;
    num_events = events.back().sequence;
  }
  const std::string id = record.id;
  record.recipe = std::string();  // a large one need not be there twice
  auto run = std::make_shared<RunExecution>(environment_, std::move(record), std::move(recipe),
                                            std::move(stages), num_events, may_redo);
  const absl::MutexLock lock(&mutex_);
  // What has ended, and stands so in the journal, is read from there.
  std::erase_if(active_, [&](const auto& each) {
    return each.second->ended() && !AtWork(journal.GetRun(each.first).value_or(RunRecord()).state);
  });
  active_[id] = std::move(run);
  return absl::OkStatus();
}

absl::StatusOr<v1::Run> Orchestrator::Create(const v1::CreateRunRequest& request,
                                             const std::function<bool()>& given_up) {
  const std::string& id = request.run_id();
  const v1::Recipe& recipe = request.recipe();
  if (!request.validate_only()) ALMOST_RETURN_IF_ERROR(ValidateId("run_id", id));
  RunRecord record;
  record.id = id;
  record.state = v1::RUN_STATE_RUNNING;
  record.recipe = Serialize(recipe);
  record.settings = Settings(request).SerializeAsString();
  record.create_time = absl::Now();
  // The run of that id, if there is one.
  const auto existing = [&]() -> std::optional<absl::StatusOr<v1::Run>> {
    const absl::StatusOr<RunRecord> known = environment_.journal->GetRun(id);
    if (!known.ok()) return std::nullopt;
    if (known->recipe == record.recipe) return Get(id);
    return absl::AlreadyExistsError(absl::StrCat("run_id: \"", id, "\" is a run with another recipe"));
  };
  if (auto run = existing(); run.has_value()) return *std::move(run);
  ALMOST_RETURN_IF_ERROR(check_(recipe));
  if (request.validate_only()) {
    v1::Run run;
    run.set_name(absl::StrCat("runs/", id));
    *run.mutable_recipe() = recipe;
    ALMOST_RETURN_IF_ERROR(PlanRun(environment_, recipe, request.recompute(), &run));
    return run;
  }
  const absl::MutexLock start_lock(&start_mutex_);
  // The check took its time: another call may have created the run, and this one's client be gone.
  if (auto run = existing(); run.has_value()) return *std::move(run);
  if (given_up && given_up()) return absl::CancelledError("the client has gone");
  v1::RunEvent event;
  event.set_state(v1::RUN_STATE_RUNNING);
  event.set_message("created");
  JournalBatch batch;
  batch.CreateRun(record);
  batch.AddEvent(record.id, event.SerializeAsString());
  ALMOST_RETURN_IF_ERROR(environment_.journal->Commit(batch));
  environment_.observer->StateChanged(record.id, v1::RUN_STATE_UNSPECIFIED, v1::RUN_STATE_RUNNING);
  ALMOST_RETURN_IF_ERROR(Start(std::move(record), /*may_redo=*/false));
  return Get(id);
}

std::shared_ptr<RunExecution> Orchestrator::Active(absl::string_view id) const {
  const absl::MutexLock lock(&mutex_);
  const auto run = active_.find(id);
  return run == active_.end() ? nullptr : run->second;
}

absl::StatusOr<v1::Run> Orchestrator::FromJournal(absl::string_view id) const {
  ALMOST_ASSIGN_OR_RETURN(const RunRecord record, environment_.journal->GetRun(id));
  v1::Run run = Shown(record);
  ALMOST_ASSIGN_OR_RETURN(*run.mutable_recipe(), ParseRecipe(record));
  run.set_summary_json(record.summary);
  ALMOST_ASSIGN_OR_RETURN(const std::vector<StageRecord> stages, environment_.journal->GetStages(id));
  for (const std::unique_ptr<Stage>& stage : environment_.make_stages(run.recipe())) {
    v1::Stage& shown = *run.add_stages();
    shown.set_id(std::string(stage->id()));
    shown.set_state(v1::STAGE_STATE_WAITING);
    for (const StageRecord& known : stages) {
      if (known.stage != shown.id()) continue;
      ALMOST_ASSIGN_OR_RETURN(const StageProgress progress, StageProgress::FromRecord(known));
      shown = progress.shown;
    }
    AddTo(shown.cost(), run.mutable_cost());
  }
  return run;
}

absl::StatusOr<v1::Run> Orchestrator::Get(absl::string_view id) const {
  const std::shared_ptr<RunExecution> active = Active(id);
  return active != nullptr ? active->Snapshot() : FromJournal(id);
}

absl::StatusOr<std::vector<v1::Run>> Orchestrator::List(int64_t before, int64_t limit, int64_t* next) const {
  ALMOST_ASSIGN_OR_RETURN(const std::vector<RunRecord> records,
                          environment_.journal->ListRuns(before, limit + 1));
  std::vector<v1::Run> runs;
  *next = 0;
  for (const RunRecord& record : records) {
    if (static_cast<int64_t>(runs.size()) == limit) {
      *next = records[runs.size() - 1].number;
      break;
    }
    const std::shared_ptr<RunExecution> active = Active(record.id);
    v1::Run& run = runs.emplace_back(active != nullptr ? active->Snapshot() : Shown(record));
    run.clear_recipe();
    run.clear_summary_json();
  }
  return runs;
}

absl::StatusOr<v1::Run> Orchestrator::Cancel(absl::string_view id) {
  if (const std::shared_ptr<RunExecution> active = Active(id); active != nullptr) {
    active->RequestStop(RunExecution::StopKind::kCancel);
    active->WaitUntilEnded(kStopWait);
  }
  ALMOST_RETURN_IF_ERROR(CancelStopped(id));
  return Get(id);
}

absl::Status Orchestrator::CommitState(RunRecord& record, v1::RunState state, absl::string_view message) {
  record.state = state;
  v1::RunEvent event;
  event.set_state(state);
  event.set_message(std::string(message));
  JournalBatch batch;
  batch.UpdateRun(record);
  batch.AddEvent(record.id, event.SerializeAsString());
  return environment_.journal->Commit(batch);
}

absl::Status Orchestrator::CancelStopped(absl::string_view id) {
  const absl::MutexLock start_lock(&start_mutex_);
  ALMOST_ASSIGN_OR_RETURN(RunRecord record, environment_.journal->GetRun(id));
  const bool paused = record.state == v1::RUN_STATE_PAUSED_BY_USER;
  if (!paused && record.state != v1::RUN_STATE_FAILED) return absl::OkStatus();
  ALMOST_RETURN_IF_ERROR(StopJobs(*environment_.services, record.id, JobsEnd::kCancelled));
  if (!paused) return absl::OkStatus();
  record.end_time = absl::Now();
  ALMOST_RETURN_IF_ERROR(CommitState(record, v1::RUN_STATE_CANCELLED, "cancelled"));
  const absl::MutexLock lock(&mutex_);
  // One that was paused in an earlier process is new to the observer.
  environment_.observer->StateChanged(
      record.id, active_.erase(record.id) > 0 ? v1::RUN_STATE_PAUSED_BY_USER : v1::RUN_STATE_UNSPECIFIED,
      v1::RUN_STATE_CANCELLED);
  return absl::OkStatus();
}

absl::StatusOr<v1::Run> Orchestrator::Pause(absl::string_view id) {
  ALMOST_ASSIGN_OR_RETURN(const RunRecord record, environment_.journal->GetRun(id));
  const std::shared_ptr<RunExecution> active = Active(id);
  if (active != nullptr && !active->ended()) {
    active->RequestStop(RunExecution::StopKind::kPause);
    active->WaitUntilEnded(kStopWait);
  } else if (record.state != v1::RUN_STATE_PAUSED_BY_USER) {
    return absl::FailedPreconditionError(absl::StrCat("run \"", id, "\" has ended"));
  }
  return Get(id);
}

absl::StatusOr<v1::Run> Orchestrator::Resume(absl::string_view id) {
  const absl::MutexLock start_lock(&start_mutex_);
  ALMOST_ASSIGN_OR_RETURN(RunRecord record, environment_.journal->GetRun(id));
  std::shared_ptr<RunExecution> active = Active(id);
  const bool stopping = active != nullptr && !active->ended();
  if (stopping || record.state == v1::RUN_STATE_SUCCEEDED) {
    return absl::FailedPreconditionError(
        absl::StrCat("run \"", id, "\" ", stopping ? "is at work" : "has succeeded"));
  }
  // A run that ended in an earlier process is new to the observer.
  const auto before = active == nullptr ? v1::RUN_STATE_UNSPECIFIED : active->Snapshot().state();
  google::rpc::Status error;
  error.ParseFromString(record.error);
  const bool may_redo = error.code() == static_cast<int>(absl::StatusCode::kFailedPrecondition);
  record.error.clear();
  record.end_time = absl::InfiniteFuture();
  ALMOST_RETURN_IF_ERROR(CommitState(record, v1::RUN_STATE_RUNNING, "resumed"));
  environment_.observer->StateChanged(record.id, before, v1::RUN_STATE_RUNNING);
  ALMOST_RETURN_IF_ERROR(Start(std::move(record), may_redo));
  return Get(id);
}

absl::Status Orchestrator::Delete(absl::string_view id) {
  const absl::MutexLock start_lock(&start_mutex_);
  ALMOST_ASSIGN_OR_RETURN(const RunRecord record, environment_.journal->GetRun(id));
  const std::shared_ptr<RunExecution> active = Active(id);
  const bool paused = record.state == v1::RUN_STATE_PAUSED_BY_USER;
  if ((active != nullptr && !active->ended()) || AtWork(record.state) || paused) {
    return absl::FailedPreconditionError(
        absl::StrCat("run \"", id, "\" is ", paused ? "paused" : "at work", "; cancel it first"));
  }
  // The folder first: should that fail, the run is still there to be deleted again.
  ALMOST_RETURN_IF_ERROR(environment_.store->RemoveRun(record.id));
  JournalBatch batch;
  batch.DeleteRun(record.id);
  ALMOST_RETURN_IF_ERROR(environment_.journal->Commit(batch));
  if (active != nullptr) {
    environment_.observer->StateChanged(record.id, static_cast<v1::RunState>(record.state),
                                        v1::RUN_STATE_UNSPECIFIED);
  }
  const absl::MutexLock lock(&mutex_);
  active_.erase(record.id);
  return absl::OkStatus();
}

absl::StatusOr<std::set<std::string>> Orchestrator::KeptArtifacts(absl::Duration candidates) const {
  Journal& journal = *environment_.journal;
  std::set<std::string> kept;
  const absl::Time now = absl::Now();
  for (int64_t before = 0;;) {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<RunRecord> runs, journal.ListRuns(before, 100));
    if (runs.empty()) return kept;
    before = runs.back().number;
    for (const RunRecord& listed : runs) {
      const absl::StatusOr<RunRecord> record = journal.GetRun(listed.id);
      if (absl::IsNotFound(record.status())) continue;  // deleted meanwhile
      ALMOST_RETURN_IF_ERROR(record.status());
      ALMOST_ASSIGN_OR_RETURN(const v1::Recipe recipe, ParseRecipe(*record));
      for (const v1::VanillaModel& model : recipe.models()) {
        if (absl::StartsWith(model.source(), kArtifacts))
          kept.insert(model.source().substr(kArtifacts.size()));
      }
      if (const std::string& source = recipe.comparisons().agreeing_source();
          absl::StartsWith(source, kArtifacts)) {
        kept.insert(source.substr(kArtifacts.size()));
      }
      const std::vector<std::unique_ptr<Stage>> own = environment_.make_stages(recipe);
      ALMOST_ASSIGN_OR_RETURN(const std::vector<StageRecord> stages, journal.GetStages(listed.id));
      for (const StageRecord& stage : stages) {
        ALMOST_ASSIGN_OR_RETURN(const StageProgress progress, StageProgress::FromRecord(stage));
        for (const auto& [name, digest] : progress.artifacts) {
          if (name != "candidates" || now - record->end_time < candidates) kept.insert(digest);
        }
        // A model that was trained and is not published yet: its stage's only item says which.
        const bool trains = std::any_of(own.begin(), own.end(), [&](const std::unique_ptr<Stage>& each) {
          return each->id() == absl::string_view(stage.stage) && each->only_waits();
        });
        if (!trains || stage.state == v1::STAGE_STATE_SUCCEEDED) continue;
        ALMOST_ASSIGN_OR_RETURN(const std::vector<ItemRecord> items,
                                journal.GetItems(listed.id, stage.stage, 0, 1, /*results=*/true));
        for (const ItemRecord& item : items) {
          const auto result = nlohmann::json::parse(item.result, nullptr, /*allow_exceptions=*/false);
          if (result.is_object()) kept.insert(result.value("digest", ""));
        }
      }
    }
  }
}

absl::StatusOr<std::vector<v1::RunEvent>> Orchestrator::Events(absl::string_view id, int64_t after_sequence,
                                                               absl::Duration timeout, bool* ended) const {
  const std::shared_ptr<RunExecution> active = Active(id);
  if (active == nullptr) ALMOST_RETURN_IF_ERROR(environment_.journal->GetRun(id).status());
  // Asked before the events are read, so that the last ones are among them.
  *ended = active == nullptr || active->ended();
  ALMOST_ASSIGN_OR_RETURN(std::vector<EventRecord> records,
                          environment_.journal->GetEvents(id, after_sequence, kEventsPage));
  if (records.empty() && !*ended) {
    active->WaitForEvent(after_sequence, timeout);
    ALMOST_ASSIGN_OR_RETURN(records, environment_.journal->GetEvents(id, after_sequence, kEventsPage));
  }
  *ended = *ended && static_cast<int64_t>(records.size()) < kEventsPage;
  std::vector<v1::RunEvent> events;
  for (const EventRecord& record : records) {
    v1::RunEvent& event = events.emplace_back();
    if (!event.ParseFromString(record.payload)) {
      return absl::DataLossError(absl::StrCat("event ", record.sequence, " of run ", id, " is damaged"));
    }
    event.set_sequence(record.sequence);
  }
  if (!*ended || active == nullptr) return events;
  // An end that the journal could not take, as when its disk is full, is known to the run alone.
  ALMOST_ASSIGN_OR_RETURN(const RunRecord journaled, environment_.journal->GetRun(id));
  if (const v1::Run run = active->Snapshot(); AtWork(journaled.state) && !AtWork(run.state())) {
    const int64_t last = events.empty() ? after_sequence : events.back().sequence();
    v1::RunEvent& event = events.emplace_back();
    event.set_sequence(last);
    event.set_state(run.state());
    event.set_message(run.error().message());
    *event.mutable_error() = run.error();
  }
  return events;
}

absl::StatusOr<v1::CollectGarbageResponse> Orchestrator::CollectGarbage(
    const v1::CollectGarbageRequest& request) {
  absl::Duration candidates = absl::InfiniteDuration();
  if (request.has_candidates_age()) candidates = absl::Seconds(request.candidates_age().seconds());
  const absl::MutexLock lock(&sweep_);
  ALMOST_ASSIGN_OR_RETURN(std::set<std::string> kept, KeptArtifacts(candidates));
  return orchestrator::CollectGarbage(*environment_.journal, *environment_.services, *environment_.store,
                                      std::move(kept), request);
}

absl::StatusOr<std::vector<Orchestrator::RunArtifact>> Orchestrator::Artifacts(absl::string_view id) const {
  ALMOST_ASSIGN_OR_RETURN(const v1::Run run, FromJournal(id));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<StageRecord> records, environment_.journal->GetStages(id));
  std::vector<RunArtifact> artifacts;
  for (const v1::Stage& stage : run.stages()) {
    for (const StageRecord& record : records) {
      if (record.stage != stage.id()) continue;
      ALMOST_ASSIGN_OR_RETURN(const StageProgress progress, StageProgress::FromRecord(record));
      for (const auto& [name, digest] : progress.artifacts) artifacts.push_back({stage.id(), name, digest});
    }
  }
  return artifacts;
}

}  // namespace almost::orchestrator
