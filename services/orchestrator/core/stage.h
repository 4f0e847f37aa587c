#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"
#include "almost/orchestrator/v1/recipe.pb.h"
#include "common/storage/artifact_store.h"
#include "nlohmann/json.hpp"
#include "services/orchestrator/core/retrying_services.h"

// What the stages publish. A dataset is an artifact of one JSON Lines file, <name>.jsonl, beside which the
// runner puts the dataset's card, README.md (dataset_card.h).
//   stage           artifacts: lines
//   prompts         prompts: {id, prompt}; dropped: {round, attempt, prompt, drop_reason}
//   responses       responses: {id, prompt_id, config, response, finish_reason, num_tokens, bad_reason}
//   comparisons     comparisons: {prompt, chosen, rejected, meta, prompt_id, chosen_id, rejected_id};
//                   dropped: the same with drop_reason, of pairs that a filter, a scorer or max_pairs left
//                   out
//   reward_model    model
//   demonstrations  demonstrations: {messages, prompt_id, score}; candidates, compressed (.jsonl.gz), most of
//                   which were not chosen: {prompt_id, drop_reason, score, messages, turns}
//   sft             model
//   rl              model; by PPO or GRPO prompts: {prompt, prompt_id}; by DPO pairs: {prompt, chosen,
//   rejected,
//                   prompt_id, chosen_score, rejected_score}
//   evaluation      whatever it measures; report: run_files
// Training stages also leave runs/<run>/<stage>/curves.jsonl, {step, metrics by name}, outside every hash.
namespace almost::orchestrator {

// A model that must be in memory while a stage's items run. Exactly one of the last three is set.
struct ModelNeed {
  std::string role;  // how the stage calls it; unique within the stage
  ModelHost host = ModelHost::kGeneration;
  std::string recipe_model;  // of Recipe.models
  std::string stage;         // the artifact "model" that this stage published: "reward_model", "sft", "rl"
  std::string source;        // as LoadModel takes it
  int turn = 0;              // of the stage's items that it is for
};

// A model in memory. Requests name it and pin its digest.
struct PlacedModel {
  std::string name;             // models/{id}
  std::string digest;           // of its weights
  std::string numerics_id;      // equal for every answer of this stage
  std::string artifact_digest;  // of the artifact it was loaded from; empty for a folder
  int32_t context_tokens = 0;
  std::string prompt_format;
};

// What a stage's items came to, in item order, read from the journal as they are asked for.
class ItemResults {
 public:
  virtual ~ItemResults() = default;
  using Use = std::function<absl::Status(int64_t item, const absl::StatusOr<std::string>& result)>;
  // Calls `use` for each finished item from `first` on; `result` is what RunItem returned, or the error for
  // which the item was set aside. Stops at the first error of `use` and returns it.
  virtual absl::Status ForEachFrom(int64_t first, const Use& use) const = 0;
  absl::Status ForEach(const Use& use) const { return ForEachFrom(0, use); }
};

// The items of the stage that another one follows, as they end. Used by one thread at a time.
class FollowedItems {
 public:
  virtual ~FollowedItems() = default;
  // Those that have ended, in the order in which they did, without the first `num_seen`. Waits for one; none:
  // all have ended. kCancelled: the run was stopped, or the stage has failed.
  virtual absl::StatusOr<std::vector<int64_t>> Next(size_t num_seen) = 0;
  // What an ended item came to, as ItemResults has it. Thread-safe.
  virtual absl::StatusOr<std::string> Result(int64_t item) = 0;
};

// What a stage may see and use of its run. Thread-safe; lives as long as the stage.
class StageContext {
 public:
  virtual ~StageContext() = default;

