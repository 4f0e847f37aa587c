#include "services/orchestrator/core/run_execution.h"

#include <malloc.h>

#include <algorithm>
#include <cstddef>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/logging/logging.h"
#include "common/logging/trace.h"
#include "common/storage/env.h"
#include "services/orchestrator/core/dataset_card.h"
#include "services/orchestrator/core/item_runner.h"
#include "services/orchestrator/core/run_execution_context.h"
#include "services/orchestrator/core/run_jobs.h"
#include "services/orchestrator/core/stage_outcome.h"

namespace almost::orchestrator {
namespace {

absl::Status Stopped() { return absl::CancelledError("the run was stopped"); }

google::rpc::Status ErrorProto(const absl::Status& status) {
  google::rpc::Status proto;
  proto.set_code(static_cast<int>(status.code()));
  proto.set_message(std::string(status.message()));
  return proto;
}

}  // namespace

RunExecution::RunExecution(const RunEnvironment& environment, RunRecord record, v1::Recipe recipe,
                           std::vector<StageProgress> stages, int64_t num_events, bool may_redo)
    : environment_(environment),
      recipe_(std::move(recipe)),
      settings_([&record] {
        v1::CreateRunRequest settings;
        settings.ParseFromString(record.settings);
        return settings;
      }()),
      may_redo_(may_redo),
      stages_(environment_.make_stages(recipe_)),
      retries_(environment_.retry),
      record_(std::move(record)),
      num_events_(num_events) {
  for (const std::unique_ptr<Stage>& stage : stages_) {
    meters_.push_back(std::make_unique<CostMeter>());
    at_work_.emplace_back();
    StageProgress& progress = progress_.emplace_back();
    const auto known = std::find_if(stages.begin(), stages.end(), [&](const StageProgress& each) {
      return each.shown.id() == std::string(stage->id());
    });
    if (known != stages.end()) {
      progress = std::move(*known);
    } else {
      progress.shown.set_id(std::string(stage->id()));
      progress.shown.set_state(v1::STAGE_STATE_WAITING);
    }
    // One that was at work when the process ended waits for its turn again.
    if (progress.shown.state() != v1::STAGE_STATE_SUCCEEDED) {
      progress.shown.set_state(v1::STAGE_STATE_WAITING);
    }
  }
  thread_ = std::jthread([this] { Main(); });
}

RunExecution::~RunExecution() { RequestStop(StopKind::kShutdown); }

void RunExecution::RequestStop(StopKind kind) {
  {
    const absl::MutexLock lock(&mutex_);
    stop_kind_ = std::max(stop_kind_, kind);
  }
  stop_.request_stop();
  Halt(absl::OkStatus());
}

void RunExecution::Halt(const absl::Status& why) {
  {
    const absl::MutexLock lock(&mutex_);
    halted_ = true;
    if (failure_.ok()) failure_ = why;
  }
  halt_.request_stop();
}

bool RunExecution::WaitUntilEnded(absl::Duration timeout) const {
  const absl::MutexLock lock(&mutex_);
  return mutex_.AwaitWithTimeout(absl::Condition(&ended_), timeout);
}

bool RunExecution::ended() const {
  const absl::MutexLock lock(&mutex_);
  return ended_;
}

void RunExecution::WaitForEvent(int64_t num_events, absl::Duration timeout) const {
  const absl::MutexLock lock(&mutex_);
  const auto more = [this, num_events]()
                        ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return num_events_ > num_events || ended_; };
  mutex_.AwaitWithTimeout(absl::Condition(&more), timeout);
}

void RunExecution::SetItems(size_t index, int64_t num_done, int64_t num_set_aside, int64_t num_items) {
  const absl::MutexLock lock(&mutex_);
  v1::Stage& shown = progress_[index].shown;
  shown.set_items_done(num_done);
  shown.set_items_failed(num_set_aside);
  shown.set_items_total(num_items);
}

v1::Stage RunExecution::Shown(size_t index) const {
  v1::Stage stage = progress_[index].shown;
  if (stage.state() == v1::STAGE_STATE_RUNNING) {
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - at_work_[index].start).count();
    stage.set_seconds(stage.seconds() + seconds);
    stage.set_own_seconds(stage.own_seconds() + std::max(0.0, seconds - meters_[index]->WaitedSeconds()));
    AddTo(meters_[index]->Total(), stage.mutable_cost());
  }
  return stage;
}

