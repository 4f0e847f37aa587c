#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
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

// What learns from comparisons: reward model and DPO. Shapes: P pairs of a micro-batch.
namespace almost::trainer {
namespace {

using torch::Tensor;

// Training pairs whose scores give a reward model's mean and deviation.
constexpr size_t kNormalisationPairs = 512;
// Pairs in memory while held-out ones are scored.
constexpr size_t kScoredAtOnce = 1024;

class PreferenceTask : public Task {
 public:
  // Of the pairs, those at the given places.
  PreferenceTask(TaskInputs inputs, Comparisons comparisons, std::vector<size_t> trained, int epochs,
                 int batch_size, bool whole_prompts)
      : optimizer_(inputs.spec.optimizer),
        memory_(inputs.spec.memory),
        seed_(inputs.spec.seed),
        pairs_(std::move(comparisons.pairs)),
        prompts_(std::move(comparisons.prompts)),
        trained_(std::move(trained)),
        learner_(std::move(inputs.model), optimizer_, inputs.spec.num_threads, *inputs.group),
        whole_prompts_(whole_prompts),
        groups_(Groups(trained_, prompts_, whole_prompts)),
        batches_(BatchesOfGroups(seed_, Sizes(groups_), epochs, batch_size)) {}

  int64_t num_steps() const override { return static_cast<int64_t>(batches_.size()); }

