#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/model/transformer.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "nlohmann/json.hpp"
#include "services/trainer/core/job_spec.h"
#include "services/trainer/core/reward_function.h"
#include "services/trainer/torch/group.h"

namespace almost::trainer {

// Values of one step by name: loss, learning_rate, grad_norm, ….
using Metrics = std::map<std::string, double>;

// What is said of a finished model in its manifest.
struct Finished {
  nlohmann::json measured = nlohmann::json::object();
  nlohmann::json reward;  // {"mean", "std"} of a reward model's raw scores, else null
};

// What a kind of job is to the loop that runs it. A step is a function of the state and its number alone, so
// a job that stops after any step and goes on from the saved state ends with the same bits. Where several
// ranks train, each has the task and calls the same methods, which give all the same results but for what
// `Tensors` says. Used by one thread; LibTorch's exceptions and RankLost may leave any method.
class Task {
 public:
  virtual ~Task() = default;

  // May fall to the steps done when a step finds that the job is to end early.
  virtual int64_t num_steps() const = 0;
  // kCancelled: the stop token it was made with asked for it, and the state is that of before the step.
  virtual absl::StatusOr<Metrics> Step(int64_t step) = 0;

  // The whole state between two steps: tensors that live here and are overwritten when it is restored, those
  // of another rank on the meta device, and the rest. kDataLoss: values that are not what it wrote.
  virtual std::map<std::string, torch::Tensor> Tensors() const = 0;
  virtual nlohmann::json Values() const = 0;
  virtual absl::Status Restore(const nlohmann::json& values) = 0;

  // Once, after the last step. kCancelled as Step's.
  virtual absl::StatusOr<Finished> Finish() { return Finished{}; }
  virtual const Transformer& model() const = 0;
};

// What every kind of task starts from.
struct TaskInputs {
  JobSpec spec;
  std::filesystem::path tokenizer_folder;  // of the base model, or of the fresh one's config.json
  std::string base_digest;                 // empty: fresh weights
  std::shared_ptr<const Tokenizer> tokenizer;
  PromptFormat format;
  Transformer model;
  Group* group;  // outlives the task
  std::stop_token stop;
};

// By the spec's kind. Errors name the field, or the file and line.
absl::StatusOr<std::unique_ptr<Task>> MakePretrainTask(TaskInputs inputs);
absl::StatusOr<std::unique_ptr<Task>> MakeSftTask(TaskInputs inputs);
absl::StatusOr<std::unique_ptr<Task>> MakeRewardModelTask(TaskInputs inputs);
absl::StatusOr<std::unique_ptr<Task>> MakeDpoTask(TaskInputs inputs);
// Of ppo and grpo. `guard` scores what is reported and never learned from; it may be null. Both are asked on
// rank 0 alone. `scorers` is what is known of them there.
absl::StatusOr<std::unique_ptr<Task>> MakePpoTask(TaskInputs inputs, RewardFunction reward,
                                                  RewardFunction guard, const std::vector<Reader>& scorers);

// `value`, or the model's context where it is 0. kInvalidArgument names `field` when it is over the context.
absl::StatusOr<int> MaxTokens(absl::string_view field, int value, const ModelConfig& config);

}  // namespace almost::trainer