v1::Run RunExecution::Snapshot() const {
  const absl::MutexLock lock(&mutex_);
  v1::Run run;
  run.set_name(absl::StrCat("runs/", record_.id));
  *run.mutable_recipe() = recipe_;
  run.set_state(static_cast<v1::RunState>(record_.state));
  for (size_t i = 0; i < progress_.size(); ++i) {
    *run.add_stages() = Shown(i);
    AddTo(run.stages(static_cast<int>(i)).cost(), run.mutable_cost());
  }
  if (!error_.ok()) *run.mutable_error() = ErrorProto(error_);
  run.mutable_create_time()->set_seconds(absl::ToUnixSeconds(record_.create_time));
  if (record_.end_time != absl::InfiniteFuture()) {
    run.mutable_end_time()->set_seconds(absl::ToUnixSeconds(record_.end_time));
  }
  run.set_summary_json(record_.summary);
  run.set_recompute(settings_.recompute());
  run.set_priority(settings_.priority());
  return run;
}

std::map<std::string, std::string> RunExecution::Artifacts() const {
  const absl::MutexLock lock(&mutex_);
  std::map<std::string, std::string> artifacts;
  for (const StageProgress& progress : progress_) {
    for (const auto& [name, digest] : progress.artifacts) {
      artifacts[absl::StrCat(progress.shown.id(), "/", name)] = digest;
    }
  }
  return artifacts;
}

void RunExecution::EventCommitted() {
  const absl::MutexLock lock(&mutex_);
  ++num_events_;
}

absl::Status RunExecution::CommitWithEvent(JournalBatch batch, const v1::Stage* stage,
                                           absl::string_view message) {
  v1::RunEvent event;
  std::string id;
  {
    const absl::MutexLock lock(&mutex_);
    id = record_.id;
    event.set_state(static_cast<v1::RunState>(record_.state));
    if (!error_.ok()) *event.mutable_error() = ErrorProto(error_);
  }
  if (stage != nullptr) *event.mutable_stage() = *stage;
  event.set_message(std::string(message));
  batch.AddEvent(id, event.SerializeAsString());
  ALMOST_RETURN_IF_ERROR(environment_.journal->Commit(batch));
  EventCommitted();
  log::Info("run", {{"run", id},
                    {"state", v1::RunState_Name(event.state())},
                    {"stage", event.stage().id()},
                    {"message", event.message()}});
  return absl::OkStatus();
}