  absl::StatusOr<Metrics> Step(int64_t step) override {
    std::vector<std::vector<PreferencePair>> groups;
    // Groups with one prompt are one item, as far as a micro-batch takes it, so that the prompt is read once.
    std::vector<Pairs> items;
    std::map<uint64_t, size_t> item_of_prompt;
    double count = 0;
    for (const size_t group : batches_[step]) {
      ALMOST_ASSIGN_OR_RETURN(groups.emplace_back(), pairs_.Read(groups_[group]));
      const Pairs own = PointersTo(groups.back());
      const auto [item, is_new] = item_of_prompt.try_emplace(prompts_[groups_[group][0]], items.size());
      Pairs joined = is_new ? Pairs() : items[item->second];
      joined.insert(joined.end(), own.begin(), own.end());
      if (is_new || TokensOf(joined) > memory_.micro_batch_tokens) {
        item->second = items.size();
        items.push_back(own);
      } else {
        items[item->second] = joined;
      }
      count += static_cast<double>(own.size());
    }
    std::vector<int64_t> item_tokens;
    for (const Pairs& pairs : items) item_tokens.push_back(TokensOf(pairs));
    const auto cut = CutMicroBatches(item_tokens, learner_.num_workers(), memory_.micro_batch_tokens);
    std::vector<PackedPairs> parts;
    for (const std::vector<size_t>& chosen : cut) {
      Pairs pairs;
      for (const size_t item : chosen) pairs.insert(pairs.end(), items[item].begin(), items[item].end());
      parts.push_back(Pack(pairs));
    }
    std::vector<double> losses(cut.size()), correct(cut.size()), margins(cut.size());
    const double factor = LearningRateFactor(optimizer_, step, static_cast<int64_t>(batches_.size()));
    const double norm = learner_.Update(cut.size(), factor, [&](const Transformer& model, size_t i) {
      const Margins margin = Margin(model, parts[i]);
      losses[i] = margin.losses_P.sum().item<double>() / count;
      correct[i] = (margin.margins_P > 0).sum().item<double>() / count;
      margins[i] = margin.margins_P.sum().item<double>() / count;
      return margin.losses_P.sum() / count;
    });
    for (std::vector<double>* values : {&losses, &correct, &margins}) learner_.Merge(*values);
    const ModelConfig& config = model().config();
    std::vector<int64_t> lengths, shared;
    int64_t rows = 0;
    for (const PackedPairs& part : parts) {
      const PackedSamples& packed = part.samples.packed;
      for (int64_t s = 0; s < packed.num_samples(); ++s) {
        lengths.push_back(packed.prefix_tokens[s] + packed.offsets[s + 1] - packed.offsets[s]);
        shared.push_back(packed.prefix_tokens[s]);
      }
      rows += config.reward_head ? packed.num_samples() : part.samples.rows_M.size(0);
    }
    // Of the samples as they are, however little of them had to be computed.
    const auto tokens = static_cast<double>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}));
    const double forward = ForwardFlops(config, lengths, rows) - ForwardFlops(config, shared, /*rows=*/0);
    return Metrics{{"loss", Sum(losses)},
                   {"accuracy", Sum(correct)},
                   {"margin", Sum(margins)},
                   {"grad_norm", norm},
                   {"learning_rate", optimizer_.learning_rate * factor},
                   {"tokens", tokens},
                   {"model_flops", StepFlops(forward)}};
  }

  std::map<std::string, Tensor> Tensors() const override { return learner_.Tensors(); }
  nlohmann::json Values() const override { return nlohmann::json::object(); }
  absl::Status Restore(const nlohmann::json&) override { return absl::OkStatus(); }
  const Transformer& model() const override { return learner_.model(); }

 protected:
  struct Margins {
    Tensor losses_P;   // with gradients
    Tensor margins_P;  // without: by how much the chosen one is preferred
  };
  // Answers as SamplesOf has them, and where each pair's are.
  struct PackedPairs {
    LabeledSamples samples;
    Tensor chosen_P, rejected_P;  // int64, of samples
    Tensor margin_P;              // float64
    Tensor Chosen(const Tensor& values_S) const { return values_S.index_select(0, chosen_P); }
    Tensor Rejected(const Tensor& values_S) const { return values_S.index_select(0, rejected_P); }
  };
  virtual Margins Margin(const Transformer& model, const PackedPairs& pairs) = 0;
  // Of a step, by what a forward pass does.
  virtual double StepFlops(double forward_flops) const { return TrainingFlops(memory_, forward_flops); }

  static double Sum(const std::vector<double>& parts) {
    return std::accumulate(parts.begin(), parts.end(), 0.0);
  }
  using Pairs = std::vector<const PreferencePair*>;

  static Pairs PointersTo(const std::vector<PreferencePair>& pairs) {
    Pairs pointers;
    for (const PreferencePair& pair : pairs) pointers.push_back(&pair);
    return pointers;
  }

  // Places of pairs that stay together: those of a prompt, or each by itself.
  static std::vector<std::vector<size_t>> Groups(const std::vector<size_t>& trained,
                                                 const std::vector<uint64_t>& prompts, bool whole_prompts) {
    std::vector<std::vector<size_t>> groups;
    std::map<uint64_t, size_t> by_prompt;
    for (const size_t pair : trained) {
      const auto [found, is_new] = by_prompt.try_emplace(prompts[pair], groups.size());
      if (is_new || !whole_prompts) {
        groups.push_back({pair});
      } else {
        groups[found->second].push_back(pair);
      }
    }
    return groups;
  }
  static std::vector<size_t> Sizes(const std::vector<std::vector<size_t>>& groups) {
    std::vector<size_t> sizes;
    for (const std::vector<size_t>& group : groups) sizes.push_back(group.size());
    return sizes;
  }

  // The chosen first; where prompts are whole, distinct ones: their pairs share answers.
  std::vector<const Sample*> SamplesOf(const Pairs& pairs, std::vector<int64_t>* places = nullptr) const {
    std::vector<const Sample*> samples;
    std::map<std::span<const int32_t>, int64_t, decltype([](const auto& a, const auto& b) {
               return std::ranges::lexicographical_compare(a, b);
             })>
        known;
    for (auto side : {&PreferencePair::chosen, &PreferencePair::rejected}) {
      for (const PreferencePair* pair : pairs) {
        const Sample& sample = pair->*side;
        const auto [found, is_new] = known.try_emplace(sample.ids, static_cast<int64_t>(samples.size()));
        const bool again = whole_prompts_ && !is_new;
        if (places != nullptr)
          places->push_back(again ? found->second : static_cast<int64_t>(samples.size()));
        if (!again) samples.push_back(&sample);
      }
    }
    return samples;
  }

  // Of pairs with one prompt, which is packed once.
  int64_t TokensOf(const Pairs& pairs) const {
    const std::vector<const Sample*> samples = SamplesOf(pairs);
    int64_t tokens = samples[0]->num_prompt_tokens();
    for (const Sample* sample : samples) {
      tokens += static_cast<int64_t>(sample->ids.size()) - sample->num_prompt_tokens();
    }
    return tokens;
  }

  PackedPairs Pack(const Pairs& pairs) const {
    std::vector<int64_t> places;
    std::vector<double> margins;
    for (const PreferencePair* pair : pairs) margins.push_back(pair->margin);
    PackedPairs packed{.samples = LabeledSamples::Pack(SamplesOf(pairs, &places), model().device())};
    const Tensor all = torch::tensor(places, torch::kInt64).to(model().device());
    const auto p = static_cast<int64_t>(pairs.size());
    packed.chosen_P = all.narrow(0, 0, p);
    packed.rejected_P = all.narrow(0, p, p);
    packed.margin_P = torch::tensor(margins, torch::kFloat64).to(model().device());
    return packed;
  }

  const OptimizerSpec optimizer_;
  const MemorySpec memory_;
  const uint64_t seed_;
  const Dataset<PreferencePair> pairs_;
  const std::vector<uint64_t> prompts_;  // by pair
  const std::vector<size_t> trained_;    // places of pairs; the rest are held out
  Learner learner_;
  const bool whole_prompts_;
  const std::vector<std::vector<size_t>> groups_;   // places of pairs
  const std::vector<std::vector<size_t>> batches_;  // groups by step
};

