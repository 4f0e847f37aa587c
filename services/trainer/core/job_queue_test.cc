#include "services/trainer/core/job_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <csignal>
#include <fstream>

#include "absl/synchronization/notification.h"
#include "common/base/scratch_folder.h"

namespace almost::trainer {
namespace {

namespace fs = std::filesystem;

void WaitForStop(const std::stop_token& stop) {
  absl::Notification requested;
  std::stop_callback notify(stop, [&] { requested.Notify(); });
  requested.WaitForNotification();
}

class JobQueueTest : public testing::Test {
 protected:
  static JobRecord WaitForEnd(const JobQueue& queue, const std::string& id) {
    for (int64_t seen = 0;;) {
      const auto events = queue.Events(id, seen, absl::Seconds(20));
      EXPECT_TRUE(events.ok() && !events->empty()) << "no event for 20 s";
      if (!events.ok() || events->empty()) return {};
      seen = events->back().sequence;
      if (HasEnded(events->back().state)) return *queue.Get(id);
    }
  }

  // Another process that takes the job up, reports these steps and is gone.
  void TakeUpAndVanish(const std::vector<int64_t>& steps) const {
    const pid_t child = fork();
    if (child == 0) {
      const auto queue =
          JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
            for (const int64_t step : steps) context.report(step, 9, {});
            std::raise(SIGKILL);
            return absl::InternalError("unreachable");
          });
      (*queue)->Create("job", "spec").IgnoreError();
      absl::SleepFor(absl::Seconds(20));
      _exit(1);  // it was not taken up
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }
  // A process that takes the job up, also if it has failed, and is asked to stop.
  void TakeUpAndStop() const {
    absl::Notification started;
    const auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
      started.Notify();
      WaitForStop(context.stop);
      return absl::CancelledError("stopped");
    });
    EXPECT_TRUE(queue->Resume("job").ok());
    EXPECT_TRUE(started.WaitForNotificationWithTimeout(absl::Seconds(20)));
  }

  const ScratchFolder root_;
};

absl::StatusOr<TrainedModel> ThreeSteps(const JobContext& context) {
  for (int step = 1; step <= 3; ++step) context.report(step, 3, {{"loss", 1.0 / step}});
  return TrainedModel{"digest-of-" + context.spec, "numerics"};
}

TEST_F(JobQueueTest, RunsJobsInTheOrderOfTheirCreation) {
  absl::Notification go;
  std::vector<std::string> order;
  auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    go.WaitForNotification();
    order.push_back(context.id);
    return ThreeSteps(context);
  });
  for (const char* id : {"c", "a", "b"}) ASSERT_TRUE(queue->Create(id, "spec").ok());
  go.Notify();
  EXPECT_EQ(WaitForEnd(*queue, "b").state, JobState::kSucceeded);
  EXPECT_THAT(order, testing::ElementsAre("c", "a", "b"));
}

TEST_F(JobQueueTest, TheHighestPriorityOfThoseThatWaitBeginsFirstAlsoAfterARestart) {
  std::vector<std::string> order;
  {
    absl::Notification stopping;
    auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
      stopping.Notify();
      while (!context.stop.stop_requested()) absl::SleepFor(absl::Milliseconds(1));
      return absl::CancelledError("stopped");
    });
    ASSERT_TRUE(queue->Create("running", "spec", -1).ok());
    stopping.WaitForNotification();
    ASSERT_TRUE(queue->Create("old", "spec").ok());
    ASSERT_TRUE(queue->Create("young", "spec").ok());
    ASSERT_TRUE(queue->Create("urgent", "spec", 5).ok());
    EXPECT_EQ(queue->Get("running")->state, JobState::kRunning);  // not interrupted
  }
  auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    order.push_back(context.id);
    return ThreeSteps(context);
  });
  EXPECT_EQ(WaitForEnd(*queue, "running").state, JobState::kSucceeded);
  EXPECT_EQ(queue->Get("urgent")->priority, 5);
  EXPECT_THAT(order, testing::ElementsAre("urgent", "old", "young", "running"));
}

