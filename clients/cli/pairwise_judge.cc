#include "clients/cli/pairwise_judge.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "clients/cli/endpoints.h"
#include "common/base/sha256.h"
#include "common/base/status_macros.h"
#include "common/base/unicode.h"
#include "common/evaluation/benchmarks.h"
#include "common/rpc/status.h"
#include "common/storage/env.h"

namespace almost::cli {

namespace pb = almost::judge::v1;
using nlohmann::ordered_json;

absl::StatusOr<std::string> ReadTemplate(const std::string& file, absl::string_view ours,
                                         const std::vector<std::string>& places) {
  if (file.empty()) return std::string(ours);
  ALMOST_ASSIGN_OR_RETURN(std::string text, Env::Posix()->Read(file));
  // The newline that an editor puts at a file's end is none of the wording's.
  if (absl::EndsWith(text, "\n")) text.resize(text.size() - (absl::EndsWith(text, "\r\n") ? 2 : 1));
  for (const std::string& place : places) {
    if (!absl::StrContains(text, absl::StrCat("{", place, "}"))) {
      return absl::InvalidArgumentError(absl::StrCat(file, ": has no {", place, "}"));
    }
  }
  return text;
}

absl::StatusOr<std::unique_ptr<PairwiseJudge>> PairwiseJudge::Find(const Cli& cli, const std::string& judge,
                                                                   const std::string& template_file) {
  std::unique_ptr<PairwiseJudge> out(new PairwiseJudge());
  absl::string_view which = judge;
  if (absl::ConsumePrefix(&which, "reward:")) {
    ALMOST_ASSIGN_OR_RETURN(out->reward_, AskedModel::Find(cli, "reward", std::string(which)));
    out->about_ = {{"reward_model", out->reward_->Identity()}};
  } else if (absl::ConsumePrefix(&which, "llm:")) {
    ALMOST_ASSIGN_OR_RETURN(out->llm_, AskedModel::Find(cli, "generation", std::string(which)));
    ALMOST_ASSIGN_OR_RETURN(
        out->form_, ReadTemplate(template_file, kJudgeTemplate, {"question", "answer_1", "answer_2"}));
    out->about_ = {{"llm", out->llm_->Identity()}, {"template_sha256", Sha256(out->form_)}};
  } else if (absl::ConsumePrefix(&which, "service:")) {
    ALMOST_ASSIGN_OR_RETURN(const std::string target, FindJudge(cli, std::string(which)));
    if (target.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--judge: ", judge, " needs `almost up --world_judge`, or service:HOST:PORT"));
    }
    ReplicaPoolOptions options;
    options.tls = cli.tls;
    options.token_file = cli.token_file;
    ALMOST_ASSIGN_OR_RETURN(out->service_, ReplicaPool::Create(target, options));
    // It is known by what it calls itself: the same judge may have moved.
    pb::Comparison probe;
    probe.set_prompt("?");
    probe.set_a(".");
    probe.set_b(".");
    ALMOST_ASSIGN_OR_RETURN(const pb::CompareResponse answer, out->AskService({probe}));
    out->judge_id_ = answer.judge_id();
    out->about_ = {{"service", answer.judge_id().empty() ? target : answer.judge_id()}};
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat("--judge: must be reward:MODEL, llm:MODEL or service:HOST:PORT, is ", judge));
  }
  return out;
}

absl::StatusOr<std::vector<absl::StatusOr<Review>>> PairwiseJudge::Compare(
    const std::vector<pb::Comparison>& comparisons) {
  if (reward_) return ByReward(comparisons);
  if (llm_) return ByLanguageModel(comparisons);
  return ByService(comparisons);
}

