#include "services/trainer/core/job_queue.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/ids.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"
#include "nlohmann/json.hpp"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr absl::string_view kStateNames[] = {"queued",    "running", "paused",
                                             "succeeded", "failed",  "cancelled"};

json ErrorToJson(const absl::Status& error) {
  return {{"code", static_cast<int>(error.code())}, {"message", std::string(error.message())}};
}
absl::Status ErrorFromJson(const json& value) {
  return absl::Status(static_cast<absl::StatusCode>(value.at("code").get<int>()),
                      value.at("message").get<std::string>());
}

JobState StateFromName(const std::string& name) {
  const auto* found = std::find(std::begin(kStateNames), std::end(kStateNames), name);
  if (found == std::end(kStateNames)) throw json::other_error::create(600, "unknown state " + name, nullptr);
  return static_cast<JobState>(found - std::begin(kStateNames));
}

// On one line. An error may name a file whose name is not UTF-8.
std::string Text(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

json EventToJson(const JobEvent& event) {
  json out = {{"sequence", event.sequence},
              {"state", std::string(JobStateName(event.state))},
              {"step", event.step},
              {"num_steps", event.num_steps}};
  if (!event.metrics.empty()) out["metrics"] = event.metrics;
  if (!event.error.ok()) out["error"] = ErrorToJson(event.error);
  return out;
}

JobEvent EventFromJson(const json& value) {
  JobEvent event;
  event.sequence = value.at("sequence");
  event.state = StateFromName(value.at("state"));
  event.step = value.at("step");
  event.num_steps = value.at("num_steps");
  event.metrics = value.value("metrics", event.metrics);
  if (value.contains("error")) event.error = ErrorFromJson(value["error"]);
  return event;
}

json RecordToJson(const JobRecord& record) {
  json out = {{"state", std::string(JobStateName(record.state))},
              {"priority", record.priority},
              {"step", record.step},
              {"num_steps", record.num_steps},
              {"output_digest", record.output_digest},
              {"numerics_id", record.numerics_id},
              {"create_time_ns", absl::ToUnixNanos(record.create_time)},
              {"error", ErrorToJson(record.error)},
              {"metrics", record.metrics},
              {"furthest_step", record.furthest_step},
              {"num_lost_takes", record.num_lost_takes}};
  if (HasEnded(record.state)) out["end_time_ns"] = absl::ToUnixNanos(record.end_time);
  return out;
}

void RecordFromJson(const json& value, JobRecord& record) {
  record.state = StateFromName(value.at("state"));
  record.priority = value.value("priority", 0);  // of a job from before there were any
  record.step = value.at("step");
  record.num_steps = value.at("num_steps");
  record.output_digest = value.at("output_digest");
  record.numerics_id = value.at("numerics_id");
  record.create_time = absl::FromUnixNanos(value.at("create_time_ns").get<int64_t>());
  record.error = ErrorFromJson(value.at("error"));
  record.metrics = value.at("metrics").get<std::map<std::string, double>>();
  record.furthest_step = value.value("furthest_step", int64_t{0});  // these two not of an older job
  record.num_lost_takes = value.value("num_lost_takes", 0);
  if (value.contains("end_time_ns")) {
    record.end_time = absl::FromUnixNanos(value["end_time_ns"].get<int64_t>());
  }
}

// Whether a job that failed of this may go on once the world is as it should be: room on the disk, a service
// or a volume back. What it failed of by itself it would fail of again.
bool MayGoOn(const absl::Status& error) {
  switch (error.code()) {
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kUnknown:             // the device failed
    case absl::StatusCode::kFailedPrecondition:  // another machine; files that have gone
      return true;
    default:
      return false;
  }
}

bool KeepsWork(const JobRecord& record) {
  return !HasEnded(record.state) || (record.state == JobState::kFailed && MayGoOn(record.error));
}

}  // namespace

absl::string_view JobStateName(JobState state) { return kStateNames[static_cast<int>(state)]; }

absl::StatusOr<std::unique_ptr<JobQueue>> JobQueue::Open(const fs::path& root, TrainFunction train) {
  std::error_code error;
  fs::create_directories(root, error);
  if (error) return absl::FailedPreconditionError(absl::StrCat(root.string(), ": ", error.message()));
  std::unique_ptr<JobQueue> queue(new JobQueue(root, std::move(train)));
  ALMOST_RETURN_IF_ERROR(queue->Recover());
  queue->worker_ = std::jthread([q = queue.get()](const std::stop_token& shutdown) { q->Run(shutdown); });
  return queue;
}

