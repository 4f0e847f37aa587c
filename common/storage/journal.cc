#include "common/storage/journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

// kMigrations[v] brings a file of schema v to v + 1. What has been released is never changed, only added to.
constexpr const char* kMigrations[] = {
    R"sql(
BEGIN;
CREATE TABLE runs(number INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, state INTEGER NOT NULL,
                  recipe BLOB NOT NULL, error BLOB NOT NULL, summary BLOB NOT NULL,
                  created_us INTEGER NOT NULL, ended_us INTEGER);
CREATE TABLE stages(run BLOB NOT NULL, stage BLOB NOT NULL, state INTEGER NOT NULL, detail BLOB NOT NULL,
                    PRIMARY KEY(run, stage)) WITHOUT ROWID;
CREATE TABLE items(run BLOB NOT NULL, stage BLOB NOT NULL, item INTEGER NOT NULL, key BLOB NOT NULL,
                   state INTEGER NOT NULL, attempts INTEGER NOT NULL, result BLOB, result_sha256 BLOB,
                   error_code INTEGER, error BLOB, PRIMARY KEY(run, stage, item));
CREATE TABLE events(run BLOB NOT NULL, sequence INTEGER NOT NULL, payload BLOB NOT NULL,
                    PRIMARY KEY(run, sequence)) WITHOUT ROWID;
PRAGMA user_version=1;
COMMIT;
)sql",
    R"sql(
BEGIN;
ALTER TABLE runs ADD COLUMN settings BLOB NOT NULL DEFAULT x'';
CREATE TABLE outcomes(number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, stage BLOB NOT NULL,
                      pace BLOB NOT NULL, detail BLOB NOT NULL);
CREATE INDEX outcomes_by_pace ON outcomes(stage, pace, number);
CREATE TABLE writer(epoch INTEGER NOT NULL);
INSERT INTO writer VALUES(0);
PRAGMA user_version=2;
COMMIT;
)sql"};
constexpr int64_t kSchemaVersion = std::size(kMigrations);

absl::StatusOr<int64_t> SchemaVersion(Sqlite& database) {
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query, database.Prepare("PRAGMA user_version"));
  ALMOST_RETURN_IF_ERROR(query.Step().status());
  return query.Number(0);
}

absl::StatusOr<int64_t> Epoch(Sqlite& database) {
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query, database.Prepare("SELECT epoch FROM writer"));
  ALMOST_RETURN_IF_ERROR(query.Step().status());
  return query.Number(0);
}

absl::Status CheckIntegrity(Sqlite& database, const std::filesystem::path& file) {
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query, database.Prepare("PRAGMA quick_check(1)"));
  ALMOST_RETURN_IF_ERROR(query.Step().status());
  if (query.Text(0) == "ok") return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("the journal ", file.string(), " is damaged: ", query.Text(0)));
}

Sqlite::Query& BindTime(Sqlite::Query& query, int parameter, absl::Time time) {
  return time == absl::InfiniteFuture() ? query.BindNull(parameter)
                                        : query.Bind(parameter, absl::ToUnixMicros(time));
}

}  // namespace

struct Journal::Pending {
  const JournalBatch* batch;
  absl::Status status;
  bool done = false;
};

void JournalBatch::CreateRun(RunRecord run) {
  changes_.push_back([run = std::move(run)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(
        Sqlite::Query query,
        database.Prepare("INSERT INTO runs(id, state, recipe, error, summary, created_us, "
                         "ended_us, settings) VALUES(?, ?, ?, ?, ?, ?, ?, ?)"));
    query.Bind(1, run.id).Bind(2, run.state).Bind(3, run.recipe).Bind(4, run.error).Bind(5, run.summary);
    BindTime(query.Bind(6, absl::ToUnixMicros(run.create_time)), 7, run.end_time);
    return query.Bind(8, run.settings).Run();
  });
}

