#include "common/engine/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace almost::engine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// A sequence of so many tokens that are its alone.
Sequence* Add(Scheduler& scheduler, int num_tokens, int first_token, RunningRequest* request = nullptr) {
  auto sequence = std::make_unique<Sequence>();
  sequence->request = request;
  sequence->tokens.resize(num_tokens);
  std::iota(sequence->tokens.begin(), sequence->tokens.end(), first_token);
  sequence->num_prompt = num_tokens;
  sequence->first_output = num_tokens - 1;
  Sequence* raw = sequence.get();
  scheduler.Add(std::move(sequence));
  return raw;
}

// Runs a step as the engine does: whoever computed its last token gets another.
Scheduler::Step RunStep(Scheduler& scheduler) {
  Scheduler::Step step = scheduler.Schedule();
  scheduler.Commit(step.sequences);
  for (Sequence* s : step.sequences) {
    if (s->num_computed < s->num_tokens()) continue;
    s->tokens.push_back(-1 - s->num_new());
    s->first_output = s->num_tokens() - 1;
  }
  return step;
}

TEST(SchedulerTest, AdmitsInOrderUpToItsLimits) {
  Scheduler scheduler({.max_batch_sequences = 3, .max_batch_tokens = 50}, 100);
  Sequence* a = Add(scheduler, 20, 0);
  Sequence* b = Add(scheduler, 20, 100);
  Sequence* c = Add(scheduler, 20, 200);
  Add(scheduler, 20, 300);
  EXPECT_THAT(scheduler.Schedule().sequences, ElementsAre(a, b, c));
  EXPECT_EQ(c->num_scheduled, 10);  // what the tokens of the step leave it
  EXPECT_EQ(scheduler.num_waiting(), 1);
}

TEST(SchedulerTest, CutsALongPromptIntoChunks) {
  Scheduler scheduler({.max_batch_tokens = 32}, 100);
  Sequence* a = Add(scheduler, 70, 0);
  for (const int computed : {32, 64, 70}) {
    RunStep(scheduler);
    EXPECT_EQ(a->num_computed, computed);
  }
  EXPECT_EQ(a->num_new(), 1);
}

TEST(SchedulerTest, LeavesDecodingSequencesTheirTokenBesideALongPrompt) {
  Scheduler scheduler({.max_batch_tokens = 8}, 100);
  Sequence* prompt = Add(scheduler, 100, 0);
  RunStep(scheduler);
  // Younger than the prompt under way, and yet not held up by it once they decode.
  scheduler.Commit({});
  Sequence* a = Add(scheduler, 1, 1000);
  Sequence* b = Add(scheduler, 1, 2000);
  while (prompt->num_computed < 100) RunStep(scheduler);
  Sequence* second = Add(scheduler, 100, 3000);
  RunStep(scheduler);
  const int before_a = a->num_new(), before_b = b->num_new(), before = second->num_computed;
  RunStep(scheduler);
  EXPECT_EQ(a->num_new(), before_a + 1);
  EXPECT_EQ(b->num_new(), before_b + 1);
  EXPECT_EQ(second->num_computed, before + 5);  // 8 less the three that decode
}

TEST(SchedulerTest, PreemptsTheYoungestWhenThePoolIsExhausted) {
  Scheduler scheduler({}, 4);
  Sequence* a = Add(scheduler, 31, 0);
  Sequence* b = Add(scheduler, 31, 100);
  RunStep(scheduler);
  RunStep(scheduler);  // each fills its second block
  EXPECT_THAT(RunStep(scheduler).sequences, ElementsAre(a));
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(b->num_computed, 0);
  EXPECT_THAT(b->blocks, IsEmpty());
  a->finished = true;
  EXPECT_EQ(scheduler.TakeFinished().size(), 1u);
  EXPECT_THAT(RunStep(scheduler).sequences, ElementsAre(b));
}

TEST(SchedulerTest, AdmitsAndLooksUpAPreemptedSequenceOnlyOnce) {
  Scheduler scheduler({}, 4);
  Sequence* a = Add(scheduler, 31, 0);
  Sequence* b = Add(scheduler, 31, 100);
  const Scheduler::Step first = RunStep(scheduler);
  EXPECT_THAT(first.admitted, ElementsAre(a, b));
  EXPECT_EQ(first.num_tokens, 62);
  const Scheduler::Step second = RunStep(scheduler);
  EXPECT_THAT(second.admitted, IsEmpty());
  EXPECT_EQ(second.num_tokens, 2);
  RunStep(scheduler);
  ASSERT_EQ(scheduler.num_preemptions(), 1);
  a->finished = true;
  scheduler.TakeFinished();
  const Scheduler::Step again = RunStep(scheduler);
  EXPECT_THAT(again.sequences, ElementsAre(b));
  EXPECT_THAT(again.admitted, IsEmpty());
  EXPECT_EQ(scheduler.prefix_query_tokens(), 62);
  EXPECT_LE(scheduler.prefix_hit_tokens(), 62);
}

TEST(SchedulerTest, ASiblingSharesWholeBlocksAndCopiesTheLast) {
  Scheduler scheduler({}, 20);
  auto* request = reinterpret_cast<RunningRequest*>(1);  // only compared
  Sequence* first = Add(scheduler, 40, 0, request);
  Sequence* second = Add(scheduler, 40, 0, request);
  EXPECT_THAT(RunStep(scheduler).sequences, ElementsAre(first));  // the second waits for its blocks
  const Scheduler::Step step = RunStep(scheduler);
  EXPECT_THAT(step.sequences, ElementsAre(first, second));
  ASSERT_EQ(step.copies.size(), 1u);
  EXPECT_EQ(step.copies[0].from, first->blocks[2]);
  EXPECT_EQ(step.copies[0].to, second->blocks[2]);
  EXPECT_EQ(first->blocks[0], second->blocks[0]);
  EXPECT_EQ(first->blocks[1], second->blocks[1]);
  EXPECT_NE(first->blocks[2], second->blocks[2]);
  EXPECT_EQ(scheduler.prefix_hit_tokens(), 39);
}

TEST(SchedulerTest, ComputesWhateverHiddenStatesAreWantedOf) {
  Scheduler scheduler({}, 20);
  Sequence* first = Add(scheduler, 64, 0);
  RunStep(scheduler);
  Sequence* scored = Add(scheduler, 64, 0);
  scored->first_output = 20;  // from inside the second block on
  scheduler.Schedule();
  EXPECT_EQ(scored->num_computed, 16);
  EXPECT_EQ(scored->num_scheduled, 48);
  EXPECT_EQ(scored->blocks[0], first->blocks[0]);
}

TEST(SchedulerTest, EndsWithEveryBlockFree) {
  Scheduler scheduler({.max_batch_sequences = 5, .max_batch_tokens = 40}, 12);
  std::vector<Sequence*> left;
  for (int i = 0; i < 20; ++i) left.push_back(Add(scheduler, 10 + 7 * i % 60, 50 * (i % 4)));
  while (!left.empty()) {
    RunStep(scheduler);
    for (Sequence* s : left) s->finished = s->num_new() >= 20;
    std::erase_if(left, [](const Sequence* s) { return s->finished; });
    scheduler.TakeFinished();
  }
  EXPECT_GT(scheduler.num_preemptions(), 0);
  EXPECT_EQ(scheduler.pool().num_free(), 12);
}

TEST(SchedulerTest, SaysWhatCouldNeverRun) {
  Scheduler scheduler({}, 4);
  EXPECT_TRUE(scheduler.Fits(64));
  EXPECT_FALSE(scheduler.Fits(65));
}

}  // namespace
}  // namespace almost::engine