absl::StatusOr<std::vector<absl::StatusOr<Review>>> PairwiseJudge::ByReward(
    const std::vector<pb::Comparison>& comparisons) {
  std::vector<std::vector<Message>> dialogues;
  for (const pb::Comparison& each : comparisons) {
    for (const std::string& answer : {each.a(), each.b()}) {
      dialogues.push_back({{"user", each.prompt()}, {"assistant", answer}});
    }
  }
  ALMOST_ASSIGN_OR_RETURN(const std::vector<absl::StatusOr<double>> scores, reward_->Rewards(dialogues));
  std::vector<absl::StatusOr<Review>> reviews;
  for (size_t i = 0; i < comparisons.size(); ++i) {
    const auto &a = scores[2 * i], &b = scores[2 * i + 1];
    if (a.ok() && b.ok()) {
      reviews.push_back(Review{VerdictOf(*a, *b), ordered_json::array({*a, *b})});
    } else {
      reviews.push_back(a.ok() ? b.status() : a.status());
    }
  }
  return reviews;
}

absl::StatusOr<std::vector<absl::StatusOr<Review>>> PairwiseJudge::ByLanguageModel(
    const std::vector<pb::Comparison>& comparisons) {
  constexpr int kMostTokens = 256;
  std::vector<generation::v1::GenerateItem> items;
  for (const pb::Comparison& each : comparisons) {
    generation::v1::GenerateItem& item = items.emplace_back();
    types::v1::Message& message = *item.mutable_input()->mutable_messages()->add_messages();
    message.set_role("user");
    message.set_content(
        FillIn(form_, {{"question", each.prompt()}, {"answer_1", each.a()}, {"answer_2", each.b()}}));
    item.mutable_sampling()->set_temperature(0);
    item.mutable_sampling()->set_max_new_tokens(kMostTokens);
  }
  ALMOST_ASSIGN_OR_RETURN(const auto completions, llm_->Complete(items));
  std::vector<absl::StatusOr<Review>> reviews;
  for (const auto& completion : completions) {
    if (!completion.ok()) {
      reviews.push_back(completion.status());
      continue;
    }
    const std::string words(StripSpace(completion->text()));
    const auto scores = ParseJudgeScores(words);
    reviews.push_back(Review{scores ? VerdictOf(scores->first, scores->second) : "unparsable", words});
  }
  return reviews;
}

absl::StatusOr<pb::CompareResponse> PairwiseJudge::AskService(
    const std::vector<pb::Comparison>& comparisons) {
  constexpr absl::Duration kPatience = absl::Minutes(10);
  pb::CompareRequest request;
  for (const pb::Comparison& each : comparisons) *request.add_items() = each;
  auto response =
      service_->Call<pb::JudgeService>(&pb::JudgeService::Stub::Compare, request, 1, absl::Now() + kPatience);
  if (!response.ok()) return Annotate(response.status(), absl::StrCat("judge at ", service_->target()));
  if (response->items_size() != request.items_size()) {
    return absl::InternalError(
        absl::StrCat("the judge answered ", response->items_size(), " of ", request.items_size(), " items"));
  }
  return response;
}

absl::StatusOr<std::vector<absl::StatusOr<Review>>> PairwiseJudge::ByService(
    const std::vector<pb::Comparison>& comparisons) {
  ALMOST_ASSIGN_OR_RETURN(const pb::CompareResponse response, AskService(comparisons));
  if (response.judge_id() != judge_id_) {
    return absl::FailedPreconditionError(absl::StrCat("the judge at ", service_->target(), " was \"",
                                                      judge_id_, "\", is \"", response.judge_id(), "\""));
  }
  std::vector<absl::StatusOr<Review>> reviews;
  for (const pb::JudgementResponse& item : response.items()) {
    if (!item.has_result()) {
      const absl::Status error = Annotate(FromProto(item.error()), "judge");
      if (!absl::IsOutOfRange(error)) return error;
      reviews.push_back(error);
      continue;
    }
    const pb::Judgement& judgement = item.result();
    Review review;
    review.verdict = judgement.verdict() == pb::VERDICT_A     ? "win"
                     : judgement.verdict() == pb::VERDICT_B   ? "loss"
                     : judgement.verdict() == pb::VERDICT_TIE ? "tie"
                                                              : "unparsable";
    if (judgement.has_score_a() && judgement.has_score_b()) {
      review.detail = {judgement.score_a(), judgement.score_b()};
    } else {
      review.detail = judgement.reason();
    }
    reviews.push_back(std::move(review));
  }
  return reviews;
}

}  // namespace almost::cli
