#include "clients/cli/pairwise_judge.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"
#include "common/rpc/status.h"
#include "common/storage/env.h"

namespace almost::cli {
namespace {

namespace pb = almost::judge::v1;
using ::testing::HasSubstr;

// Prefers the longer answer; one of more than 100 bytes is too long for it.
class LengthJudge final : public pb::JudgeService::Service {
 public:
  LengthJudge() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }

  grpc::Status Compare(grpc::ServerContext*, const pb::CompareRequest* request,
                       pb::CompareResponse* response) override {
    response->set_judge_id(id);
    for (const pb::Comparison& item : request->items()) {
      pb::JudgementResponse& answer = *response->add_items();
      if (item.a().size() > 100 || item.b().size() > 100) {
        *answer.mutable_error() = ToProto(absl::OutOfRangeError("too long"));
        continue;
      }
      answer.mutable_result()->set_verdict(item.a().size() > item.b().size()   ? pb::VERDICT_A
                                           : item.a().size() < item.b().size() ? pb::VERDICT_B
                                                                               : pb::VERDICT_TIE);
    }
    return grpc::Status::OK;
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

  std::string id = "length/1";

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

pb::Comparison Of(const std::string& a, const std::string& b) {
  pb::Comparison comparison;
  comparison.set_prompt("?");
  comparison.set_a(a);
  comparison.set_b(b);
  return comparison;
}

// An editor ends a file in a newline; between the wording and a model's answer it would cost every figure.
TEST(ReadTemplateTest, ANewlineAtItsEndIsTheFilesOwn) {
  const ScratchFolder folder;
  const std::string file = folder / "template.txt";
  for (const char* end : {"", "\n", "\r\n"}) {
    ASSERT_TRUE(Env::Posix()->Write(file, absl::StrCat("Q: {question}\nA:", end)).ok());
    EXPECT_EQ(*ReadTemplate(file, "", {"question"}), "Q: {question}\nA:");
  }
  ASSERT_TRUE(Env::Posix()->Write(file, "{question}\n\n").ok());
  EXPECT_EQ(*ReadTemplate(file, "", {"question"}), "{question}\n");
}

TEST(PairwiseJudgeTest, AServiceLeavesOutWhatIsTooLongForIt) {
  LengthJudge service;
  const auto judge = PairwiseJudge::Find(Cli(), absl::StrCat("service:", service.address()), "");
  ASSERT_TRUE(judge.ok()) << judge.status();
  const auto reviews = (*judge)->Compare({Of("aa", "b"), Of(std::string(101, 'a'), "b"), Of("a", "b")});
  ASSERT_TRUE(reviews.ok()) << reviews.status();
  ASSERT_EQ(reviews->size(), 3u);
  EXPECT_EQ((*reviews)[0]->verdict, "win");
  EXPECT_EQ((*reviews)[1].status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ((*reviews)[2]->verdict, "tie");
}

TEST(PairwiseJudgeTest, AServiceIsKnownByWhatItCallsItselfNotByItsAddress) {
  LengthJudge one, other;
  for (const LengthJudge* service : {&one, &other}) {
    const auto judge = PairwiseJudge::Find(Cli(), absl::StrCat("service:", service->address()), "");
    ASSERT_TRUE(judge.ok()) << judge.status();
    EXPECT_EQ((*judge)->about(), nlohmann::ordered_json({{"service", "length/1"}}));
  }
  one.id = "";  // it does not say
  const auto judge = PairwiseJudge::Find(Cli(), absl::StrCat("service:", one.address()), "");
  ASSERT_TRUE(judge.ok()) << judge.status();
  EXPECT_EQ((*judge)->about(), nlohmann::ordered_json({{"service", one.address()}}));
}

TEST(PairwiseJudgeTest, AServiceThatHasBecomeAnotherJudgeIsRefused) {
  LengthJudge service;
  const auto judge = PairwiseJudge::Find(Cli(), absl::StrCat("service:", service.address()), "");
  ASSERT_TRUE(judge.ok()) << judge.status();
  service.id = "length/2";
  const auto reviews = (*judge)->Compare({Of("a", "b")});
  EXPECT_EQ(reviews.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(reviews.status().message()), HasSubstr("length/2"));
}

}  // namespace
}  // namespace almost::cli
