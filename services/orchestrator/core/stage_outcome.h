#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "almost/orchestrator/v1/recipe.pb.h"
#include "common/storage/artifact_store.h"
#include "common/storage/journal.h"
#include "services/orchestrator/core/stage.h"

namespace almost::orchestrator {

// What a stage of some run came to: enough for another run that would do the same to take it over, and to
// foresee how long the next of its kind will take.
struct StageOutcome {
  std::string run;                                             // which made it
  std::vector<std::pair<std::string, std::string>> artifacts;  // name, digest
  std::vector<std::string> run_files;                          // paths beneath runs/<run>
  double size = 0;                                             // StageSize
  v1::Stage shown;                                             // as GetRun shows it

  OutcomeRecord ToRecord(std::string key, std::string pace) const;
  // kDataLoss names the stage.
  static absl::StatusOr<StageOutcome> FromRecord(const OutcomeRecord& record);
};

// The hash under which a stage's outcome is known: of its identity, its version, the run's prompt format and
// licence, and the digest and numerics of its models by role. Stages of equal keys leave equal artifacts.
std::string StageKey(const Stage& stage, const StageIdentity& identity, const v1::Recipe& recipe,
                     const std::map<std::string, std::pair<std::string, std::string>>& models);

// The outcome under that key, if there is one and the store has all of its artifacts.
absl::StatusOr<std::optional<StageOutcome>> FindOutcome(Journal& journal, ArtifactStore& store,
                                                        const std::string& key);

// How much a stage has to do, as far as the recipe tells: what it uses grows in proportion. In answers,
// pairs, dialogues or rollouts; only stages of one kind compare.
double StageSize(absl::string_view stage, const v1::Recipe& recipe);

// Questions that the evaluation asks, of the baseline and the policies and of each configuration of the grid.
struct EvaluationSize {
  double questions = 0;
  double grid_questions = 0;
};
EvaluationSize SizeOfEvaluation(const v1::Recipe& recipe);

// What a stage's speed depends on besides its size: its models, their devices and widths.
std::string StagePace(const Stage& stage, const v1::Recipe& recipe);

}  // namespace almost::orchestrator
