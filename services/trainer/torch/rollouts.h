#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/model/transformer.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/core/rollout_scorer.h"
#include "services/trainer/torch/group.h"

namespace almost::trainer {

// An answer that the policy gave, and what is said of it before it is learned from.
struct Rollout {
  std::string prompt, response;
  Sample sample;         // prompt and generated tokens; these are the targets
  bool stopped = false;  // ended by itself, not by max_new_tokens
  // By generated token. With a temperature as it was drawn: after truncation to the nucleus, which the
  // trainer's have not.
  std::vector<double> engine_logprobs;
  std::vector<double> logprobs;  // the same by the trainer's arithmetic: what ratios refer to
  std::vector<double> reference, values, entropies;
  std::vector<double> advantages, returns;
  double score = 0;   // raw
  double guard = 0;   // raw, the held-out reward model's
  double reward = 0;  // RolloutReward

  // From the reference, in nats, by the tokens drawn.
  double Kl() const;
};

// Draws rollouts by the serving engine, whose weights are the policy's as they are at the call, laid out for
// its kernels. Ranks share out the prompts and have all rollouts in the end.
class RolloutSampler {
 public:
  // The group outlives this. The tokenizer has an end-of-text.
  RolloutSampler(const PpoSpec& spec, int num_threads, PromptFormat format,
                 std::shared_ptr<const Tokenizer> tokenizer, Group& group);

  // One answer a prompt: a function of weights, prompts and seed. The scorer, null on ranks but 0, is given
  // each answer as soon as it is there. kCancelled: `stop` asked for it, which is heeded where one rank
  // trains.
  absl::StatusOr<std::vector<Rollout>> Draw(const Transformer& policy,
                                            const std::vector<std::string>& prompts, uint64_t seed,
                                            RolloutScorer* scorer, const std::stop_token& stop) const;

 private:
  std::string Text(const std::vector<int32_t>& generated) const;

  const PpoSpec spec_;
  const int num_threads_;
  const PromptFormat format_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  Group& group_;
};

}  // namespace almost::trainer