void JournalBatch::DeleteRun(std::string run) {
  changes_.push_back([run = std::move(run)](Sqlite& database) -> absl::Status {
    for (const char* const sql : {"DELETE FROM items WHERE run=?", "DELETE FROM events WHERE run=?",
                                  "DELETE FROM stages WHERE run=?", "DELETE FROM runs WHERE id=?"}) {
      ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query, database.Prepare(sql));
      ALMOST_RETURN_IF_ERROR(query.Bind(1, run).Run());
    }
    return absl::OkStatus();
  });
}

void JournalBatch::PutOutcome(OutcomeRecord outcome) {
  changes_.push_back([outcome = std::move(outcome)](Sqlite& database) -> absl::Status {
    // Replacing gives it the highest number: it is the latest.
    ALMOST_ASSIGN_OR_RETURN(
        Sqlite::Query query,
        database.Prepare("INSERT OR REPLACE INTO outcomes(number, key, stage, pace, detail) "
                         "SELECT COALESCE(MAX(number), 0) + 1, ?1, ?2, ?3, ?4 FROM outcomes"));
    return query.Bind(1, outcome.key)
        .Bind(2, outcome.stage)
        .Bind(3, outcome.pace)
        .Bind(4, outcome.detail)
        .Run();
  });
}

void JournalBatch::UpdateRun(RunRecord run) {
  changes_.push_back([run = std::move(run)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(
        Sqlite::Query query,
        database.Prepare("UPDATE runs SET state=?, error=?, summary=?, ended_us=? WHERE id=?"));
    query.Bind(1, run.state).Bind(2, run.error).Bind(3, run.summary);
    return BindTime(query, 4, run.end_time).Bind(5, run.id).Run();
  });
}

void JournalBatch::PutStage(std::string run, StageRecord stage) {
  changes_.push_back([run = std::move(run), stage = std::move(stage)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                            database.Prepare("INSERT INTO stages VALUES(?1, ?2, ?3, ?4) "
                                             "ON CONFLICT DO UPDATE SET state=?3, detail=?4"));
    return query.Bind(1, run).Bind(2, stage.stage).Bind(3, stage.state).Bind(4, stage.detail).Run();
  });
}

void JournalBatch::StartItem(std::string run, std::string stage, int64_t item, std::string key) {
  changes_.push_back([run = std::move(run), stage = std::move(stage), item,
                      key = std::move(key)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(
        Sqlite::Query query,
        database.Prepare(
            "INSERT INTO items(run, stage, item, key, state, attempts) VALUES(?1, ?2, ?3, ?4, ?5, "
            "1) ON CONFLICT DO UPDATE SET key=?4, state=?5, attempts=attempts+1"));
    query.Bind(1, run).Bind(2, stage).Bind(3, item).Bind(4, key);
    return query.Bind(5, static_cast<int64_t>(ItemState::kStarted)).Run();
  });
}

void JournalBatch::FinishItem(std::string run, std::string stage, int64_t item, std::string result) {
  changes_.push_back([run = std::move(run), stage = std::move(stage), item,
                      result = std::move(result)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                            database.Prepare("UPDATE items SET state=?4, result=?5, result_sha256=?6 "
                                             "WHERE run=?1 AND stage=?2 AND item=?3"));
    query.Bind(1, run).Bind(2, stage).Bind(3, item).Bind(4, static_cast<int64_t>(ItemState::kDone));
    return query.Bind(5, result).Bind(6, Sha256(result)).Run();
  });
}

void JournalBatch::SetItemAside(std::string run, std::string stage, int64_t item, absl::Status error) {
  changes_.push_back([run = std::move(run), stage = std::move(stage), item,
                      error = std::move(error)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                            database.Prepare("UPDATE items SET state=?4, error_code=?5, error=?6 "
                                             "WHERE run=?1 AND stage=?2 AND item=?3"));
    query.Bind(1, run).Bind(2, stage).Bind(3, item).Bind(4, static_cast<int64_t>(ItemState::kSetAside));
    return query.Bind(5, static_cast<int64_t>(error.code())).Bind(6, error.message()).Run();
  });
}

