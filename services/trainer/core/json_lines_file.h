#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace almost::trainer {

// A JSON Lines file of any size. Where its lines are is in memory (16 bytes each), they themselves are not.
// Thread-safe. Errors name the file and the line, from 1.
class JsonLinesFile {
 public:
  using Json = nlohmann::ordered_json;
  // Whether a line is one of the file's; an error ends the reading.
  using Keep = std::function<absl::StatusOr<bool>(const Json&)>;

  // Reads the file once from its start to its end. kNotFound; kInvalidArgument: it is empty; kDataLoss: a
  // line is not a JSON object.
  static absl::StatusOr<std::unique_ptr<const JsonLinesFile>> Open(const std::filesystem::path& file,
                                                                   const Keep& keep);
  ~JsonLinesFile();
  JsonLinesFile(const JsonLinesFile&) = delete;
  JsonLinesFile& operator=(const JsonLinesFile&) = delete;

  // Of the lines that were kept.
  size_t size() const { return lines_.size(); }
  // kDataLoss: it is not what it was when the file was opened.
  absl::StatusOr<Json> Read(size_t i) const;

 private:
  struct Line {
    int64_t offset;
    uint32_t num_bytes;
    uint32_t check;  // of its bytes
  };

  JsonLinesFile(std::filesystem::path file, int descriptor) : file_(std::move(file)), descriptor_(descriptor) {}

  const std::filesystem::path file_;
  const int descriptor_;
  std::vector<Line> lines_;
};

// The lines of such a file as what they stand for, made when it is asked for. Copies share the file.
// Thread-safe.
template <typename T>
class Dataset {
 public:
  using Parse = std::function<absl::StatusOr<T>(const JsonLinesFile::Json&)>;

  Dataset() = default;
  Dataset(std::shared_ptr<const JsonLinesFile> file, Parse parse)
      : file_(std::move(file)), parse_(std::move(parse)) {}

  size_t size() const { return file_ == nullptr ? 0 : file_->size(); }
  absl::StatusOr<T> Read(size_t i) const {
    absl::StatusOr<JsonLinesFile::Json> line = file_->Read(i);
    if (!line.ok()) return line.status();
    return parse_(*line);
  }
  absl::StatusOr<std::vector<T>> Read(const std::vector<size_t>& chosen) const {
    std::vector<T> all;
    for (const size_t i : chosen) {
      absl::StatusOr<T> one = Read(i);
      if (!one.ok()) return one.status();
      all.push_back(*std::move(one));
    }
    return all;
  }

 private:
  std::shared_ptr<const JsonLinesFile> file_;
  Parse parse_;
};

}  // namespace almost::trainer
