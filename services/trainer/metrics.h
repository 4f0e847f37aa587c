#pragma once

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/metrics/metrics_server.h"
#include "services/trainer/core/job_queue.h"
#include "services/trainer/torch/train.h"

namespace almost::trainer {

// almost_trainer_*: the running job's latest values; and how many jobs wait. Thread-safe.
class TrainerMetrics {
 public:
  explicit TrainerMetrics(prometheus::Registry& registry)
      : registry_(registry),
        step_(prometheus::BuildGauge()
                  .Name("almost_trainer_step")
                  .Help("Optimizer steps of the running job.")
                  .Register(registry)
                  .Add({})),
        step_seconds_(prometheus::BuildHistogram()
                          .Name("almost_trainer_step_seconds")
                          .Help("Time of a step's phases.")
                          .Register(registry)),
        checkpoint_seconds_(prometheus::BuildHistogram()
                                .Name("almost_trainer_checkpoint_seconds")
                                .Help("Time to write a checkpoint, or to go on from one.")
                                .Register(registry)),
        checkpoint_failures_(prometheus::BuildCounter()
                                 .Name("almost_trainer_checkpoint_failures_total")
                                 .Help("Checkpoints that could not be written or read.")
                                 .Register(registry)
                                 .Add({})),
        last_checkpoint_(prometheus::BuildGauge()
                             .Name("almost_trainer_last_checkpoint_timestamp_seconds")
                             .Help("When the latest checkpoint was written, since 1970.")
                             .Register(registry)),
        nonfinite_(prometheus::BuildCounter()
                       .Name("almost_trainer_nonfinite_total")
                       .Help("Jobs ended by a loss or a gradient that was not a finite number.")
                       .Register(registry)
                       .Add({})),
        tokens_(prometheus::BuildCounter()
                    .Name("almost_trainer_tokens_total")
                    .Help("Tokens trained on.")
                    .Register(registry)
                    .Add({})),
        queue_depth_(QueueDepth(registry)) {}

  // Called before each scrape.
  void Observe(const JobQueue& jobs) {
    int queued = 0;
    for (const JobRecord& job : jobs.List()) queued += job.state == JobState::kQueued ? 1 : 0;
    queue_depth_.Set(queued);
  }
  void Checkpoint(const CheckpointWork& work) {
    const bool write = work.operation == CheckpointWork::Operation::kWrite;
    if (!work.status.ok()) {
      checkpoint_failures_.Increment();
      return;
    }
    checkpoint_seconds_.Add({{"op", write ? "write" : "restore"}}, LatencyBuckets())
        .Observe(work.seconds.count());
    if (write) last_checkpoint_.Add({}).SetToCurrentTime();
  }
  void NotFinite() { nonfinite_.Increment(); }
  void Step(int64_t step, const std::map<std::string, double>& metrics) {
    step_.Set(static_cast<double>(step));
    const bool has_phases = metrics.contains("rollout_seconds");
    for (const char* phase : {"rollout", "evaluate", "update"}) {
      const auto seconds = metrics.find(has_phases ? absl::StrCat(phase, "_seconds") : "step_seconds");
      if (seconds == metrics.end() || (!has_phases && phase != absl::string_view("update"))) continue;
      step_seconds_.Add({{"phase", phase}}, Buckets()).Observe(seconds->second);
    }
    for (const auto& [name, value] : metrics) {
      if (name == "tokens") {
        tokens_.Increment(value);
        continue;
      }
      for (const auto& [known, help] : kGauges) {
        if (name == known.substr(kPrefix.size())) {
          prometheus::BuildGauge().Name(std::string(known)).Help(help).Register(registry_).Add({}).Set(value);
        }
      }
    }
  }

 private:
  static prometheus::Histogram::BucketBoundaries Buckets() {
    return {0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000};
  }

  // What a job's metrics are called here. A job has those that its kind has.
  static constexpr absl::string_view kPrefix = "almost_trainer_";
  static constexpr std::pair<absl::string_view, const char*> kGauges[] = {
      {"almost_trainer_loss", "Loss of the latest step."},
      {"almost_trainer_learning_rate", "Learning rate of the latest step."},
      {"almost_trainer_grad_norm", "Global gradient norm before clipping."},
      {"almost_trainer_tokens_per_second", "Tokens of the latest step by its time."},
      {"almost_trainer_peak_memory_bytes", "The most main memory that the process has held so far."},
      {"almost_trainer_accuracy", "Share of the latest step's pairs whose chosen answer was preferred."},
      {"almost_trainer_held_out_loss", "Loss on the held-out pairs at the latest evaluation."},
      {"almost_trainer_held_out_accuracy", "Share of the held-out pairs whose chosen answer scored higher."},
      {"almost_trainer_held_out_accuracy_length_only", "The same for always taking the longer answer."},
      {"almost_trainer_held_out_score_length_correlation", "Of score and length over the held-out pairs."},
      {"almost_trainer_kl", "KL of the policy from its reference, nats per rollout."},
      {"almost_trainer_kl_coefficient", "Strength of the KL penalty."},
      {"almost_trainer_entropy", "Entropy of the policy, nats per token."},
      {"almost_trainer_reward_mean", "Mean reward of the latest rollouts, before their KL."},
      {"almost_trainer_reward_std", "Standard deviation of the latest rollouts' rewards."},
      {"almost_trainer_guard_score_mean", "Mean score of the latest rollouts by the held-out reward model."},
      {"almost_trainer_guard_score_correlation", "Of both reward models' scores over the latest rollouts."},
      {"almost_trainer_score_length_correlation", "Of score and length over the latest rollouts."},
      {"almost_trainer_clip_fraction", "Share of tokens whose ratio was clipped."},
      {"almost_trainer_value_explained_variance",
       "Share of the returns' variance that the value function explains."},
      {"almost_trainer_stop_fraction", "Share of the latest rollouts that ended by themselves."},
      {"almost_trainer_completion_tokens_mean", "Mean length of the latest rollouts."},
      {"almost_trainer_model_flop_utilisation_ratio",
       "Share of what large matrix products reach on this machine that the model's own arithmetic made up."},
      {"almost_trainer_logprob_gap",
       "Largest difference between the engine's and the trainer's log-probabilities."},
  };

  prometheus::Registry& registry_;
  prometheus::Gauge& step_;
  prometheus::Family<prometheus::Histogram>&step_seconds_, &checkpoint_seconds_;
  prometheus::Counter& checkpoint_failures_;
  prometheus::Family<prometheus::Gauge>& last_checkpoint_;
  prometheus::Counter& nonfinite_;
  prometheus::Counter& tokens_;
  prometheus::Gauge& queue_depth_;
};

}  // namespace almost::trainer
