#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "almost/trainer/v1/trainer.pb.h"
#include "services/orchestrator/core/stage.h"

namespace almost::orchestrator {

// Trains one model by one job of the trainer. The job's id is a function of the run, the stage and the spec,
// so that asking for it again is harmless. The only item's result is {digest, figures, curves, dataset}.
class TrainingStage : public Stage {
 public:
  bool only_waits() const override { return true; }
  // The trainer tells the numerics that a job would have.
  absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) override;
  absl::Status Begin(StageContext&) override { return absl::OkStatus(); }
  absl::StatusOr<int64_t> NumItems(StageContext&, const ItemResults&) override { return 1; }
  absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) override;
  absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) override;

 protected:
  // What a stage makes for its job to learn from, and publishes beside the model.
  struct MadeDataset {
    std::string name;  // of the artifact
    std::string digest;
    std::map<std::string, double> figures;  // counts
  };
  struct Job {
    trainer::v1::JobSpec spec;
    std::optional<MadeDataset> dataset;
  };

  // What to train, and on what; seed, prompt format and priority are filled in.
  virtual absl::StatusOr<Job> MakeJob(StageContext& context) = 0;
  // The same, naming only what is there already, and making nothing.
  virtual absl::StatusOr<trainer::v1::JobSpec> SpecToValidate(StageContext& context);
  // Adds the stage's part of the recipe, and its inputs.
  virtual absl::Status AddIdentity(StageContext& context, StageIdentity& identity) = 0;

  static absl::Status AddInput(const StageContext& context, absl::string_view stage, absl::string_view name,
                               StageIdentity& identity);
  // `artifacts/{digest}` of what an earlier stage published.
  static absl::StatusOr<std::string> Source(const StageContext& context, absl::string_view stage,
                                            absl::string_view name);

 private:
  static absl::StatusOr<std::string> Result(const StageContext& context, const trainer::v1::Job& job,
                                            const std::map<int64_t, std::map<std::string, double>>& curves,
                                            const std::optional<MadeDataset>& dataset);
};

}  // namespace almost::orchestrator