void JournalBatch::ForgetSetAside(std::string run, std::string stage) {
  changes_.push_back([run = std::move(run), stage = std::move(stage)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(
        Sqlite::Query query,
        database.Prepare("UPDATE items SET state=?3 WHERE run=?1 AND stage=?2 AND state=?4"));
    query.Bind(1, run).Bind(2, stage).Bind(3, static_cast<int64_t>(ItemState::kStarted));
    return query.Bind(4, static_cast<int64_t>(ItemState::kSetAside)).Run();
  });
}

void JournalBatch::ForgetItems(std::string run, std::string stage) {
  changes_.push_back([run = std::move(run), stage = std::move(stage)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                            database.Prepare("DELETE FROM items WHERE run=? AND stage=?"));
    return query.Bind(1, run).Bind(2, stage).Run();
  });
}

void JournalBatch::DropResults(std::string run, std::string stage) {
  changes_.push_back([run = std::move(run), stage = std::move(stage)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(
        Sqlite::Query query,
        database.Prepare("UPDATE items SET result=NULL, result_sha256=NULL WHERE run=? AND stage=?"));
    return query.Bind(1, run).Bind(2, stage).Run();
  });
}

void JournalBatch::AddEvent(std::string run, std::string payload) {
  changes_.push_back([run = std::move(run), payload = std::move(payload)](Sqlite& database) -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(
        Sqlite::Query query,
        database.Prepare("INSERT INTO events SELECT ?1, COALESCE(MAX(sequence), 0) + 1, ?2 FROM events "
                         "WHERE run=?1"));
    return query.Bind(1, run).Bind(2, payload).Run();
  });
}

Journal::Journal(std::filesystem::path file, int lock, int64_t epoch, std::unique_ptr<Sqlite> writer,
                 std::unique_ptr<Sqlite> reader)
    : file_(std::move(file)),
      lock_(lock),
      epoch_(epoch),
      writer_(std::move(writer)),
      reader_(std::move(reader)) {}

Journal::~Journal() { ::close(lock_); }

absl::StatusOr<std::unique_ptr<Journal>> Journal::Open(const std::filesystem::path& file) {
  const std::string lock_file = absl::StrCat(file.string(), ".lock");
  const int lock = ::open(lock_file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (lock < 0) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", lock_file));
  if (::flock(lock, LOCK_EX | LOCK_NB) != 0) {
    ::close(lock);
    return absl::FailedPreconditionError(
        absl::StrCat("the journal ", file.string(), " is in use by another orchestrator"));
  }
  std::unique_ptr<Journal> journal;
  const absl::Status status = [&]() -> absl::Status {
    ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<Sqlite> writer, Sqlite::Open(file));
    ALMOST_ASSIGN_OR_RETURN(const int64_t version, SchemaVersion(*writer));
    if (version > kSchemaVersion) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the journal ", file.string(), " was written by a newer version: it has schema ", version,
          ", this version knows up to ", kSchemaVersion, "; start the newer version again"));
    }
    if (version > 0) ALMOST_RETURN_IF_ERROR(CheckIntegrity(*writer, file));
    for (int64_t from = version; from < kSchemaVersion; ++from) {
      ALMOST_RETURN_IF_ERROR(writer->Execute(kMigrations[from]));
    }
    ALMOST_RETURN_IF_ERROR(writer->Execute("UPDATE writer SET epoch=epoch+1"));
    ALMOST_ASSIGN_OR_RETURN(const int64_t epoch, Epoch(*writer));
    ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<Sqlite> reader, Sqlite::Open(file));
    journal.reset(new Journal(file, lock, epoch, std::move(writer), std::move(reader)));
    return absl::OkStatus();
  }();
  if (!status.ok()) {
    ::close(lock);
    return status;
  }
  return journal;
}

