#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "almost/judge/v1/judge.grpc.pb.h"
#include "clients/cli/asked_model.h"
#include "clients/cli/verbs.h"
#include "nlohmann/json.hpp"

namespace almost::cli {

// The text of `file` without a newline at its end, in which each of {places} must stand; `ours` where no file
// is named.
absl::StatusOr<std::string> ReadTemplate(const std::string& file, absl::string_view ours,
                                         const std::vector<std::string>& places);

// What a judge says of two answers in one order, from the point of view of the first.
struct Review {
  std::string verdict;            // "win", "tie", "loss", "unparsable"
  nlohmann::ordered_json detail;  // [score, score], or the judge's words
};

// Who compares two answers: a reward model, a language model that is asked for two scores, or a JudgeService.
// Thread-safe.
class PairwiseJudge {
 public:
  // `which` is reward:MODEL, llm:MODEL or service:HOST:PORT; `template_file`, for a language model, its
  // question in place of kJudgeTemplate. kInvalidArgument: neither of these; else as AskedModel::Find.
  static absl::StatusOr<std::unique_ptr<PairwiseJudge>> Find(const Cli& cli, const std::string& which,
                                                             const std::string& template_file);

  // Names the judge with everything that its verdicts depend on, as far as it is known.
  const nlohmann::ordered_json& about() const { return about_; }

  // A review of each comparison (1 to 64); kOutOfRange in the place of one that is too long for the judge's
  // context. Any other error ends the call, kFailedPrecondition: the service has become another judge.
  absl::StatusOr<std::vector<absl::StatusOr<Review>>> Compare(
      const std::vector<judge::v1::Comparison>& comparisons);

 private:
  PairwiseJudge() = default;
  absl::StatusOr<std::vector<absl::StatusOr<Review>>> ByReward(
      const std::vector<judge::v1::Comparison>& comparisons);
  absl::StatusOr<std::vector<absl::StatusOr<Review>>> ByLanguageModel(
      const std::vector<judge::v1::Comparison>& comparisons);
  absl::StatusOr<std::vector<absl::StatusOr<Review>>> ByService(
      const std::vector<judge::v1::Comparison>& comparisons);
  // As many items as comparisons.
  absl::StatusOr<judge::v1::CompareResponse> AskService(
      const std::vector<judge::v1::Comparison>& comparisons);

  // Exactly one of the three is set.
  std::unique_ptr<AskedModel> reward_;
  std::unique_ptr<AskedModel> llm_;
  std::unique_ptr<ReplicaPool> service_;
  std::string judge_id_;  // the service's
  std::string form_;      // of the language model's question
  nlohmann::ordered_json about_;
};

}  // namespace almost::cli
