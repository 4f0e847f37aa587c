#include "common/model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/model/bounded_json.h"
#include "common/storage/env.h"
#include "nlohmann/json.hpp"

namespace almost {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = 100 << 20;  // as the reference implementation
constexpr size_t kMaxTensors = 100000;

struct DTypeName {
  std::optional<DType>
      dtype;  // none: integers, as masks and counters beside the weights of older checkpoints
  const char* name;
  size_t bytes;
};
constexpr DTypeName kDTypes[] = {{DType::kF32, "F32", 4}, {DType::kF16, "F16", 2}, {DType::kBF16, "BF16", 2},
                                 {DType::kF64, "F64", 8}, {{}, "BOOL", 1},         {{}, "U8", 1},
                                 {{}, "I8", 1},           {{}, "U16", 2},          {{}, "I16", 2},
                                 {{}, "U32", 4},          {{}, "I32", 4},          {{}, "U64", 8},
                                 {{}, "I64", 8}};

const DTypeName& Describe(DType dtype) {
  return *std::find_if(std::begin(kDTypes), std::end(kDTypes),
                       [&](const auto& d) { return d.dtype == dtype; });
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  uint32_t mantissa = half & 0x3ff;
  if (exponent == 0) {
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -magnitude : magnitude;
  }
  const uint32_t bits = exponent == 31 ? sign | 0x7f800000 | (mantissa << 13)
                                       : sign | ((exponent + 112) << 23) | (mantissa << 13);
  return std::bit_cast<float>(bits);
}

absl::Status IoError(const char* what, const std::filesystem::path& path) {
  const int error = errno;
  const std::string message = absl::StrCat(what, " ", path.string(), ": ", std::strerror(error));
  if (error == ENOSPC || error == EDQUOT) return absl::ResourceExhaustedError(message);
  return error == ENOENT ? absl::NotFoundError(message) : absl::InternalError(message);
}

}  // namespace

size_t DTypeBytes(DType dtype) { return Describe(dtype).bytes; }

int64_t TensorView::num_elements() const {
  int64_t product = 1;
  for (const int64_t extent : shape) product *= extent;
  return product;
}

std::vector<float> TensorView::ToFloat() const {
  std::vector<float> out(num_elements());
  const std::byte* source = bytes.data();
  switch (dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), source, out.size() * sizeof(float));
      break;
    case DType::kF64:
      for (size_t i = 0; i < out.size(); ++i) {
        double value;
        std::memcpy(&value, source + i * sizeof value, sizeof value);
        out[i] = static_cast<float>(value);
      }
      break;
    case DType::kF16:
    case DType::kBF16:
      for (size_t i = 0; i < out.size(); ++i) {
        uint16_t value;
        std::memcpy(&value, source + i * sizeof value, sizeof value);
        out[i] = dtype == DType::kF16 ? HalfToFloat(value) : std::bit_cast<float>(uint32_t{value} << 16);
      }
  }
  return out;
}

absl::StatusOr<std::unique_ptr<const SafetensorsFile>> SafetensorsFile::Open(
    const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return IoError("opening", path);
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    ::close(fd);
    return IoError("reading", path);
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile);
  if (info.st_size > 0) {
    void* mapped = ::mmap(nullptr, static_cast<size_t>(info.st_size), PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      ::close(fd);
      return IoError("mapping", path);
    }
    file->mapping_ = {static_cast<const std::byte*>(mapped), static_cast<size_t>(info.st_size)};
  }
  ::close(fd);
  ALMOST_RETURN_IF_ERROR(file->Parse(path.string()));
  return std::unique_ptr<const SafetensorsFile>(std::move(file));
}

SafetensorsFile::~SafetensorsFile() {
  if (!mapping_.empty()) ::munmap(const_cast<std::byte*>(mapping_.data()), mapping_.size());
}

