#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "common/engine/engine.h"
#include "common/engine/sampler.h"
#include "common/engine/sequence.h"
#include "common/kernels/thread_team.h"
#include "common/model/model_folder.h"

namespace almost::engine {

// What computes an engine's steps: it has the weights and the keys and values of `num_blocks` blocks, and
// knows nothing of requests and queues. One step at a time.
class StepRunner {
 public:
  virtual ~StepRunner() = default;

  // Block `to` becomes a copy of block `from`.
  virtual void Copy(int from, int to) = 0;
  // Computes what is scheduled of the sequences. Items get their scores; a candidate whose last token is
  // computed draws its next one, into its place of `draws` (nullopt: its logits are not finite).
  // kInternal: the device failed, and nothing was computed.
  virtual absl::Status Run(std::span<Sequence* const> sequences,
                           std::span<std::optional<Sampler::Draw>> draws) = 0;

  virtual int num_blocks() const = 0;
  virtual const ModelConfig& config() const = 0;
  virtual const std::string& numerics_id() const = 0;
};

// The blocks of 16 tokens that kv_cache_bytes of EngineOptions give a model whose blocks have so many bytes.
// kInvalidArgument: not one.
absl::StatusOr<int> NumCacheBlocks(int64_t kv_cache_bytes, int64_t block_bytes, const ModelConfig& config);

// On this processor, with the threads of `team`, of which the caller has the turn whenever it calls.
// kInvalidArgument: kv_cache_bytes holds no block; otherwise as CpuModel::Load.
absl::StatusOr<std::unique_ptr<StepRunner>> MakeCpuRunner(const ModelFolder& model, int64_t kv_cache_bytes,
                                                          std::shared_ptr<SharedTeam> team);

// The engine that lets `runner` compute, with the turns of `team`.
std::unique_ptr<Engine> EngineOf(std::unique_ptr<StepRunner> runner, std::shared_ptr<SharedTeam> team,
                                 const EngineOptions& options, std::shared_ptr<EngineObserver> observer);

}  // namespace almost::engine
