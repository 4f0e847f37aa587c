#include "common/base/status_macros.h"
#include "services/trainer/core/data_order.h"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/micro_batches.h"
#include "services/trainer/core/model_flops.h"
#include "services/trainer/core/schedule.h"
#include "services/trainer/torch/labeled_samples.h"
#include "services/trainer/torch/learner.h"
#include "services/trainer/torch/task.h"

namespace almost::trainer {
namespace {

using torch::Tensor;

// Supervised fine-tuning: cross-entropy on the assistant's tokens, the mean over those of the whole batch.
class SftTask : public Task {
 public:
  SftTask(TaskInputs inputs, Dialogues dialogues)
      : optimizer_(inputs.spec.optimizer),
        memory_(inputs.spec.memory),
        dialogues_(std::move(dialogues)),
        learner_(std::move(inputs.model), optimizer_, inputs.spec.num_threads, *inputs.group),
        order_(inputs.spec.seed, static_cast<int64_t>(dialogues_.samples.size()),
               std::get<SftSpec>(inputs.spec.kind).epochs, std::get<SftSpec>(inputs.spec.kind).batch_size) {}

  int64_t num_steps() const override { return order_.num_steps(); }

  absl::StatusOr<Metrics> Step(int64_t step) override {
    ALMOST_ASSIGN_OR_RETURN(const std::vector<Sample> batch, dialogues_.samples.Read(order_.Batch(step)));
    std::vector<int64_t> lengths;
    int64_t tokens = 0, targets = 0;
    for (const Sample& sample : batch) {
      lengths.push_back(static_cast<int64_t>(sample.ids.size()));
      tokens += lengths.back();
      targets += sample.num_targets();
    }
    const auto cut = CutMicroBatches(lengths, learner_.num_workers(), memory_.micro_batch_tokens);
    std::vector<double> losses(cut.size());
    const double factor = LearningRateFactor(optimizer_, step, num_steps());
    const double norm = learner_.Update(cut.size(), factor, [&](const Transformer& model, size_t i) {
      std::vector<const Sample*> samples;
      for (const size_t item : cut[i]) samples.push_back(&batch[item]);
      const Tensor loss =
          -LabeledSamples::Pack(samples, model.device()).Logprobs(model).sum() / static_cast<double>(targets);
      losses[i] = loss.item<double>();
      return loss;
    });
    learner_.Merge(losses);
    double loss = 0;
    for (const double part : losses) loss += part;
    return Metrics{{"loss", loss},
                   {"grad_norm", norm},
                   {"learning_rate", optimizer_.learning_rate * factor},
                   {"tokens", static_cast<double>(tokens)},
                   {"model_flops", TrainingFlops(memory_, ForwardFlops(model().config(), lengths, targets))}};
  }

  std::map<std::string, Tensor> Tensors() const override { return learner_.Tensors(); }
  nlohmann::json Values() const override { return nlohmann::json::object(); }
  absl::Status Restore(const nlohmann::json&) override { return absl::OkStatus(); }

  absl::StatusOr<Finished> Finish() override {
    return Finished{.measured = {{"samples", dialogues_.samples.size()},
                                 {"cut_to_max_tokens", dialogues_.num_cut},
                                 {"left_out_without_targets", dialogues_.num_without_targets}},
                    .reward = nullptr};
  }
  const Transformer& model() const override { return learner_.model(); }

 private:
  const OptimizerSpec optimizer_;
  const MemorySpec memory_;
  const Dialogues dialogues_;
  Learner learner_;
  DataOrder order_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakeSftTask(TaskInputs inputs) {
  const auto& spec = std::get<SftSpec>(inputs.spec.kind);
  ALMOST_ASSIGN_OR_RETURN(const int max_tokens,
                          MaxTokens("sft.max_tokens", spec.max_tokens, inputs.model.config()));
  ALMOST_ASSIGN_OR_RETURN(Dialogues dialogues,
                          ReadDialogues(spec.dataset, {inputs.format, inputs.tokenizer, max_tokens}));
  return std::make_unique<SftTask>(std::move(inputs), std::move(dialogues));
}

}  // namespace almost::trainer
