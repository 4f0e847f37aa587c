#include "common/storage/env.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <random>
#include <sstream>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/base/status_macros.h"

namespace almost {
namespace {

namespace fs = std::filesystem;

absl::Status Error(int error, absl::string_view doing, const fs::path& path) {
  return absl::ErrnoToStatus(error, absl::StrCat(doing, " ", path.string()));
}

absl::Status Error(const std::error_code& error, absl::string_view doing, const fs::path& path) {
  return error ? Error(error.value(), doing, path) : absl::OkStatus();
}

class Descriptor {
 public:
  Descriptor(const fs::path& path, int flags) : fd_(::open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  const int fd_;
};

absl::Status WriteSynced(const fs::path& file, int flags, std::span<const absl::string_view> pieces,
                         Env::Mode mode) {
  const Descriptor descriptor(file, O_WRONLY | O_CREAT | flags);
  if (descriptor.get() < 0) return Error(errno, "opening", file);
  for (absl::string_view piece : pieces) {
    while (!piece.empty()) {
      const ssize_t written = ::write(descriptor.get(), piece.data(), piece.size());
      if (written < 0 && errno != EINTR) return Error(errno, "writing", file);
      if (written > 0) piece.remove_prefix(static_cast<size_t>(written));
    }
  }
  const bool read_only = mode == Env::Mode::kReadOnly;
  if ((read_only && ::fchmod(descriptor.get(), 0444) != 0) || ::fsync(descriptor.get()) != 0) {
    return Error(errno, "syncing", file);
  }
  return absl::OkStatus();
}

class PosixEnv : public Env {
 public:
  using Env::Write;
  absl::StatusOr<std::string> Read(const fs::path& file) override {
    const Descriptor descriptor(file, O_RDONLY);
    struct stat stat{};
    if (descriptor.get() < 0 || ::fstat(descriptor.get(), &stat) != 0) return Error(errno, "opening", file);
    std::string contents;
    contents.reserve(static_cast<size_t>(stat.st_size));
    char buffer[1 << 16];
    while (true) {
      const ssize_t count = ::read(descriptor.get(), buffer, sizeof buffer);
      if (count < 0 && errno != EINTR) return Error(errno, "reading", file);
      if (count == 0) return contents;
      if (count > 0) contents.append(buffer, static_cast<size_t>(count));
    }
  }

  absl::Status Write(const fs::path& file, std::span<const absl::string_view> pieces, Mode mode) override {
    return WriteSynced(file, O_TRUNC, pieces, mode);
  }

  absl::Status Append(const fs::path& file, absl::string_view contents) override {
    return WriteSynced(file, O_APPEND, std::span(&contents, 1), Mode::kWritable);
  }

  absl::Status Seal(const fs::path& file) override {
    const Descriptor descriptor(file, O_RDONLY);
    if (descriptor.get() < 0) return Error(errno, "opening", file);
    if (::fchmod(descriptor.get(), 0444) != 0 || ::fsync(descriptor.get()) != 0) {
      return Error(errno, "sealing", file);
    }
    return absl::OkStatus();
  }

  absl::Status Rename(const fs::path& from, const fs::path& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) return Error(errno, "renaming to", to);
    return SyncFolder(to.parent_path());
  }

  absl::Status Link(const fs::path& from, const fs::path& to) override {
    if (::link(from.c_str(), to.c_str()) == 0) return absl::OkStatus();
    if (errno != EXDEV && errno != EPERM && errno != EMLINK && errno != ENOTSUP) {
      return Error(errno, "linking", to);
    }
    std::error_code error;
    fs::copy_file(from, to, fs::copy_options::none, error);
    ALMOST_RETURN_IF_ERROR(Error(error, "copying to", to));
    return Seal(to);
  }

  absl::Status SyncFolder(const fs::path& folder) override {
    const Descriptor descriptor(folder.empty() ? "." : folder, O_RDONLY | O_DIRECTORY);
    if (descriptor.get() < 0 || ::fsync(descriptor.get()) != 0) return Error(errno, "syncing", folder);
    return absl::OkStatus();
  }

  absl::Status Remove(const fs::path& path) override {
    std::error_code error;
    fs::remove_all(path, error);
    return Error(error, "removing", path);
  }

  absl::Status CreateFolders(const fs::path& folder) override {
    std::error_code error;
    fs::create_directories(folder, error);
    return Error(error, "creating", folder);
  }

  absl::StatusOr<std::vector<std::string>> List(const fs::path& folder) override {
    std::error_code error;
    std::vector<std::string> names;
    for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
      names.push_back(it->path().filename().string());
    }
    ALMOST_RETURN_IF_ERROR(Error(error, "listing", folder));
    std::sort(names.begin(), names.end());
    return names;
  }

  absl::StatusOr<int64_t> FreeBytes(const fs::path& folder) override {
    std::error_code error;
    const fs::space_info space = fs::space(folder, error);
    ALMOST_RETURN_IF_ERROR(Error(error, "asking for the free space of", folder));
    return static_cast<int64_t>(space.available);
  }
};

}  // namespace

Env* Env::Posix() {
  static PosixEnv* const env = new PosixEnv;
  return env;
}

absl::Status Env::WriteAtomically(const fs::path& file, std::span<const absl::string_view> pieces) {
  const fs::path fresh = absl::StrCat(file.string(), ".", UniqueName());
  absl::Status status = Write(fresh, pieces, Mode::kWritable);
  if (status.ok()) status = Rename(fresh, file);
  if (!status.ok()) Remove(fresh).IgnoreError();
  return status;
}

std::string UniqueName() {
  std::random_device random;
  return absl::StrFormat("new-%08x%08x%08x", random(), random(), random());
}

}  // namespace almost