JobQueue::~JobQueue() {
  worker_.request_stop();
  {
    absl::MutexLock lock(&mutex_);
    shutting_down_ = true;
    for (auto& [id, job] : jobs_) {
      job.stop.request_stop();
      if (job.record.state != JobState::kRunning) continue;
      // Should the process be killed before the job has stopped, it was not the job that ended it.
      JobRecord queued = job.record;
      queued.state = JobState::kQueued;
      Env::Posix()->WriteAtomically(root_ / id / "state.json", Text(RecordToJson(queued))).IgnoreError();
    }
  }
  if (worker_.joinable()) worker_.join();  // not started when Recover failed
}

absl::Status JobQueue::Recover() {
  absl::MutexLock lock(&mutex_);
  for (const fs::directory_entry& entry : fs::directory_iterator(root_)) {
    // A folder without state.json was never acknowledged: Create writes it last.
    if (!entry.is_directory() || !fs::exists(entry.path() / "state.json")) continue;
    Job job;
    job.record.id = entry.path().filename();
    try {
      ALMOST_ASSIGN_OR_RETURN(job.record.spec, Env::Posix()->Read(entry.path() / "spec"));
      ALMOST_ASSIGN_OR_RETURN(const std::string state, Env::Posix()->Read(entry.path() / "state.json"));
      RecordFromJson(json::parse(state), job.record);
      std::ifstream events(entry.path() / "events.jsonl");
      for (std::string line; std::getline(events, line);) {
        const json event = json::parse(line, nullptr, /*allow_exceptions=*/false);
        if (event.is_discarded()) continue;  // cut short by a crash or a full disk
        job.events.push_back(EventFromJson(event));
        job.events.back().sequence = static_cast<int64_t>(job.events.size());
      }
    } catch (const json::exception& e) {
      return absl::DataLossError(absl::StrCat("job ", entry.path().string(), ": ", e.what()));
    }
    // Appending goes on after whole lines.
    std::string whole;
    for (const JobEvent& event : job.events) absl::StrAppend(&whole, Text(EventToJson(event)), "\n");
    ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(entry.path() / "events.jsonl", whole));
    if (job.record.state == JobState::kRunning) ALMOST_RETURN_IF_ERROR(TakeUpLost(job));
    if (!KeepsWork(job.record)) RemoveWork(job.record.id);  // killed before it was
    jobs_.emplace(job.record.id, std::move(job));
  }
  return absl::OkStatus();
}

absl::Status JobQueue::TakeUpLost(Job& job) {
  JobRecord& record = job.record;
  int64_t furthest = 0;
  for (const JobEvent& event : job.events) furthest = std::max(furthest, event.step);
  record.num_lost_takes = furthest > record.furthest_step ? 0 : record.num_lost_takes + 1;
  record.furthest_step = std::max(record.furthest_step, furthest);
  record.state = JobState::kQueued;
  if (record.num_lost_takes >= kMaxLostTakes) {
    record.state = JobState::kFailed;
    record.error = absl::ResourceExhaustedError(absl::StrCat(
        "after step ", furthest, " the trainer's process was killed ", record.num_lost_takes,
        " times in a row, as a rule for want of memory: give it more and resume the job, or ask for another "
        "with smaller memory.micro_batch_tokens, memory.recompute_activations or memory.lora"));
    record.end_time = absl::Now();
  }
  return Record(job);
}

absl::StatusOr<JobRecord> JobQueue::Create(absl::string_view id, absl::string_view spec, int priority) {
  ALMOST_RETURN_IF_ERROR(ValidateId("job_id", id));
  absl::MutexLock lock(&mutex_);
  if (const auto found = jobs_.find(std::string(id)); found != jobs_.end()) {
    if (found->second.record.spec == spec) return found->second.record;
    return absl::AlreadyExistsError(absl::StrCat("jobs/", id, " exists with another spec"));
  }
  const fs::path folder = root_ / std::string(id);
  std::error_code error;
  fs::create_directories(folder / "work", error);
  if (error) return absl::InternalError(absl::StrCat(folder.string(), ": ", error.message()));
  ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(folder / "spec", spec));
  Job job;
  job.record.id = std::string(id);
  job.record.spec = std::string(spec);
  job.record.priority = priority;
  job.record.create_time = absl::Now();
  ALMOST_RETURN_IF_ERROR(Record(job));
  return jobs_.emplace(job.record.id, std::move(job)).first->second.record;
}

