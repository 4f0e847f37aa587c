#pragma once

#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "common/metrics/metrics_server.h"
#include "services/trainer/core/job_queue.h"

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
  void Step(int64_t step, const std::map<std::string, double>& metrics) {
    step_.Set(static_cast<double>(step));
    for (const auto& [name, value] : metrics) {
      if (name == "tokens") {
        tokens_.Increment(value);
        continue;
      }
      for (const auto& [known, help] : kGauges) {
        if (name == known) {
          prometheus::BuildGauge()
              .Name(absl::StrCat("almost_trainer_", name))
              .Help(help)
              .Register(registry_)
              .Add({})
              .Set(value);
        }
      }
    }
  }

 private:
  static constexpr std::pair<const char*, const char*> kGauges[] = {
      {"loss", "Loss of the latest step."},
      {"learning_rate", "Learning rate of the latest step."},
      {"grad_norm", "Global gradient norm before clipping."},
      {"kl", "KL of the policy from its reference, nats per rollout."},
      {"entropy", "Entropy of the policy, nats per token."},
      {"reward_mean", "Mean score of the latest rollouts."},
      {"reward_std", "Standard deviation of the latest rollouts' scores."},
      {"clip_fraction", "Share of tokens whose ratio was clipped."},
      {"value_explained_variance", "Share of the returns' variance that the value function explains."},
      {"stop_fraction", "Share of the latest rollouts that ended by themselves."},
      {"completion_tokens_mean", "Mean length of the latest rollouts."},
      {"logprob_gap", "Largest difference between the engine's and the trainer's log-probabilities."},
  };

  prometheus::Registry& registry_;
  prometheus::Gauge& step_;
  prometheus::Counter& tokens_;
  prometheus::Gauge& queue_depth_;
};

}  // namespace almost::trainer
