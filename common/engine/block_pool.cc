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

BlockPool::Content BlockPool::Key(int64_t parent, std::span<const int32_t> tokens, int index) {
  Content key;
  key.parent = parent;
  std::copy_n(tokens.begin() + size_t(index) * kBlockTokens, kBlockTokens, key.tokens.begin());
  return key;
}

std::vector<int> BlockPool::Match(std::span<const int32_t> tokens, int limit, bool& pending) {
  std::vector<int> found;
  pending = false;
  int64_t parent = 0;
  while (static_cast<int>(found.size()) < limit) {
    const auto known = known_.find(Key(parent, tokens, static_cast<int>(found.size())));
    if (known == known_.end()) break;
    if (!blocks_[known->second].complete) {
      pending = true;
      break;
    }
    AddUser(known->second);
    found.push_back(known->second);
    parent = blocks_[known->second].content;
  }
  return found;
}

int64_t BlockPool::ContentBefore(std::span<const int32_t> tokens, int index) const {
  int64_t content = 0;
  for (int i = 0; i < index; ++i) {
    const auto known = known_.find(Key(content, tokens, i));
    if (known == known_.end()) return -1;
    content = blocks_[known->second].content;
  }
  return content;
}

void BlockPool::Announce(std::span<const int32_t> tokens, int index, int block) {
  const int64_t parent = ContentBefore(tokens, index);
  if (parent < 0) return;
  Content key = Key(parent, tokens, index);
  if (!known_.emplace(key, block).second) return;
  blocks_[block].key = key;
  blocks_[block].content = next_content_++;
  blocks_[block].complete = false;
}

void BlockPool::Complete(int block) { blocks_[block].complete = true; }

void BlockPool::Forget(int block) {
  Block& b = blocks_[block];
  if (b.content != 0) known_.erase(b.key);
  b.content = 0;
  b.complete = false;
}

}  // namespace almost::engine
