#include "services/trainer/torch/rollouts.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/synchronization/mutex.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/engine/engine.h"
#include "services/trainer/core/ppo_math.h"

namespace almost::trainer {
namespace {

// Between two looks at what the other ranks do.
constexpr absl::Duration kLook = absl::Milliseconds(200);

}  // namespace

double Rollout::Kl() const {
  double kl = 0;
  for (size_t t = 0; t < logprobs.size(); ++t) kl += KlK1(logprobs[t], reference[t]);
  return kl;
}

RolloutSampler::RolloutSampler(const PpoSpec& spec, int num_threads, PromptFormat format,
                               std::shared_ptr<const Tokenizer> tokenizer, Group& group)
    : spec_(spec),
      num_threads_(num_threads),
      format_(std::move(format)),
      tokenizer_(std::move(tokenizer)),
      group_(group) {}

std::string RolloutSampler::Text(const std::vector<int32_t>& generated) const {
  const std::string text = tokenizer_->Decode(generated, /*skip_special_tokens=*/true);
  return std::string(absl::StripPrefix(text, format_.answer_prefix));
}

absl::StatusOr<std::vector<Rollout>> RolloutSampler::Draw(const Transformer& policy,
                                                          const std::vector<std::string>& prompts,
                                                          uint64_t seed, RolloutScorer* scorer,
                                                          const std::stop_token& stop) const {
  const int32_t end_of_text = *tokenizer_->eos_id();
  std::vector<Rollout> rollouts;
  std::vector<size_t> own;  // this rank's share
  for (size_t i = 0; i < prompts.size(); ++i) {
    ALMOST_ASSIGN_OR_RETURN(EncodedDialogue dialogue,
                            EncodeDialogue(format_, *tokenizer_, {{"user", prompts[i]}}));
    Rollout& rollout = rollouts.emplace_back();
    rollout.prompt = prompts[i];
    rollout.sample.ids = std::move(dialogue.ids);
    if (static_cast<int>(i % group_.size()) == group_.rank()) own.push_back(i);
  }

  engine::EngineOptions options;
  if (policy.device().is_cuda()) options.device = policy.device().str();
  options.num_threads = num_threads_;
  options.max_queued_requests = static_cast<int>(own.size());
  // What the engine's thread writes outlives it, also where a rank that is lost ends this.
  std::vector<absl::StatusOr<engine::Candidate>> answers(own.size(), absl::UnknownError("not drawn"));
  absl::Mutex mutex;
  size_t left = own.size();  // guarded by mutex
  const auto one_less = [&] {
    const absl::MutexLock lock(&mutex);
    --left;
  };
  ALMOST_ASSIGN_OR_RETURN(const auto generator, engine::Engine::Create(policy.InMemoryFolder(), options));
  std::vector<uint64_t> requests;
  for (size_t j = 0; j < own.size(); ++j) {
    const size_t i = own[j];
    engine::GenerationRequest request;
    request.prompt_ids = rollouts[i].sample.ids;
    request.sampling = {.temperature = spec_.temperature,
                        .top_p = spec_.top_p,
                        .max_new_tokens = spec_.max_new_tokens,
                        .seed = DeriveSeed(seed, i),
                        .logprobs = true};
    request.stop_token_ids = {end_of_text};
    request.on_done = [&, i, j](absl::StatusOr<std::vector<engine::Candidate>> candidates) {
      if (candidates.ok()) {
        answers[j] = std::move(candidates->front());
        if (scorer != nullptr) scorer->Add(i, {prompts[i], Text(answers[j]->token_ids)});
      } else {
        answers[j] = candidates.status();
      }
      one_less();
    };
    if (const auto id = generator->Submit(std::move(request)); id.ok()) {
      requests.push_back(*id);
    } else {
      answers[j] = id.status();
      one_less();
    }
  }
  const auto cancel = [&] {
    for (const uint64_t id : requests) generator->Cancel(id);
  };
  bool stopped = false;
  {
    const std::stop_callback cancel_own(stop, cancel);
    // Ranks tell one another whether they are drawing still, and whether anybody is to stop: then all are.
    for (bool drawing = true; drawing;) {
      std::vector<double> told(2 * group_.size());
      {
        const absl::MutexLock lock(&mutex);
        const auto drawn = [&left] { return left == 0; };
        told[2 * group_.rank()] = mutex.AwaitWithTimeout(absl::Condition(&drawn), kLook) ? 0 : 1;
      }
      told[2 * group_.rank() + 1] = stop.stop_requested() ? 1 : 0;
      group_.Merge(told);
      drawing = false;
      const bool stopped_before = stopped;
      for (int rank = 0; rank < group_.size(); ++rank) {
        drawing = drawing || told[2 * rank] != 0;
        stopped = stopped || told[2 * rank + 1] != 0;
      }
      if (stopped && !stopped_before) cancel();
    }
  }
  if (stopped) return absl::CancelledError("stopped while rollouts were drawn");

  nlohmann::json drawn = nlohmann::json::array();
  for (size_t j = 0; j < own.size(); ++j) {
    if (!answers[j].ok()) {
      return Annotate(answers[j].status(), absl::StrCat("rollout of \"", prompts[own[j]], "\""));
    }
    const engine::Candidate& candidate = *answers[j];
    std::vector<double> logprobs;
    for (const engine::TokenLogprobs& token : candidate.logprobs) {
      logprobs.push_back(spec_.temperature == 1.0 ? token.model : token.sampled);
    }
    drawn.push_back({{"ids", candidate.token_ids},
                     {"stopped", candidate.finish_reason == engine::FinishReason::kStop},
                     {"logprobs", logprobs}});
  }
  std::string bytes;
  nlohmann::json::to_msgpack(drawn, bytes);
  std::vector<nlohmann::json> by_rank;
  for (const std::string& theirs : group_.Gather(bytes)) {
    by_rank.push_back(nlohmann::json::from_msgpack(theirs));
  }
  for (size_t i = 0; i < rollouts.size(); ++i) {
    const nlohmann::json& answer = by_rank[i % group_.size()].at(i / group_.size());
    Rollout& rollout = rollouts[i];
    const std::vector<int32_t> generated = answer.at("ids");
    rollout.response = Text(generated);
    rollout.stopped = answer.at("stopped");
    rollout.engine_logprobs = answer.at("logprobs").get<std::vector<double>>();
    std::vector<int32_t>& ids = rollout.sample.ids;
    rollout.sample.is_target.assign(ids.size(), false);
    ids.insert(ids.end(), generated.begin(), generated.end());
    if (rollout.stopped) ids.push_back(end_of_text);
    rollout.sample.is_target.resize(ids.size(), true);
    const bool elsewhere = static_cast<int>(i % group_.size()) != group_.rank();
    if (scorer != nullptr && elsewhere) scorer->Add(i, {rollout.prompt, rollout.response});
  }
  return rollouts;
}

}  // namespace almost::trainer
