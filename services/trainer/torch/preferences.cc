#include <algorithm>
#include <cmath>
#include <numeric>

#include "common/base/random.h"
#include "common/base/status_macros.h"
#include "services/trainer/core/data_order.h"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/micro_batches.h"
#include "services/trainer/core/model_flops.h"
#include "services/trainer/core/ppo_math.h"
#include "services/trainer/core/schedule.h"
#include "services/trainer/torch/labeled_samples.h"
#include "services/trainer/torch/learner.h"
#include "services/trainer/torch/losses.h"
#include "services/trainer/torch/task.h"

// What learns from comparisons: reward model and DPO. Shapes: P pairs of a micro-batch; its samples are the
// chosen ones, then the rejected ones.
namespace almost::trainer {
namespace {

using torch::Tensor;

// Training pairs whose scores give a reward model's mean and deviation.
constexpr size_t kNormalisationPairs = 512;

class PreferenceTask : public Task {
 public:
  PreferenceTask(TaskInputs inputs, std::vector<PreferencePair> pairs, int epochs, int batch_size)
      : optimizer_(inputs.spec.optimizer),
        seed_(inputs.spec.seed),
        num_threads_(inputs.spec.num_threads),
        pairs_(std::move(pairs)),
        learner_(std::move(inputs.model), optimizer_, num_threads_),
        order_(seed_, static_cast<int64_t>(pairs_.size()), epochs, batch_size) {}

  int64_t num_steps() const override { return order_.num_steps(); }

  absl::StatusOr<Metrics> Step(int64_t step) override {
    const std::vector<size_t> batch = order_.Batch(step);
    const auto cut =
        Cut(batch.size(), [&](size_t item) -> const PreferencePair& { return pairs_[batch[item]]; });
    std::vector<double> losses(cut.size()), correct(cut.size()), margins(cut.size());
    const auto count = static_cast<double>(batch.size());
    const double factor = LearningRateFactor(optimizer_, step, num_steps());
    const double norm = learner_.Update(cut.size(), factor, [&](const Llama& model, size_t i) {
      const auto p = static_cast<int64_t>(cut[i].size());
      std::vector<const PreferencePair*> pairs;
      for (const size_t item : cut[i]) pairs.push_back(&pairs_[batch[item]]);
      const Margins margin = Margin(model, Both(pairs), p);
      losses[i] = margin.losses_P.sum().item<double>() / count;
      correct[i] = (margin.margins_P > 0).sum().item<double>() / count;
      margins[i] = margin.margins_P.sum().item<double>() / count;
      return margin.losses_P.sum() / count;
    });
    double tokens = 0;
    std::vector<int64_t> lengths;
    int64_t targets = 0;
    for (const size_t index : batch) {
      tokens += Tokens(pairs_[index]);
      for (const Sample* sample : {&pairs_[index].chosen, &pairs_[index].rejected}) {
        lengths.push_back(static_cast<int64_t>(sample->ids.size()));
        targets += sample->num_targets();
      }
    }
    return Metrics{{"loss", Sum(losses)},
                   {"accuracy", Sum(correct)},
                   {"margin", Sum(margins)},
                   {"grad_norm", norm},
                   {"learning_rate", optimizer_.learning_rate * factor},
                   {"tokens", tokens},
                   {"model_flops", StepFlops(lengths, targets)}};
  }

  std::map<std::string, Tensor> Tensors() const override { return learner_.Tensors(); }
  nlohmann::json Values() const override { return nlohmann::json::object(); }
  absl::Status Restore(const nlohmann::json&) override { return absl::OkStatus(); }
  const Llama& model() const override { return learner_.model(); }

 protected:
  struct Margins {
    Tensor losses_P;   // with gradients
    Tensor margins_P;  // without: by how much the chosen one is preferred
  };
  virtual Margins Margin(const Llama& model, const LabeledSamples& samples, int64_t num_pairs) = 0;
  // Of a step on samples of these lengths.
  virtual double StepFlops(const std::vector<int64_t>& lengths, int64_t num_targets) const = 0;

