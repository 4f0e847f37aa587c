#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/model/model_folder.h"

namespace almost {
class SharedTeam;
}

// Text generation and scoring with one model: token ids in, token ids out. It knows no text and no network.
namespace almost::engine {

// How the next token is drawn. Order: logits / temperature, then top-k, top-p and min-p cut the distribution.
struct SamplingParams {
  double temperature = 1.0;  // 0: greedy
  double top_p = 1.0;        // keep the smallest set of tokens whose probability reaches it; in (0, 1]
  int top_k = 0;             // keep the k likeliest; 0: all
  double min_p = 0.0;        // drop tokens below min_p times the likeliest's probability; in [0, 1)
  int max_new_tokens = 16;
  uint64_t seed = 0;
  bool logprobs = false;
};

enum class FinishReason { kStop, kLength, kCancelled, kDeadline };

struct TokenLogprobs {
  float model;    // of the model's own distribution, in nats
  float sampled;  // of the distribution it was drawn from, after temperature and truncation
};

struct Candidate {
  int index = 0;                   // counted from 0, whatever first_candidate was
  std::vector<int32_t> token_ids;  // without the end-of-text token that ended it
  std::vector<TokenLogprobs>
      logprobs;  // with SamplingParams::logprobs: of token_ids, then of the ending token
  FinishReason finish_reason = FinishReason::kLength;
};

// Payload of a kCancelled or kDeadlineExceeded of a request or scoring call of which nothing had been
// computed.
inline constexpr absl::string_view kNothingComputed = "almost.engine/nothing_computed";

// What on_token says of the candidate it has just been shown a token of.
enum class Continue { kYes, kStop };

struct GenerationRequest {
  std::vector<int32_t> prompt_ids;  // not empty
  SamplingParams sampling;
  int first_candidate = 0;  // candidate c draws from (seed, c, position) alone: asking for 2..3 later
  int num_candidates = 1;   // gives what asking for 0..3 at once would have given
  std::vector<int32_t> stop_token_ids;
  absl::Time deadline = absl::InfiniteFuture();

  // Each on the engine's thread; must not block. on_token may be empty; it sees every token but a stop token.
  std::function<Continue(int candidate, int32_t token, const TokenLogprobs&)> on_token;
  // Once per request, the last call of all: the candidates in order, or an error.
  std::function<void(absl::StatusOr<std::vector<Candidate>>)> on_done;
};

// Scores given continuations: log-likelihood of each token of `completion_ids` after `prompt_ids`.
struct CompletionScoreRequest {
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> completion_ids;
};

// Until when the result of a scoring call is of use.
struct ScoringLimits {
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> is_wanted;  // asked on the caller's thread; empty: always
  absl::Duration between_looks = absl::Milliseconds(20);
};

// The GPU that a device's name stands for, N of "cuda:N"; none of "cpu". kInvalidArgument: another name.
absl::StatusOr<std::optional<int>> GpuOf(absl::string_view device);

struct EngineOptions {
  std::string device = "cpu";  // or "cuda:N"
  // On a GPU, products by cuBLAS: faster, but how it adds up depends on the batch, and so do the results'
  // last bits.
  bool cublas = false;
  // Performance.
  int64_t kv_cache_bytes = 0;    // 0: 512 MiB, or one context (of 8,192 tokens at most) where that is more
  int max_batch_sequences = 64;  // running at once
  int max_batch_tokens = 512;    // a step's prefill and decode tokens together
  int num_threads = 1;
  std::shared_ptr<SharedTeam> team;  // of several engines, instead of num_threads of this one's own; or null
  // Limits, of what is queued or running: requests and items of scoring calls, and their tokens, those of
  // prompts and max_new_tokens. The first that passes it is still taken, so that none is too large.
  int max_queued_requests = 1024;
  int64_t max_queued_tokens = std::numeric_limits<int64_t>::max();
};

struct EngineStats {
  int running_sequences = 0;
  int waiting_sequences = 0;
  double kv_cache_usage = 0;        // of the blocks, in [0, 1]
  int64_t prompt_tokens = 0;        // since the start, prefix hits included
  int64_t prefix_query_tokens = 0;  // looked for in the cache; a preempted sequence's only the first time
  int64_t prefix_hit_tokens = 0;    // of those
  int64_t output_tokens = 0;
  int64_t preemptions = 0;
  int64_t free_blocks = 0;
  int64_t total_blocks = 0;
  int64_t queued_tokens = 0;  // of requests and items queued or running, as EngineOptions counts them
  int64_t max_queued_tokens = 0;
};

// Told of an engine's work as it goes, on the engine's thread; must not block. Times are of a steady clock.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  // A step is about to compute so many tokens, of prompts and completions together.
  virtual void StepScheduled(int /*num_tokens*/) {}
  // A sequence, to be continued or scored, is in a step for the first time, `waited` after it came. Not again
  // when it has been preempted.
  virtual void SequenceStarted(absl::Duration /*waited*/) {}
  // A candidate has ended by itself or by its length. `prefill`: from its start to its first token; `decode`:
  // from there to its last, preemption included. The three times make up its whole stay.
  virtual void CandidateFinished(absl::Duration /*prefill*/, absl::Duration /*decode*/) {}
};

