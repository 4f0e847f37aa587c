#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

// Training jobs that survive the process. A job is a folder, `<root>/<id>/`:
//   spec          what was asked for, opaque here
//   state.json    where it stands, replaced atomically
//   events.jsonl  what happened, appended
//   work/         the training function's own: checkpoints, data on the way
namespace almost::trainer {

enum class JobState { kQueued, kRunning, kPaused, kSucceeded, kFailed, kCancelled };

// "queued", "running", ….
absl::string_view JobStateName(JobState state);
inline bool HasEnded(JobState state) { return state >= JobState::kSucceeded; }

// A job that so many processes in a row did not survive fails when it would be taken up once more, unless one
// of them came a step further than those before.
inline constexpr int kMaxLostTakes = 5;

// Something that happened to a job. After a restart the steps since the last checkpoint come again under new
// sequences: a reader keeps the last event of a step.
struct JobEvent {
  int64_t sequence = 0;  // from 1
  JobState state = JobState::kQueued;
  int64_t step = 0;
  int64_t num_steps = 0;
  std::map<std::string, double> metrics;  // of that step
  absl::Status error;                     // why it failed
};

struct JobRecord {
  std::string id;
  std::string spec;
  int priority = 0;  // of those that wait, the highest begins first
  JobState state = JobState::kQueued;
  int64_t step = 0;
  int64_t num_steps = 0;
  std::map<std::string, double> metrics;  // the latest of each name
  absl::Status error;
  std::string output_digest;
  std::string numerics_id;
  absl::Time create_time;
  absl::Time end_time = absl::InfiniteFuture();
  int64_t furthest_step = 0;  // that any process came to, before the last that was lost
  int num_lost_takes = 0;     // processes in a row that were lost with it and came no further
};

// What a training function returns when it has finished.
struct TrainedModel {
  std::string output_digest;
  std::string numerics_id;
};

// What a training function is given.
struct JobContext {
  std::string id;
  std::string spec;
  std::filesystem::path work_folder;  // exists; kept over restarts until the job ends for good
  std::stop_token stop;               // when requested: write a checkpoint and return kCancelled soon
  // Any thread; becomes an event. A metric that is not finite is left out of it.
  std::function<void(int64_t step, int64_t num_steps, const std::map<std::string, double>& metrics)> report;
};

// Runs on the queue's thread. Called again for the same job after a restart: goes on from what it left in
// work_folder. An error other than kCancelled fails the job: one of the world's (kResourceExhausted,
// kUnavailable, kDeadlineExceeded, kAborted, kNotFound, kPermissionDenied, kUnauthenticated, kUnknown,
// kFailedPrecondition) keeps its work for Resume.
using TrainFunction = std::function<absl::StatusOr<TrainedModel>(const JobContext&)>;

// One device's jobs: one runs to its end, the others wait, by priority and then in the order of their
// creation. Thread-safe.
class JobQueue {
 public:
  // Recovers the jobs beneath `root` (made if missing); those that were queued or running go on, but one that
  // kMaxLostTakes processes did not survive has failed with kResourceExhausted.
  // kDataLoss names a job folder that cannot be read.
  static absl::StatusOr<std::unique_ptr<JobQueue>> Open(const std::filesystem::path& root,
                                                        TrainFunction train);
  // Asks the running job to stop, waits for it, and leaves it to the next Open.
  ~JobQueue();

  // Durable when it returns. The same id and spec again returns the job as it is.
  // kAlreadyExists: the id with another spec; kInvalidArgument: not an id.
  absl::StatusOr<JobRecord> Create(absl::string_view id, absl::string_view spec, int priority = 0);
  // kNotFound names the job.
  absl::StatusOr<JobRecord> Get(absl::string_view id) const;
  // Newest first.
  std::vector<JobRecord> List() const;
  // A queued job ends at once, a running one after its step. Of one that has failed the work it had kept is
  // removed; harmless on any other that has ended.
  absl::StatusOr<JobRecord> Cancel(absl::string_view id);
  // The same, but it keeps what it has done, and is kPaused until Resume, also over restarts. Harmless on one
  // that has ended.
  absl::StatusOr<JobRecord> Pause(absl::string_view id);
  // A paused job waits in the queue again, and so does a failed one that has kept its work. Harmless on any
  // other.
  absl::StatusOr<JobRecord> Resume(absl::string_view id);
  // Events after `after_sequence`; waits up to `timeout` for the first. Empty when none came.
  absl::StatusOr<std::vector<JobEvent>> Events(absl::string_view id, int64_t after_sequence,
                                               absl::Duration timeout) const;

 private:
  struct Job {
    JobRecord record;
    std::vector<JobEvent> events;
    std::stop_source stop;
    // What it becomes if it runs and `stop` ends it; kQueued: nobody asked, or has changed his mind since.
    JobState stops_as = JobState::kQueued;
  };

  JobQueue(std::filesystem::path root, TrainFunction train)
      : root_(std::move(root)), train_(std::move(train)) {}
  absl::Status Recover();
  // Of a job that was running when its process was lost: whether it goes on.
  absl::Status TakeUpLost(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `state` is kPaused or kCancelled.
  absl::StatusOr<JobRecord> Stop(absl::string_view id, JobState state);
  void Run(const std::stop_token& shutdown);
  void RunJob(const std::string& id);
  // Takes over `record`'s state with an event; durable when it returns OK.
  absl::Status Record(Job& job) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same with another record; after an error the job is what it was.
  absl::Status Change(Job& job, JobRecord record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Report(const std::string& id, int64_t step, int64_t num_steps,
              const std::map<std::string, double>& metrics);
  void RemoveWork(absl::string_view id) const;
  std::string NextQueued() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const std::filesystem::path root_;
  const TrainFunction train_;
  mutable absl::Mutex mutex_;
  std::map<std::string, Job, std::less<>> jobs_ ABSL_GUARDED_BY(mutex_);
  bool shutting_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::jthread worker_;  // last: starts when all else is there
};

}  // namespace almost::trainer