absl::StatusOr<JobRecord> JobQueue::Get(absl::string_view id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = jobs_.find(std::string(id));
  if (found == jobs_.end()) return absl::NotFoundError(absl::StrCat("no job jobs/", id));
  return found->second.record;
}

std::vector<JobRecord> JobQueue::List() const {
  absl::MutexLock lock(&mutex_);
  std::vector<JobRecord> records;
  for (const auto& [id, job] : jobs_) records.push_back(job.record);
  std::stable_sort(records.begin(), records.end(),
                   [](const JobRecord& a, const JobRecord& b) { return a.create_time > b.create_time; });
  return records;
}

absl::StatusOr<JobRecord> JobQueue::Cancel(absl::string_view id) { return Stop(id, JobState::kCancelled); }

absl::StatusOr<JobRecord> JobQueue::Pause(absl::string_view id) { return Stop(id, JobState::kPaused); }

absl::StatusOr<JobRecord> JobQueue::Stop(absl::string_view id, JobState state) {
  absl::MutexLock lock(&mutex_);
  const auto found = jobs_.find(std::string(id));
  if (found == jobs_.end()) return absl::NotFoundError(absl::StrCat("no job jobs/", id));
  Job& job = found->second;
  if (HasEnded(job.record.state) || job.record.state == state) {
    if (state == JobState::kCancelled) RemoveWork(id);
    return job.record;
  }
  if (job.record.state == JobState::kRunning) {
    job.stops_as = std::max(job.stops_as, state);
    job.stop.request_stop();
    return job.record;
  }
  JobRecord stopped = job.record;
  stopped.state = state;
  if (HasEnded(state)) stopped.end_time = absl::Now();
  ALMOST_RETURN_IF_ERROR(Change(job, std::move(stopped)));
  if (HasEnded(state)) RemoveWork(id);
  return job.record;
}

absl::Status JobQueue::Change(Job& job, JobRecord record) {
  std::swap(job.record, record);
  const absl::Status recorded = Record(job);
  if (!recorded.ok()) job.record = std::move(record);
  return recorded;
}

absl::StatusOr<JobRecord> JobQueue::Resume(absl::string_view id) {
  absl::MutexLock lock(&mutex_);
  const auto found = jobs_.find(std::string(id));
  if (found == jobs_.end()) return absl::NotFoundError(absl::StrCat("no job jobs/", id));
  Job& job = found->second;
  if (job.stops_as == JobState::kPaused) job.stops_as = JobState::kQueued;  // it has not stopped yet
  const bool failed = job.record.state == JobState::kFailed && fs::exists(root_ / job.record.id / "work");
  if (job.record.state != JobState::kPaused && !failed) return job.record;
  JobRecord queued = job.record;
  queued.state = JobState::kQueued;
  queued.error = absl::OkStatus();
  queued.end_time = absl::InfiniteFuture();
  queued.num_lost_takes = 0;
  ALMOST_RETURN_IF_ERROR(Change(job, std::move(queued)));
  return job.record;
}

void JobQueue::RemoveWork(absl::string_view id) const {
  std::error_code ignored;
  fs::remove_all(root_ / std::string(id) / "work", ignored);
}

absl::StatusOr<std::vector<JobEvent>> JobQueue::Events(absl::string_view id, int64_t after_sequence,
                                                       absl::Duration timeout) const {
  absl::MutexLock lock(&mutex_);
  const auto found = jobs_.find(std::string(id));
  if (found == jobs_.end()) return absl::NotFoundError(absl::StrCat("no job jobs/", id));
  const std::vector<JobEvent>& events = found->second.events;
  const auto there = [&events, after_sequence] {
    return static_cast<int64_t>(events.size()) > after_sequence;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&there), timeout);
  if (!there()) return std::vector<JobEvent>();
  return std::vector<JobEvent>(events.begin() + std::max<int64_t>(after_sequence, 0), events.end());
}

absl::Status JobQueue::Record(Job& job) {
  const fs::path folder = root_ / job.record.id;
  JobEvent event;
  event.sequence = static_cast<int64_t>(job.events.size()) + 1;
  event.state = job.record.state;
  event.step = job.record.step;
  event.num_steps = job.record.num_steps;
  event.error = job.record.error;
  ALMOST_RETURN_IF_ERROR(
      Env::Posix()->Append(folder / "events.jsonl", absl::StrCat(Text(EventToJson(event)), "\n")));
  ALMOST_RETURN_IF_ERROR(
      Env::Posix()->WriteAtomically(folder / "state.json", Text(RecordToJson(job.record))));
  job.events.push_back(std::move(event));
  return absl::OkStatus();
}

