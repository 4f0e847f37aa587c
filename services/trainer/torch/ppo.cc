#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "services/trainer/core/data_order.h"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/micro_batches.h"
#include "services/trainer/core/model_flops.h"
#include "services/trainer/core/ppo_math.h"
#include "services/trainer/core/rollout_scorer.h"
#include "services/trainer/core/schedule.h"
#include "services/trainer/torch/actor_critic.h"
#include "services/trainer/torch/labeled_samples.h"
#include "services/trainer/torch/ppo_loss.h"
#include "services/trainer/torch/rollouts.h"
#include "services/trainer/torch/task.h"
#include "services/trainer/torch/token_logprobs.h"

// Proximal policy optimisation against a reward model (METHOD: Ouyang et al. 2022; PPO: Schulman et al.
// 2017), and GRPO (Shao et al. 2024), which differs in where advantages come from. A step is one iteration:
// rollouts, scores, several passes of updates; nothing but weights, optimizer states and a few numbers lives
// from one to the next, so checkpoints hold no rollouts. Ranks share out prompts and updates; rank 0 asks for
// scores. Shapes: M generated tokens.
namespace almost::trainer {
namespace {

using torch::Tensor;

// Prompts whose answers by the base model give the mean and deviation of scores.
constexpr size_t kNormalisationRollouts = 128;

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
  PpoTask(TaskInputs inputs, std::optional<ValueFunction> values, Dataset<std::string> prompts,
          Dataset<Sample> mix, RewardFunction reward, RewardFunction guard)
      : spec_(std::get<PpoSpec>(inputs.spec.kind)),
        optimizer_(inputs.spec.optimizer),
        memory_(inputs.spec.memory),
        seed_(inputs.spec.seed),
        group_(*inputs.group),
        stop_(inputs.stop),
        sampler_(spec_, inputs.spec.num_threads, inputs.format, std::move(inputs.tokenizer), group_),
        prompts_(std::move(prompts)),
        mix_(std::move(mix)),
        reward_(std::move(reward)),
        guard_(std::move(guard)),
        reference_(inputs.model.Frozen()),
        learner_(inputs.model, std::move(values), optimizer_, spec_.value_learning_rate,
                 inputs.spec.num_threads, group_),
        order_(
            seed_, static_cast<int64_t>(prompts_.size()),
            // Enough passes over the prompts for every iteration, and for a look at what the last one made.
            (int64_t{spec_.num_iterations} + 1) * num_prompts() / static_cast<int64_t>(prompts_.size()) + 1,
            num_prompts()),
        mix_order_(DeriveSeed(seed_, "mix"), static_cast<int64_t>(mix_.size()),
                   std::numeric_limits<int>::max(), spec_.minibatch_size),
        kl_coefficient_(spec_.kl_coefficient) {
    if (spec_.kl_limit > 0) {
      for (const auto& [name, parameter] : learner_.policy().parameters()) {
        if (parameter.requires_grad()) within_limit_[name] = parameter.detach().clone();
      }
    }
  }

  int64_t num_steps() const override { return ended_after_ > 0 ? ended_after_ : spec_.num_iterations; }

  absl::StatusOr<Metrics> Step(int64_t step) override {
    if (spec_.normalize_rewards && reward_std_ == 0) ALMOST_RETURN_IF_ERROR(MeasureBase());
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> prompts, PromptsOf(step));
    Stopwatch stopwatch;
    double rollout_seconds = 0;
    ALMOST_ASSIGN_OR_RETURN(Scored scored, Draw(prompts, SeedOf(step), [&](std::vector<Rollout>& drawn) {
                              rollout_seconds = stopwatch.Lap();
                              Evaluate(drawn);
                            }));
    std::vector<Rollout> rollouts = std::move(scored.rollouts);
    ALMOST_RETURN_IF_ERROR(TakeScores(scored.scores, rollouts));