TEST_F(JobQueueTest, KeepsItsHistoryOverARestart) {
  {
    auto queue = *JobQueue::Open(root_, ThreeSteps);
    ASSERT_TRUE(queue->Create("job", "spec").ok());
    WaitForEnd(*queue, "job");
  }
  auto queue = *JobQueue::Open(root_, ThreeSteps);
  const JobRecord record = *queue->Get("job");
  EXPECT_EQ(record.state, JobState::kSucceeded);
  EXPECT_EQ(record.output_digest, "digest-of-spec");
  const auto events = *queue->Events("job", 0, absl::ZeroDuration());
  ASSERT_EQ(events.size(), 6u);  // queued, running, three steps, succeeded
  EXPECT_EQ(events[4].metrics.at("loss"), 1.0 / 3);
  EXPECT_EQ(queue->Events("job", 4, absl::ZeroDuration())->front().sequence, 5);
}

TEST_F(JobQueueTest, AMetricThatIsNotFiniteIsLeftOutOfTheHistory) {
  {
    auto queue = *JobQueue::Open(root_, [](const JobContext& context) {
      context.report(1, 1, {{"loss", 0.5}, {"explained", std::nan("")}});
      return TrainedModel{"digest", "numerics"};
    });
    ASSERT_TRUE(queue->Create("job", "spec").ok());
    WaitForEnd(*queue, "job");
  }
  const auto queue = JobQueue::Open(root_, ThreeSteps);
  ASSERT_TRUE(queue.ok()) << queue.status();
  EXPECT_THAT((*queue)->Get("job")->metrics, testing::ElementsAre(testing::Pair("loss", 0.5)));
}

TEST_F(JobQueueTest, GoesOnWithAJobThatARestartInterrupted) {
  absl::Notification started;
  {
    auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
      std::ofstream(context.work_folder / "checkpoint") << "step 7";
      started.Notify();
      WaitForStop(context.stop);
      return absl::CancelledError("stopped");
    });
    ASSERT_TRUE(queue->Create("job", "spec").ok());
    started.WaitForNotification();
  }
  std::string found;
  auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    std::getline(std::ifstream(context.work_folder / "checkpoint"), found);
    return ThreeSteps(context);
  });
  EXPECT_EQ(WaitForEnd(*queue, "job").state, JobState::kSucceeded);
  EXPECT_EQ(found, "step 7");
  EXPECT_FALSE(fs::exists(root_ / "job" / "work")) << "checkpoints of an ended job stay behind";
}

TEST_F(JobQueueTest, AJobThatTakesTheProcessWithItTimeAndAgainFailsAndMayBeResumed) {
  TakeUpAndVanish({1, 2});
  // From a checkpoint of step 1: what is done again is no progress.
  for (int i = 0; i < kMaxLostTakes - 1; ++i) TakeUpAndVanish({2});
  TakeUpAndStop();  // no process lost
  TakeUpAndVanish({2});
  std::atomic<int> takes{0};
  const auto train = [&](const JobContext& context) {
    ++takes;
    return ThreeSteps(context);
  };
  {
    const auto queue = *JobQueue::Open(root_, train);
    const JobRecord record = *queue->Get("job");
    EXPECT_EQ(record.state, JobState::kFailed);
    EXPECT_EQ(record.error.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(record.error.message()), testing::HasSubstr("after step 2"));
    EXPECT_LT(record.end_time, absl::InfiniteFuture());
    EXPECT_EQ(queue->Events("job", 0, absl::ZeroDuration())->back().error, record.error);
    EXPECT_TRUE(fs::exists(root_ / "job" / "work"));
  }
  EXPECT_EQ((*JobQueue::Open(root_, train))->Get("job")->state, JobState::kFailed) << "for good";
  EXPECT_EQ(takes, 0);
  TakeUpAndStop();
  for (int i = 0; i < kMaxLostTakes - 1; ++i) TakeUpAndVanish({2});
  TakeUpAndVanish({2, 3});  // at last
  TakeUpAndVanish({3});
  const auto queue = *JobQueue::Open(root_, train);
  EXPECT_EQ(WaitForEnd(*queue, "job").state, JobState::kSucceeded);
  EXPECT_EQ(takes, 1);
}

