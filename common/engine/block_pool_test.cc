#include "common/engine/block_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

namespace almost::engine {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> Range(int begin, int count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), begin);
  return tokens;
}

// Takes blocks for all whole blocks of `tokens`, announces and completes them.
std::vector<int> Fill(BlockPool& pool, std::span<const int32_t> tokens, bool complete = true) {
  std::vector<int> blocks;
  int64_t parent = 0;
  for (size_t at = 0; at + kBlockTokens <= tokens.size(); at += kBlockTokens) {
    blocks.push_back(*pool.Take());
    parent = pool.Announce(parent, tokens.subspan(at, kBlockTokens), blocks.back());
    if (complete) pool.Complete(blocks.back());
  }
  return blocks;
}

std::vector<int> Match(BlockPool& pool, std::span<const int32_t> tokens, int limit) {
  bool pending = false;
  std::vector<int> found = pool.Match(tokens, limit, pending);
  EXPECT_FALSE(pending);
  return found;
}

void Release(BlockPool& pool, const std::vector<int>& blocks) {
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) pool.RemoveUser(*block);
}

TEST(BlockPoolTest, GivesEveryBlockOnceAndTakesThemBack) {
  BlockPool pool(3);
  std::vector<int> taken = {*pool.Take(), *pool.Take(), *pool.Take()};
  EXPECT_EQ(pool.Take(), std::nullopt);
  EXPECT_EQ(pool.num_free(), 0);
  pool.AddUser(taken[1]);
  Release(pool, taken);
  EXPECT_EQ(pool.num_free(), 2);
  pool.RemoveUser(taken[1]);
  EXPECT_EQ(pool.num_free(), 3);
}

TEST(BlockPoolTest, FindsTheLongestPrefixAgain) {
  BlockPool pool(8);
  const std::vector<int32_t> tokens = Range(0, 64);
  const std::vector<int> blocks = Fill(pool, tokens);
  Release(pool, blocks);
  EXPECT_EQ(Match(pool, tokens, 4), blocks);
  Release(pool, blocks);
  EXPECT_THAT(Match(pool, tokens, 2), ElementsAre(blocks[0], blocks[1]));
  Release(pool, {blocks[0], blocks[1]});
  std::vector<int32_t> other = tokens;
  other[40] = 1000;
  EXPECT_THAT(Match(pool, other, 4), ElementsAre(blocks[0], blocks[1]));
  // The same tokens elsewhere in a sequence are other contents.
  EXPECT_THAT(Match(pool, Range(16, 48), 3), IsEmpty());
}

TEST(BlockPoolTest, MakesOthersWaitForABlockUnderWay) {
  BlockPool pool(4);
  const std::vector<int32_t> tokens = Range(0, 32);
  const std::vector<int> blocks = Fill(pool, tokens, /*complete=*/false);
  bool pending = false;
  EXPECT_THAT(pool.Match(tokens, 2, pending), IsEmpty());
  EXPECT_TRUE(pending);
  pool.Complete(blocks[0]);
  EXPECT_THAT(pool.Match(tokens, 2, pending), ElementsAre(blocks[0]));
  EXPECT_TRUE(pending);
  // Given up before it was computed: nobody waits for it any more.
  pool.RemoveUser(blocks[1]);
  EXPECT_THAT(pool.Match(tokens, 2, pending), ElementsAre(blocks[0]));
  EXPECT_FALSE(pending);
}

TEST(BlockPoolTest, EvictsTheLeastRecentlyUsedAndTheEndOfAPrefixFirst) {
  BlockPool pool(4);
  const std::vector<int32_t> old = Range(0, 32), fresh = Range(100, 32);
  const std::vector<int> old_blocks = Fill(pool, old);
  Release(pool, old_blocks);
  const std::vector<int> fresh_blocks = Fill(pool, fresh);
  Release(pool, fresh_blocks);
  Release(pool, Match(pool, old, 2));  // used again: now the other is the older
  EXPECT_EQ(*pool.Take(), fresh_blocks[1]);
  EXPECT_THAT(Match(pool, old, 2), ElementsAre(old_blocks[0], old_blocks[1]));
  EXPECT_THAT(Match(pool, fresh, 2), ElementsAre(fresh_blocks[0]));
}

TEST(BlockPoolTest, NeverEvictsABlockInUse) {
  BlockPool pool(2);
  const std::vector<int> blocks = Fill(pool, Range(0, 16));
  const int other = *pool.Take();
  EXPECT_EQ(pool.Take(), std::nullopt);
  pool.RemoveUser(other);
  EXPECT_EQ(*pool.Take(), other);
  EXPECT_EQ(Match(pool, Range(0, 16), 1), blocks);
}

TEST(BlockPoolTest, KeepsASecondCopyOfTheSameContentsPrivate) {
  BlockPool pool(4);
  const std::vector<int32_t> tokens = Range(0, 32);
  const int first = *pool.Take(), second = *pool.Take(), next = *pool.Take();
  const int64_t content = pool.Announce(0, std::span(tokens).first(16), first);
  EXPECT_EQ(pool.Announce(0, std::span(tokens).first(16), second), content);
  EXPECT_EQ(pool.content(second), 0);
  pool.Complete(first);
  // What follows the copy is found behind the original.
  pool.Announce(content, std::span(tokens).subspan(16), next);
  pool.Complete(next);
  EXPECT_THAT(Match(pool, tokens, 2), ElementsAre(first, next));
}

}  // namespace
}  // namespace almost::engine