    Metrics metrics = Describe(rollouts);
    metrics["rollout_seconds"] = rollout_seconds;
    metrics["evaluate_seconds"] = stopwatch.Lap();
    if (spec_.kl_limit > 0 && !KeepWithinLimit(metrics["kl"])) {
      ended_after_ = step + 1;
      metrics["loss"] = metrics["grad_norm"] = metrics["learning_rate"] = metrics["tokens"] = 0;
      metrics["model_flops"] = 0;
      return metrics;
    }
    if (is_grpo()) {
      CompareWithinGroups(rollouts);
    } else {
      metrics["value_explained_variance"] = CompareWithValues(rollouts);
    }
    ALMOST_RETURN_IF_ERROR(Learn(rollouts, step, metrics));
    metrics["update_seconds"] = stopwatch.Lap();
    if (spec_.kl_target > 0) {
      kl_coefficient_ = AdaptKlCoefficient(kl_coefficient_, metrics["kl"], spec_.kl_target);
    }
    return metrics;
  }

  std::map<std::string, Tensor> Tensors() const override {
    std::map<std::string, Tensor> tensors = learner_.Tensors();
    for (const auto& [name, tensor] : within_limit_) tensors[absl::StrCat("within_limit.", name)] = tensor;
    return tensors;
  }
  nlohmann::json Values() const override {
    return {{"kl_coefficient", kl_coefficient_},
            {"reward_mean", reward_mean_},
            {"reward_std", reward_std_},
            {"ended_after", ended_after_}};
  }
  absl::Status Restore(const nlohmann::json& values) override {
    kl_coefficient_ = values.at("kl_coefficient");
    reward_mean_ = values.at("reward_mean");
    reward_std_ = values.at("reward_std");
    if (reward_std_ > 0) learner_.NormalizeValues(reward_mean_, reward_std_);
    ended_after_ = values.at("ended_after");
    return absl::OkStatus();
  }
  absl::StatusOr<Finished> Finish() override {
    Finished finished;
    // The last update is followed by no step that would have looked at its policy.
    if (spec_.kl_limit > 0 && ended_after_ == 0) {
      const int64_t step = spec_.num_iterations;
      ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> prompts, PromptsOf(step));
      ALMOST_ASSIGN_OR_RETURN(std::vector<Rollout> rollouts,
                              sampler_.Draw(learner_.policy(), prompts, SeedOf(step), nullptr, stop_));
      Evaluate(rollouts);
      double kl = 0;
      for (const Rollout& rollout : rollouts) kl += rollout.Kl();
      if (!KeepWithinLimit(kl / static_cast<double>(rollouts.size()))) ended_after_ = step;
    }
    if (ended_after_ > 0) finished.measured["ended_by_kl_limit_after"] = ended_after_;
    return finished;
  }
  const Transformer& model() const override { return learner_.policy(); }

 private:
  bool is_grpo() const { return spec_.group_size > 0; }
  int num_prompts() const { return is_grpo() ? spec_.rollouts / spec_.group_size : spec_.rollouts; }

  // A group of answers to a prompt: so many times.
  absl::StatusOr<std::vector<std::string>> PromptsOf(int64_t step) {
    std::vector<std::string> prompts;
    for (const size_t index : order_.Batch(step)) {
      ALMOST_ASSIGN_OR_RETURN(const std::string prompt, prompts_.Read(index));
      prompts.insert(prompts.end(), is_grpo() ? spec_.group_size : 1, prompt);
    }
    return prompts;
  }
  uint64_t SeedOf(int64_t step) const {
    return DeriveSeed(DeriveSeed(seed_, "rollouts"), static_cast<uint64_t>(step));
  }

  // Whether the policy that made the rollouts is. If so it is kept; if not, the one that was kept comes back.
  bool KeepWithinLimit(double kl) {
    const torch::NoGradGuard no_grad;
    const bool within = kl <= spec_.kl_limit;
    for (auto& [name, kept] : within_limit_) {
      Tensor live = learner_.policy().parameters().at(name).detach();
      within ? kept.copy_(live) : live.copy_(kept);
    }
    return within;
  }

  void CompareWithinGroups(std::vector<Rollout>& rollouts) const {
    for (size_t begin = 0; begin < rollouts.size(); begin += spec_.group_size) {
      const std::span<Rollout> group(rollouts.data() + begin, spec_.group_size);
      std::vector<double> rewards, kls;
      for (const Rollout& rollout : group) {
        rewards.push_back(rollout.reward);
        kls.push_back(rollout.Kl());
      }
      const std::vector<double> advantages =
          GroupAdvantages(rewards, kls, kl_coefficient_, spec_.scale_advantages);
      for (size_t i = 0; i < group.size(); ++i) {
        group[i].advantages.assign(group[i].logprobs.size(), advantages[i]);
      }
    }
  }

  // Returns the explained variance.
  double CompareWithValues(std::vector<Rollout>& rollouts) const {
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
    return ExplainedVariance(values, returns);
  }

  struct Scored {
    std::vector<Rollout> rollouts;
    absl::StatusOr<RolloutScores> scores;
  };

  // Rollouts of the present policy. Rank 0 asks for their scores while others are being drawn and while
  // `meanwhile` is done with all of them.
  absl::StatusOr<Scored> Draw(const std::vector<std::string>& prompts, uint64_t seed,
                              const std::function<void(std::vector<Rollout>&)>& meanwhile) const {
    std::optional<RolloutScorer> scorer;
    if (group_.rank() == 0) scorer.emplace(reward_, guard_, prompts.size());
    Scored scored;
    ALMOST_ASSIGN_OR_RETURN(
        scored.rollouts, sampler_.Draw(learner_.policy(), prompts, seed, scorer ? &*scorer : nullptr, stop_));
    meanwhile(scored.rollouts);
    scored.scores = scorer ? scorer->Finish() : RolloutScores();
    return scored;
  }

  // What rank 0 was told, on all ranks.
  absl::Status TakeScores(const absl::StatusOr<RolloutScores>& asked, std::vector<Rollout>& rollouts) {
    std::string bytes;
    nlohmann::json::to_msgpack({{"code", static_cast<int>(asked.status().code())},
                                {"message", std::string(asked.status().message())},
                                {"rewards", asked.ok() ? asked->rewards : std::vector<double>()},
                                {"guards", asked.ok() ? asked->guards : std::vector<double>()}},
                               bytes);
    const nlohmann::json told = nlohmann::json::from_msgpack(group_.Broadcast(bytes));
    if (told.at("code") != 0) {
      return {static_cast<absl::StatusCode>(told.at("code").get<int>()),
              told.at("message").get<std::string>()};
    }
    for (size_t i = 0; i < rollouts.size(); ++i) {
      Rollout& rollout = rollouts[i];
      rollout.score = told.at("rewards")[i];
      rollout.guard = told.at("guards")[i];
      rollout.reward = RolloutReward(spec_, rollout.score, reward_mean_, reward_std_, rollout.stopped,
                                     rollout.engine_logprobs.size());
    }
    return absl::OkStatus();
  }

  absl::Status MeasureBase() {
    std::vector<size_t> first(std::min(kNormalisationRollouts, prompts_.size()));
    std::iota(first.begin(), first.end(), size_t{0});
    ALMOST_ASSIGN_OR_RETURN(const std::vector<std::string> prompts, prompts_.Read(first));
    ALMOST_ASSIGN_OR_RETURN(Scored scored,
                            Draw(prompts, DeriveSeed(seed_, "base rollouts"), [](std::vector<Rollout>&) {}));
    std::vector<Rollout> rollouts = std::move(scored.rollouts);
    ALMOST_RETURN_IF_ERROR(TakeScores(scored.scores, rollouts));
    double sum = 0, squares = 0;
    for (const Rollout& rollout : rollouts) sum += rollout.score;
    reward_mean_ = sum / static_cast<double>(rollouts.size());
    for (const Rollout& rollout : rollouts) squares += std::pow(rollout.score - reward_mean_, 2);
    reward_std_ = std::sqrt(squares / static_cast<double>(rollouts.size()));
    if (!(reward_std_ > 0)) {
      return absl::FailedPreconditionError(
          "ppo.normalize_rewards: the reward model gives every answer the same score");
    }
    learner_.NormalizeValues(reward_mean_, reward_std_);
    return absl::OkStatus();
  }

  std::vector<std::vector<size_t>> Cut(const std::vector<Rollout>& rollouts,
                                       const std::vector<size_t>& chosen) const {
    std::vector<int64_t> lengths;
    for (const size_t i : chosen) lengths.push_back(static_cast<int64_t>(rollouts[i].sample.ids.size()));
    std::vector<std::vector<size_t>> cut =
        CutMicroBatches(lengths, learner_.num_workers(), memory_.micro_batch_tokens);
    for (std::vector<size_t>& part : cut) {
      for (size_t& item : part) item = chosen[item];
    }
    return cut;
  }

  LabeledSamples Pack(const std::vector<Rollout>& rollouts, const std::vector<size_t>& chosen) const {
    std::vector<const Sample*> samples;
    for (const size_t i : chosen) samples.push_back(&rollouts[i].sample);
    return LabeledSamples::Pack(samples, model().device());
  }

  // Fills in what the present policy, its value function and the reference say of the generated tokens.
  void Evaluate(std::vector<Rollout>& rollouts) {
    std::vector<size_t> all(rollouts.size());
    std::iota(all.begin(), all.end(), size_t{0});
    const auto cut = Cut(rollouts, all);
    learner_.ForEach(cut.size(), [&](size_t part) {
      const LabeledSamples samples = Pack(rollouts, cut[part]);
      const Tensor hidden_MD = learner_.policy().Hidden(samples.packed, samples.rows_M);
      const Tensor& head_VD = learner_.policy().HeadWeight();
      const auto distribute = [&](const Tensor& values_M, std::vector<double> Rollout::* field) {
        const Tensor doubles = values_M.to(torch::kCPU, torch::kFloat64).contiguous();
        const double* next = doubles.data_ptr<double>();
        for (const size_t i : cut[part]) {
          (rollouts[i].*field).assign(next, next + rollouts[i].sample.num_targets());
          next += rollouts[i].sample.num_targets();
        }
      };
      distribute(TokenLogprobs(hidden_MD, head_VD, samples.targets_M, spec_.temperature), &Rollout::logprobs);
      distribute(TokenEntropies(hidden_MD, head_VD, spec_.temperature), &Rollout::entropies);
      if (learner_.values() != nullptr) {
        distribute((*learner_.values())(hidden_MD, samples.packed, samples.rows_M), &Rollout::values);
      }
      distribute(samples.Logprobs(reference_, spec_.temperature), &Rollout::reference);
    });
    if (group_.size() == 1) return;
    for (const auto field :
         {&Rollout::logprobs, &Rollout::entropies, &Rollout::values, &Rollout::reference}) {
      if (field == &Rollout::values && learner_.values() == nullptr) continue;
      std::vector<double> merged;
      for (Rollout& rollout : rollouts) {
        (rollout.*field).resize(rollout.sample.num_targets());  // with zeros where another rank was at it
        merged.insert(merged.end(), (rollout.*field).begin(), (rollout.*field).end());
      }
      group_.Merge(merged);
      auto next = merged.begin();
      for (Rollout& rollout : rollouts) {
        for (double& value : rollout.*field) value = *next++;
      }
    }
  }

  Metrics Describe(const std::vector<Rollout>& rollouts) const {
    double tokens = 0, stopped = 0, reward = 0, squares = 0, score = 0, guard = 0, kl = 0, kl_k3 = 0,
           entropy = 0, gap = 0;
    std::vector<double> scores, guards, lengths;
    std::vector<int64_t> sequence_lengths;
    for (const Rollout& rollout : rollouts) {
      const size_t length = rollout.logprobs.size();
      tokens += static_cast<double>(length);
      stopped += rollout.stopped ? 1.0 : 0.0;
      reward += rollout.reward;
      squares += rollout.reward * rollout.reward;
      score += rollout.score;
      guard += rollout.guard;
      kl += rollout.Kl();
      scores.push_back(rollout.score);
      guards.push_back(rollout.guard);
      lengths.push_back(static_cast<double>(length));
      sequence_lengths.push_back(static_cast<int64_t>(rollout.sample.ids.size()));
      for (size_t t = 0; t < length; ++t) {
        kl_k3 += KlK3(rollout.logprobs[t], rollout.reference[t]);
        entropy += rollout.entropies[t];
        gap = std::max(gap, std::abs(rollout.logprobs[t] - rollout.engine_logprobs[t]));
      }
    }
    const auto count = static_cast<double>(rollouts.size());
    const double forward = ForwardFlops(reference_.config(), sequence_lengths, static_cast<int64_t>(tokens));
    Metrics metrics = {
        {"reward_mean", reward / count},
        {"reward_std", std::sqrt(std::max(0.0, squares / count - reward * reward / (count * count)))},
        {"score_mean", score / count},
        {"kl", kl / count},
        {"kl_k3", kl_k3 / count},
        {"kl_coefficient", kl_coefficient_},
        {"completion_tokens_mean", tokens / count},
        {"stop_fraction", stopped / count},
        {"entropy", entropy / tokens},
        {"score_length_correlation", Correlation(scores, lengths)},
        // To draw them, what the policy and the reference say of them, and the passes of updates.
        {"model_flops", (1 + 2) * forward + spec_.epochs * TrainingFlops(memory_, forward)}};
    // Of both a temperature and a nucleus the engine has no log-probabilities that are the trainer's.
    if (spec_.temperature == 1.0 || spec_.top_p == 1.0) {
      metrics["logprob_gap"] = gap;
      metrics["ratio_gap"] = std::expm1(gap);
    }
    if (guard_) {
      metrics["guard_score_mean"] = guard / count;
      metrics["guard_score_correlation"] = Correlation(scores, guards);
    }
    return metrics;
  }

  // Sums over tokens and updates.
  struct Progress {
    double policy_loss = 0, value_loss = 0, mix_loss = 0, clipped = 0, tokens = 0, grad_norm = 0, updates = 0;
  };

  absl::Status Learn(const std::vector<Rollout>& rollouts, int64_t step, Metrics& metrics) {
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
        // Updates of all iterations, counted on.
        const int64_t minibatches =
            (int64_t{spec_.rollouts} + spec_.minibatch_size - 1) / spec_.minibatch_size;
        const int64_t update = step * spec_.epochs * minibatches + static_cast<int64_t>(progress.updates);
        ALMOST_RETURN_IF_ERROR(
            Update(rollouts, {order.data() + begin, order.data() + end}, factor, update, progress));
      }
    }
    metrics["loss"] = metrics["policy_loss"] = progress.policy_loss / progress.tokens;
    if (!is_grpo()) {
      metrics["value_loss"] = progress.value_loss / progress.tokens;
      metrics["loss"] += spec_.value_coefficient * metrics["value_loss"];
    }
    if (mix_.size() > 0 && factor > 0) {
      metrics["mix_loss"] = progress.mix_loss / progress.updates;
      metrics["loss"] += spec_.mix_coefficient * metrics["mix_loss"];
    }
    metrics["clip_fraction"] = progress.clipped / progress.tokens;
    metrics["grad_norm"] = progress.grad_norm / progress.updates;
    metrics["learning_rate"] = optimizer_.learning_rate * factor;
    metrics["tokens"] = progress.tokens;
    return absl::OkStatus();
  }

  // Documents of an update, in micro-batches: what is learned beside the rollouts.
  struct Mix {
    std::vector<Sample> samples;
    std::vector<std::vector<const Sample*>> parts;
    double targets = 0;
  };
  absl::StatusOr<Mix> MixOf(int64_t update) {
    Mix mix;
    if (mix_.size() == 0) return mix;
    ALMOST_ASSIGN_OR_RETURN(mix.samples, mix_.Read(mix_order_.Batch(update)));
    std::vector<int64_t> lengths;
    for (const Sample& sample : mix.samples) {
      lengths.push_back(static_cast<int64_t>(sample.ids.size()));
      mix.targets += static_cast<double>(sample.num_targets());
    }
    for (const std::vector<size_t>& cut :
         CutMicroBatches(lengths, learner_.num_workers(), memory_.micro_batch_tokens)) {
      std::vector<const Sample*>& part = mix.parts.emplace_back();
      for (const size_t item : cut) part.push_back(&mix.samples[item]);
    }
    return mix;
  }

  absl::Status Update(const std::vector<Rollout>& rollouts, const std::vector<size_t>& minibatch,
                      double factor, int64_t update, Progress& progress) {
    double tokens = 0;
    for (const size_t i : minibatch) tokens += static_cast<double>(rollouts[i].sample.num_targets());
    const auto cut = Cut(rollouts, minibatch);
    Mix mix;
    if (factor > 0) {
      ALMOST_ASSIGN_OR_RETURN(mix, MixOf(update));
    }
    std::vector<Progress> parts(cut.size() + mix.parts.size());
    const auto loss_of = [&](const Transformer& policy, const ValueFunction* values, size_t part) {
      if (part >= cut.size()) {
        const LabeledSamples documents = LabeledSamples::Pack(mix.parts[part - cut.size()], policy.device());
        const Tensor loss = -documents.Logprobs(policy).sum() / mix.targets;
        parts[part].mix_loss = loss.item<double>();
        return spec_.mix_coefficient * loss;
      }
      const auto gather = [&](std::vector<double> Rollout::* field) {
        std::vector<double> all;
        for (const size_t i : cut[part]) {
          all.insert(all.end(), (rollouts[i].*field).begin(), (rollouts[i].*field).end());
        }
        return torch::tensor(all, torch::kFloat64).to(policy.device(), torch::kFloat32);
      };
      const PpoLosses losses = ComputePpoLosses(policy, values, Pack(rollouts, cut[part]),
                                                {gather(&Rollout::logprobs), gather(&Rollout::advantages),
                                                 gather(&Rollout::values), gather(&Rollout::returns)},
                                                spec_.clip_range, spec_.value_clip_range, spec_.temperature);
      const Tensor policy_loss = losses.policy_M.sum();
      parts[part].policy_loss = policy_loss.item<double>();
      parts[part].clipped = losses.clipped_M.sum().item<double>();
      if (values == nullptr) return policy_loss / tokens;
      const Tensor value_loss = losses.value_M.sum();
      parts[part].value_loss = value_loss.item<double>();
      return (policy_loss + spec_.value_coefficient * value_loss) / tokens;
    };
    progress.grad_norm += learner_.Update(parts.size(), factor, loss_of);
    std::vector<double> sums;
    for (const Progress& part : parts) {
      sums.insert(sums.end(), {part.policy_loss, part.value_loss, part.mix_loss, part.clipped});
    }
    group_.Merge(sums);
    for (size_t i = 0; i < sums.size(); i += 4) {
      progress.policy_loss += sums[i];
      progress.value_loss += sums[i + 1];
      progress.mix_loss += sums[i + 2];
      progress.clipped += sums[i + 3];
    }
    progress.tokens += tokens;
    ++progress.updates;
    return absl::OkStatus();
  }

  const PpoSpec spec_;
  const OptimizerSpec optimizer_;
  const MemorySpec memory_;
  const uint64_t seed_;
  Group& group_;
  const std::stop_token stop_;
  const RolloutSampler sampler_;
  const Dataset<std::string> prompts_;
  const Dataset<Sample> mix_;  // documents; empty: none
  const RewardFunction reward_, guard_;
  const Transformer reference_;
  ActorCritic learner_;
  DataOrder order_, mix_order_;
  std::map<std::string, Tensor> within_limit_;  // the latest policy whose KL was; empty without a limit
  int64_t ended_after_ = 0;                     // steps, where the limit was passed
  double kl_coefficient_;
  double reward_mean_ = 0;
  double reward_std_ = 0;  // 0: not measured
};