TEST_F(JobQueueTest, ARepeatIsHarmlessAndAnotherSpecIsRefused) {
  auto queue = *JobQueue::Open(root_, ThreeSteps);
  ASSERT_TRUE(queue->Create("job", "spec").ok());
  EXPECT_TRUE(queue->Create("job", "spec").ok());
  EXPECT_EQ(queue->List().size(), 1u);
  EXPECT_EQ(queue->Create("job", "other").status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(queue->Create("../job", "spec").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(queue->Get("none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(JobQueueTest, CancelsAQueuedJobAtOnceAndARunningOneAfterItsStep) {
  absl::Notification started;
  auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    started.Notify();
    WaitForStop(context.stop);
    return absl::CancelledError("stopped");
  });
  ASSERT_TRUE(queue->Create("running", "spec").ok());
  ASSERT_TRUE(queue->Create("queued", "spec").ok());
  started.WaitForNotification();
  EXPECT_EQ(queue->Cancel("queued")->state, JobState::kCancelled);
  ASSERT_TRUE(queue->Cancel("running").ok());
  EXPECT_EQ(WaitForEnd(*queue, "running").state, JobState::kCancelled);
}

TEST_F(JobQueueTest, APausedJobLeavesTheDeviceAndGoesOnFromItsCheckpoint) {
  absl::Notification started;
  const auto train = [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    if (context.id != "job" || fs::exists(context.work_folder / "checkpoint")) return ThreeSteps(context);
    started.Notify();
    WaitForStop(context.stop);
    std::ofstream(context.work_folder / "checkpoint") << "step 1";
    return absl::CancelledError("stopped");
  };
  const auto wait_for = [](const JobQueue& queue, JobState state) {
    for (int64_t seen = 0;;) {
      const auto events = queue.Events("job", seen, absl::Seconds(20)).value();
      ASSERT_FALSE(events.empty()) << "no event for 20 s";
      seen = events.back().sequence;
      if (events.back().state == state) return;
    }
  };
  {
    auto queue = *JobQueue::Open(root_, train);
    ASSERT_TRUE(queue->Create("job", "spec").ok());
    started.WaitForNotification();
    ASSERT_TRUE(queue->Create("waits", "spec").ok());
    EXPECT_EQ(queue->Pause("waits")->state, JobState::kPaused);
    ASSERT_TRUE(queue->Pause("job").ok());
    wait_for(*queue, JobState::kPaused);
    ASSERT_TRUE(queue->Create("other", "spec").ok());
    EXPECT_EQ(WaitForEnd(*queue, "other").state, JobState::kSucceeded);
    EXPECT_EQ(queue->Pause("other")->state, JobState::kSucceeded);
    EXPECT_EQ(queue->Pause("none").status().code(), absl::StatusCode::kNotFound);
  }
  auto queue = *JobQueue::Open(root_, train);
  EXPECT_EQ(queue->Get("job")->state, JobState::kPaused);
  EXPECT_EQ(queue->Get("waits")->state, JobState::kPaused);
  EXPECT_EQ(queue->Cancel("waits")->state, JobState::kCancelled);
  EXPECT_EQ(queue->Resume("waits")->state, JobState::kCancelled);
  EXPECT_EQ(queue->Resume("none").status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(queue->Resume("job").ok());
  EXPECT_EQ(WaitForEnd(*queue, "job").state, JobState::kSucceeded);
}

TEST_F(JobQueueTest, AJobResumedBeforeItHasStoppedGoesOn) {
  absl::Notification started;
  absl::Notification resumed;
  std::atomic<int> attempts{0};
  auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    if (++attempts > 1) return ThreeSteps(context);
    started.Notify();
    resumed.WaitForNotification();
    return absl::CancelledError("stopped");
  });
  ASSERT_TRUE(queue->Create("job", "spec").ok());
  started.WaitForNotification();
  EXPECT_EQ(queue->Pause("job")->state, JobState::kRunning);
  EXPECT_EQ(queue->Resume("job")->state, JobState::kRunning);
  resumed.Notify();
  EXPECT_EQ(WaitForEnd(*queue, "job").state, JobState::kSucceeded);
  EXPECT_EQ(attempts, 2);
}

TEST_F(JobQueueTest, AStopThatCannotBeRecordedLeavesTheJobAsItWas) {
  absl::Notification started;
  const auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    if (context.id == "waits") return ThreeSteps(context);
    started.Notify();
    WaitForStop(context.stop);
    return absl::CancelledError("stopped");
  });
  ASSERT_TRUE(queue->Create("running", "spec").ok());
  started.WaitForNotification();
  ASSERT_TRUE(queue->Create("waits", "spec").ok());
  const size_t num_events = queue->Events("waits", 0, absl::ZeroDuration())->size();
  // In the way of what would be renamed to it.
  const fs::path state = root_ / "waits" / "state.json";
  fs::rename(state, root_ / "kept");
  fs::create_directories(state / "in the way");
  EXPECT_FALSE(queue->Cancel("waits").ok());
  EXPECT_FALSE(queue->Pause("waits").ok());
  EXPECT_EQ(queue->Get("waits")->state, JobState::kQueued);
  EXPECT_EQ(queue->Get("waits")->end_time, absl::InfiniteFuture());
  EXPECT_EQ(queue->Events("waits", 0, absl::ZeroDuration())->size(), num_events);
  fs::remove_all(state);
  fs::rename(root_ / "kept", state);
  ASSERT_TRUE(queue->Cancel("running").ok());
  EXPECT_EQ(WaitForEnd(*queue, "waits").state, JobState::kSucceeded);
}