void JobQueue::Report(const std::string& id, int64_t step, int64_t num_steps,
                      const std::map<std::string, double>& metrics) {
  absl::MutexLock lock(&mutex_);
  Job& job = jobs_.find(id)->second;
  job.record.step = step;
  job.record.num_steps = num_steps;
  JobEvent event;
  event.sequence = static_cast<int64_t>(job.events.size()) + 1;
  event.state = job.record.state;
  event.step = step;
  event.num_steps = num_steps;
  for (const auto& [name, value] : metrics) {
    if (!std::isfinite(value)) continue;  // JSON has no such numbers
    event.metrics[name] = job.record.metrics[name] = value;
  }
  // Not synced: the steps a crash loses here are taken again from the checkpoint.
  std::ofstream(root_ / id / "events.jsonl", std::ios::app) << Text(EventToJson(event)) << "\n";
  job.events.push_back(std::move(event));
}

std::string JobQueue::NextQueued() const {
  const Job* next = nullptr;
  for (const auto& [id, job] : jobs_) {
    if (job.record.state != JobState::kQueued) continue;
    const auto before = [](const JobRecord& a, const JobRecord& b) {
      return a.priority != b.priority ? a.priority > b.priority : a.create_time < b.create_time;
    };
    if (next == nullptr || before(job.record, next->record)) next = &job;
  }
  return next == nullptr ? "" : next->record.id;
}

void JobQueue::Run(const std::stop_token& shutdown) {
  while (!shutdown.stop_requested()) {
    std::string id;
    {
      absl::MutexLock lock(&mutex_);
      const auto ready = [this] {
        mutex_.AssertHeld();
        return shutting_down_ || !NextQueued().empty();
      };
      mutex_.Await(absl::Condition(&ready));
      if (shutting_down_) return;
      id = NextQueued();
    }
    RunJob(id);
  }
}

void JobQueue::RunJob(const std::string& id) {
  JobContext context;
  absl::Status recorded;
  {
    absl::MutexLock lock(&mutex_);
    Job& job = jobs_.find(id)->second;
    if (shutting_down_ || job.record.state != JobState::kQueued) return;
    job.stop = std::stop_source();
    job.stops_as = JobState::kQueued;
    job.record.state = JobState::kRunning;
    recorded = Record(job);
    context.id = id;
    context.spec = job.record.spec;
    context.work_folder = root_ / id / "work";
    context.stop = job.stop.get_token();
    context.report = [this, id](int64_t step, int64_t num_steps,
                                const std::map<std::string, double>& metrics) {
      Report(id, step, num_steps, metrics);
    };
  }
  absl::StatusOr<TrainedModel> trained =
      recorded.ok() ? train_(context) : absl::StatusOr<TrainedModel>(recorded);

  absl::MutexLock lock(&mutex_);
  Job& job = jobs_.find(id)->second;
  if (trained.ok()) {
    job.record.state = JobState::kSucceeded;
    job.record.output_digest = trained->output_digest;
    job.record.numerics_id = trained->numerics_id;
  } else if (job.stops_as == JobState::kCancelled) {
    job.record.state = JobState::kCancelled;
  } else if (absl::IsCancelled(trained.status()) && job.stop.stop_requested()) {
    if (job.stops_as == JobState::kQueued && shutting_down_) return;  // the next Open goes on
    job.record.state = job.stops_as;
  } else {
    job.record.state = JobState::kFailed;
    job.record.error = trained.status();
  }
  if (HasEnded(job.record.state)) job.record.end_time = absl::Now();
  if (const absl::Status status = Record(job); !status.ok()) {
    // The end could not be written (a full disk): the job is reported failed now and taken up again after a
    // restart.
    job.record.state = JobState::kFailed;
    job.record.error = status;
    JobEvent event;
    event.sequence = static_cast<int64_t>(job.events.size()) + 1;
    event.state = JobState::kFailed;
    event.error = status;
    job.events.push_back(std::move(event));
    return;
  }
  if (!KeepsWork(job.record)) RemoveWork(id);
}

}  // namespace almost::trainer
