#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace almost {

// The file operations everything durable goes through, so that tests can inject faults (fault_env.h).
// Thread-safe. Errors name the path: kNotFound, kResourceExhausted (disk or quota full), kPermissionDenied,
// kUnknown (the device failed).
class Env {
 public:
  virtual ~Env() = default;
  // The operating system's.
  static Env* Posix();

  virtual absl::StatusOr<std::string> Read(const std::filesystem::path& file) = 0;
  enum class Mode { kWritable, kReadOnly };
  // Creates or replaces `file`; its contents are on disk when this returns OK, and undefined after an error.
  virtual absl::Status Write(const std::filesystem::path& file, std::span<const absl::string_view> pieces,
                             Mode mode) = 0;
  absl::Status Write(const std::filesystem::path& file, absl::string_view contents,
                     Mode mode = Mode::kWritable) {
    return Write(file, std::span(&contents, 1), mode);
  }
  // Adds at the end, on disk when this returns OK; after an error part of it may be there.
  virtual absl::Status Append(const std::filesystem::path& file, absl::string_view contents) = 0;
  // Brings what others wrote into `file` to disk and makes it read-only.
  virtual absl::Status Seal(const std::filesystem::path& file) = 0;
  // Atomic and durable; replaces a file at `to`, or an empty folder when `from` is one.
  virtual absl::Status Rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  // A second name for the same bytes; a copy where the file system cannot. Durable after SyncFolder.
  // kAlreadyExists: `to` is there.
  virtual absl::Status Link(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  // Brings the names in `folder` to disk.
  virtual absl::Status SyncFolder(const std::filesystem::path& folder) = 0;
  // A file, or a folder with everything in it; harmless when missing.
  virtual absl::Status Remove(const std::filesystem::path& path) = 0;
  // With all its parents; harmless when there.
  virtual absl::Status CreateFolders(const std::filesystem::path& folder) = 0;
  // Names in `folder`, sorted.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::filesystem::path& folder) = 0;
  virtual absl::StatusOr<int64_t> FreeBytes(const std::filesystem::path& folder) = 0;

  // Whole or not at all: written beside `file`, then renamed. After an error the old contents are there.
  absl::Status WriteAtomically(const std::filesystem::path& file, std::span<const absl::string_view> pieces);
  absl::Status WriteAtomically(const std::filesystem::path& file, absl::string_view contents) {
    return WriteAtomically(file, std::span(&contents, 1));
  }
};

// A name that no other process on any machine takes: for files on their way to their place.
std::string UniqueName();

}  // namespace almost