TEST_F(JobQueueTest, AFailureKeepsItsReason) {
  auto queue = *JobQueue::Open(root_, [](const JobContext&) -> absl::StatusOr<TrainedModel> {
    return absl::InvalidArgumentError("dataset: holds no line");
  });
  ASSERT_TRUE(queue->Create("job", "spec").ok());
  const JobRecord record = WaitForEnd(*queue, "job");
  EXPECT_EQ(record.state, JobState::kFailed);
  EXPECT_EQ(record.error, absl::InvalidArgumentError("dataset: holds no line"));
}

// As the names of files may have.
TEST_F(JobQueueTest, AReasonThatIsNotUtf8IsKeptAsFarAsItIs) {
  {
    auto queue = *JobQueue::Open(root_, [](const JobContext&) -> absl::StatusOr<TrainedModel> {
      return absl::InvalidArgumentError("mod\xe8les: holds no line");
    });
    ASSERT_TRUE(queue->Create("job", "spec").ok());
    EXPECT_EQ(WaitForEnd(*queue, "job").state, JobState::kFailed);
  }
  const auto queue = *JobQueue::Open(root_, ThreeSteps);
  EXPECT_EQ(queue->Get("job")->error, absl::InvalidArgumentError("mod\xef\xbf\xbdles: holds no line"));
}

TEST_F(JobQueueTest, WhatTheWorldFailedKeepsItsWorkAndGoesOnFromIt) {
  for (const auto code : {absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable,
                          absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kUnknown,
                          absl::StatusCode::kFailedPrecondition}) {
    const std::string id = absl::StatusCodeToString(code);
    const fs::path checkpoint = root_ / id / "work" / "checkpoint";
    {
      auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
        std::ofstream(context.work_folder / "checkpoint") << "step 7";
        return absl::Status(code, "no space left");
      });
      ASSERT_TRUE(queue->Create(id, "spec").ok());
      EXPECT_EQ(WaitForEnd(*queue, id).error.code(), code);
      EXPECT_TRUE(fs::exists(checkpoint)) << id;
    }
    std::string found;
    auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
      std::getline(std::ifstream(context.work_folder / "checkpoint"), found);
      return ThreeSteps(context);
    });
    EXPECT_EQ(queue->Get(id)->state, JobState::kFailed) << "goes on only when it is asked to";
    EXPECT_TRUE(fs::exists(checkpoint)) << id;
    const JobRecord resumed = *queue->Resume(id);
    EXPECT_EQ(resumed.state, JobState::kQueued);
    EXPECT_TRUE(resumed.error.ok()) << resumed.error;
    EXPECT_EQ(resumed.end_time, absl::InfiniteFuture());
    EXPECT_EQ(WaitForEnd(*queue, id).state, JobState::kSucceeded);
    EXPECT_EQ(found, "step 7");
    EXPECT_FALSE(fs::exists(root_ / id / "work"));
    EXPECT_EQ(queue->Resume(id)->state, JobState::kSucceeded);
  }
}

