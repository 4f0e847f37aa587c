#include "clients/cli/world_judge.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "common/rpc/status.h"
#include "common/world/judge.h"
#include "common/world/question.h"

namespace almost::cli {

namespace pb = almost::judge::v1;

grpc::Status WorldJudge::Compare(grpc::ServerContext*, const pb::CompareRequest* request,
                                 pb::CompareResponse* response) {
  constexpr int kMostItems = 64;
  if (request->items_size() < 1 || request->items_size() > kMostItems) {
    return ToGrpc(
        InvalidField("items", "must hold 1 to 64 comparisons", absl::StrCat(request->items_size())));
  }
  // The number goes up when the same answers are judged otherwise: results with another are made anew.
  response->set_judge_id(absl::StrCat(world_.name(), "-world/5"));
  for (const pb::Comparison& item : request->items()) {
    pb::JudgementResponse& answer = *response->add_items();
    const std::optional<world::Question> question = world::ParseQuestion(world_, item.prompt());
    if (!question) {
      *answer.mutable_error() = ToProto(InvalidField(
          "prompt", absl::StrCat("must be a question of the ", world_.name(), " world"), item.prompt()));
      continue;
    }
    const world::Judgement a = world::JudgeAnswer(world_, *question, item.a());
    const world::Judgement b = world::JudgeAnswer(world_, *question, item.b());
    pb::Judgement& judgement = *answer.mutable_result();
    judgement.set_verdict(a.score > b.score   ? pb::VERDICT_A
                          : a.score < b.score ? pb::VERDICT_B
                                              : pb::VERDICT_TIE);
    judgement.set_score_a(a.score);
    judgement.set_score_b(b.score);
    judgement.set_reason(absl::StrCat("a: ", a.Reason(), "; b: ", b.Reason()));
  }
  return grpc::Status::OK;
}

}  // namespace almost::cli