  virtual const std::string& run_id() const = 0;
  // Defaults filled in.
  virtual const v1::Recipe& recipe() const = 0;
  // Of the run; jobs that wait elsewhere have it too.
  virtual int priority() const = 0;
  virtual RetryingServices& services() = 0;
  virtual ArtifactStore& store() const = 0;
  // A model of Stage::models(), by role. Only while items run and in Publish; in memory in its turn.
  virtual const PlacedModel& model(absl::string_view role) const = 0;
  // What an earlier stage published under `name`. kNotFound: the recipe leaves that stage out.
  virtual absl::StatusOr<Artifact> Input(absl::string_view stage, absl::string_view name) const = 0;
  // Digest of a vanilla model of the recipe. kNotFound: no stage so far has had it in memory.
  virtual absl::StatusOr<std::string> VanillaDigest(absl::string_view id) const = 0;
  // Every artifact published so far: "stage/name" -> digest.
  virtual std::map<std::string, std::string> Artifacts() const = 0;
  // The items of Stage::follows(); null when that stage had published before this one began.
  virtual FollowedItems* followed() = 0;
  // Every stage of the run as GetRun shows it, in the method's order, the present one included.
  virtual std::vector<v1::Stage> Stages() const = 0;
  // Figures while an item runs, and its progress where one item is a long job. Cheap; shown, not journaled.
  virtual void Report(const std::map<std::string, double>& figures, int64_t items_done,
                      int64_t items_total) = 0;
};

// What the content of a stage's artifacts is a function of, besides Stage::version() and its models'
// numerics. All of it stands in their manifests.
struct StageIdentity {
  nlohmann::json recipe;                      // the part of the recipe
  std::map<std::string, std::string> inputs;  // name -> digest
  std::string numerics_id;
};

// An artifact to publish as runs/<run>/<stage>/<name>.
struct StageArtifact {
  std::string name;
  ArtifactDraft draft;  // identity, stage_version and provenance are filled in
  std::string digest;   // when set: published already (by the trainer), and `draft` is unused
  // Further inputs: artifacts of these names that come before it in the same output.
  std::vector<std::string> siblings = {};
  LocalFolder folder = {};  // holds draft.folder until it is published
};

// What a stage leaves behind.
struct StageOutput {
  std::vector<StageArtifact> artifacts;
  std::map<std::string, double> figures;         // Stage.figures
  std::map<std::string, std::string> run_files;  // runs/<run>/<path>: for people, outside every hash
  std::optional<std::string> summary_json;       // becomes Run.summary_json and runs/<run>/summary.json
};

// A stage of the method, cut into work items. Its artifacts are a function of its inputs and the recipe: not
// of time, order, number of tries or restarts. One object serves one attempt at the stage in one process.
//
// The runner loads models() and asks for Identity: where a stage of that identity has ended before, its
// artifacts are taken over. Otherwise it calls Begin, then NumItems, runs the items that the journal does not
// hold yet (several at once), calls NumItems again until it no longer grows, and then Publish.
class Stage {
 public:
  virtual ~Stage() = default;

  // prompts, responses, …; also the folder of its artifacts.
  virtual absl::string_view id() const = 0;
  // Raised whenever the same inputs would give another content.
  virtual int64_t version() const { return 1; }
  virtual std::vector<ModelNeed> models() const { return {}; }
  // Items are done turn by turn, and only the models of the present one are in memory.
  int num_turns() const {
    int turns = 1;
    for (const ModelNeed& need : models()) turns = std::max(turns, need.turn + 1);
    return turns;
  }
  virtual int TurnOf(int64_t /*item*/) const { return 0; }

  // The stage just before it whose items it takes as they end, instead of waiting for what that stage
  // publishes. Its Identity is then asked for after its items are done.
  virtual absl::string_view follows() const { return ""; }

  // What its artifacts depend on; none: it is always done, as one that leaves no artifacts. Changes nothing.
  virtual absl::StatusOr<std::optional<StageIdentity>> Identity(StageContext& context) = 0;

  // Reads the inputs. Called once, before everything else below.
  virtual absl::Status Begin(StageContext& context) = 0;

  // How many items there are, given that all that were announced before are in `done`. Where an item depends
  // on those before it, only the next one is announced.
  virtual absl::StatusOr<int64_t> NumItems(StageContext& context, const ItemResults& done) = 0;

  // The item that is begun as the `position`-th of `num_items`. A permutation; results stay in item order.
  virtual int64_t ItemAt(int64_t position, int64_t /*num_items*/) const { return position; }

  // Whether an item only waits for a job that is queued elsewhere: it then takes no slot from other runs.
  virtual bool only_waits() const { return false; }

  // Does one item and returns its result, the bytes that the journal keeps. Thread-safe. May run twice with
  // the same answer expected; a job elsewhere is therefore created under an id derived from run, stage and
  // item. kInvalidArgument and kOutOfRange set the item aside; any other error but kCancelled fails the
  // stage.
  virtual absl::StatusOr<std::string> RunItem(StageContext& context, int64_t item) = 0;

  // Makes the artifacts from all results. Called once every item is done; after a crash it may come again.
  virtual absl::StatusOr<StageOutput> Publish(StageContext& context, const ItemResults& results) = 0;

  // After an error: whether what items came to is of no use to another attempt, which begins anew.
  virtual bool results_are_mixed() const { return false; }

  // The attempt is over, whatever it came to: gives back the memory of what Begin read. Afterwards only what
  // the stage is may be asked, id() to follows().
  virtual void Release() {}
};

}  // namespace almost::orchestrator