TEST_F(JobQueueTest, CancelGivesUpWhatAFailedJobHasKept) {
  auto queue = *JobQueue::Open(root_, [](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    std::ofstream(context.work_folder / "checkpoint") << "step 7";
    return absl::ResourceExhaustedError("no space left");
  });
  ASSERT_TRUE(queue->Create("job", "spec").ok());
  WaitForEnd(*queue, "job");
  EXPECT_EQ(queue->Pause("job")->state, JobState::kFailed);
  EXPECT_TRUE(fs::exists(root_ / "job" / "work"));
  EXPECT_EQ(queue->Cancel("job")->state, JobState::kFailed);
  EXPECT_FALSE(fs::exists(root_ / "job" / "work"));
  EXPECT_EQ(queue->Resume("job")->state, JobState::kFailed) << "there is nothing to go on from";
}

TEST_F(JobQueueTest, AJobsOwnFailureKeepsNoWork) {
  auto queue = *JobQueue::Open(root_, [](const JobContext& context) -> absl::StatusOr<TrainedModel> {
    std::ofstream(context.work_folder / "checkpoint") << "step 7";
    return absl::InternalError("step 8: the loss is nan");
  });
  ASSERT_TRUE(queue->Create("job", "spec").ok());
  WaitForEnd(*queue, "job");
  EXPECT_EQ(queue->Resume("job")->state, JobState::kFailed);
  EXPECT_FALSE(fs::exists(root_ / "job" / "work"));
}

// Killed after its end had been recorded and before its work was removed.
TEST_F(JobQueueTest, WorkThatAnEndedJobLeftBehindIsRemovedOnOpening) {
  for (const bool succeeds : {true, false}) {
    const std::string id = succeeds ? "succeeds" : "fails";
    const auto train = [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
      if (!succeeds) return absl::InvalidArgumentError("dataset: holds no line");
      return ThreeSteps(context);
    };
    {
      auto queue = *JobQueue::Open(root_, train);
      ASSERT_TRUE(queue->Create(id, "spec").ok());
      WaitForEnd(*queue, id);
    }
    fs::create_directories(root_ / id / "work");
    std::ofstream(root_ / id / "work" / "checkpoint") << "step 7";
    auto queue = *JobQueue::Open(root_, train);
    EXPECT_FALSE(fs::exists(root_ / id / "work"));
  }
}

// A disk that was full for a moment: what is written afterwards is not lost with it.
TEST_F(JobQueueTest, AnEventCutShortTakesNoLaterOnesWithIt) {
  {
    auto queue = *JobQueue::Open(root_, [&](const JobContext& context) -> absl::StatusOr<TrainedModel> {
      context.report(1, 4, {});
      std::ofstream(root_ / "job" / "events.jsonl", std::ios::app) << "{\"sequence\":4,\"sta";
      for (int step = 2; step <= 4; ++step) context.report(step, 4, {});
      return TrainedModel{"digest", "numerics"};
    });
    ASSERT_TRUE(queue->Create("job", "spec").ok());
    WaitForEnd(*queue, "job");
  }
  const auto queue = *JobQueue::Open(root_, ThreeSteps);
  const std::vector<JobEvent> events = *queue->Events("job", 0, absl::ZeroDuration());
  ASSERT_EQ(events.size(), 6u);  // queued, running, steps 1, 3 and 4, succeeded
  for (size_t i = 0; i < events.size(); ++i) EXPECT_EQ(events[i].sequence, static_cast<int64_t>(i) + 1);
  EXPECT_EQ(events[3].step, 3);
  EXPECT_EQ(events.back().state, JobState::kSucceeded);
}

TEST_F(JobQueueTest, SurvivesAnEventCutShortAndNamesADamagedState) {
  {
    auto queue = *JobQueue::Open(root_, ThreeSteps);
    ASSERT_TRUE(queue->Create("job", "spec").ok());
    WaitForEnd(*queue, "job");
  }
  std::ofstream(root_ / "job" / "events.jsonl", std::ios::app) << "{\"sequence\":7,\"sta";
  EXPECT_EQ((*JobQueue::Open(root_, ThreeSteps))->Events("job", 0, absl::ZeroDuration())->size(), 6u);

  std::ofstream(root_ / "job" / "state.json") << "{\"state\":\"runn";
  const absl::Status status = JobQueue::Open(root_, ThreeSteps).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("job"));
}

}  // namespace
}  // namespace almost::trainer