  static double Sum(const std::vector<double>& parts) {
    return std::accumulate(parts.begin(), parts.end(), 0.0);
  }
  static double Tokens(const PreferencePair& pair) {
    return static_cast<double>(pair.chosen.ids.size() + pair.rejected.ids.size());
  }
  template <typename Pair>
  std::vector<std::vector<size_t>> Cut(size_t count, const Pair& pair) const {
    std::vector<int64_t> lengths;
    for (size_t i = 0; i < count; ++i) lengths.push_back(static_cast<int64_t>(Tokens(pair(i))));
    return CutMicroBatches(lengths, num_threads_, kMicroBatchTokens);
  }
  static LabeledSamples Both(const std::vector<const PreferencePair*>& pairs) {
    std::vector<const Sample*> samples;
    for (const PreferencePair* pair : pairs) samples.push_back(&pair->chosen);
    for (const PreferencePair* pair : pairs) samples.push_back(&pair->rejected);
    return LabeledSamples::Pack(samples);
  }

  const OptimizerSpec optimizer_;
  const uint64_t seed_;
  const int num_threads_;
  const std::vector<PreferencePair> pairs_;
  Learner learner_;
  DataOrder order_;
};

class RewardModelTask : public PreferenceTask {
 public:
  RewardModelTask(TaskInputs inputs, std::vector<PreferencePair> pairs, std::vector<PreferencePair> held_out,
                  const RewardModelSpec& spec)
      : PreferenceTask(std::move(inputs), std::move(pairs), spec.epochs, spec.batch_size),
        held_out_(std::move(held_out)) {}

  absl::StatusOr<Finished> Finish() override {
    RandomStream random(DeriveSeed(seed_, "reward normalisation"));
    std::vector<const PreferencePair*> reference;
    for (const size_t index : random.Sample(pairs_.size(), std::min(kNormalisationPairs, pairs_.size()))) {
      reference.push_back(&pairs_[index]);
    }
    double sum = 0, squares = 0;
    const std::vector<double> scores = Scores(reference);
    for (const double score : scores) sum += score;
    const double mean = sum / static_cast<double>(scores.size());
    for (const double score : scores) squares += (score - mean) * (score - mean);
    const double deviation = std::sqrt(squares / static_cast<double>(scores.size()));
    if (!(deviation > 0)) {
      return absl::FailedPreconditionError(
          "reward model: gives every sample of its training set the same score");
    }
    Finished finished;
    finished.reward = {{"mean", mean}, {"std", deviation}};
    finished.measured = {{"pairs", pairs_.size()}, {"held_out_pairs", held_out_.size()}};
    if (!held_out_.empty()) Measure(finished.measured);
    return finished;
  }

 private:
  Margins Margin(const Llama& model, const LabeledSamples& samples, int64_t p) override {
    const Tensor rewards = model.Rewards(model.Hidden(samples.packed), samples.packed);
    const Tensor chosen_P = rewards.narrow(0, 0, p), rejected_P = rewards.narrow(0, p, p);
    return {PairwiseRankingLosses(chosen_P, rejected_P), (chosen_P - rejected_P).detach()};
  }
  double StepFlops(const std::vector<int64_t>& lengths, int64_t) const override {
    return 3 * ForwardFlops(model().config(), lengths, /*head_rows=*/0);
  }

  // Chosen and rejected, alternating.
  std::vector<double> Scores(const std::vector<const PreferencePair*>& pairs) {
    const auto cut = Cut(pairs.size(), [&](size_t item) -> const PreferencePair& { return *pairs[item]; });
    std::vector<double> scores(2 * pairs.size());
    learner_.ForEach(cut.size(), [&](size_t i) {
      std::vector<const PreferencePair*> part;
      for (const size_t item : cut[i]) part.push_back(pairs[item]);
      const LabeledSamples samples = Both(part);
      const Tensor rewards =
          model().Rewards(model().Hidden(samples.packed), samples.packed).to(torch::kFloat64);
      for (size_t item = 0; item < part.size(); ++item) {
        scores[2 * cut[i][item]] = rewards[static_cast<int64_t>(item)].item<double>();
        scores[2 * cut[i][item] + 1] = rewards[static_cast<int64_t>(item + part.size())].item<double>();
      }
    });
    return scores;
  }

