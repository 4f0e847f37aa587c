#include "common/storage/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sqlite3.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"
#include "common/storage/fault_env.h"
#include "common/storage/faulting_disk.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class JournalTest : public ::testing::Test {
 protected:
  ~JournalTest() override { FaultingDisk::Heal(); }

  static RunRecord Run(const std::string& id) {
    RunRecord run;
    run.id = id;
    run.state = 1;
    run.recipe = std::string("a\0b", 3);
    run.settings = "settings";
    run.create_time = absl::FromUnixSeconds(100);
    return run;
  }
  static absl::Status Create(Journal& journal, const std::string& id) {
    JournalBatch batch;
    batch.CreateRun(Run(id));
    batch.AddEvent(id, "created");
    return journal.Commit(batch);
  }
  static absl::Status Finish(Journal& journal, int64_t item, const std::string& result) {
    JournalBatch batch;
    batch.StartItem("r", "s", item, absl::StrCat("r/s/", item));
    batch.FinishItem("r", "s", item, result);
    return journal.Commit(batch);
  }

  const ScratchFolder folder_;
  const fs::path file_ = folder_ / "journal.db";
};

TEST_F(JournalTest, KeepsRunsStagesItemsAndEventsOverARestart) {
  {
    auto journal = Journal::Open(file_).value();
    ASSERT_TRUE(Create(*journal, "r").ok());
    ASSERT_TRUE(Create(*journal, "r2").ok());
    JournalBatch batch;
    batch.PutStage("r", {"s", 1, "detail"});
    batch.StartItem("r", "s", 0, "r/s/0");
    batch.StartItem("r", "s", 1, "r/s/1");
    batch.StartItem("r", "s", 2, "r/s/2");
    batch.FinishItem("r", "s", 1, std::string("\0result", 7));
    batch.SetItemAside("r", "s", 2, absl::OutOfRangeError("too long"));
    batch.AddEvent("r", "progress");
    batch.PutStage("r", {"s", 2, "more detail"});
    ASSERT_TRUE(journal->Commit(batch).ok());
    JournalBatch again;
    again.StartItem("r", "s", 0, "r/s/0");
    RunRecord run = Run("r");
    run.state = 3;
    run.summary = "{}";
    run.end_time = absl::FromUnixSeconds(200);
    again.UpdateRun(run);
    ASSERT_TRUE(journal->Commit(again).ok());
  }
  auto journal = Journal::Open(file_).value();
  const RunRecord run = journal->GetRun("r").value();
  EXPECT_EQ(run.state, 3);
  EXPECT_EQ(run.recipe, std::string("a\0b", 3));
  EXPECT_EQ(run.settings, "settings");
  EXPECT_EQ(run.summary, "{}");
  EXPECT_EQ(run.create_time, absl::FromUnixSeconds(100));
  EXPECT_EQ(run.end_time, absl::FromUnixSeconds(200));
  EXPECT_EQ(journal->GetRun("r2")->end_time, absl::InfiniteFuture());
  EXPECT_EQ(journal->GetRun("nothing").status().code(), absl::StatusCode::kNotFound);

  const auto runs = journal->ListRuns(0, 10).value();
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_EQ(runs[0].id, "r2");
  EXPECT_EQ(journal->ListRuns(runs[0].number, 10).value().front().id, "r");

  const auto stages = journal->GetStages("r").value();
  ASSERT_EQ(stages.size(), 1u);
  EXPECT_EQ(stages[0].detail, "more detail");

  const auto items = journal->GetItems("r", "s", 0, 10, true).value();
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[0].state, ItemState::kStarted);
  EXPECT_EQ(items[0].attempts, 2);
  EXPECT_EQ(items[0].key, "r/s/0");
  EXPECT_EQ(items[1].state, ItemState::kDone);
  EXPECT_EQ(items[1].result, std::string("\0result", 7));
  EXPECT_FALSE(items[1].dropped);
  EXPECT_EQ(items[2].error, absl::OutOfRangeError("too long"));

  const auto events = journal->GetEvents("r", 1, 10).value();
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].sequence, 2);
  EXPECT_EQ(events[0].payload, "progress");

  JournalBatch batch;
  batch.DropResults("r", "s");
  batch.ForgetSetAside("r", "s");
  ASSERT_TRUE(journal->Commit(batch).ok());
  const auto dropped = journal->GetItems("r", "s", 1, 10, true).value();
  EXPECT_EQ(dropped[0].state, ItemState::kDone);
  EXPECT_EQ(dropped[0].result, "");
  EXPECT_TRUE(dropped[0].dropped);
  EXPECT_TRUE(journal->GetItems("r", "s", 1, 1, false)->front().dropped);
  EXPECT_EQ(dropped[1].state, ItemState::kStarted);

  JournalBatch anew;
  anew.StartItem("r", "other", 0, "r/other/0");
  anew.ForgetItems("r", "s");
  ASSERT_TRUE(journal->Commit(anew).ok());
  EXPECT_TRUE(journal->GetItems("r", "s", 0, 10, true)->empty());
  EXPECT_EQ(journal->GetItems("r", "other", 0, 10, true)->size(), 1u);
}

