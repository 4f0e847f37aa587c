#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "almost/generation/v1/generation.grpc.pb.h"
#include "almost/reward/v1/reward.grpc.pb.h"
#include "clients/cli/verbs.h"
#include "common/rpc/replica_pool.h"
#include "common/text/prompt_format.h"
#include "nlohmann/json.hpp"

namespace almost::cli {

// A model in the generation or the reward service, as an evaluation asks it: the same weights from the first
// call to the last (pinned by digest), calls retried and spread over replicas. Any number of items a call;
// answers in their order. An item whose text is too long for the context is kOutOfRange in its place; any
// other error ends the call. Thread-safe.
class AskedModel {
 public:
  // `service` is "generation" or "reward", `which` what ParseModelArgument takes. Errors as of the service.
  static absl::StatusOr<std::unique_ptr<AskedModel>> Find(const Cli& cli, const std::string& service,
                                                          const std::string& which);

  // As the service describes it.
  const types::v1::Model& about() const { return about_; }
  // {name, digest, numerics_id}: all that answers depend on besides the question.
  nlohmann::ordered_json Identity() const {
    return {{"name", about_.name()}, {"digest", about_.digest()}, {"numerics_id", about_.numerics_id()}};
  }

  // The reward head's output for dialogues that end in the assistant's answer.
  absl::StatusOr<std::vector<absl::StatusOr<double>>> Rewards(
      const std::vector<std::vector<Message>>& dialogues);

  // A text, and how a model would go on with it.
  struct Continuation {
    std::string text;
    std::string continuation;
  };
  // Log-likelihoods in nats. The two are encoded as one text, of which the tokens that the first part alone
  // would have come first and the rest are scored, as lm-evaluation-harness does: a word keeps the token that
  // it has after a blank.
  absl::StatusOr<std::vector<absl::StatusOr<double>>> LogLikelihoods(
      const std::vector<Continuation>& continuations);

  // Each token of a text given those before it, in windows of the context's size of which each begins with
  // the last token of the one before: {sum of the log-likelihoods, number of tokens}. The first token has
  // nothing before it but what the tokenizer puts there (BOS), and does not count where that is nothing.
  struct TextScore {
    double sum_logprob = 0;
    int64_t tokens = 0;
  };
  absl::StatusOr<TextScore> ScoreText(const std::string& text);

  // One completion each.
  absl::StatusOr<std::vector<absl::StatusOr<generation::v1::Completion>>> Complete(
      const std::vector<generation::v1::GenerateItem>& items);

 private:
  using TokenIds = std::vector<int32_t>;
  struct TokensToScore {
    TokenIds before;
    TokenIds scored;
  };

  AskedModel() = default;
  absl::StatusOr<std::vector<TokenIds>> Tokenize(const std::vector<std::string>& texts);
  absl::StatusOr<std::vector<absl::StatusOr<double>>> Score(const std::vector<TokensToScore>& items);

  std::string service_;
  std::unique_ptr<ReplicaPool> pool_;
  types::v1::Model about_;
};

}  // namespace almost::cli
