#include "common/kernels/thread_team.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace almost {
namespace {

TEST(ThreadTeamTest, EachPieceIsDoneOnceAndBeforeTheLoopEnds) {
  for (const int threads : {1, 2, 5}) {
    ThreadTeam team(threads);
    EXPECT_EQ(team.size(), threads);
    for (int round = 0; round < 2000; ++round) {
      const int count = round % 23, grain = 1 + round % 4;
      std::vector<int> times(count), by(count, -1);
      team.For(count, grain, [&](int thread, int begin, int end) {
        EXPECT_LE(end - begin, std::max(grain, threads == 1 ? count : grain));
        for (int i = begin; i < end; ++i) {
          ++times[i];
          by[i] = thread;
        }
      });
      for (int i = 0; i < count; ++i) {
        ASSERT_EQ(times[i], 1) << i << " of " << count;
        ASSERT_TRUE(by[i] >= 0 && by[i] < threads);
      }
    }
  }
}

TEST(ThreadTeamTest, SleepingHelpersComeBack) {
  ThreadTeam team(3);
  for (int round = 0; round < 5; ++round) {
    // Nothing but a helper can end this loop: the caller's piece waits for theirs.
    std::atomic<int> arrived{0};
    team.For(3, 1, [&](int, int, int) {
      ++arrived;
      arrived.notify_all();
      for (int seen = arrived; seen < 3; seen = arrived) arrived.wait(seen);
    });
    EXPECT_EQ(arrived, 3);
  }
}

TEST(ThreadTeamTest, WhatOnePieceHoldsStaysWithTheCaller) {
  ThreadTeam team(2);
  for (int round = 0; round < 100; ++round) {
    team.For(8, 8, [&](int thread, int begin, int end) {
      EXPECT_EQ(thread, 0);
      EXPECT_EQ(end - begin, 8);
    });
  }
}

// Eight callers with a team of three: never do more than three threads compute.
TEST(SharedTeamTest, NoMoreThreadsComputeThanTheTeamHas) {
  SharedTeam shared(3);
  std::atomic<int> computing = 0, loops = 0;
  std::vector<std::jthread> callers;
  for (int c = 0; c < 8; ++c) {
    callers.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        const SharedTeam::Turn turn(shared);
        std::atomic<int> sum = 0;
        shared.team().For(100, 1, [&](int, int begin, int) {
          EXPECT_LE(++computing, 3);
          sum += begin;
          --computing;
        });
        EXPECT_EQ(sum, 4950);
        ++loops;
      }
    });
  }
  callers.clear();
  EXPECT_EQ(loops, 400);
}

TEST(SharedTeamTest, TurnsAreTakenInTheOrderOfAsking) {
  SharedTeam shared(1);
  std::vector<int> order;
  auto turn = std::make_unique<SharedTeam::Turn>(shared);
  std::vector<std::jthread> callers;
  for (int c = 0; c < 5; ++c) {
    callers.emplace_back([&, c] {
      const SharedTeam::Turn own(shared);
      order.push_back(c);
    });
    while (shared.num_waiting() < c + 1) std::this_thread::yield();
  }
  turn.reset();
  callers.clear();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST(UsableProcessorsTest, FollowsTheAffinity) {
  cpu_set_t all, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(all), &all), 0);
  EXPECT_GE(UsableProcessors(), 1);
  EXPECT_LE(UsableProcessors(), CPU_COUNT(&all));
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &all)) {
      CPU_SET(cpu, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(UsableProcessors(), 1);
  sched_setaffinity(0, sizeof(all), &all);
}

}  // namespace
}  // namespace almost