// One model, one owner thread that runs steps while there is work: continuous batching over a block KV cache.
// Thread-safe. Results depend on the model, the request and `numerics_id` alone: not on the batch, the order,
// the cache, chunked prefill or preemption.
class Engine {
 public:
  // `observer` may be null. kInvalidArgument, kOutOfRange name an option; kUnimplemented: a device that this
  // build has no code for; kFailedPrecondition: there is no such device; otherwise as the reading of the
  // weights.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(std::shared_ptr<const ModelFolder> model,
                                                        const EngineOptions& options,
                                                        std::shared_ptr<EngineObserver> observer = nullptr);
  // Cancels what is left (on_done with kCancelled) and joins the thread.
  virtual ~Engine() = default;

  // Queues the request; its id is for Cancel.
  // kInvalidArgument: empty prompt, a token out of the vocabulary, or a parameter out of range;
  // kOutOfRange: prompt + max_new_tokens over the context or the cache; kResourceExhausted: the queue is
  // full. Nothing was queued then.
  virtual absl::StatusOr<uint64_t> Submit(GenerationRequest request) = 0;
  // on_done follows with kCancelled, unless it is already done. Its blocks are free after the step under way.
  virtual void Cancel(uint64_t request_id) = 0;

  // Submit and wait; results in the requests' order (their on_done is ignored).
  std::vector<absl::StatusOr<std::vector<Candidate>>> Generate(std::vector<GenerationRequest> requests);

  // Log-likelihoods, one vector per request, as long as its completion. Waits.
  // kInvalidArgument, kOutOfRange and kResourceExhausted as Submit's; kDeadlineExceeded, kCancelled: of no
  // use any more as `limits` say, and its blocks are free.
  virtual absl::StatusOr<std::vector<std::vector<float>>> ScoreCompletions(
      std::span<const CompletionScoreRequest> requests, const ScoringLimits& limits) = 0;
  absl::StatusOr<std::vector<std::vector<float>>> ScoreCompletions(
      std::span<const CompletionScoreRequest> requests) {
    return ScoreCompletions(requests, {});
  }

  // The reward head's output on each sequence's last token; batch-invariant. Waits. Errors as above;
  // kFailedPrecondition: the model has no reward head.
  virtual absl::StatusOr<std::vector<float>> ScoreSequences(std::span<const std::vector<int32_t>> sequences,
                                                            const ScoringLimits& limits) = 0;
  absl::StatusOr<std::vector<float>> ScoreSequences(std::span<const std::vector<int32_t>> sequences) {
    return ScoreSequences(sequences, {});
  }

  // Of one item, what the scoring calls above would refuse all of theirs for: kInvalidArgument, kOutOfRange.
  virtual absl::Status CheckCompletion(const CompletionScoreRequest& item) const = 0;
  virtual absl::Status CheckSequence(std::span<const int32_t> tokens) const = 0;

  virtual EngineStats Stats() const = 0;
  // Most tokens that its KV cache holds.
  virtual int64_t cache_tokens() const = 0;
  virtual const ModelConfig& config() const = 0;
  // Engine version, dtype and instruction set: equal ids promise equal bits.
  virtual const std::string& numerics_id() const = 0;
};

}  // namespace almost::engine
