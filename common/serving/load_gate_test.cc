#include "common/serving/load_gate.h"

#include <gtest/gtest.h>

#include <deque>

#include "common/rpc/status.h"

namespace almost {
namespace {

const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

// A model that ends `rate` tokens of work a second, one call after the other.
class LoadGateTest : public testing::Test {
 protected:
  absl::StatusOr<LoadGate::Ticket> Enter(int64_t work, absl::Duration time_left, bool waiting = true) {
    return gate_.Enter(work, now_ + time_left, waiting, now_);
  }
  // 20 calls of 100 tokens, of which 10 end within a second each, so that 1,000 tokens stay under way.
  void RunAt100TokensASecond() {
    for (int i = 0; i < 20; ++i) tickets_.push_back(*Enter(100, absl::InfiniteDuration()));
    for (int i = 0; i < 10; ++i) {
      now_ += absl::Seconds(1);
      tickets_.front().Answered(now_);
      tickets_.pop_front();
    }
  }

  const std::shared_ptr<LoadGate::Calls> calls_ = std::make_shared<LoadGate::Calls>(1000);
  LoadGate gate_{calls_};
  absl::Time now_ = kStart;
  std::deque<LoadGate::Ticket> tickets_;
};

TEST_F(LoadGateTest, RefusesWhatCouldNotEndInTimeAndSaysWhenItCould) {
  RunAt100TokensASecond();  // what is under way needs 10 seconds
  const absl::Status refused = Enter(100, absl::Seconds(10)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  // In 3 seconds 700 tokens are left, which need 0.7 of 10 seconds.
  EXPECT_EQ(RetryDelay(refused), absl::Seconds(3));
  EXPECT_TRUE(Enter(100, absl::Seconds(15)).ok());
}

TEST_F(LoadGateTest, TakesEverythingWhileNothingWaits) {
  RunAt100TokensASecond();
  EXPECT_TRUE(Enter(100, absl::Milliseconds(1), /*waiting=*/false).ok());
}

TEST_F(LoadGateTest, TakesWhatHasNoDeadline) {
  RunAt100TokensASecond();
  EXPECT_TRUE(gate_.Enter(100, absl::InfiniteFuture(), true, now_).ok());
}

TEST_F(LoadGateTest, TakesEverythingUntilItKnowsARate) {
  for (int i = 0; i < 30; ++i) tickets_.push_back(*Enter(100, absl::Milliseconds(1)));
}

TEST_F(LoadGateTest, ForgetsTheRateWhenNothingIsUnderWay) {
  RunAt100TokensASecond();
  for (LoadGate::Ticket& ticket : tickets_) ticket.Answered(now_);
  tickets_.clear();
  now_ += absl::Hours(1);
  const auto ticket = Enter(100, absl::Seconds(1));
  EXPECT_TRUE(ticket.ok());
  EXPECT_TRUE(Enter(100, absl::Seconds(1)).ok());
}

// Calls that miss their deadline are no progress: taken for some, they would let in more that miss it.
TEST_F(LoadGateTest, WhatIsGivenUpSaysNothingOfTheRate) {
  RunAt100TokensASecond();
  for (int i = 0; i < 100; ++i) {
    auto given_up = Enter(100, absl::InfiniteDuration());
    ASSERT_TRUE(given_up.ok());
    given_up->GiveUp(now_);
  }
  EXPECT_FALSE(Enter(100, absl::Seconds(10)).ok());
  EXPECT_TRUE(Enter(100, absl::Seconds(15)).ok());
}

// Taken in while no rate was known, all are late; those behind them would be too. So it waits until nothing
// is under way, and then takes calls that have their time before them.
TEST_F(LoadGateTest, AQueueInWhichAllAreLateIsLetRunDry) {
  for (int i = 0; i < 30; ++i) tickets_.push_back(*Enter(100, absl::Seconds(1)));
  now_ += absl::Seconds(1);
  for (int i = 0; i < 10; ++i) {
    tickets_.front().GiveUp(now_);
    tickets_.pop_front();
  }
  const absl::Status refused = Enter(100, absl::Seconds(2)).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryDelay(refused), absl::Seconds(2));
  for (LoadGate::Ticket& ticket : tickets_) ticket.GiveUp(now_);
  EXPECT_TRUE(Enter(100, absl::Seconds(1)).ok());
}

// Before gRPC would, over all models together, with RetryInfo, whether or not a rate is known.
TEST_F(LoadGateTest, RefusesMoreCallsThanTheirLimit) {
  const auto calls = std::make_shared<LoadGate::Calls>(3);
  LoadGate one(calls), other(calls);
  std::deque<LoadGate::Ticket> tickets;
  for (LoadGate* gate : {&one, &other, &one}) {
    tickets.push_back(*gate->Enter(1, absl::InfiniteFuture(), /*waiting=*/false, now_));
  }
  for (LoadGate* gate : {&one, &other}) {
    const absl::Status refused = gate->Enter(1, absl::InfiniteFuture(), /*waiting=*/false, now_).status();
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
    EXPECT_GT(RetryDelay(refused), absl::ZeroDuration());
  }
  tickets.pop_front();
  EXPECT_TRUE(other.Enter(1, absl::InfiniteFuture(), /*waiting=*/false, now_).ok());
}

TEST_F(LoadGateTest, ManyCallsLookEachMoreRarely) {
  tickets_.push_back(*Enter(1, absl::InfiniteDuration()));
  EXPECT_EQ(tickets_.front().TimeBetweenLooks(), absl::Milliseconds(20));
  for (int i = 1; i < 200; ++i) tickets_.push_back(*Enter(1, absl::InfiniteDuration()));
  EXPECT_EQ(tickets_.front().TimeBetweenLooks(), absl::Milliseconds(200));
}

TEST_F(LoadGateTest, ARefusedCallIsNotUnderWay) {
  RunAt100TokensASecond();
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(Enter(100, absl::Seconds(10)).ok());
  EXPECT_TRUE(Enter(100, absl::Seconds(15)).ok());
}

}  // namespace
}  // namespace almost