absl::Status SafetensorsFile::Parse(const std::string& name) {
  const auto damaged = [&](auto&&... what) { return absl::DataLossError(absl::StrCat(name, ": ", what...)); };
  uint64_t header_bytes = 0;
  if (mapping_.size() < sizeof header_bytes) return damaged("shorter than its header length");
  std::memcpy(&header_bytes, mapping_.data(), sizeof header_bytes);
  if (header_bytes > kMaxHeaderBytes)
    return damaged("header length ", header_bytes, " is over ", kMaxHeaderBytes);
  if (header_bytes > mapping_.size() - sizeof header_bytes) {
    return damaged("truncated: the header's ", header_bytes, " bytes do not fit the file's ",
                   mapping_.size());
  }
  const char* text = reinterpret_cast<const char*>(mapping_.data()) + sizeof header_bytes;
  ALMOST_ASSIGN_OR_RETURN(const json header, ParseBoundedJson({text, header_bytes}, name));
  if (!header.is_object()) return damaged("the header is not a JSON object");
  if (header.size() > kMaxTensors) return damaged("over ", kMaxTensors, " tensors");
  const std::span<const std::byte> data = mapping_.subspan(sizeof header_bytes + header_bytes);

  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (const auto& [tensor, entry] : header.items()) {
    if (tensor == "__metadata__") continue;
    if (!entry.is_object() || !entry.contains("dtype") || !entry.contains("shape") ||
        !entry.contains("data_offsets")) {
      return damaged("tensor ", tensor, ": needs dtype, shape and data_offsets");
    }
    const auto* dtype = std::find_if(std::begin(kDTypes), std::end(kDTypes),
                                     [&](const DTypeName& known) { return entry["dtype"] == known.name; });
    if (dtype == std::end(kDTypes)) {
      return absl::UnimplementedError(absl::StrCat(name, ": tensor ", tensor, ": dtype ",
                                                   entry["dtype"].dump(), "; supported: F32 F16 BF16 F64"));
    }
    TensorView view;
    if (dtype->dtype) view.dtype = *dtype->dtype;
    uint64_t expected = dtype->bytes;
    if (!entry["shape"].is_array()) return damaged("tensor ", tensor, ": shape is not a list");
    for (const json& extent : entry["shape"]) {
      if (!extent.is_number_unsigned() || extent.get<uint64_t>() > uint64_t{1} << 40 ||
          __builtin_mul_overflow(expected, extent.get<uint64_t>(), &expected)) {
        return damaged("tensor ", tensor, ": shape ", entry["shape"].dump(), " is out of range");
      }
      view.shape.push_back(extent.get<int64_t>());
    }
    const json& offsets = entry["data_offsets"];
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned()) {
      return damaged("tensor ", tensor, ": data_offsets is not two positions");
    }
    const uint64_t begin = offsets[0], end = offsets[1];
    if (begin > end || end > data.size()) {
      return damaged("truncated: tensor ", tensor, " lies at [", begin, ", ", end, ") of ", data.size(),
                     " bytes");
    }
    if (end - begin != expected) {
      return damaged("tensor ", tensor, ": ", end - begin, " bytes where its shape and dtype need ",
                     expected);
    }
    view.bytes = data.subspan(begin, end - begin);
    ranges.emplace_back(begin, end);
    if (dtype->dtype) tensors_.emplace(tensor, std::move(view));
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t covered = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin != covered) return damaged("tensors overlap or leave a gap at byte ", covered);
    covered = end;
  }
  if (covered != data.size()) return damaged(data.size() - covered, " bytes after the last tensor");
  return absl::OkStatus();
}

absl::Status WriteSafetensors(const std::filesystem::path& path, std::vector<TensorToWrite> tensors) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  json header = {{"__metadata__", {{"format", "pt"}}}};
  uint64_t offset = 0;
  std::vector<absl::string_view> pieces(2);
  for (const TensorToWrite& tensor : tensors) {
    header[tensor.name] = {{"dtype", Describe(tensor.dtype).name},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + tensor.bytes.size()}}};
    offset += tensor.bytes.size();
    pieces.push_back({reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size()});
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data begins aligned
  const uint64_t header_bytes = text.size();
  pieces[0] = {reinterpret_cast<const char*>(&header_bytes), sizeof header_bytes};
  pieces[1] = text;
  return Env::Posix()->WriteAtomically(path, pieces);
}

}  // namespace almost