absl::Status Journal::Commit(const JournalBatch& batch) {
  Pending pending{&batch, absl::OkStatus()};
  const absl::MutexLock lock(&mutex_);
  queue_.push_back(&pending);
  const auto my_turn = [this, &pending]()
                           ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return pending.done || !committing_; };
  mutex_.Await(absl::Condition(&my_turn));
  if (pending.done) return pending.status;
  const std::vector<Pending*> group = std::exchange(queue_, {});
  if (!broken_.ok()) {
    for (Pending* each : group) each->status = broken_;
  } else {
    committing_ = true;
    mutex_.Unlock();
    CommitGroup(group);
    mutex_.Lock();
    committing_ = false;
    if (absl::IsUnknown(pending.status) || absl::IsFailedPrecondition(pending.status)) {
      broken_ = pending.status;
    }
  }
  for (Pending* each : group) each->done = true;
  return pending.status;
}

absl::Status Journal::CheckEpoch() {
  ALMOST_ASSIGN_OR_RETURN(const int64_t epoch, Epoch(*writer_));
  if (epoch == epoch_) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("another orchestrator has taken over the journal ", file_.string()));
}

void Journal::CommitGroup(const std::vector<Pending*>& group) {
  absl::Status whole = writer_->Execute("BEGIN IMMEDIATE");
  if (whole.ok()) whole = CheckEpoch();
  for (Pending* each : group) {
    if (!whole.ok()) break;
    each->status = writer_->Execute("SAVEPOINT batch");
    for (const JournalBatch::Change& change : each->batch->changes_) {
      if (each->status.ok()) each->status = change(*writer_);
    }
    // A batch whose key is taken fails alone; a device that fails, or is full, fails the group.
    if (absl::IsAlreadyExists(each->status)) whole.Update(writer_->Execute("ROLLBACK TO batch"));
    if (!each->status.ok() && !absl::IsAlreadyExists(each->status)) whole = each->status;
    if (whole.ok()) whole = writer_->Execute("RELEASE batch");
  }
  if (whole.ok()) whole = writer_->Execute("COMMIT");
  if (whole.ok()) return;
  if (writer_->InTransaction()) writer_->Execute("ROLLBACK").IgnoreError();
  for (Pending* each : group) each->status = whole;
}

absl::StatusOr<RunRecord> Journal::GetRun(absl::string_view id) {
  const absl::MutexLock lock(&read_mutex_);
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                          reader_->Prepare("SELECT number, state, recipe, error, summary, created_us, "
                                           "ended_us, settings FROM runs WHERE id=?"));
  ALMOST_ASSIGN_OR_RETURN(const bool found, query.Bind(1, id).Step());
  if (!found) return absl::NotFoundError(absl::StrCat("no run \"", id, "\""));
  RunRecord run;
  run.id = std::string(id);
  run.number = query.Number(0);
  run.state = query.Number(1);
  run.recipe = query.Text(2);
  run.error = query.Text(3);
  run.summary = query.Text(4);
  run.create_time = absl::FromUnixMicros(query.Number(5));
  if (!query.IsNull(6)) run.end_time = absl::FromUnixMicros(query.Number(6));
  run.settings = query.Text(7);
  return run;
}

absl::StatusOr<std::vector<RunRecord>> Journal::ListRuns(int64_t before, int64_t limit) {
  const absl::MutexLock lock(&read_mutex_);
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                          reader_->Prepare("SELECT number, id, state, error, created_us, ended_us FROM runs "
                                           "WHERE ?1=0 OR number<?1 ORDER BY number DESC LIMIT ?2"));
  query.Bind(1, before).Bind(2, limit);
  std::vector<RunRecord> runs;
  while (true) {
    ALMOST_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return runs;
    RunRecord& run = runs.emplace_back();
    run.number = query.Number(0);
    run.id = query.Text(1);
    run.state = query.Number(2);
    run.error = query.Text(3);
    run.create_time = absl::FromUnixMicros(query.Number(4));
    if (!query.IsNull(5)) run.end_time = absl::FromUnixMicros(query.Number(5));
  }
}