bool RunExecution::AddProgressEvent(JournalBatch& batch, size_t index) {
  v1::RunEvent event;
  const absl::MutexLock lock(&mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (absl::FromChrono(now - at_work_[index].last_event) < environment_.progress_interval) return false;
  at_work_[index].last_event = now;
  event.set_state(static_cast<v1::RunState>(record_.state));
  *event.mutable_stage() = Shown(index);
  batch.AddEvent(record_.id, event.SerializeAsString());
  // Its time and counts so far, for a run that goes on in another process.
  StageProgress progress = progress_[index];
  progress.shown = event.stage();
  batch.PutStage(record_.id, progress.ToRecord());
  environment_.observer->StageChanged(record_.id, event.stage());
  environment_.observer->Used(event.stage().id(), meters_[index]->TakeNew());
  return true;
}

void RunExecution::SetState(v1::RunState state, const absl::Status& error) {
  v1::RunState before;
  std::string run;
  {
    const absl::MutexLock lock(&mutex_);
    run = record_.id;
    before = static_cast<v1::RunState>(record_.state);
    record_.state = state;
    error_ = error;
    record_.error = error.ok() ? "" : ErrorProto(error).SerializeAsString();
  }
  environment_.observer->StateChanged(run, before, state);
}

// Called while an item runs; the journal's record of the run stays at RUNNING, for that is what a restart
// shall make of it.
void RunExecution::SetPaused(const absl::Status& why) {
  SetState(why.ok() ? v1::RUN_STATE_RUNNING : v1::RUN_STATE_PAUSED, why);
  CommitWithEvent(JournalBatch(), nullptr,
                  why.ok() ? "services are back" : absl::StrCat("waiting for services: ", why.message()))
      .IgnoreError();
}

void RunExecution::Main() {
  const TraceScope trace(Trace::New());
  const absl::Status status = Execute();
  StopKind stop_kind;
  std::string run;
  {
    const absl::MutexLock lock(&mutex_);
    stop_kind = stop_kind_;
    run = record_.id;
  }
  std::string message;
  if (status.ok()) {
    SetState(v1::RUN_STATE_SUCCEEDED, absl::OkStatus());
    message = "finished";
  } else if (!stop_.stop_requested()) {
    SetState(v1::RUN_STATE_FAILED, status);
    message = std::string(status.message());
  } else if (stop_kind != StopKind::kShutdown) {
    const bool pause = stop_kind == StopKind::kPause;
    // Where the trainer is away just now, a job goes on; should the run be resumed, it takes what came of it.
    const absl::Status stopped =
        StopJobs(*environment_.services, run, pause ? JobsEnd::kPaused : JobsEnd::kCancelled);
    if (!stopped.ok()) {
      log::Warning("run's jobs are not stopped", {{"run", run}, {"error", stopped.ToString()}});
    }
    SetState(pause ? v1::RUN_STATE_PAUSED_BY_USER : v1::RUN_STATE_CANCELLED, absl::OkStatus());
    message = pause ? "paused" : "cancelled";
  }
  if (!message.empty()) {
    JournalBatch batch;
    {
      const absl::MutexLock lock(&mutex_);
      if (record_.state != v1::RUN_STATE_PAUSED_BY_USER) record_.end_time = absl::Now();
      batch.UpdateRun(record_);
    }
    // If the journal is what failed, the run stands there as running, and a restart goes on with it.
    CommitWithEvent(std::move(batch), nullptr, message).IgnoreError();
    environment_.placement->ReleaseAllBut(Snapshot().name(), {});
  }
  const absl::MutexLock lock(&mutex_);
  ended_ = true;
}

absl::Status RunExecution::Execute() {
  for (size_t index = 0; index < stages_.size(); ++index) {
    if (stop_.stop_requested()) return Stopped();
    {
      const absl::MutexLock lock(&mutex_);
      if (progress_[index].shown.state() == v1::STAGE_STATE_SUCCEEDED) continue;
    }
    const absl::Status status = DoStage(index, /*following=*/false);
    if (stop_.stop_requested()) return Stopped();
    {
      const absl::MutexLock lock(&mutex_);
      ALMOST_RETURN_IF_ERROR(failure_);
    }
    ALMOST_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}

bool RunExecution::IsFollowed(size_t index) const {
  return index + 1 < stages_.size() && stages_[index + 1]->follows() == stages_[index]->id() &&
         progress_[index + 1].shown.state() != v1::STAGE_STATE_SUCCEEDED;
}

absl::Status RunExecution::DoStage(size_t index, bool following) {
  std::jthread follower;
  const auto begun = [&] {
    follower = std::jthread([this, index, trace = CurrentTrace()] {
      const TraceScope scope(trace);
      DoStage(index + 1, /*following=*/true)
          .IgnoreError();  // what it came to stands in progress_ and failure_
    });
  };
  const absl::Status status = RunStage(*stages_[index], index, following, begun);
  stages_[index]->Release();
  ::malloc_trim(0);  // the next stage's threads would not find it: they have arenas of their own
  environment_.observer->Used(stages_[index]->id(), meters_[index]->TakeNew());
  if (status.ok()) return status;
  JournalBatch batch;
  v1::Stage shown;
  bool stopped = stop_.stop_requested();
  {
    const absl::MutexLock lock(&mutex_);
    stopped = stopped || (halted_ && absl::IsCancelled(status));  // another stage has failed
    shown = Shown(index);
    shown.set_state(stopped ? v1::STAGE_STATE_WAITING : v1::STAGE_STATE_FAILED);
    if (stages_[index]->results_are_mixed()) {
      shown.set_items_done(0);
      batch.ForgetItems(record_.id, shown.id());
    }
    progress_[index].shown = shown;
    batch.PutStage(record_.id, progress_[index].ToRecord());
  }
  if (!stopped) Halt(Annotate(status, shown.id()));
  const absl::string_view message = stopped ? "stage stopped" : status.message();
  CommitWithEvent(std::move(batch), &shown, message).IgnoreError();
  return status;
}

absl::Status RunExecution::AwaitPublished(size_t index) {
  const CostMeter::Busy waiting(meters_[index + 1].get(), CostMeter::Device::kNone);
  const absl::MutexLock lock(&mutex_);
  const auto settled = [this, index]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return at_work_[index].published || halted_;
  };
  mutex_.Await(absl::Condition(&settled));
  return at_work_[index].published ? absl::OkStatus() : Stopped();
}

absl::Status RunExecution::Identify(Stage& stage, Context& context, std::optional<StageIdentity>* identity,
                                    std::string* key) {
  ALMOST_ASSIGN_OR_RETURN(*identity, stage.Identity(context));
  if (!identity->has_value()) return absl::OkStatus();
  std::map<std::string, std::pair<std::string, std::string>> models;
  for (const ModelNeed& need : stage.models()) {
    const PlacedModel& model = context.model(need.role);
    models[need.role] = {model.digest, model.numerics_id};
  }
  *key = StageKey(stage, **identity, recipe_, models);
  return absl::OkStatus();
}

absl::Status RunExecution::RunStage(Stage& stage, size_t index, bool following,
                                    const std::function<void()>& begun) {
  JournalBatch batch;
  v1::Stage shown;
  bool is_followed = false;
  {
    const absl::MutexLock lock(&mutex_);
    at_work_[index].start = std::chrono::steady_clock::now();
    is_followed = IsFollowed(index);
    progress_[index].shown.set_state(v1::STAGE_STATE_RUNNING);
    progress_[index].shown.set_items_failed(0);
    shown = progress_[index].shown;
    batch.PutStage(record_.id, progress_[index].ToRecord());
    batch.ForgetSetAside(record_.id, shown.id());
  }
  ALMOST_RETURN_IF_ERROR(CommitWithEvent(std::move(batch), &shown, "stage started"));

  // An item that fails for good ends its stage, and with it the tries of the others.
  std::stop_source stage_stop;
  const std::stop_callback forward(halt_.get_token(), [&stage_stop] { stage_stop.request_stop(); });
  Context context(this, index, following, stage_stop.get_token());
  environment_.observer->StageChanged(context.run_id(), shown);
  // The last turn first: what each model is has to be known, and in the end those of the first are in memory.
  const int num_turns = stage.num_turns();
  for (int turn = num_turns - 1; turn >= 0; --turn) {
    ALMOST_RETURN_IF_ERROR(PlaceModels(stage, index, turn, context));
  }
  {
    const absl::MutexLock lock(&mutex_);
    at_work_[index].placed = true;
  }
  std::optional<StageIdentity> identity;
  std::string key;
  if (!following) {
    ALMOST_RETURN_IF_ERROR(Identify(stage, context, &identity, &key));
    if (identity.has_value() && !settings_.recompute()) {
      ALMOST_ASSIGN_OR_RETURN(const bool taken, TakeOver(stage, index, context, key));
      if (taken) return absl::OkStatus();
    }
  }
  ALMOST_RETURN_IF_ERROR(stage.Begin(context));
  const JournaledResults results(environment_.journal, context.run_id(), shown.id());
  ItemRunner::Options options;
  options.concurrent_items = environment_.concurrent_items;
  options.max_set_aside_share = environment_.max_set_aside_share;
  options.priority = settings_.priority();
  options.slots = environment_.slots;
  ItemRunner::Listener listener;
  listener.ended = [&](const absl::Status& status) { environment_.observer->ItemEnded(shown.id(), status); };
  listener.progress = [&](int64_t num_done, int64_t num_set_aside, int64_t num_items,
                          JournalBatch& progress) {
    if (!context.reports()) SetItems(index, num_done, num_set_aside, num_items);
    return AddProgressEvent(progress, index);
  };
  const auto hand_on = [&](const std::vector<int64_t>& items) {
    if (!is_followed) return;
    const absl::MutexLock lock(&mutex_);
    std::vector<int64_t>& ended = at_work_[index].ended_items;
    ended.insert(ended.end(), items.begin(), items.end());
  };
  listener.committed = [&](const std::vector<int64_t>& items, bool has_event) {
    if (has_event) EventCommitted();
    hand_on(items);
  };
  ItemRunner items(environment_.journal, &stage, &context, stage_stop, options, std::move(listener));
  ALMOST_ASSIGN_OR_RETURN(const std::vector<int64_t> done, items.Recover());
  hand_on(done);
  if (is_followed) begun();
  for (int64_t announced = -1;;) {
    if (stage_stop.stop_requested()) return Stopped();
    ALMOST_ASSIGN_OR_RETURN(const int64_t num_items, stage.NumItems(context, results));
    if (num_items <= announced) break;
    announced = num_items;
    for (int turn = 0; turn < num_turns; ++turn) {
      if (!items.HasLeft(num_items, turn)) continue;
      if (num_turns > 1) ALMOST_RETURN_IF_ERROR(PlaceModels(stage, index, turn, context));
      ALMOST_RETURN_IF_ERROR(items.Run(num_items, turn));
    }
  }
  {
    const absl::MutexLock lock(&mutex_);
    at_work_[index].all_ended = true;
  }
  if (following) {
    ALMOST_RETURN_IF_ERROR(AwaitPublished(index - 1));
    ALMOST_RETURN_IF_ERROR(Identify(stage, context, &identity, &key));
  }
  return Publish(stage, index, context, results, identity, key);
}

void RunExecution::DropResults(size_t index, JournalBatch& batch) const {
  if (!IsFollowed(index)) batch.DropResults(record_.id, std::string(stages_[index]->id()));
  if (!stages_[index]->follows().empty()) {
    batch.DropResults(record_.id, std::string(stages_[index]->follows()));
  }
}

absl::StatusOr<bool> RunExecution::TakeOver(Stage& stage, size_t index, Context& context,
                                            const std::string& key) {
  const absl::ReaderMutexLock lock_out_sweeps(environment_.sweep);
  ALMOST_ASSIGN_OR_RETURN(const std::optional<StageOutcome> found,
                          FindOutcome(*environment_.journal, context.store(), key));
  if (!found.has_value()) return false;
  const StageOutcome& outcome = *found;
  ArtifactStore& store = context.store();
  std::string run;
  {
    const absl::MutexLock lock(&mutex_);
    run = record_.id;
  }
  for (const auto& [name, digest] : outcome.artifacts) {
    ALMOST_RETURN_IF_ERROR(store.Link(run, stage.id(), name, digest));
  }
  for (const std::string& path : outcome.run_files) {
    // For people; they may be gone with the run that made them.
    const absl::StatusOr<std::string> contents = store.ReadRunFile(outcome.run, path);
    if (contents.ok() && outcome.run != run) ALMOST_RETURN_IF_ERROR(store.WriteRunFile(run, path, *contents));
  }

  JournalBatch batch;
  v1::Stage shown;
  {
    const absl::MutexLock lock(&mutex_);
    StageProgress& progress = progress_[index];
    const v1::Stage now = Shown(index);
    progress.shown = outcome.shown;
    progress.shown.set_state(v1::STAGE_STATE_SUCCEEDED);
    progress.shown.set_seconds(now.seconds());
    progress.shown.set_own_seconds(now.own_seconds());
    progress.shown.set_cached_from(absl::StrCat("runs/", outcome.run));
    progress.shown.clear_cost();
    progress.artifacts = outcome.artifacts;
    shown = progress.shown;
    batch.PutStage(run, progress.ToRecord());
    DropResults(index, batch);
  }
  environment_.observer->StageChanged(run, shown);
  ALMOST_RETURN_IF_ERROR(
      CommitWithEvent(std::move(batch), &shown, absl::StrCat("stage taken over from ", shown.cached_from())));
  return true;
}

absl::Status RunExecution::Publish(Stage& stage, size_t index, Context& context, const ItemResults& results,
                                   const std::optional<StageIdentity>& identity, const std::string& key) {
  ALMOST_ASSIGN_OR_RETURN(StageOutput output, stage.Publish(context, results));
  ArtifactStore& store = context.store();
  std::vector<std::pair<std::string, std::string>> published;
  for (StageArtifact& artifact : output.artifacts) {
    if (artifact.digest.empty()) {
      artifact.draft.stage_version = stage.version();
      if (identity.has_value()) {
        artifact.draft.recipe = identity->recipe;
        artifact.draft.inputs = identity->inputs;
        artifact.draft.numerics_id = identity->numerics_id;
      }
      for (const auto& [name, digest] : published) {
        const std::vector<std::string>& siblings = artifact.siblings;
        if (std::find(siblings.begin(), siblings.end(), name) != siblings.end())
          artifact.draft.inputs[name] = digest;
      }
      if (IsDataset(artifact.draft)) {
        ALMOST_ASSIGN_OR_RETURN(
            artifact.draft.files["README.md"],
            DatasetCard(artifact.draft, std::string(stage.id()), output.figures, recipe_.dataset_license()));
      }
      artifact.draft.provenance = environment_.provenance;
      artifact.draft.provenance["time"] = absl::FormatTime(absl::Now(), absl::UTCTimeZone());
      ALMOST_ASSIGN_OR_RETURN(const Artifact made, store.Publish(artifact.draft));
      artifact.digest = made.digest;
    }
    ALMOST_RETURN_IF_ERROR(store.Link(context.run_id(), stage.id(), artifact.name, artifact.digest));
    published.emplace_back(artifact.name, artifact.digest);
  }
  if (output.summary_json.has_value()) output.run_files["summary.json"] = *output.summary_json;
  for (const auto& [path, contents] : output.run_files) {
    ALMOST_RETURN_IF_ERROR(store.WriteRunFile(context.run_id(), path, contents));
  }

  std::string message = "stage finished";
  if (identity.has_value()) {
    const absl::StatusOr<OutcomeRecord> before = environment_.journal->GetOutcome(key);
    const auto outcome = before.ok() ? StageOutcome::FromRecord(*before) : before.status();
    if (outcome.ok() && outcome->artifacts != published) {
      message = absl::StrCat("stage finished, with other artifacts than runs/", outcome->run,
                             " has from the same inputs, recipe, version and numerics");
      log::Warning("run", {{"run", context.run_id()}, {"stage", stage.id()}, {"message", message}});
    }
  }
  JournalBatch batch;
  v1::Stage shown;
  {
    const absl::MutexLock lock(&mutex_);
    StageProgress& progress = progress_[index];
    progress.shown = Shown(index);
    progress.shown.set_state(v1::STAGE_STATE_SUCCEEDED);
    for (const auto& [name, value] : output.figures) (*progress.shown.mutable_figures())[name] = value;
    progress.artifacts = std::move(published);
    shown = progress.shown;
    batch.PutStage(record_.id, progress.ToRecord());
    DropResults(index, batch);
    if (identity.has_value()) {
      StageOutcome outcome = {record_.id, progress.artifacts, {}, StageSize(shown.id(), recipe_), shown};
      for (const auto& [path, contents] : output.run_files) outcome.run_files.push_back(path);
      batch.PutOutcome(outcome.ToRecord(key, StagePace(stage, recipe_)));
    }
    if (output.summary_json.has_value()) {
      record_.summary = *output.summary_json;
      batch.UpdateRun(record_);
    }
  }
  environment_.observer->StageChanged(context.run_id(), shown);
  environment_.observer->StagePublished(shown.id(), shown.seconds(), output.figures);
  if (output.summary_json.has_value()) environment_.observer->Summarised(*output.summary_json);
  ALMOST_RETURN_IF_ERROR(CommitWithEvent(std::move(batch), &shown, message));
  const absl::MutexLock lock(&mutex_);
  at_work_[index].published = true;
  return absl::OkStatus();
}

absl::Status RunExecution::PlaceModels(Stage& stage, size_t index, int turn, Context& context) {
  const std::map<std::string, std::string> artifacts = Artifacts();
  std::set<Placement> needed_now;
  std::set<Placement> needed_later;
  for (size_t i = 0; i < stages_.size(); ++i) {
    v1::StageState state;
    {
      const absl::MutexLock lock(&mutex_);
      state = progress_[i].shown.state();
    }
    if (state == v1::STAGE_STATE_SUCCEEDED) continue;
    const bool now = state == v1::STAGE_STATE_RUNNING;
    for (const ModelNeed& need : stages_[i]->models()) {
      if (i == index && need.turn != turn) continue;
      const auto request = LoadRequest(need, recipe_, artifacts);
      if (i == index) ALMOST_RETURN_IF_ERROR(request.status());
      if (request.ok()) (now ? needed_now : needed_later).insert({need.host, request->name()});
    }
  }
  const std::string holder = absl::StrCat("runs/", context.run_id());
  needed_later.insert(needed_now.begin(), needed_now.end());
  const bool in_turns = stage.num_turns() > 1;
  std::string anew;  // why the stage is done anew
  if (in_turns) context.services().ForgetModels();
  environment_.placement->ReleaseAllBut(holder, in_turns ? needed_now : needed_later);

  for (const ModelNeed& need : stage.models()) {
    if (need.turn != turn) continue;
    ALMOST_ASSIGN_OR_RETURN(types::v1::LoadModelRequest request, LoadRequest(need, recipe_, artifacts));
    {
      // What the run saw before a restart, or in an earlier stage, must be what it sees now.
      const absl::MutexLock lock(&mutex_);
      for (size_t i = 0; i <= index; ++i) {
        for (const ModelNeed& other : stages_[i]->models()) {
          const auto bits = progress_[i].models.find(other.role);
          if (bits != progress_[i].models.end() && other.recipe_model == need.recipe_model &&
              other.stage == need.stage && other.source == need.source) {
            request.set_expected_digest(bits->second.digest);
          }
        }
      }
    }
    environment_.placement->Hold(holder, {need.host, request.name()});
    auto model = context.services().PlaceModel(need.host, request);
    if (absl::IsResourceExhausted(model.status())) {
      environment_.placement->ReleaseAllBut(holder, needed_now);
      model = context.services().PlaceModel(need.host, request);
    }
    if (!model.ok()) return Annotate(model.status(), absl::StrCat("loading model ", need.role));
    PlacedModel placed;
    placed.name = request.name();
    placed.digest = model->digest();
    placed.numerics_id = model->numerics_id();
    placed.context_tokens = model->context_tokens();
    placed.prompt_format = model->prompt_format();
    if (!need.stage.empty()) placed.artifact_digest = artifacts.at(absl::StrCat(need.stage, "/model"));
    {
      const absl::MutexLock lock(&mutex_);
      const auto [bits, first] = progress_[index].models.try_emplace(
          need.role, StageProgress::ModelBits{placed.digest, placed.numerics_id});
      if (!first && bits->second.numerics_id != placed.numerics_id) {
        if (!may_redo_ || at_work_[index].placed) {
          return absl::FailedPreconditionError(
              absl::StrCat("model ", need.role, " was used with numerics ", bits->second.numerics_id,
                           " and is loaded with ", placed.numerics_id,
                           ": a stage does not mix two; resume the run to do it anew"));
        }
        anew = absl::StrCat("stage begins anew: model ", need.role, " now has numerics ", placed.numerics_id,
                            ", not ", bits->second.numerics_id);
        bits->second = {placed.digest, placed.numerics_id};
      }
    }
    context.SetModel(need.role, std::move(placed));
  }
  // Before the first item: what its answers come from.
  JournalBatch batch;
  v1::Stage shown;
  {
    const absl::MutexLock lock(&mutex_);
    if (!anew.empty()) {
      progress_[index].shown.set_items_done(0);
      batch.ForgetItems(record_.id, std::string(stage.id()));
      if (IsFollowed(index)) batch.ForgetItems(record_.id, std::string(stages_[index + 1]->id()));
    }
    shown = progress_[index].shown;
    batch.PutStage(record_.id, progress_[index].ToRecord());
  }
  return anew.empty() ? environment_.journal->Commit(batch) : CommitWithEvent(std::move(batch), &shown, anew);
}

}  // namespace almost::orchestrator
