#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/kernels/kernels.h"

namespace almost::engine {

// Reference-counted KV-cache blocks of 16 tokens over all layers, and the index that finds a full block again
// by all the tokens up to its end. A block whose last user has gone keeps its contents until the space is
// needed: the least recently used goes first. Not thread-safe: owned by the engine's thread.
class BlockPool {
 public:
  explicit BlockPool(int num_blocks);

  // A block of unspecified contents with one user; nullopt when every block is in use.
  std::optional<int> Take();
  void AddUser(int block);
  void RemoveUser(int block);

  // The blocks that hold the longest known prefix of `tokens`, whole blocks only and at most `limit`; each
  // gains a user. Stops at a block that is still being computed and says so in `pending`: who asks again
  // later shares it.
  std::vector<int> Match(std::span<const int32_t> tokens, int limit, bool& pending);

  // Announces that `block` will hold `tokens` (one block's) after the content `parent` (0: at the start), and
  // returns the number of that content. Others then wait for it instead of computing the same. Where another
  // block holds or will hold it already, `block` stays private.
  int64_t Announce(int64_t parent, std::span<const int32_t> tokens, int block);
  // The number of what `block` holds; 0: nothing to be found again.
  int64_t content(int block) const { return blocks_[block].content; }
  // Its keys and values are there. Or not, when its computation was given up: it is forgotten then.
  void Complete(int block);
  void Forget(int block);

  int num_blocks() const { return static_cast<int>(blocks_.size()); }
  // Blocks that Take can still give.
  int num_free() const { return num_free_; }

 private:
  // What a full block holds: its own tokens after everything its parent stands for. Exact, no hashing of
  // contents.
  struct Content {
    int64_t parent;  // Block::content of the block before; 0 for the first
    std::array<int32_t, kBlockTokens> tokens;
    template <typename H>
    friend H AbslHashValue(H h, const Content& c) {
      return H::combine(std::move(h), c.parent, c.tokens);
    }
    bool operator==(const Content&) const = default;
  };
  struct Block {
    int users = 0;
    int64_t content = 0;  // unique; 0: nothing to be found again
    bool complete = false;
    Content key;
    std::list<int>::iterator idle;  // in idle_ when it has no user
  };

  std::vector<Block> blocks_;
  std::list<int> idle_;  // without users; the front is taken first
  absl::flat_hash_map<Content, int> known_;
  int64_t next_content_ = 1;
  int num_free_;
};

}  // namespace almost::engine