// None for grpo.
absl::StatusOr<std::optional<ValueFunction>> MakeValueFunction(const TaskInputs& inputs) {
  const auto& spec = std::get<PpoSpec>(inputs.spec.kind);
  const ModelConfig& policy = inputs.model.config();
  if (spec.group_size > 0) return std::nullopt;
  if (spec.value_model.empty()) {
    return ValueFunction(ValueHead::Initialize(policy.hidden_size, inputs.spec.seed, inputs.model.device()));
  }
  ALMOST_ASSIGN_OR_RETURN(const auto folder, ModelFolder::Open(spec.value_model));
  if (!folder->config().reward_head || folder->config().vocab_size != policy.vocab_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ppo.value_model: must be a reward model with the policy's vocabulary, ", policy.vocab_size,
        " tokens, is ", folder->config().architecture, " with ", folder->config().vocab_size));
  }
  const torch::ScalarType dtype = inputs.model.HeadWeight().scalar_type();
  ALMOST_ASSIGN_OR_RETURN(Transformer model, Transformer::Load(*folder, dtype, /*reward_head=*/true));
  model = model.To(inputs.model.device());
  const MemorySpec& memory = inputs.spec.memory;
  if (memory.recompute_layers) model.RecomputeLayers();
  if (memory.adapters) {
    model.AddAdapters(memory.adapters->rank, memory.adapters->alpha,
                      DeriveSeed(inputs.spec.seed, "value adapters"));
  }
  return ValueFunction(std::move(model));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakePpoTask(TaskInputs inputs, RewardFunction reward,
                                                  RewardFunction guard, const std::vector<Reader>& scorers) {
  const auto& spec = std::get<PpoSpec>(inputs.spec.kind);
  const char* kind = KindName(inputs.spec.kind);
  if (!reward && inputs.group->rank() == 0) {
    return absl::FailedPreconditionError(absl::StrCat(kind, ": no reward model to ask"));
  }
  if (!inputs.tokenizer->eos_id()) {
    return absl::FailedPreconditionError(
        absl::StrCat(kind, ": the tokenizer has no end-of-text token for an answer to end with"));
  }
  const int context = inputs.model.config().max_positions;
  ALMOST_RETURN_IF_ERROR(
      MaxTokens(absl::StrCat(kind, ".max_new_tokens"), spec.max_new_tokens, inputs.model.config()).status());
  // Prompts with their answers have to fit everyone who reads them.
  Reader least = {"base_model", context};
  const auto reads_too = [&](const char* field, int context_tokens) {
    if (context_tokens < least.context_tokens) least = {absl::StrCat(kind, ".", field), context_tokens};
  };
  for (const Reader& scorer : scorers) {
    if (scorer.vocab_size != inputs.model.config().vocab_size) continue;
    reads_too(scorer.field.c_str(), scorer.context_tokens - 1);  // an end-of-text is put to what was cut off
  }
  ALMOST_ASSIGN_OR_RETURN(std::optional<ValueFunction> values, MakeValueFunction(inputs));
  if (!spec.value_model.empty()) {
    ALMOST_ASSIGN_OR_RETURN(const ModelConfig config, ModelConfig::FromFolder(spec.value_model));
    reads_too("value_model", config.max_positions);
  }
  ALMOST_ASSIGN_OR_RETURN(Dataset<std::string> prompts,
                          ReadPrompts(spec.dataset, {inputs.format, inputs.tokenizer, least.context_tokens},
                                      spec.max_new_tokens, least.field));
  Dataset<Sample> mix;
  if (!spec.mix_dataset.empty()) {
    ALMOST_ASSIGN_OR_RETURN(mix, ReadTexts(spec.mix_dataset, inputs.tokenizer, context));
  }
  return std::make_unique<PpoTask>(std::move(inputs), std::move(values), std::move(prompts), std::move(mix),
                                   std::move(reward), std::move(guard));
}

}  // namespace almost::trainer
