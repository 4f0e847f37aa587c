#pragma once

#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "common/engine/block_pool.h"
#include "common/engine/sequence.h"

namespace almost::engine {

// Keys and values of one block to be copied into another.
struct BlockCopy {
  int from;
  int to;
};

// Decides what the next step computes; knows no tensors. Running sequences come first, one token or the next
// chunk of their prompt each, and no prompt takes the tokens that decoding ones need; then waiting ones are
// admitted in order, as tokens, sequences and blocks allow. A candidate whose sibling has computed the prompt
// shares its whole blocks, copies the last one, and computes one token.
// When blocks run out the youngest running sequence is preempted: it gives its blocks back, waits at the
// front, and is recomputed later to the same bits. A waiting sequence whose next block someone else is
// computing stays back until it can share it. Not thread-safe: owned by the engine's thread.
class Scheduler {
 public:
  Scheduler(const EngineOptions& options, int num_blocks);

  // Takes over a sequence that fits the pool (see Fits).
  void Add(std::unique_ptr<Sequence> sequence) { waiting_.push_back(std::move(sequence)); }
  // Whether a sequence of so many tokens could ever run.
  bool Fits(int num_tokens) const;

  struct Step {
    std::vector<BlockCopy> copies;  // to be done before anything is computed
    std::vector<Sequence*>
        sequences;                    // each with num_scheduled > 0 and blocks for it; empty: nothing can run
    std::vector<Sequence*> admitted;  // of them, those in a step for the first time
    int num_tokens = 0;               // over all
  };
  Step Schedule();
  // After the step: the scheduled tokens are computed, full blocks can be shared.
  void Commit(std::span<Sequence* const> scheduled);
  // Drops finished sequences and frees their blocks.
  std::vector<std::unique_ptr<Sequence>> TakeFinished();

  BlockPool& pool() { return pool_; }
  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  // Of sequences when they are first admitted: tokens looked for in the cache, and found there.
  int64_t prefix_query_tokens() const { return prefix_query_tokens_; }
  int64_t prefix_hit_tokens() const { return prefix_hit_tokens_; }

 private:
  bool Grow(Sequence& sequence, int num_tokens);
  void Release(Sequence& sequence);
  bool PreemptYoungestAfter(const Sequence& sequence);
  // A running candidate of the same request whose prompt is computed; null: none.
  const Sequence* PrefilledSibling(const Sequence& sequence) const;

  const EngineOptions options_;
  BlockPool pool_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  std::deque<std::unique_ptr<Sequence>> waiting_;
  int64_t num_preemptions_ = 0;
  int64_t prefix_query_tokens_ = 0;
  int64_t prefix_hit_tokens_ = 0;
};

}  // namespace almost::engine
