#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "common/storage/sqlite.h"

// What a restart needs to know: runs, their stages, each stage's work items, and what happened. One SQLite
// file (WAL, synchronous=FULL), schema 2:
//   runs(number, id, state, recipe, error, summary, created_us, ended_us, settings)
//   stages(run, stage, state, detail)
//   items(run, stage, item, key, state, attempts, result, result_sha256, error_code, error)
//   events(run, sequence, payload)
//   outcomes(number, key, stage, pace, detail)
//   writer(epoch)
// and <file>.lock, held by the one process that may write. A file of an older schema is brought forward when
// it is opened. The lock keeps a second writer out; should it fail (removed by hand, a file system without
// locks), the epoch does: each opening raises it, and a transaction of an earlier opening is refused.
namespace almost {

// Opaque here: `state` is the caller's enum, `recipe`, `settings` and `error` its messages' bytes.
struct RunRecord {
  std::string id;
  int64_t number = 0;  // in the order of creation, from 1; set by the journal
  int64_t state = 0;
  std::string recipe;
  std::string settings;
  std::string error;
  std::string summary;
  absl::Time create_time;
  absl::Time end_time = absl::InfiniteFuture();  // while it has not ended
};

struct StageRecord {
  std::string stage;
  int64_t state = 0;
  std::string detail;  // the caller's own
};

enum class ItemState { kStarted = 1, kDone = 2, kSetAside = 3 };

struct ItemRecord {
  int64_t item = 0;
  std::string key;  // idempotency key of its calls
  ItemState state = ItemState::kStarted;
  int64_t attempts = 0;
  std::string result;    // of a done item, until its stage has published
  bool dropped = false;  // it was: the result is no longer there
  absl::Status error;    // of an item set aside
};

struct EventRecord {
  int64_t sequence = 0;  // from 1 within its run
  std::string payload;
};

// What a stage came to, kept after its run has gone: for another run that would do the same again.
struct OutcomeRecord {
  std::string key;  // a hash of everything its content depends on
  std::string stage;
  std::string pace;    // what its speed depends on: outcomes of equal pace tell how long the next will take
  std::string detail;  // the caller's own
};

// Changes that are journaled together or not at all, in this order.
class JournalBatch {
 public:
  // kAlreadyExists when committed: there is a run of that id.
  void CreateRun(RunRecord run);
  // Everything but id, number, recipe, settings and create time.
  void UpdateRun(RunRecord run);
  // The run and all that is known of it. Outcomes stay.
  void DeleteRun(std::string run);
  void PutStage(std::string run, StageRecord stage);
  // Intent: the item is about to be done (again).
  void StartItem(std::string run, std::string stage, int64_t item, std::string key);
  void FinishItem(std::string run, std::string stage, int64_t item, std::string result);
  void SetItemAside(std::string run, std::string stage, int64_t item, absl::Status error);
  // Items set aside are to be tried again.
  void ForgetSetAside(std::string run, std::string stage);
  // The stage is to be done anew.
  void ForgetItems(std::string run, std::string stage);
  // The stage has published: what its items came to is in its artifacts.
  void DropResults(std::string run, std::string stage);
  void AddEvent(std::string run, std::string payload);
  // In place of one with the same key.
  void PutOutcome(OutcomeRecord outcome);

 private:
  friend class Journal;
  using Change = std::function<absl::Status(Sqlite&)>;
  std::vector<Change> changes_;
};

// Thread-safe. Errors as Sqlite's, naming the file.
class Journal {
 public:
  // kFailedPrecondition: another process (or another Journal) has it, or a newer version wrote it;
  // kDataLoss: it is damaged.
  static absl::StatusOr<std::unique_ptr<Journal>> Open(const std::filesystem::path& file);
  ~Journal();

  // On disk when it returns OK; batches of several threads share a transaction. After an error nothing of the
  // batch is there; after one of the device's (kUnknown), or when another opening has taken the journal over
  // (kFailedPrecondition), nothing more is accepted until it is opened again.
  absl::Status Commit(const JournalBatch& batch);

  // kNotFound names the run.
  absl::StatusOr<RunRecord> GetRun(absl::string_view id);
  // Newest first, with a number below `before` (0: any), without recipe and summary.
  absl::StatusOr<std::vector<RunRecord>> ListRuns(int64_t before, int64_t limit);
  absl::StatusOr<std::vector<StageRecord>> GetStages(absl::string_view run);
  // Items from number `first` on in order, at most `limit`; with their results if `results`.
  // kDataLoss: a result is not what was journaled.
  absl::StatusOr<std::vector<ItemRecord>> GetItems(absl::string_view run, absl::string_view stage,
                                                   int64_t first, int64_t limit, bool results);
  // kNotFound: no stage has ended under that key.
  absl::StatusOr<OutcomeRecord> GetOutcome(absl::string_view key);
  // The latest of that stage and pace; kNotFound: none has ended.
  absl::StatusOr<OutcomeRecord> LatestOutcome(absl::string_view stage, absl::string_view pace);
  // In order, at most `limit`.
  absl::StatusOr<std::vector<EventRecord>> GetEvents(absl::string_view run, int64_t after_sequence,
                                                     int64_t limit);

 private:
  struct Pending;
  Journal(std::filesystem::path file, int lock, int64_t epoch, std::unique_ptr<Sqlite> writer,
          std::unique_ptr<Sqlite> reader);
  // Commits a group as one transaction and sets each one's status.
  void CommitGroup(const std::vector<Pending*>& group);

  // kFailedPrecondition: another has opened the journal since.
  absl::Status CheckEpoch();
  static absl::StatusOr<OutcomeRecord> ReadOutcome(Sqlite::Query query);

  const std::filesystem::path file_;
  const int lock_;  // descriptor of the locked file
  const int64_t epoch_;
  const std::unique_ptr<Sqlite> writer_;  // used by the one thread that set committing_
  absl::Mutex mutex_;
  bool committing_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Pending*> queue_ ABSL_GUARDED_BY(mutex_);
  absl::Status broken_ ABSL_GUARDED_BY(mutex_);

  absl::Mutex read_mutex_;
  const std::unique_ptr<Sqlite> reader_ ABSL_PT_GUARDED_BY(read_mutex_);
};

}  // namespace almost