absl::StatusOr<std::vector<StageRecord>> Journal::GetStages(absl::string_view run) {
  const absl::MutexLock lock(&read_mutex_);
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                          reader_->Prepare("SELECT stage, state, detail FROM stages WHERE run=?"));
  query.Bind(1, run);
  std::vector<StageRecord> stages;
  while (true) {
    ALMOST_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return stages;
    stages.push_back({query.Text(0), query.Number(1), query.Text(2)});
  }
}

absl::StatusOr<std::vector<ItemRecord>> Journal::GetItems(absl::string_view run, absl::string_view stage,
                                                          int64_t first, int64_t limit, bool results) {
  const absl::MutexLock lock(&read_mutex_);
  ALMOST_ASSIGN_OR_RETURN(
      Sqlite::Query query,
      reader_->Prepare("SELECT item, key, state, attempts, error_code, error, CASE WHEN ?5 THEN result END, "
                       "CASE WHEN ?5 THEN result_sha256 END, result IS NULL FROM items "
                       "WHERE run=?1 AND stage=?2 AND item>=?3 ORDER BY item LIMIT ?4"));
  query.Bind(1, run).Bind(2, stage).Bind(3, first).Bind(4, limit).Bind(5, int64_t{results});
  std::vector<ItemRecord> items;
  while (true) {
    ALMOST_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return items;
    ItemRecord& item = items.emplace_back();
    item.item = query.Number(0);
    item.key = query.Text(1);
    item.state = static_cast<ItemState>(query.Number(2));
    item.attempts = query.Number(3);
    if (item.state == ItemState::kSetAside) {
      item.error = absl::Status(static_cast<absl::StatusCode>(query.Number(4)), query.Text(5));
    }
    item.result = query.Text(6);
    item.dropped = item.state == ItemState::kDone && query.Number(8) != 0;
    if (!query.IsNull(7) && Sha256(item.result) != query.Text(7)) {
      return absl::DataLossError(
          absl::StrCat("the journal's result of item ", item.item, " of ", run, "/", stage, " is damaged"));
    }
  }
}

absl::StatusOr<OutcomeRecord> Journal::ReadOutcome(Sqlite::Query query) {
  ALMOST_ASSIGN_OR_RETURN(const bool row, query.Step());
  if (!row) return absl::NotFoundError("no such outcome");
  return OutcomeRecord{query.Text(0), query.Text(1), query.Text(2), query.Text(3)};
}

absl::StatusOr<OutcomeRecord> Journal::GetOutcome(absl::string_view key) {
  const absl::MutexLock lock(&read_mutex_);
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                          reader_->Prepare("SELECT key, stage, pace, detail FROM outcomes WHERE key=?"));
  query.Bind(1, key);
  return ReadOutcome(std::move(query));
}

absl::StatusOr<OutcomeRecord> Journal::LatestOutcome(absl::string_view stage, absl::string_view pace) {
  const absl::MutexLock lock(&read_mutex_);
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                          reader_->Prepare("SELECT key, stage, pace, detail FROM outcomes "
                                           "WHERE stage=? AND pace=? ORDER BY number DESC LIMIT 1"));
  query.Bind(1, stage).Bind(2, pace);
  return ReadOutcome(std::move(query));
}

absl::StatusOr<std::vector<EventRecord>> Journal::GetEvents(absl::string_view run, int64_t after_sequence,
                                                            int64_t limit) {
  const absl::MutexLock lock(&read_mutex_);
  ALMOST_ASSIGN_OR_RETURN(Sqlite::Query query,
                          reader_->Prepare("SELECT sequence, payload FROM events WHERE run=? AND sequence>? "
                                           "ORDER BY sequence LIMIT ?"));
  query.Bind(1, run).Bind(2, after_sequence).Bind(3, limit);
  std::vector<EventRecord> events;
  while (true) {
    ALMOST_ASSIGN_OR_RETURN(const bool row, query.Step());
    if (!row) return events;
    events.push_back({query.Number(0), query.Text(1)});
  }
}

}  // namespace almost
