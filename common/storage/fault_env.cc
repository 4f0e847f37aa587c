#include "common/storage/fault_env.h"

#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/base/status_macros.h"

namespace almost {

namespace fs = std::filesystem;

void FaultEnv::FailAt(int operation, Fault fault) {
  const absl::MutexLock lock(&mutex_);
  fail_at_ = operation;
  fault_ = fault;
  operations_ = 0;
}

void FaultEnv::Heal() { FailAt(-1, Fault::kFull); }

int FaultEnv::operations() const {
  const absl::MutexLock lock(&mutex_);
  return operations_;
}

absl::Status FaultEnv::Next(const fs::path& path, const std::function<void()>& torn) {
  const absl::MutexLock lock(&mutex_);
  const int operation = operations_++;
  const bool dead = fail_at_ >= 0 && operation > fail_at_ && fault_ == Fault::kCrashed;
  if (operation != fail_at_ && !dead) return absl::OkStatus();
  if (fault_ == Fault::kFull) {
    return absl::ResourceExhaustedError(absl::StrCat("injected: no space for ", path.string()));
  }
  if (!dead && fault_ != Fault::kBroken) torn();
  return absl::UnknownError(absl::StrCat("injected: device error at ", path.string()));
}

absl::StatusOr<std::string> FaultEnv::Read(const fs::path& file) { return base_->Read(file); }

absl::Status FaultEnv::Write(const fs::path& file, std::span<const absl::string_view> pieces, Mode mode) {
  const std::string whole = absl::StrJoin(pieces, "");
  const absl::string_view half = absl::string_view(whole).substr(0, whole.size() / 2);
  ALMOST_RETURN_IF_ERROR(Next(file, [&] { base_->Write(file, half, mode).IgnoreError(); }));
  return base_->Write(file, pieces, mode);
}

absl::Status FaultEnv::Append(const fs::path& file, absl::string_view contents) {
  const absl::string_view half = contents.substr(0, contents.size() / 2);
  ALMOST_RETURN_IF_ERROR(Next(file, [&] { base_->Append(file, half).IgnoreError(); }));
  return base_->Append(file, contents);
}

absl::Status FaultEnv::Seal(const fs::path& file) {
  ALMOST_RETURN_IF_ERROR(Next(file));
  return base_->Seal(file);
}

absl::Status FaultEnv::Rename(const fs::path& from, const fs::path& to) {
  ALMOST_RETURN_IF_ERROR(Next(to));
  return base_->Rename(from, to);
}

absl::Status FaultEnv::Link(const fs::path& from, const fs::path& to) {
  ALMOST_RETURN_IF_ERROR(Next(to));
  return base_->Link(from, to);
}

absl::Status FaultEnv::SyncFolder(const fs::path& folder) {
  ALMOST_RETURN_IF_ERROR(Next(folder));
  return base_->SyncFolder(folder);
}

absl::Status FaultEnv::Remove(const fs::path& path) {
  ALMOST_RETURN_IF_ERROR(Next(path));
  return base_->Remove(path);
}

absl::Status FaultEnv::CreateFolders(const fs::path& folder) {
  ALMOST_RETURN_IF_ERROR(Next(folder));
  return base_->CreateFolders(folder);
}

absl::StatusOr<std::vector<std::string>> FaultEnv::List(const fs::path& folder) {
  return base_->List(folder);
}

absl::StatusOr<int64_t> FaultEnv::FreeBytes(const fs::path& folder) { return base_->FreeBytes(folder); }

}  // namespace almost