class RewardModelTask : public PreferenceTask {
 public:
  RewardModelTask(TaskInputs inputs, Comparisons comparisons, std::vector<size_t> trained,
                  std::vector<size_t> held_out, const RewardModelSpec& spec)
      : PreferenceTask(std::move(inputs), std::move(comparisons), std::move(trained), spec.epochs,
                       spec.batch_size, spec.whole_prompts),
        spec_(spec),
        held_out_(std::move(held_out)) {
    if (spec_.patience > 0) {
      for (const auto& [name, parameter] : model().parameters()) {
        if (parameter.requires_grad()) best_[name] = parameter.detach().clone();
      }
    }
  }

  int64_t num_steps() const override { return ended_after_ > 0 ? ended_after_ : PreferenceTask::num_steps(); }

  absl::StatusOr<Metrics> Step(int64_t step) override {
    ALMOST_ASSIGN_OR_RETURN(Metrics metrics, PreferenceTask::Step(step));
    const int64_t done = step + 1;
    if (spec_.evaluation_steps > 0 && (done % spec_.evaluation_steps == 0 || done == num_steps())) {
      ALMOST_ASSIGN_OR_RETURN(const Metrics measured, Measure());
      metrics.insert(measured.begin(), measured.end());
      if (spec_.patience > 0) KeepBest(done, measured.at("held_out_loss"));
    }
    return metrics;
  }

  std::map<std::string, Tensor> Tensors() const override {
    std::map<std::string, Tensor> tensors = PreferenceTask::Tensors();
    for (const auto& [name, tensor] : best_) tensors[absl::StrCat("best.", name)] = tensor;
    return tensors;
  }
  nlohmann::json Values() const override {
    if (spec_.patience == 0) return nlohmann::json::object();
    nlohmann::json values = {
        {"best_step", best_step_}, {"no_better", no_better_}, {"ended_after", ended_after_}};
    if (best_step_ > 0) values["best_loss"] = best_loss_;
    return values;
  }
  absl::Status Restore(const nlohmann::json& values) override {
    if (spec_.patience == 0) return absl::OkStatus();
    best_step_ = values.at("best_step");
    no_better_ = values.at("no_better");
    ended_after_ = values.at("ended_after");
    if (best_step_ > 0) best_loss_ = values.at("best_loss");
    return absl::OkStatus();
  }

  absl::StatusOr<Finished> Finish() override {
    if (spec_.patience > 0) {
      const torch::NoGradGuard no_grad;
      for (const auto& [name, best] : best_) model().parameters().at(name).detach().copy_(best);
    }
    RandomStream random(DeriveSeed(seed_, "reward normalisation"));
    std::vector<size_t> reference;
    for (const size_t index :
         random.Sample(trained_.size(), std::min(kNormalisationPairs, trained_.size()))) {
      reference.push_back(trained_[index]);
    }
    double sum = 0, squares = 0;
    ALMOST_ASSIGN_OR_RETURN(const std::vector<double> scores, Scores(reference));
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
    finished.measured = {{"pairs", trained_.size()}, {"held_out_pairs", held_out_.size()}};
    if (spec_.patience > 0) finished.measured["best_step"] = best_step_;
    if (!held_out_.empty()) {
      ALMOST_ASSIGN_OR_RETURN(const Metrics measured, Measure());
      for (const auto& [name, value] : measured) finished.measured[name] = value;
    }
    return finished;
  }

