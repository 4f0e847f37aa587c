#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "common/storage/env.h"

namespace almost {

// An Env for tests in which one operation, counted from 0 over all that change something, goes wrong.
// Thread-safe.
class FaultEnv : public Env {
 public:
  enum class Fault {
    kFull,     // fails with kResourceExhausted; nothing was done
    kBroken,   // fails with kUnknown, as a device error does; nothing was done
    kTorn,     // a write leaves its first half and fails; other operations as kBroken
    kCrashed,  // as kTorn, and every later operation fails too: the process is as good as dead
  };

  explicit FaultEnv(Env* base = Env::Posix()) : base_(base) {}

  // The operation number `operation` from now on fails.
  void FailAt(int operation, Fault fault);
  void Heal();
  // Operations since FailAt or Heal.
  int operations() const;

  absl::StatusOr<std::string> Read(const std::filesystem::path& file) override;
  using Env::Write;
  absl::Status Write(const std::filesystem::path& file, std::span<const absl::string_view> pieces,
                     Mode mode) override;
  absl::Status Append(const std::filesystem::path& file, absl::string_view contents) override;
  absl::Status Seal(const std::filesystem::path& file) override;
  absl::Status Rename(const std::filesystem::path& from, const std::filesystem::path& to) override;
  absl::Status Link(const std::filesystem::path& from, const std::filesystem::path& to) override;
  absl::Status SyncFolder(const std::filesystem::path& folder) override;
  absl::Status Remove(const std::filesystem::path& path) override;
  absl::Status CreateFolders(const std::filesystem::path& folder) override;
  absl::StatusOr<std::vector<std::string>> List(const std::filesystem::path& folder) override;
  absl::StatusOr<int64_t> FreeBytes(const std::filesystem::path& folder) override;

 private:
  // Counts an operation on `path`; `torn` is what half of it does.
  absl::Status Next(const std::filesystem::path& path, const std::function<void()>& torn = [] {});

  Env* const base_;
  mutable absl::Mutex mutex_;
  int fail_at_ ABSL_GUARDED_BY(mutex_) = -1;
  Fault fault_ ABSL_GUARDED_BY(mutex_) = Fault::kFull;
  int operations_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace almost
