#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// The safetensors file format: an 8-byte little-endian header length, a JSON header, the tensors' bytes.
namespace almost {

enum class DType { kF32, kF16, kBF16, kF64 };

size_t DTypeBytes(DType dtype);

// A tensor inside a memory-mapped file; valid while the file is open.
struct TensorView {
  DType dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // row-major, little-endian; not necessarily aligned

  int64_t num_elements() const;
  // Widened (kF64: rounded) to float32.
  std::vector<float> ToFloat() const;
};

// A tensor to be written; `bytes` must stay alive during the call.
struct TensorToWrite {
  std::string name;
  DType dtype;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;
};

// A memory-mapped file, its header checked whole: lengths, dtypes, shape products, and that the tensors'
// ranges cover the data without gap or overlap. A hostile or truncated file is kDataLoss naming file and
// tensor; a floating-point type that is not read, kUnimplemented. Tensors of integers are checked and left
// out: no weight is one. Immutable and thread-safe.
class SafetensorsFile {
 public:
  static absl::StatusOr<std::unique_ptr<const SafetensorsFile>> Open(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::map<std::string, TensorView>& tensors() const { return tensors_; }

 private:
  SafetensorsFile() = default;
  absl::Status Parse(const std::string& name);

  std::span<const std::byte> mapping_;
  std::map<std::string, TensorView> tensors_;
};

// Writes the tensors in the order of their names, the file whole or not at all (Env).
absl::Status WriteSafetensors(const std::filesystem::path& path, std::vector<TensorToWrite> tensors);

}  // namespace almost
