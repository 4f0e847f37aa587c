#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "common/base/ids.h"
#include "common/base/random.h"
#include "common/base/sha256.h"

namespace almost {
namespace {

TEST(PhiloxTest, MatchesTheVectorsOfItsAuthors) {
  // Random123's kat_vectors for philox4x32-10.
  EXPECT_EQ(Philox({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(RandomStreamTest, GoesOnFromItsPosition) {
  RandomStream a(7, 3);
  for (int i = 0; i < 5; ++i) a.Below(1000);
  RandomStream b(7, 3, a.position());
  EXPECT_EQ(a.Bits(), b.Bits());
}

TEST(RandomStreamTest, SampleIsDistinctAndInRange) {
  RandomStream stream(1);
  const std::vector<size_t> sample = stream.Sample(50, 50);
  EXPECT_EQ(std::set<size_t>(sample.begin(), sample.end()).size(), 50u);
}

TEST(RandomStreamTest, BelowIsUniform) {
  // 60,000 draws over 6 values: each count has standard deviation 91, so ±500 fails by chance once in 10^7.
  RandomStream stream(42);
  std::array<int, 6> counts{};
  for (int i = 0; i < 60000; ++i) ++counts[stream.Below(6)];
  for (const int count : counts) EXPECT_NEAR(count, 10000, 500);
}

TEST(DeriveSeedTest, PurposesDoNotShareAStream) {
  EXPECT_NE(DeriveSeed(1, "prompts"), DeriveSeed(1, "responses"));
  EXPECT_NE(DeriveSeed(1, uint64_t{0}), DeriveSeed(1, uint64_t{1}));
  EXPECT_NE(DeriveSeed(1, "prompts"), DeriveSeed(2, "prompts"));
}

TEST(Sha256Test, MatchesTheStandardsExample) {
  EXPECT_EQ(Sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Sha256File("/nonexistent/file").status().code(), absl::StatusCode::kNotFound);
}

TEST(ValidateIdTest, RefusesWhatCouldLeaveItsFolder) {
  EXPECT_TRUE(ValidateId("model", "L-3.good_1").ok());
  for (const absl::string_view bad : {"", "..", ".hidden", "a/b", "a%2eb", "a b"}) {
    EXPECT_EQ(ValidateId("model", bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_EQ(ValidateId("model", absl::string_view("a\0b", 3)).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ValidateId("model", std::string(129, 'a')).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace almost
