#pragma once

#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "common/engine/cpu_model.h"

namespace almost::engine {

// The logits of every position of `tokens`, [tokens, vocab_size]; of a reward model the last one's score,
// [1].
inline std::vector<float> WholeLogits(const CpuModel& model, std::span<const int32_t> tokens) {
  const int count = static_cast<int>(tokens.size());
  std::vector<int> blocks((count + kBlockTokens - 1) / kBlockTokens);
  std::iota(blocks.begin(), blocks.end(), 0);
  KvCache cache(model.config(), static_cast<int>(blocks.size()));
  const bool reward = model.config().reward_head;
  const SequenceChunk chunk{tokens, 0, blocks, reward ? 1 : count};
  ThreadTeam team(1);
  Workspace workspace(team);
  std::vector<float> hidden, logits;
  model.Forward({&chunk, 1}, cache, workspace, hidden);
  if (reward) return {model.Reward(hidden)};
  model.Logits(hidden, workspace, logits);
  return logits;
}

}  // namespace almost::engine
