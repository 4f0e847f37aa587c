#include "common/engine/block_pool.h"

#include <algorithm>
#include <cassert>

namespace almost::engine {

BlockPool::BlockPool(int num_blocks) : blocks_(num_blocks), num_free_(num_blocks) {
  for (int block = 0; block < num_blocks; ++block) blocks_[block].idle = idle_.insert(idle_.end(), block);
}

std::optional<int> BlockPool::Take() {
  if (idle_.empty()) return std::nullopt;
  const int block = idle_.front();
  Forget(block);
  AddUser(block);
  return block;
}

void BlockPool::AddUser(int block) {
  if (blocks_[block].users++ > 0) return;
  idle_.erase(blocks_[block].idle);
  --num_free_;
}

void BlockPool::RemoveUser(int block) {
  Block& b = blocks_[block];
  assert(b.users > 0);
  if (--b.users > 0) return;
  if (!b.complete) Forget(block);
  // Blocks without contents are taken before any that may be found again.
  b.idle = idle_.insert(b.content == 0 ? idle_.begin() : idle_.end(), block);
  ++num_free_;
}

std::vector<int> BlockPool::Match(std::span<const int32_t> tokens, int limit, bool& pending) {
  std::vector<int> found;
  pending = false;
  Content content{0, {}};
  while (static_cast<int>(found.size()) < limit) {
    std::copy_n(tokens.begin() + found.size() * kBlockTokens, kBlockTokens, content.tokens.begin());
    const auto known = known_.find(content);
    if (known == known_.end()) break;
    if (!blocks_[known->second].complete) {
      pending = true;
      break;
    }
    AddUser(known->second);
    found.push_back(known->second);
    content.parent = blocks_[known->second].content;
  }
  return found;
}

int64_t BlockPool::Announce(int64_t parent, std::span<const int32_t> tokens, int block) {
  Content content{parent, {}};
  std::copy_n(tokens.begin(), kBlockTokens, content.tokens.begin());
  const auto [known, fresh] = known_.emplace(content, block);
  if (!fresh) return blocks_[known->second].content;
  blocks_[block].key = content;
  blocks_[block].content = next_content_++;
  blocks_[block].complete = false;
  return blocks_[block].content;
}

void BlockPool::Complete(int block) { blocks_[block].complete = true; }

void BlockPool::Forget(int block) {
  Block& b = blocks_[block];
  if (b.content != 0) known_.erase(b.key);
  b.content = 0;
  b.complete = false;
}

}  // namespace almost::engine
