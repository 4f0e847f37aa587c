#include "common/engine/scheduler.h"

#include <algorithm>
#include <utility>

namespace almost::engine {
namespace {

int BlocksFor(int num_tokens) { return (num_tokens + kBlockTokens - 1) / kBlockTokens; }

}  // namespace

Scheduler::Scheduler(const EngineOptions& options, int num_blocks) : options_(options), pool_(num_blocks) {}

bool Scheduler::Fits(int num_tokens) const { return BlocksFor(num_tokens) <= pool_.num_blocks(); }

bool Scheduler::Grow(Sequence& sequence, int num_tokens) {
  const int wanted = BlocksFor(sequence.num_computed + num_tokens);
  while (static_cast<int>(sequence.blocks.size()) < wanted) {
    const std::optional<int> block = pool_.Take();
    if (!block) return false;
    sequence.blocks.push_back(*block);
  }
  // Full blocks of what is known now can be shared; those that decoding fills are announced when they are
  // full.
  const int full = (sequence.num_computed + num_tokens) / kBlockTokens;
  for (int i = static_cast<int>(sequence.contents.size()); i < full; ++i) {
    const auto tokens = std::span(sequence.tokens).subspan(size_t(i) * kBlockTokens, kBlockTokens);
    const int64_t parent = i == 0 ? 0 : sequence.contents.back();
    sequence.contents.push_back(pool_.Announce(parent, tokens, sequence.blocks[i]));
  }
  return true;
}

void Scheduler::Release(Sequence& sequence) {
  // Last blocks first, so that the beginning of a prefix outlives its end.
  while (!sequence.blocks.empty()) {
    pool_.RemoveUser(sequence.blocks.back());
    sequence.blocks.pop_back();
  }
  sequence.contents.clear();
  sequence.num_computed = sequence.num_completed = sequence.num_scheduled = 0;
}

bool Scheduler::PreemptYoungestAfter(const Sequence& sequence) {
  if (running_.empty() || running_.back().get() == &sequence) return false;
  Release(*running_.back());
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  ++num_preemptions_;
  return true;
}

const Sequence* Scheduler::PrefilledSibling(const Sequence& sequence) const {
  if (sequence.request == nullptr) return nullptr;
  for (const auto& other : running_) {
    if (other->request == sequence.request && other->num_computed >= sequence.num_prompt) return other.get();
  }
  return nullptr;
}

Scheduler::Step Scheduler::Schedule() {
  Step step;
  int tokens_left = options_.max_batch_tokens;
  const auto schedule = [&](Sequence& sequence, int num_tokens) {
    sequence.num_scheduled = num_tokens;
    tokens_left -= num_tokens;
    step.num_tokens += num_tokens;
    step.sequences.push_back(&sequence);
  };
  int decoding = 0;  // of those still to be scheduled
  for (const auto& sequence : running_) decoding += sequence->num_tokens() - sequence->num_computed == 1;
  bool preempted = false;
  for (size_t i = 0; i < running_.size() && tokens_left > 0; ++i) {
    Sequence& sequence = *running_[i];
    const int missing = sequence.num_tokens() - sequence.num_computed;
    if (missing == 1) --decoding;
    const int wanted = std::min(missing, missing == 1 ? 1 : tokens_left - decoding);
    if (wanted <= 0) continue;
    bool grown = Grow(sequence, wanted);
    while (!grown && PreemptYoungestAfter(sequence)) {
      preempted = true;
      grown = Grow(sequence, wanted);
    }
    if (!grown) {  // the youngest of all and still no room: it waits itself
      Release(sequence);
      waiting_.push_front(std::move(running_[i]));
      running_.pop_back();
      ++num_preemptions_;
      preempted = true;
      break;
    }
    schedule(sequence, wanted);
  }
  for (size_t i = 0; i < waiting_.size() && !preempted && tokens_left > 0 &&
                     running_.size() < size_t(options_.max_batch_sequences);) {
    Sequence& sequence = *waiting_[i];
    bool pending = false;
    sequence.blocks = pool_.Match(sequence.tokens, sequence.first_output / kBlockTokens, pending);
    if (pending) {
      Release(sequence);
      ++i;
      continue;
    }
    for (const int block : sequence.blocks) sequence.contents.push_back(pool_.content(block));
    sequence.num_completed = static_cast<int>(sequence.blocks.size());
    sequence.num_computed = sequence.num_completed * kBlockTokens;

    const int last = sequence.num_prompt - 1;
    const Sequence* sibling = sequence.num_new() == 0 ? PrefilledSibling(sequence) : nullptr;
    const bool copy = sibling != nullptr && sequence.num_completed == last / kBlockTokens;
    if (copy) sequence.num_computed = last;
    const int wanted = std::min(tokens_left, sequence.num_tokens() - sequence.num_computed);
    const int hit = sequence.num_computed;
    if (!Grow(sequence, wanted)) {
      Release(sequence);
      break;
    }
    if (copy)
      step.copies.push_back({sibling->blocks[last / kBlockTokens], sequence.blocks[last / kBlockTokens]});
    if (!std::exchange(sequence.admitted, true)) {
      prefix_query_tokens_ += sequence.num_tokens();
      prefix_hit_tokens_ += hit;
      step.admitted.push_back(&sequence);
    }
    schedule(sequence, wanted);
    running_.push_back(std::move(waiting_[i]));
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return step;
}

void Scheduler::Commit(std::span<Sequence* const> scheduled) {
  for (Sequence* sequence : scheduled) {
    sequence->num_computed += sequence->num_scheduled;
    sequence->num_scheduled = 0;
    for (; sequence->num_completed < sequence->num_computed / kBlockTokens; ++sequence->num_completed) {
      pool_.Complete(sequence->blocks[sequence->num_completed]);
    }
  }
}

std::vector<std::unique_ptr<Sequence>> Scheduler::TakeFinished() {
  std::vector<std::unique_ptr<Sequence>> finished;
  const auto take = [&](auto& sequences) {
    for (auto& sequence : sequences) {
      if (!sequence->finished) continue;
      Release(*sequence);
      finished.push_back(std::move(sequence));
    }
    std::erase_if(sequences, [](const auto& sequence) { return sequence == nullptr; });
  };
  take(running_);
  take(waiting_);
  return finished;
}

}  // namespace almost::engine
