#include "common/storage/gzip.h"

#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace almost {
namespace {

TEST(GzipTest, GivesBackWhatItTook) {
  std::string large;
  for (int i = 0; large.size() < 5'000'000; ++i) absl::StrAppend(&large, i * 2654435761u, " and ");
  for (const std::string& data : {std::string(), std::string("a\0b", 3), large}) {
    const std::string compressed = Gzip(data);
    EXPECT_EQ(Gunzip(compressed).value(), data);
    EXPECT_EQ(Gzip(data), compressed);
  }
  EXPECT_LT(Gzip(large).size(), large.size() / 2);
}

TEST(GzipTest, RefusesWhatIsDamagedCutOffOrTooLarge) {
  const std::string compressed = Gzip(std::string(1000, 'x'));
  for (size_t size = 0; size < compressed.size(); ++size) {
    EXPECT_EQ(Gunzip(absl::string_view(compressed).substr(0, size)).status().code(),
              absl::StatusCode::kDataLoss)
        << size;
  }
  std::string flipped = compressed;
  flipped[flipped.size() - 6] ^= 1;  // of the checksum
  EXPECT_EQ(Gunzip(flipped).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Gunzip(compressed + "more").status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Gunzip(Gzip(std::string(5'000'000, 'x')), 1000).status().code(),
            absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace almost