 private:
  Margins Margin(const Transformer& model, const PackedPairs& pairs) override {
    const Tensor rewards_S = model.Rewards(pairs.samples.packed);
    const Tensor chosen_P = pairs.Chosen(rewards_S), rejected_P = pairs.Rejected(rewards_S);
    const Tensor margin_P =
        spec_.use_margins ? pairs.margin_P.to(rewards_S.dtype()) : torch::zeros_like(chosen_P);
    Tensor losses_P = PairwiseRankingLosses(chosen_P, rejected_P, margin_P);
    if (spec_.center_coefficient > 0) {
      losses_P = losses_P + spec_.center_coefficient * CenteringLosses(chosen_P, rejected_P);
    }
    return {losses_P, (chosen_P - rejected_P).detach()};
  }

  void KeepBest(int64_t done, double loss) {
    if (loss < best_loss_) {
      best_loss_ = loss;
      best_step_ = done;
      no_better_ = 0;
      const torch::NoGradGuard no_grad;
      for (auto& [name, best] : best_) best.copy_(model().parameters().at(name));
    } else if (++no_better_ >= spec_.patience) {
      ended_after_ = done;
    }
  }

  // Of the pairs at those places, chosen and rejected alternating; `lengths`, in characters, likewise.
  absl::StatusOr<std::vector<double>> Scores(const std::vector<size_t>& places,
                                             std::vector<double>* lengths = nullptr) {
    std::vector<double> scores;
    for (size_t begin = 0; begin < places.size(); begin += kScoredAtOnce) {
      const size_t end = std::min(begin + kScoredAtOnce, places.size());
      ALMOST_ASSIGN_OR_RETURN(const std::vector<PreferencePair> pairs,
                              pairs_.Read(std::vector(places.begin() + static_cast<std::ptrdiff_t>(begin),
                                                      places.begin() + static_cast<std::ptrdiff_t>(end))));
      const std::vector<double> found = ScoresOf(pairs);
      scores.insert(scores.end(), found.begin(), found.end());
      for (const PreferencePair& pair : pairs) {
        if (lengths == nullptr) break;
        lengths->push_back(static_cast<double>(pair.chosen_characters));
        lengths->push_back(static_cast<double>(pair.rejected_characters));
      }
    }
    return scores;
  }

  std::vector<double> ScoresOf(const std::vector<PreferencePair>& pairs) {
    std::vector<int64_t> lengths;
    for (const PreferencePair& pair : pairs) lengths.push_back(TokensOf({&pair}));
    const auto cut = CutMicroBatches(lengths, learner_.num_workers(), memory_.micro_batch_tokens);
    std::vector<double> scores(2 * pairs.size());
    learner_.ForEach(cut.size(), [&](size_t i) {
      Pairs part;
      for (const size_t item : cut[i]) part.push_back(&pairs[item]);
      const PackedPairs packed = Pack(part);
      const Tensor rewards_S = model().Rewards(packed.samples.packed).to(torch::kFloat64);
      const Tensor chosen_P = packed.Chosen(rewards_S).to(torch::kCPU),
                   rejected_P = packed.Rejected(rewards_S).to(torch::kCPU);
      for (size_t item = 0; item < part.size(); ++item) {
        scores[2 * cut[i][item]] = chosen_P[static_cast<int64_t>(item)].item<double>();
        scores[2 * cut[i][item] + 1] = rejected_P[static_cast<int64_t>(item)].item<double>();
      }
    });
    learner_.Merge(scores);
    return scores;
  }

  // On the held-out pairs; what is equal counts half. Beside it the accuracy of taking the longer one, and
  // how scores go with length: a reward model is judged against those.
  absl::StatusOr<Metrics> Measure() {
    std::vector<double> lengths;
    ALMOST_ASSIGN_OR_RETURN(const std::vector<double> scores, Scores(held_out_, &lengths));
    const auto half = [](double chosen, double rejected) {
      return chosen > rejected ? 1.0 : chosen == rejected ? 0.5 : 0.0;
    };
    double loss = 0, right = 0, longer = 0;
    for (size_t i = 0; i < held_out_.size(); ++i) {
      const double margin = scores[2 * i] - scores[2 * i + 1];
      loss += std::max(-margin, 0.0) + std::log1p(std::exp(-std::abs(margin)));
      right += half(scores[2 * i], scores[2 * i + 1]);
      longer += half(lengths[2 * i], lengths[2 * i + 1]);
    }
    const auto count = static_cast<double>(held_out_.size());
    return Metrics{{"held_out_loss", loss / count},
                   {"held_out_accuracy", right / count},
                   {"held_out_accuracy_length_only", longer / count},
                   {"held_out_score_length_correlation", Correlation(scores, lengths)}};
  }

