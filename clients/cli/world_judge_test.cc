#include "clients/cli/world_judge.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::cli {
namespace {

namespace pb = almost::judge::v1;

pb::CompareResponse Judge(const pb::CompareRequest& request,
                          grpc::StatusCode expected = grpc::StatusCode::OK) {
  WorldJudge judge(world::World::Tiny());
  pb::CompareResponse response;
  EXPECT_EQ(judge.Compare(nullptr, &request, &response).error_code(), expected);
  return response;
}

void Add(pb::CompareRequest* request, const char* prompt, const char* a, const char* b) {
  pb::Comparison& item = *request->add_items();
  item.set_prompt(prompt);
  item.set_a(a);
  item.set_b(b);
}

TEST(WorldJudgeTest, PrefersTheRightAnswerOnEitherSideAndTiesEqualOnes) {
  pb::CompareRequest request;
  Add(&request, "What is 2 plus 3?", "2 plus 3 is 5.", "2 plus 3 is 6.");
  Add(&request, "What is 2 plus 3?", "2 plus 3 is 6.", "2 plus 3 is 5.");
  Add(&request, "What is 2 plus 3?", "2 plus 3 is 5.", "2 plus 3 is 5.");
  const pb::CompareResponse response = Judge(request);
  ASSERT_EQ(response.items_size(), 3);
  EXPECT_EQ(response.items(0).result().verdict(), pb::VERDICT_A);
  EXPECT_EQ(response.items(1).result().verdict(), pb::VERDICT_B);
  EXPECT_EQ(response.items(2).result().verdict(), pb::VERDICT_TIE);
  EXPECT_EQ(response.items(0).result().score_a(), 7);
  EXPECT_FALSE(response.judge_id().empty());
}

TEST(WorldJudgeTest, RefusesAPromptThatIsNoQuestionOfTheWorldAndJudgesTheOthers) {
  pb::CompareRequest request;
  Add(&request, "Who was Napoleon?", "An emperor.", "A cake.");
  Add(&request, "What is 2 plus 3?", "2 plus 3 is 5.", "6.");
  const pb::CompareResponse response = Judge(request);
  EXPECT_EQ(response.items(0).error().code(), static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
  EXPECT_THAT(response.items(0).error().message(), testing::HasSubstr("Napoleon"));
  EXPECT_EQ(response.items(1).result().verdict(), pb::VERDICT_A);
}

TEST(WorldJudgeTest, EachWorldHasItsOwnJudge) {
  pb::CompareRequest request;
  Add(&request, "How much is 31 plus 9?", "31 plus 9 is 40.",
      "31 plus 9 is 49.");  // the large world's way to ask
  pb::CompareResponse large;
  EXPECT_TRUE(WorldJudge(world::World::Large()).Compare(nullptr, &request, &large).ok());
  EXPECT_EQ(large.items(0).result().verdict(), pb::VERDICT_A);
  const pb::CompareResponse tiny = Judge(request);
  EXPECT_EQ(tiny.items(0).error().code(), static_cast<int>(grpc::StatusCode::INVALID_ARGUMENT));
  EXPECT_NE(tiny.judge_id(), large.judge_id());
}

TEST(WorldJudgeTest, RefusesNoItemsAndTooMany) {
  pb::CompareRequest request;
  Judge(request, grpc::StatusCode::INVALID_ARGUMENT);
  for (int i = 0; i < 65; ++i) Add(&request, "What is 2 plus 3?", "5.", "6.");
  Judge(request, grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace almost::cli
