#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "common/engine/step_runner.h"
#include "common/model/model_folder.h"

namespace almost::engine::cuda {

struct RunnerOptions {
  int device = 0;
  int64_t kv_cache_bytes = 0;
  int max_tokens = 0;     // of a step
  int max_sequences = 0;  // that draw in a step
  // Products by our own kernel, whose sums have one order whatever the batch is: equal requests, equal bits.
  // Else by cuBLAS, which is faster and picks its order by the batch.
  bool deterministic = false;
};

// Computes steps on a GPU, in the type of the checkpoint: float32, bfloat16 or float16. Steps in which every
// sequence draws are CUDA graphs, one for each power of two of sequences. kFailedPrecondition: no such GPU,
// or no cuBLAS; kResourceExhausted: its memory is too small; kInvalidArgument: kv_cache_bytes holds no block;
// kUnimplemented names what the kernels have no shape for; otherwise as Weights::Read.
absl::StatusOr<std::unique_ptr<StepRunner>> MakeRunner(const ModelFolder& model,
                                                       const RunnerOptions& options);

}  // namespace almost::engine::cuda