  const RewardModelSpec spec_;
  const std::vector<size_t> held_out_;  // places of pairs
  // With patience: the parameters of the evaluation with the smallest loss.
  std::map<std::string, Tensor> best_;
  double best_loss_ = std::numeric_limits<double>::infinity();
  int64_t best_step_ = 0;    // steps done then; 0: none yet
  int64_t no_better_ = 0;    // evaluations since
  int64_t ended_after_ = 0;  // steps, where patience ran out
};

class DpoTask : public PreferenceTask {
 public:
  DpoTask(TaskInputs inputs, Comparisons comparisons, std::vector<size_t> trained, const DpoSpec& spec)
      : PreferenceTask(std::move(inputs), std::move(comparisons), std::move(trained), spec.epochs,
                       spec.batch_size, /*whole_prompts=*/false),
        beta_(spec.beta),
        reference_(model().Frozen()) {}

 private:
  Margins Margin(const Transformer& model, const PackedPairs& pairs) override {
    const auto summed_S = [&](const Transformer& llama) {
      return pairs.samples.SumBySample(pairs.samples.Logprobs(llama));
    };
    Tensor reference_S;
    {
      const torch::NoGradGuard no_grad;
      reference_S = summed_S(reference_);
    }
    const Tensor policy_S = summed_S(model);
    const Tensor losses_P = DpoLosses(pairs.Chosen(policy_S), pairs.Rejected(policy_S),
                                      pairs.Chosen(reference_S), pairs.Rejected(reference_S), beta_);
    const Tensor rewards_S = beta_ * (policy_S.detach() - reference_S);
    return {losses_P, pairs.Chosen(rewards_S) - pairs.Rejected(rewards_S)};
  }
  double StepFlops(double forward_flops) const override {
    return TrainingFlops(memory_, forward_flops) + forward_flops;  // the policy's and the reference's
  }

  const double beta_;
  const Transformer reference_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeRewardModelTask(TaskInputs inputs) {
  const auto spec = std::get<RewardModelSpec>(inputs.spec.kind);
  ALMOST_ASSIGN_OR_RETURN(const int max_tokens,
                          MaxTokens("reward_model.max_tokens", spec.max_tokens, inputs.model.config()));
  ALMOST_ASSIGN_OR_RETURN(Comparisons comparisons,
                          ReadComparisons(spec.dataset, {inputs.format, inputs.tokenizer, max_tokens}));
  std::vector<size_t> trained, held_out;
  for (size_t i = 0; i < comparisons.pairs.size(); ++i) {
    (IsHeldOut(comparisons.prompts[i], spec.held_out_fraction) ? held_out : trained).push_back(i);
  }
  if (trained.empty()) {
    return absl::InvalidArgumentError("reward_model.held_out_fraction: holds out every pair of the dataset");
  }
  if (held_out.empty() && spec.evaluation_steps > 0) {
    return absl::InvalidArgumentError(
        "reward_model.held_out_fraction: holds out no pair, and reward_model.evaluation_steps asks for some");
  }
  return std::make_unique<RewardModelTask>(std::move(inputs), std::move(comparisons), std::move(trained),
                                           std::move(held_out), spec);
}

absl::StatusOr<std::unique_ptr<Task>> MakeDpoTask(TaskInputs inputs) {
  const auto spec = std::get<DpoSpec>(inputs.spec.kind);
  ALMOST_ASSIGN_OR_RETURN(const int max_tokens,
                          MaxTokens("dpo.max_tokens", spec.max_tokens, inputs.model.config()));
  ALMOST_ASSIGN_OR_RETURN(Comparisons comparisons,
                          ReadComparisons(spec.dataset, {inputs.format, inputs.tokenizer, max_tokens}));
  std::vector<size_t> trained(comparisons.pairs.size());
  std::iota(trained.begin(), trained.end(), size_t{0});
  return std::make_unique<DpoTask>(std::move(inputs), std::move(comparisons), std::move(trained), spec);
}

}  // namespace almost::trainer
