#include <algorithm>
#include <chrono>
#include <cmath>
#include <future>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "common/engine/engine.h"
#include "services/trainer/core/data_order.h"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/micro_batches.h"
#include "services/trainer/core/model_flops.h"
#include "services/trainer/core/ppo_math.h"
#include "services/trainer/core/schedule.h"
#include "services/trainer/torch/actor_critic.h"
#include "services/trainer/torch/labeled_samples.h"
#include "services/trainer/torch/ppo_loss.h"
#include "services/trainer/torch/task.h"
#include "services/trainer/torch/token_logprobs.h"

// Proximal policy optimisation against a reward model (METHOD: Ouyang et al. 2022; PPO: Schulman et al.
// 2017). A step is one iteration: rollouts, scores, several passes of updates; nothing but weights, optimizer
// states and a few numbers lives from one to the next, so checkpoints hold no rollouts. Shapes: M generated
// tokens.
namespace almost::trainer {
namespace {

using torch::Tensor;

// Prompts whose answers by the base model give the mean and deviation of scores.
constexpr size_t kNormalisationRollouts = 128;

struct Rollout {
  std::string prompt, response;
  Sample sample;                        // prompt and generated tokens; these are the targets
  bool stopped = false;                 // ended by itself, not by max_new_tokens
  std::vector<double> engine_logprobs;  // by generated token, as it was drawn
  std::vector<double> logprobs;         // the same by the trainer's arithmetic: what ratios refer to
  std::vector<double> reference, values, entropies;
  std::vector<double> advantages, returns;
  double score = 0;   // raw
  double reward = 0;  // normalised, or the one for not having stopped
};

class Stopwatch {
 public:
  // Seconds since the last lap.
  double Lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(last_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

class PpoTask : public Task {
 public:
  PpoTask(TaskInputs inputs, std::vector<std::string> prompts, RewardFunction reward)
      : spec_(std::get<PpoSpec>(inputs.spec.kind)),
        optimizer_(inputs.spec.optimizer),
        seed_(inputs.spec.seed),
        num_threads_(inputs.spec.num_threads),
        format_(inputs.format),
        tokenizer_(std::move(inputs.tokenizer)),
        prompts_(std::move(prompts)),
        reward_(std::move(reward)),
        reference_(inputs.model.Frozen()),
        learner_(inputs.model, ValueHead::Initialize(inputs.model.config().hidden_size, seed_), optimizer_,
                 spec_.value_learning_rate, num_threads_),
        order_(
            seed_, static_cast<int64_t>(prompts_.size()),
            // Enough passes over the prompts for every iteration.
            static_cast<int>(
                int64_t{spec_.num_iterations} * spec_.rollouts / static_cast<int64_t>(prompts_.size()) + 1),
            spec_.rollouts),
        kl_coefficient_(spec_.kl_coefficient) {}

  int64_t num_steps() const override { return spec_.num_iterations; }

  absl::StatusOr<Metrics> Step(int64_t step) override {
    if (spec_.normalize_rewards && reward_std_ == 0) ALMOST_RETURN_IF_ERROR(MeasureBase());
    std::vector<std::string> prompts;
    for (const size_t index : order_.Batch(step)) prompts.push_back(prompts_[index]);
    const uint64_t seed = DeriveSeed(DeriveSeed(seed_, "rollouts"), static_cast<uint64_t>(step));
    Stopwatch stopwatch;
    ALMOST_ASSIGN_OR_RETURN(std::vector<Rollout> rollouts, Generate(prompts, seed));
    const double rollout_seconds = stopwatch.Lap();

    // The scorer works while the log-probabilities are computed; both are there before anything changes.
    auto scored = std::async(std::launch::async, [&] { return Score(rollouts); });
    Evaluate(rollouts);
    ALMOST_RETURN_IF_ERROR(scored.get());

    Metrics metrics = Describe(rollouts);
    metrics["rollout_seconds"] = rollout_seconds;
    metrics["evaluate_seconds"] = stopwatch.Lap();
    std::vector<std::vector<double>> advantages;
    for (Rollout& rollout : rollouts) {
      Advantages estimated = EstimateAdvantages(
          TokenRewards(rollout.logprobs, rollout.reference, kl_coefficient_, rollout.reward), rollout.values,
          spec_.gamma, spec_.gae_lambda);
      advantages.push_back(std::move(estimated.advantages));
      rollout.returns = std::move(estimated.returns);
    }
    Whiten(advantages);
    std::vector<double> values, returns;
    for (size_t i = 0; i < rollouts.size(); ++i) {
      rollouts[i].advantages = std::move(advantages[i]);
      values.insert(values.end(), rollouts[i].values.begin(), rollouts[i].values.end());
      returns.insert(returns.end(), rollouts[i].returns.begin(), rollouts[i].returns.end());
    }
    metrics["value_explained_variance"] = ExplainedVariance(values, returns);
    Learn(rollouts, step, metrics);
    metrics["update_seconds"] = stopwatch.Lap();
    if (spec_.kl_target > 0) {
      kl_coefficient_ = AdaptKlCoefficient(kl_coefficient_, metrics["kl"], spec_.kl_target);
    }
    return metrics;
  }

  std::map<std::string, Tensor> Tensors() const override { return learner_.Tensors(); }
  nlohmann::json Values() const override {
    return {{"kl_coefficient", kl_coefficient_}, {"reward_mean", reward_mean_}, {"reward_std", reward_std_}};
  }
  absl::Status Restore(const nlohmann::json& values) override {
    kl_coefficient_ = values.at("kl_coefficient");
    reward_mean_ = values.at("reward_mean");
    reward_std_ = values.at("reward_std");
    return absl::OkStatus();
  }
  const Llama& model() const override { return learner_.policy(); }

 private:
  // One answer a prompt by the engine on the policy's present weights.
  absl::StatusOr<std::vector<Rollout>> Generate(const std::vector<std::string>& prompts,
                                                uint64_t seed) const {
    engine::EngineOptions options;
    options.num_threads = num_threads_;
    options.max_queued_requests = static_cast<int>(prompts.size());
    ALMOST_ASSIGN_OR_RETURN(const auto generator,
                            engine::Engine::Create(learner_.policy().InMemoryFolder(), options));
    const int32_t end_of_text = *tokenizer_->eos_id();
    std::vector<Rollout> rollouts;
    std::vector<engine::GenerationRequest> requests;
    for (size_t i = 0; i < prompts.size(); ++i) {
      ALMOST_ASSIGN_OR_RETURN(EncodedDialogue dialogue,
                              EncodeDialogue(format_, *tokenizer_, {{"user", prompts[i]}}));
      engine::GenerationRequest& request = requests.emplace_back();
      request.prompt_ids = dialogue.ids;
      request.sampling = {.temperature = spec_.temperature,
                          .top_p = spec_.top_p,
                          .max_new_tokens = spec_.max_new_tokens,
                          .seed = DeriveSeed(seed, i),
                          .logprobs = true};
      request.stop_token_ids = {end_of_text};
      Rollout& rollout = rollouts.emplace_back();
      rollout.prompt = prompts[i];
      rollout.sample.ids = std::move(dialogue.ids);
    }
    const auto answers = generator->Generate(std::move(requests));
    for (size_t i = 0; i < rollouts.size(); ++i) {
      if (!answers[i].ok())
        return Annotate(answers[i].status(), absl::StrCat("rollout of \"", prompts[i], "\""));
      const engine::Candidate& answer = answers[i]->front();
      Rollout& rollout = rollouts[i];
      const std::string text = tokenizer_->Decode(answer.token_ids, /*skip_special_tokens=*/true);
      rollout.response = std::string(absl::StripPrefix(text, format_.answer_prefix));
      rollout.stopped = answer.finish_reason == engine::FinishReason::kStop;
      std::vector<int32_t>& ids = rollout.sample.ids;
      rollout.sample.is_target.assign(ids.size(), false);
      ids.insert(ids.end(), answer.token_ids.begin(), answer.token_ids.end());
      if (rollout.stopped) ids.push_back(end_of_text);
      rollout.sample.is_target.resize(ids.size(), true);
      for (const engine::TokenLogprobs& logprobs : answer.logprobs) {
        rollout.engine_logprobs.push_back(spec_.temperature == 1.0 ? logprobs.model : logprobs.sampled);
      }
    }
    return rollouts;
  }

  // Fails as a whole: a score that could not be had is never a default.
  absl::Status Score(std::vector<Rollout>& rollouts) const {
    std::vector<RewardInput> inputs;
    for (const Rollout& rollout : rollouts) inputs.push_back({rollout.prompt, rollout.response});
    absl::StatusOr<std::vector<double>> scores = reward_(inputs);
    if (!scores.ok()) return Annotate(scores.status(), "reward");
    if (scores->size() != rollouts.size()) {
      return absl::InternalError(
          absl::StrCat("reward: ", scores->size(), " scores for ", rollouts.size(), " rollouts"));
    }
    for (size_t i = 0; i < rollouts.size(); ++i) {
      Rollout& rollout = rollouts[i];
      rollout.score = (*scores)[i];
      if (!std::isfinite(rollout.score)) {
        return absl::InternalError(absl::StrCat("reward: the score of rollout ", i, " is not finite"));
      }
      rollout.reward = reward_std_ > 0 ? (rollout.score - reward_mean_) / reward_std_ : rollout.score;
      if (!rollout.stopped && spec_.missing_stop_reward) rollout.reward = *spec_.missing_stop_reward;
    }
    return absl::OkStatus();
  }

  absl::Status MeasureBase() {
    const std::vector<std::string> prompts(
        prompts_.begin(),
        prompts_.begin() + static_cast<std::ptrdiff_t>(std::min(kNormalisationRollouts, prompts_.size())));
    ALMOST_ASSIGN_OR_RETURN(std::vector<Rollout> rollouts,
                            Generate(prompts, DeriveSeed(seed_, "base rollouts")));
    ALMOST_RETURN_IF_ERROR(Score(rollouts));
    double sum = 0, squares = 0;
    for (const Rollout& rollout : rollouts) sum += rollout.score;
    reward_mean_ = sum / static_cast<double>(rollouts.size());
    for (const Rollout& rollout : rollouts) squares += std::pow(rollout.score - reward_mean_, 2);
    reward_std_ = std::sqrt(squares / static_cast<double>(rollouts.size()));
    if (!(reward_std_ > 0)) {
      return absl::FailedPreconditionError(
          "ppo.normalize_rewards: the reward model gives every answer the same score");
    }
    return absl::OkStatus();
  }

  std::vector<std::vector<size_t>> Cut(const std::vector<Rollout>& rollouts,
                                       const std::vector<size_t>& chosen) const {
    std::vector<int64_t> lengths;
    for (const size_t i : chosen) lengths.push_back(static_cast<int64_t>(rollouts[i].sample.ids.size()));
    std::vector<std::vector<size_t>> cut = CutMicroBatches(lengths, num_threads_, kMicroBatchTokens);
    for (std::vector<size_t>& part : cut) {
      for (size_t& item : part) item = chosen[item];
    }
    return cut;
  }

  static LabeledSamples Pack(const std::vector<Rollout>& rollouts, const std::vector<size_t>& chosen) {
    std::vector<const Sample*> samples;
    for (const size_t i : chosen) samples.push_back(&rollouts[i].sample);
    return LabeledSamples::Pack(samples);
  }

  // Fills in what the present policy, its value function and the reference say of the generated tokens.
  void Evaluate(std::vector<Rollout>& rollouts) {
    std::vector<size_t> all(rollouts.size());
    std::iota(all.begin(), all.end(), size_t{0});
    const auto cut = Cut(rollouts, all);
    learner_.ForEach(cut.size(), [&](size_t part) {
      const LabeledSamples samples = Pack(rollouts, cut[part]);
      const Tensor hidden_ND = learner_.policy().Hidden(samples.packed);
      const Tensor& head_VD = learner_.policy().HeadWeight();
      const auto distribute = [&](const Tensor& values_M, std::vector<double> Rollout::* field) {
        const Tensor doubles = values_M.to(torch::kFloat64).contiguous();
        const double* next = doubles.data_ptr<double>();
        for (const size_t i : cut[part]) {
          (rollouts[i].*field).assign(next, next + rollouts[i].sample.num_targets());
          next += rollouts[i].sample.num_targets();
        }
      };
      distribute(TokenLogprobs(hidden_ND, head_VD, samples.rows_M, samples.targets_M, spec_.temperature),
                 &Rollout::logprobs);
      distribute(TokenEntropies(hidden_ND, head_VD, samples.rows_M, spec_.temperature), &Rollout::entropies);
      distribute(learner_.values()(hidden_ND, samples.rows_M), &Rollout::values);
      distribute(samples.Logprobs(reference_, spec_.temperature), &Rollout::reference);
    });
  }

  Metrics Describe(const std::vector<Rollout>& rollouts) const {
    double tokens = 0, stopped = 0, reward = 0, squares = 0, score = 0, kl = 0, kl_k3 = 0, entropy = 0,
           gap = 0;
    std::vector<double> scores, lengths;
    std::vector<int64_t> sequence_lengths;
    for (const Rollout& rollout : rollouts) {
      const size_t length = rollout.logprobs.size();
      tokens += static_cast<double>(length);
      stopped += rollout.stopped ? 1.0 : 0.0;
      reward += rollout.reward;
      squares += rollout.reward * rollout.reward;
      score += rollout.score;
      scores.push_back(rollout.score);
      lengths.push_back(static_cast<double>(length));
      sequence_lengths.push_back(static_cast<int64_t>(rollout.sample.ids.size()));
      for (size_t t = 0; t < length; ++t) {
        kl += KlK1(rollout.logprobs[t], rollout.reference[t]);
        kl_k3 += KlK3(rollout.logprobs[t], rollout.reference[t]);
        entropy += rollout.entropies[t];
        gap = std::max(gap, std::abs(rollout.logprobs[t] - rollout.engine_logprobs[t]));
      }
    }
    const auto count = static_cast<double>(rollouts.size());
    const double forward = ForwardFlops(reference_.config(), sequence_lengths, static_cast<int64_t>(tokens));
    return {{"reward_mean", reward / count},
            {"reward_std", std::sqrt(std::max(0.0, squares / count - reward * reward / (count * count)))},
            {"score_mean", score / count},
            {"kl", kl / count},
            {"kl_k3", kl_k3 / count},
            {"kl_coefficient", kl_coefficient_},
            {"completion_tokens_mean", tokens / count},
            {"stop_fraction", stopped / count},
            {"entropy", entropy / tokens},
            {"score_length_correlation", Correlation(scores, lengths)},
            {"logprob_gap", gap},
            {"ratio_gap", std::expm1(gap)},
            // To draw them, what the policy and the reference say of them, and the passes of updates.
            {"model_flops", (1 + 2 + 3.0 * spec_.epochs) * forward}};
  }

  // Sums over tokens and updates.
  struct Progress {
    double policy_loss = 0, value_loss = 0, clipped = 0, tokens = 0, grad_norm = 0, updates = 0;
  };

  void Learn(const std::vector<Rollout>& rollouts, int64_t step, Metrics& metrics) {
    const double factor =
        step < spec_.value_warmup_iterations ? 0.0 : LearningRateFactor(optimizer_, step, num_steps());
    RandomStream random(DeriveSeed(seed_, "minibatches"), static_cast<uint64_t>(step));
    std::vector<size_t> order(rollouts.size());
    std::iota(order.begin(), order.end(), size_t{0});
    Progress progress;
    for (int epoch = 0; epoch < spec_.epochs; ++epoch) {
      random.Shuffle(order);
      for (size_t begin = 0; begin < order.size(); begin += spec_.minibatch_size) {
        const size_t end = std::min(begin + spec_.minibatch_size, order.size());
        Update(rollouts, {order.data() + begin, order.data() + end}, factor, progress);
      }
    }
    metrics["policy_loss"] = progress.policy_loss / progress.tokens;
    metrics["value_loss"] = progress.value_loss / progress.tokens;
    metrics["loss"] = metrics["policy_loss"] + spec_.value_coefficient * metrics["value_loss"];
    metrics["clip_fraction"] = progress.clipped / progress.tokens;
    metrics["grad_norm"] = progress.grad_norm / progress.updates;
    metrics["learning_rate"] = optimizer_.learning_rate * factor;
    metrics["tokens"] = progress.tokens;
  }

  void Update(const std::vector<Rollout>& rollouts, const std::vector<size_t>& minibatch, double factor,
              Progress& progress) {
    double tokens = 0;
    for (const size_t i : minibatch) tokens += static_cast<double>(rollouts[i].sample.num_targets());
    const auto cut = Cut(rollouts, minibatch);
    std::vector<Progress> parts(cut.size());
    progress.grad_norm +=
        learner_.Update(cut.size(), factor, [&](const Llama& policy, const ValueHead& values, size_t part) {
          const auto gather = [&](std::vector<double> Rollout::* field) {
            std::vector<double> all;
            for (const size_t i : cut[part]) {
              all.insert(all.end(), (rollouts[i].*field).begin(), (rollouts[i].*field).end());
            }
            return torch::tensor(all, torch::kFloat64).to(torch::kFloat32);
          };
          const PpoLosses losses =
              ComputePpoLosses(policy, values, Pack(rollouts, cut[part]),
                               {gather(&Rollout::logprobs), gather(&Rollout::values),
                                gather(&Rollout::advantages), gather(&Rollout::returns)},
                               spec_.clip_range, spec_.value_clip_range, spec_.temperature);
          const Tensor policy_loss = losses.policy_M.sum(), value_loss = losses.value_M.sum();
          parts[part].policy_loss = policy_loss.item<double>();
          parts[part].value_loss = value_loss.item<double>();
          parts[part].clipped = losses.clipped_M.sum().item<double>();
          return (policy_loss + spec_.value_coefficient * value_loss) / tokens;
        });
    for (const Progress& part : parts) {
      progress.policy_loss += part.policy_loss;
      progress.value_loss += part.value_loss;
      progress.clipped += part.clipped;
    }
    progress.tokens += tokens;
    ++progress.updates;
  }

  const PpoSpec spec_;
  const OptimizerSpec optimizer_;
  const uint64_t seed_;
  const int num_threads_;
  const PromptFormat format_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const std::vector<std::string> prompts_;
  const RewardFunction reward_;
  const Llama reference_;
  ActorCritic learner_;
  DataOrder order_;
  double kl_coefficient_;
  double reward_mean_ = 0;
  double reward_std_ = 0;  // 0: not measured
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakePpoTask(TaskInputs inputs, RewardFunction reward) {
  const auto& spec = std::get<PpoSpec>(inputs.spec.kind);
  if (!reward) return absl::FailedPreconditionError("ppo: no reward model to ask");
  if (!inputs.tokenizer->eos_id()) {
    return absl::FailedPreconditionError(
        "ppo: the tokenizer has no end-of-text token for an answer to end with");
  }
  ALMOST_ASSIGN_OR_RETURN(std::vector<std::string> prompts, ReadPrompts(spec.dataset));
  return std::make_unique<PpoTask>(std::move(inputs), std::move(prompts), std::move(reward));
}

}  // namespace almost::trainer
