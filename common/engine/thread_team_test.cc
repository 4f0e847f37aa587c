#include "common/engine/thread_team.h"

#include <gtest/gtest.h>

namespace almost::engine {
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

}  // namespace
}  // namespace almost::engine
