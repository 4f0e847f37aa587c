#include "common/model/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <fstream>
#include <numeric>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "common/base/scratch_folder.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

fs::path TestFile() {
  static const ScratchFolder folder;
  return folder / testing::UnitTest::GetInstance()->current_test_info()->name();
}

std::string Read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void Write(const fs::path& path, const std::string& bytes) { std::ofstream(path, std::ios::binary) << bytes; }

std::string WithHeader(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof length) + header +
         std::string(data_bytes, '\0');
}

absl::Status OpenStatus(const std::string& bytes) {
  Write(TestFile(), bytes);
  return SafetensorsFile::Open(TestFile()).status();
}

// Two tensors, 3 x 2 floats and 5 bfloat16.
std::string SmallFile() {
  const std::vector<float> matrix = {1, -2, 3.5, 0, 1e-30f, 7};
  const std::vector<uint16_t> vector = {0x3f80, 0xc000, 0, 0x7f80, 0x0001};
  EXPECT_TRUE(WriteSafetensors(TestFile(), {{"w", DType::kF32, {3, 2}, std::as_bytes(std::span(matrix))},
                                            {"b", DType::kBF16, {5}, std::as_bytes(std::span(vector))}})
                  .ok());
  return Read(TestFile());
}

TEST(SafetensorsTest, ReadsBackWhatItWrote) {
  SmallFile();
  const auto file = SafetensorsFile::Open(TestFile());
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  const TensorView& w = (*file)->tensors().at("w");
  EXPECT_EQ(w.shape, (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(w.ToFloat(), (std::vector<float>{1, -2, 3.5, 0, 1e-30f, 7}));
  EXPECT_EQ((*file)->tensors().at("b").ToFloat(),
            (std::vector<float>{1, -2, 0, std::numeric_limits<float>::infinity(), 0x1p-133f}));
}

TEST(SafetensorsTest, WritesTheSameBytesInWhateverOrder) {
  const std::vector<float> data = {1, 2};
  const auto bytes = std::as_bytes(std::span(data));
  ASSERT_TRUE(
      WriteSafetensors(TestFile(), {{"a", DType::kF32, {2}, bytes}, {"b", DType::kF64, {}, bytes}}).ok());
  const std::string first = Read(TestFile());
  ASSERT_TRUE(
      WriteSafetensors(TestFile(), {{"b", DType::kF64, {}, bytes}, {"a", DType::kF32, {2}, bytes}}).ok());
  EXPECT_EQ(Read(TestFile()), first);
  EXPECT_THAT(first, HasSubstr(R"("__metadata__":{"format":"pt"})"));
  EXPECT_FALSE(fs::exists(TestFile().string() + ".new"));
}

// All 65,536 of them: sign, exponent and mantissa taken apart in double.
TEST(SafetensorsTest, WidensEveryHalf) {
  std::vector<uint16_t> halves(65536);
  std::iota(halves.begin(), halves.end(), uint16_t{0});
  const TensorView view{DType::kF16, {65536}, std::as_bytes(std::span(halves))};
  const std::vector<float> floats = view.ToFloat();
  for (int i = 0; i < 65536; ++i) {
    const int exponent = (i >> 10) & 31, mantissa = i & 1023;
    if (exponent == 31) {
      EXPECT_EQ(std::isnan(floats[i]), mantissa != 0);
      EXPECT_EQ(std::isinf(floats[i]), mantissa == 0);
    } else {
      const double magnitude =
          exponent == 0 ? mantissa * 0x1p-24 : std::ldexp(1024 + mantissa, exponent - 25);
      EXPECT_EQ(floats[i], i & 0x8000 ? -magnitude : magnitude) << i;
    }
    EXPECT_EQ(std::signbit(floats[i]), (i & 0x8000) != 0) << i;
  }
}

TEST(SafetensorsTest, RefusesEveryTruncation) {
  const std::string whole = SmallFile();
  for (size_t length = 0; length < whole.size(); ++length) {
    const absl::Status status = OpenStatus(whole.substr(0, length));
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << length << ": " << status;
    ASSERT_THAT(std::string(status.message()), HasSubstr(TestFile().string()));
  }
  EXPECT_EQ(OpenStatus(whole + '\0').code(), absl::StatusCode::kDataLoss);
}

TEST(SafetensorsTest, SurvivesEveryFlippedBitOfItsHeader) {
  const std::string whole = SmallFile();
  const size_t header_end = whole.find("}}") + 2;
  for (size_t bit = 0; bit < header_end * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    Write(TestFile(), damaged);
    const auto file = SafetensorsFile::Open(TestFile());
    if (!file.ok()) continue;  // another name or another type of the same size remains a valid file
    for (const auto& [name, view] : (*file)->tensors())
      EXPECT_EQ(view.ToFloat().size(), size_t(view.num_elements()));
  }
}

TEST(SafetensorsTest, NamesWhatIsWrongWithATensor) {
  const auto one = [](const char* fields) { return absl::StrCat(R"({"t":{)", fields, "}}"); };
  const struct {
    std::string header;
    size_t data_bytes;
    const char* named;
  } cases[] = {
      {one(R"("dtype":"F32","shape":[2],"data_offsets":[0,4])"), 4, "tensor t"},        // too few bytes
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,0])"), 4, "tensor t"},        // backwards
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,4])"), 8, "after the last"},  // a tail
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[4,8])"), 8, "gap"},             // a hole
      {one(R"("dtype":"F32","shape":[-1],"data_offsets":[0,4])"), 4, "shape"},          //
      {one(R"("dtype":"F32","shape":[1.5],"data_offsets":[0,4])"), 4, "shape"},         //
      {one(R"("dtype":"F32","shape":4,"data_offsets":[0,4])"), 4, "shape"},             //
      {one(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])"), 0,
       "shape"},                                                                    // overflows
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0])"), 4, "data_offsets"},  //
      {one(R"("dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615])"), 4, "truncated"},
      {one(R"("dtype":"F32","shape":[1])"), 4, "data_offsets"},
      {R"({"t":7})", 0, "tensor t"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4, "overlap"},
      {"[]", 0, "object"},
      {"", 0, "JSON"},
      {"{\"t\":\xff}", 0, "JSON"},
      {absl::StrCat(R"({"t":)", std::string(100000, '['), std::string(100000, ']'), "}"), 0, "nested"},
  };
  for (const auto& c : cases) {
    const absl::Status status = OpenStatus(WithHeader(c.header, c.data_bytes));
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << c.header.substr(0, 100) << ": " << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.named)) << c.header.substr(0, 100);
  }
  EXPECT_EQ(OpenStatus(WithHeader(one(R"("dtype":"F8_E4M3","shape":[8],"data_offsets":[0,8])"), 8)).code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(SafetensorsFile::Open(TestFile().string() + ".missing").status().code(),
            absl::StatusCode::kNotFound);
}

TEST(SafetensorsTest, LeavesOutMasksAndCountersOfOlderCheckpoints) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                             R"("attention.bias":{"dtype":"BOOL","shape":[1,3],"data_offsets":[4,7]}})";
  Write(TestFile(), WithHeader(header, 7));
  const auto file = SafetensorsFile::Open(TestFile());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 1u);
  EXPECT_EQ(OpenStatus(WithHeader(R"({"n":{"dtype":"I64","shape":[2],"data_offsets":[0,8]}})", 8)).code(),
            absl::StatusCode::kDataLoss);
}

TEST(SafetensorsTest, RefusesAHeaderOverItsCapBeforeReadingIt) {
  std::string bytes(64, ' ');
  const uint64_t length = uint64_t{100} * 1024 * 1024 + 1;
  std::memcpy(bytes.data(), &length, sizeof length);
  EXPECT_THAT(std::string(OpenStatus(bytes).message()), HasSubstr("is over"));
}

}  // namespace
}  // namespace almost
