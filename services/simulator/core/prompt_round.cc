#include "services/simulator/core/prompt_round.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/world/question.h"

namespace almost::simulator {
namespace {

absl::Status Validate(const PromptRoundOptions& options) {
  if (options.num_attempts < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_attempts: must be at least 1, is ", options.num_attempts));
  }
  if (options.num_wanted < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_wanted: must be at least 1, is ", options.num_wanted));
  }
  const size_t population = options.seeds.size() + (options.draw_from_pool ? options.pool.size() : 0);
  if (options.num_shots < 1 || static_cast<size_t>(options.num_shots) > population) {
    return absl::InvalidArgumentError(absl::StrCat("num_shots: must be between 1 and the ", population,
                                                   " prompts there are to draw from, is ",
                                                   options.num_shots));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<PromptRound>> PromptRound::Create(PromptRoundOptions options) {
  if (absl::Status status = Validate(options); !status.ok()) return status;
  return std::unique_ptr<PromptRound>(new PromptRound(std::move(options)));
}

PromptRound::PromptRound(PromptRoundOptions options)
    : options_(std::move(options)),
      shots_seed_(DeriveSeed(DeriveSeed(options_.seed, "prompts: shots"), options_.round)),
      completion_seed_(DeriveSeed(DeriveSeed(options_.seed, "prompts: completions"), options_.round)),
      pool_(options_.filter, options_.seeds, options_.num_wanted) {
  for (const std::string& prompt : options_.pool) pool_.Keep(prompt);
}

CompletionRequest PromptRound::Request(int attempt) const {
  const size_t num_seeds = options_.seeds.size();
  const size_t population = num_seeds + (options_.draw_from_pool ? options_.pool.size() : 0);
  RandomStream random(shots_seed_, attempt);
  std::vector<std::string> shots;
  for (const size_t i : random.Sample(population, options_.num_shots)) {
    shots.push_back(i < num_seeds ? options_.seeds[i] : options_.pool[i - num_seeds]);
  }
  return {.text = PromptRequest(options_.instruction, shots),
          .seed = DeriveSeed(completion_seed_, attempt),
          .num_candidates = 1};
}

std::vector<MinedPrompt> PromptRound::Accept(const std::optional<Completion>& completion) {
  if (!completion.has_value()) return {{.text = "", .drop_reason = kTooLong}};
  std::vector<MinedPrompt> mined;
  for (std::string& text : options_.filter.Extract(completion->text)) {
    std::string reason;
    if (const auto form = options_.filter.CheckForm(text)) {
      reason = std::string(Name(*form));
    } else if (options_.held_out_of != nullptr && world::IsHeldOut(*options_.held_out_of, text)) {
      reason = "held_out";
    } else if (const auto pool = pool_.Offer(text)) {
      reason = std::string(Name(*pool));
    }
    mined.push_back({.text = std::move(text), .drop_reason = std::move(reason)});
  }
  if (mined.empty()) mined.push_back({.drop_reason = std::string(Name(PromptDropReason::kEmpty))});
  mined.front().num_tokens = completion->num_tokens;
  return mined;
}

}  // namespace almost::simulator