TEST_F(JournalTest, ABatchWhoseKeyIsTakenChangesNothing) {
  auto journal = Journal::Open(file_).value();
  ASSERT_TRUE(Create(*journal, "r").ok());
  EXPECT_EQ(Create(*journal, "r").code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(journal->GetEvents("r", 0, 10)->size(), 1u);
  EXPECT_TRUE(Create(*journal, "r2").ok());
}

TEST_F(JournalTest, ThreadsShareTransactions) {
  auto journal = Journal::Open(file_).value();
  std::vector<std::thread> threads;
  std::atomic<int> failures{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        if (!Finish(*journal, t * 50 + i, absl::StrCat(t, "/", i)).ok()) ++failures;
        JournalBatch batch;
        batch.AddEvent("r", "x");
        if (!journal->Commit(batch).ok()) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_EQ(journal->GetItems("r", "s", 0, 1000, true)->size(), 400u);
  const auto events = journal->GetEvents("r", 0, 1000).value();
  ASSERT_EQ(events.size(), 400u);
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence, static_cast<int64_t>(i) + 1);
}

TEST_F(JournalTest, RefusesASecondProcess) {
  auto journal = Journal::Open(file_).value();
  const pid_t child = ::fork();
  if (child == 0) {
    ::_exit(Journal::Open(file_).status().code() == absl::StatusCode::kFailedPrecondition ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  journal.reset();
  EXPECT_TRUE(Journal::Open(file_).ok());
}

// The first has been stopped for long, and somebody has removed its lock: what it writes late must not count.
TEST_F(JournalTest, FencesAWriterOffWhomAnotherHasReplaced) {
  auto first = Journal::Open(file_).value();
  ASSERT_TRUE(Create(*first, "r").ok());
  fs::remove(file_.string() + ".lock");
  auto second = Journal::Open(file_).value();
  const absl::Status late = Finish(*first, 0, "late");
  EXPECT_EQ(late.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(late.message()), HasSubstr("another orchestrator has taken over"));
  EXPECT_TRUE(Finish(*second, 0, "mine").ok());
  EXPECT_EQ(Create(*first, "other").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(second->GetItems("r", "s", 0, 10, true)->front().result, "mine");
  EXPECT_EQ(second->GetRun("other").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JournalTest, BringsAFileOfTheFirstSchemaForward) {
  {
    auto database = Sqlite::Open(file_).value();
    ASSERT_TRUE(database
                    ->Execute(R"sql(
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
INSERT INTO runs VALUES(7, x'72', 1, x'6162', x'', x'', 5, NULL);
INSERT INTO items VALUES(x'72', x'73', 3, x'6b', 1, 2, NULL, NULL, NULL, NULL);
PRAGMA user_version=1;
)sql")
                    .ok());
  }
  auto journal = Journal::Open(file_).value();
  const RunRecord run = journal->GetRun("r").value();
  EXPECT_EQ(run.number, 7);
  EXPECT_EQ(run.recipe, "ab");
  EXPECT_EQ(run.settings, "");
  EXPECT_EQ(journal->GetItems("r", "s", 0, 10, true)->front().attempts, 2);
  ASSERT_TRUE(Create(*journal, "r2").ok());
  EXPECT_EQ(journal->GetRun("r2")->number, 8);
}

TEST_F(JournalTest, DeletesARunAndKeepsWhatItsStagesCameTo) {
  auto journal = Journal::Open(file_).value();
  ASSERT_TRUE(Create(*journal, "r").ok());
  ASSERT_TRUE(Create(*journal, "r2").ok());
  ASSERT_TRUE(Finish(*journal, 0, "result").ok());
  const auto put = [&](const std::string& key, const std::string& detail) {
    JournalBatch batch;
    batch.PutOutcome({key, "s", "fast", detail});
    return journal->Commit(batch);
  };
  ASSERT_TRUE(put("a", "1").ok());
  ASSERT_TRUE(put("b", "2").ok());
  EXPECT_EQ(journal->LatestOutcome("s", "fast")->key, "b");
  ASSERT_TRUE(put("a", "3").ok());
  JournalBatch batch;
  batch.PutStage("r", {"s", 1, "detail"});
  batch.DeleteRun("r");
  ASSERT_TRUE(journal->Commit(batch).ok());
  EXPECT_EQ(journal->GetRun("r").status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(journal->GetStages("r")->empty());
  EXPECT_TRUE(journal->GetItems("r", "s", 0, 10, true)->empty());
  EXPECT_TRUE(journal->GetEvents("r", 0, 10)->empty());
  EXPECT_EQ(journal->GetEvents("r2", 0, 10)->size(), 1u);
  EXPECT_EQ(journal->GetOutcome("a")->detail, "3");
  EXPECT_EQ(journal->LatestOutcome("s", "fast")->key, "a");
  EXPECT_EQ(journal->LatestOutcome("s", "slow").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(journal->GetOutcome("c").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JournalTest, RefusesANewerSchemaAndADamagedFile) {
  Journal::Open(file_).value();
  ASSERT_TRUE(Sqlite::Open(file_).value()->Execute("PRAGMA user_version=3").ok());
  const absl::Status newer = Journal::Open(file_).status();
  EXPECT_EQ(newer.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(newer.message()), HasSubstr("newer version: it has schema 3"));
  ASSERT_TRUE(Env::Posix()->Write(file_, "this is no database at all, though it is long enough").ok());
  const absl::Status damaged = Journal::Open(file_).status();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(damaged.message()), HasSubstr("journal.db"));
}

TEST_F(JournalTest, NamesAResultThatHasChanged) {
  {
    auto journal = Journal::Open(file_).value();
    ASSERT_TRUE(Finish(*journal, 7, "result").ok());
  }
  ASSERT_TRUE(Sqlite::Open(file_).value()->Execute("UPDATE items SET result=CAST('resulT' AS BLOB)").ok());
  auto journal = Journal::Open(file_).value();
  const absl::Status status = journal->GetItems("r", "s", 0, 10, true).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("item 7 of r/s"));
  EXPECT_TRUE(journal->GetItems("r", "s", 0, 10, false).ok());
}

// The log is cut at every byte of its last record, as a crash in mid-write leaves it: all that was committed
// before is there, and the last record is there whole or not at all.
TEST_F(JournalTest, SurvivesATornLastRecordAtEveryOffset) {
  auto journal = Journal::Open(file_).value();
  ASSERT_TRUE(Finish(*journal, 0, "first").ok());
  const fs::path wal = file_.string() + "-wal";
  const auto before = fs::file_size(wal);
  ASSERT_TRUE(Finish(*journal, 1, "second").ok());
  const std::string database = Env::Posix()->Read(file_).value();
  const std::string log = Env::Posix()->Read(wal).value();
  ASSERT_GT(log.size(), before);

  const fs::path copy = folder_ / "copy.db";
  int with_last = 0;
  // Frames are about 4 KiB; every offset of the ends, and a stride that meets every header between.
  for (size_t size = before; size <= log.size();
       size += size < before + 64
                   ? 1
                   : std::clamp<size_t>(log.size() - 64 - std::min(size, log.size() - 64), 1, 211)) {
    fs::remove(copy.string() + "-shm");
    ASSERT_TRUE(Env::Posix()->Write(copy, database).ok());
    ASSERT_TRUE(Env::Posix()->Write(copy.string() + "-wal", absl::string_view(log).substr(0, size)).ok());
    auto torn = Journal::Open(copy);
    ASSERT_TRUE(torn.ok()) << size << ": " << torn.status();
    const auto items = (*torn)->GetItems("r", "s", 0, 10, true).value();
    ASSERT_GE(items.size(), 1u) << size;
    EXPECT_EQ(items[0].result, "first");
    if (items.size() == 2) {
      ++with_last;
      EXPECT_EQ(items[1].result, "second");
    }
    ASSERT_TRUE(Finish(**torn, 1, "second again").ok());
    EXPECT_EQ((*torn)->GetItems("r", "s", 1, 1, true)->front().result, "second again");
  }
  EXPECT_EQ(with_last, 1);  // only the whole log holds it
}

TEST_F(JournalTest, AFullDiskFailsTheCommitAndNothingElse) {
  FaultingDisk::FailAt(-1, SQLITE_FULL);
  for (int write = 0;; ++write) {
    ASSERT_LT(write, 50);
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    auto journal = Journal::Open(file_).value();
    ASSERT_TRUE(Finish(*journal, 0, "first").ok());
    FaultingDisk::FailAt(write, SQLITE_FULL);
    const absl::Status status = Finish(*journal, 1, std::string(20000, 'x'));
    FaultingDisk::Heal();
    const size_t items = journal->GetItems("r", "s", 0, 10, true)->size();
    if (status.ok()) {
      EXPECT_EQ(items, 2u);
      break;
    }
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(status.message()), HasSubstr("journal.db"));
    EXPECT_EQ(items, 1u);
    EXPECT_TRUE(Finish(*journal, 1, "second").ok());
    journal.reset();
    EXPECT_EQ(Journal::Open(file_).value()->GetItems("r", "s", 1, 1, true)->front().result, "second");
  }
}

TEST_F(JournalTest, AFailingDeviceStopsTheJournalUntilItIsOpenedAgain) {
  FaultingDisk::FailAt(-1, SQLITE_IOERR_WRITE);
  auto journal = Journal::Open(file_).value();
  ASSERT_TRUE(Finish(*journal, 0, "first").ok());
  FaultingDisk::FailAt(0, SQLITE_IOERR_WRITE);
  EXPECT_EQ(Finish(*journal, 1, "second").code(), absl::StatusCode::kUnknown);
  FaultingDisk::Heal();
  EXPECT_EQ(Finish(*journal, 1, "second").code(), absl::StatusCode::kUnknown);
  journal.reset();
  journal = Journal::Open(file_).value();
  EXPECT_EQ(journal->GetItems("r", "s", 0, 10, true)->size(), 1u);
  EXPECT_TRUE(Finish(*journal, 1, "second").ok());
}

}  // namespace
}  // namespace almost