  // On the held-out pairs; what is equal counts half. Beside it the accuracy of taking the longer one, and
  // how scores go with length: a reward model is judged against those.
  void Measure(nlohmann::json& measured) {
    std::vector<const PreferencePair*> pairs;
    for (const PreferencePair& pair : held_out_) pairs.push_back(&pair);
    const std::vector<double> scores = Scores(pairs);
    const auto half = [](double chosen, double rejected) {
      return chosen > rejected ? 1.0 : chosen == rejected ? 0.5 : 0.0;
    };
    double right = 0, longer = 0;
    std::vector<double> lengths;
    for (size_t i = 0; i < pairs.size(); ++i) {
      lengths.push_back(static_cast<double>(pairs[i]->chosen_characters));
      lengths.push_back(static_cast<double>(pairs[i]->rejected_characters));
      right += half(scores[2 * i], scores[2 * i + 1]);
      longer += half(lengths[2 * i], lengths[2 * i + 1]);
    }
    const auto count = static_cast<double>(pairs.size());
    measured["held_out_accuracy"] = right / count;
    measured["held_out_accuracy_length_only"] = longer / count;
    measured["held_out_score_length_correlation"] = Correlation(scores, lengths);
  }

  const std::vector<PreferencePair> held_out_;
};

class DpoTask : public PreferenceTask {
 public:
  DpoTask(TaskInputs inputs, std::vector<PreferencePair> pairs, const DpoSpec& spec)
      : PreferenceTask(std::move(inputs), std::move(pairs), spec.epochs, spec.batch_size),
        beta_(spec.beta),
        reference_(model().Frozen()) {}

 private:
  Margins Margin(const Llama& model, const LabeledSamples& samples, int64_t p) override {
    const auto summed = [&](const Llama& llama) { return samples.SumBySample(samples.Logprobs(llama)); };
    Tensor reference;
    {
      const torch::NoGradGuard no_grad;
      reference = summed(reference_);
    }
    const Tensor policy = summed(model);
    const Tensor losses_P = DpoLosses(policy.narrow(0, 0, p), policy.narrow(0, p, p),
                                      reference.narrow(0, 0, p), reference.narrow(0, p, p), beta_);
    const Tensor rewards = beta_ * (policy.detach() - reference);
    return {losses_P, rewards.narrow(0, 0, p) - rewards.narrow(0, p, p)};
  }
  double StepFlops(const std::vector<int64_t>& lengths, int64_t num_targets) const override {
    return (3 + 1) *
           ForwardFlops(model().config(), lengths, num_targets);  // the policy's and the reference's
  }

  const double beta_;
  const Llama reference_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeRewardModelTask(TaskInputs inputs) {
  const auto spec = std::get<RewardModelSpec>(inputs.spec.kind);
  ALMOST_ASSIGN_OR_RETURN(const int max_tokens,
                          MaxTokens("reward_model.max_tokens", spec.max_tokens, inputs.model.config()));
  ALMOST_ASSIGN_OR_RETURN(std::vector<PreferencePair> pairs,
                          ReadComparisons(spec.dataset, {inputs.format, *inputs.tokenizer, max_tokens}));
  const auto kept = std::stable_partition(pairs.begin(), pairs.end(), [&](const PreferencePair& pair) {
    return !IsHeldOut(pair.prompt, spec.held_out_fraction);
  });
  std::vector<PreferencePair> held_out(std::make_move_iterator(kept), std::make_move_iterator(pairs.end()));
  pairs.erase(kept, pairs.end());
  if (pairs.empty()) {
    return absl::InvalidArgumentError("reward_model.held_out_fraction: holds out every pair of the dataset");
  }
  return std::make_unique<RewardModelTask>(std::move(inputs), std::move(pairs), std::move(held_out), spec);
}

absl::StatusOr<std::unique_ptr<Task>> MakeDpoTask(TaskInputs inputs) {
  const auto spec = std::get<DpoSpec>(inputs.spec.kind);
  ALMOST_ASSIGN_OR_RETURN(const int max_tokens,
                          MaxTokens("dpo.max_tokens", spec.max_tokens, inputs.model.config()));
  ALMOST_ASSIGN_OR_RETURN(std::vector<PreferencePair> pairs,
                          ReadComparisons(spec.dataset, {inputs.format, *inputs.tokenizer, max_tokens}));
  return std::make_unique<DpoTask>(std::move(inputs), std::move(pairs), spec);
}

}  // namespace almost::trainer
