#pragma once

#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "almost/types/v1/content.pb.h"
#include "almost/types/v1/model.pb.h"
#include "common/engine/engine.h"
#include "common/serving/load_gate.h"
#include "common/storage/artifact_store.h"
#include "common/text/prompt_format.h"
#include "common/text/tokenizer.h"
#include "grpcpp/server_context.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"

namespace almost {

// A model in memory with everything needed to talk to it. Thread-safe; lives as long as someone uses it.
struct ServedModel {
  types::v1::Model description;
  std::shared_ptr<const Tokenizer> tokenizer;
  PromptFormat format;
  std::vector<int32_t> end_ids;  // end-of-text tokens
  double reward_mean = 0;        // of the reward model's manifest: score = (raw - mean) / std
  double reward_std = 1;
  std::unique_ptr<engine::Engine> engine;
  std::unique_ptr<LoadGate> gate;

  // Whether a call of so much work, in bytes of text and token ids, can be answered in time (LoadGate).
  absl::StatusOr<LoadGate::Ticket> Enter(int64_t work, absl::Time deadline) const {
    return gate->Enter(work, deadline, engine->Stats().waiting_sequences > 0);
  }

  const std::string& digest() const { return description.digest(); }
  const std::string& numerics_id() const { return description.numerics_id(); }
};

// What the model reads for `input`: text as it is behind the tokenizer's own markers, token ids untouched,
// messages in the model's prompt format ready for the assistant's answer. kInvalidArgument names the field.
absl::StatusOr<std::vector<int32_t>> ReadInput(const ServedModel& model, const types::v1::Input& input);

// A scoring call is of use until its deadline and while its client is there. `context` must outlive them.
engine::ScoringLimits LimitsOf(const grpc::ServerContext& context, const LoadGate::Ticket& ticket);
// What a call with this deadline answers whose scoring call ended so: a deadline that passed before any work
// began is told apart, also where the client's clock, and so its hanging up, was first.
absl::Status CallStatus(const absl::Status& ended, absl::Time deadline);

// kInvalidArgument when `text` is not valid UTF-8.
absl::Status CheckUtf8(absl::string_view field, absl::string_view text);

// The models of a generation or reward service: the model verbs of both. Thread-safe. Loading and unloading
// do not disturb requests under way: an unloaded model goes when its last request has ended.
class ModelRegistry {
 public:
  enum class Head { kLanguageModel, kReward };

  // Makes the observer of the engine of the model so named.
  using MakeObserver = std::function<std::shared_ptr<engine::EngineObserver>(const std::string& model)>;

  // `store` may be null: then only folders beneath `model_root` can be loaded. `options` are of each model's
  // engine, but for num_threads, which all share (0: as many as the process may use processors). `registry`
  // and what `make_observer` refers to must outlive it. At most `max_calls` calls are under way (LoadGate).
  ModelRegistry(Head head, std::shared_ptr<ArtifactStore> store, std::filesystem::path model_root,
                const engine::EngineOptions& options, prometheus::Registry& registry,
                MakeObserver make_observer = nullptr, int max_calls = std::numeric_limits<int>::max());

  // Reads nothing where the name already has the digest that `request` expects. kCancelled, and nothing is
  // loaded: `is_wanted`, which is asked before and after the folder is read, said no.
  absl::StatusOr<types::v1::Model> Load(const types::v1::LoadModelRequest& request,
                                        const std::function<bool()>& is_wanted = {});
  // Each of `sources` is id=source. kInvalidArgument: not of that form; the first failure ends it.
  absl::Status LoadAll(const std::vector<std::string>& sources);
  absl::Status Unload(const types::v1::UnloadModelRequest& request);
  absl::StatusOr<types::v1::ListModelsResponse> List(const types::v1::ListModelsRequest& request) const;
  // kNotFound names the model; kFailedPrecondition: it has another digest than a non-empty `expected_digest`.
  absl::StatusOr<std::shared_ptr<const ServedModel>> Find(absl::string_view name,
                                                          absl::string_view expected_digest = "") const;
  // Statistics of every model's engine, by name.
  std::map<std::string, engine::EngineStats> Stats() const;

 private:
  const Head head_;
  const std::shared_ptr<ArtifactStore> store_;
  const std::filesystem::path model_root_;
  const engine::EngineOptions options_;
  const std::shared_ptr<LoadGate::Calls> calls_;
  const MakeObserver make_observer_;
  prometheus::Histogram& load_seconds_;
  absl::Mutex load_mutex_;  // one load at a time; calls on loaded models go on meanwhile
  mutable absl::Mutex mutex_ ABSL_ACQUIRED_AFTER(load_mutex_);
  std::map<std::string, std::shared_ptr<const ServedModel>, std::less<>> models_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace almost
