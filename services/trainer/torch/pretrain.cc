#include "common/base/status_macros.h"
#include "common/world/corpus.h"
#include "services/trainer/core/document_stream.h"
#include "services/trainer/core/model_flops.h"
#include "services/trainer/core/schedule.h"
#include "services/trainer/torch/learner.h"
#include "services/trainer/torch/task.h"
#include "services/trainer/torch/token_logprobs.h"

// Shapes: N tokens of a micro-batch, M of them with a successor.
namespace almost::trainer {
namespace {

using torch::Tensor;

// Language modelling on packed documents: sequences of equal length, attention over the whole of each.
class PretrainTask : public Task {
 public:
  PretrainTask(TaskInputs inputs, DocumentSource documents)
      : spec_(std::get<PretrainSpec>(inputs.spec.kind)),
        optimizer_(inputs.spec.optimizer),
        memory_(inputs.spec.memory),
        learner_(std::move(inputs.model), optimizer_, inputs.spec.num_threads, *inputs.group),
        documents_(std::move(documents)),
        tokenizer_(std::move(inputs.tokenizer)),
        stream_(documents_, tokenizer_, {.next_document = spec_.first_document, .left_over = {}}) {}

  int64_t num_steps() const override {
    return spec_.num_tokens / (int64_t{spec_.sequence_tokens} * spec_.batch_sequences);
  }

  absl::StatusOr<Metrics> Step(int64_t step) override {
    // Whole sequences, shared out evenly over all threads, in as many rounds as keep to the budget.
    const int64_t round_tokens = memory_.micro_batch_tokens * learner_.num_workers();
    const int64_t step_tokens = int64_t{spec_.sequence_tokens} * spec_.batch_sequences;
    const int64_t rounds = (step_tokens + round_tokens - 1) / round_tokens;
    std::vector<std::vector<std::vector<int32_t>>> micro_batches(
        std::min<int64_t>(rounds * learner_.num_workers(), spec_.batch_sequences));
    for (int i = 0; i < spec_.batch_sequences; ++i) {
      ALMOST_ASSIGN_OR_RETURN(std::vector<int32_t> sequence, stream_.Next(spec_.sequence_tokens));
      micro_batches[i % micro_batches.size()].push_back(std::move(sequence));
    }
    const double targets = static_cast<double>(spec_.batch_sequences) * (spec_.sequence_tokens - 1);
    std::vector<double> losses(micro_batches.size());
    const double factor = LearningRateFactor(optimizer_, step, num_steps());
    const auto loss_of = [&](const Transformer& model, size_t i) {
      const PackedSamples samples = PackedSamples::Pack(micro_batches[i], model.device());
      const int64_t sequences = samples.num_samples(), length = spec_.sequence_tokens;
      const Tensor rows_M = torch::arange(samples.num_tokens(), samples.tokens_N.options())
                                .view({sequences, length})
                                .narrow(1, 0, length - 1)
                                .reshape(-1);
      const Tensor targets_M = samples.tokens_N.index_select(0, rows_M + 1);
      const Tensor loss =
          -TokenLogprobs(model.Hidden(samples, rows_M), model.HeadWeight(), targets_M).sum() / targets;
      losses[i] = loss.item<double>();
      return loss;
    };
    const double norm = learner_.Update(micro_batches.size(), factor, loss_of);
    learner_.Merge(losses);
    double loss = 0;
    for (const double part : losses) loss += part;
    const std::vector<int64_t> lengths(spec_.batch_sequences, spec_.sequence_tokens);
    return Metrics{{"loss", loss},
                   {"grad_norm", norm},
                   {"learning_rate", optimizer_.learning_rate * factor},
                   {"tokens", static_cast<double>(spec_.sequence_tokens) * spec_.batch_sequences},
                   {"model_flops", TrainingFlops(memory_, ForwardFlops(model().config(), lengths,
                                                                       static_cast<int64_t>(targets)))}};
  }

  std::map<std::string, Tensor> Tensors() const override { return learner_.Tensors(); }

  nlohmann::json Values() const override {
    return {{"next_document", stream_.position().next_document}, {"left_over", stream_.position().left_over}};
  }
  absl::Status Restore(const nlohmann::json& values) override {
    stream_ =
        DocumentStream(documents_, tokenizer_,
                       {.next_document = values.at("next_document"), .left_over = values.at("left_over")});
    return absl::OkStatus();
  }

  const Transformer& model() const override { return learner_.model(); }

 private:
  const PretrainSpec spec_;
  const OptimizerSpec optimizer_;
  const MemorySpec memory_;
  Learner learner_;
  const DocumentSource documents_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  DocumentStream stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Task>> MakePretrainTask(TaskInputs inputs) {
  const auto& spec = std::get<PretrainSpec>(inputs.spec.kind);
  ALMOST_RETURN_IF_ERROR(
      MaxTokens("pretrain.sequence_tokens", spec.sequence_tokens, inputs.model.config()).status());
  DocumentSource documents;
  if (spec.world_seed) {
    documents = [&world = *world::World::Named(spec.world), seed = *spec.world_seed](int64_t index) {
      return world::CorpusDocument(world, seed, index);
    };
  } else {
    ALMOST_ASSIGN_OR_RETURN(documents, ReadDocuments(spec.dataset));
  }
  return std::make_unique<PretrainTask>(std::move(inputs), std::move(documents));
}

}  // namespace almost::trainer
