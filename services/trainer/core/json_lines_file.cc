#include "services/trainer/core/json_lines_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <string>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "common/base/status_macros.h"

namespace almost::trainer {
namespace {

uint32_t Check(absl::string_view bytes) { return static_cast<uint32_t>(absl::HashOf(bytes)); }

}  // namespace

absl::StatusOr<std::unique_ptr<const JsonLinesFile>> JsonLinesFile::Open(const std::filesystem::path& file,
                                                                         const Keep& keep) {
  const int descriptor = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return absl::ErrnoToStatus(errno, file.string());
  std::unique_ptr<JsonLinesFile> opened(new JsonLinesFile(file, descriptor));
  FILE* const stream = fdopen(dup(descriptor), "r");
  if (stream == nullptr) return absl::ErrnoToStatus(errno, file.string());
  char* buffer = nullptr;
  size_t capacity = 0;
  int64_t offset = 0;
  absl::Status status;
  for (int64_t number = 1; status.ok(); ++number) {
    const ssize_t read = getline(&buffer, &capacity, stream);
    if (read < 0) {
      if (ferror(stream)) status = absl::ErrnoToStatus(errno, file.string());
      break;
    }
    absl::string_view line(buffer, read);
    if (line.back() == '\n') line.remove_suffix(1);
    const Json value = Json::parse(line.begin(), line.end(), nullptr, /*allow_exceptions=*/false);
    if (!value.is_object() || line.size() > std::numeric_limits<uint32_t>::max()) {
      status =
          absl::DataLossError(absl::StrCat(file.string(), ": line ", number, " is not a JSON object"));
      break;
    }
    const absl::StatusOr<bool> kept = keep(value);
    if (!kept.ok()) {
      status = Annotate(kept.status(), absl::StrCat(file.string(), " line ", number));
    } else if (*kept) {
      opened->lines_.push_back({offset, static_cast<uint32_t>(line.size()), Check(line)});
    }
    offset += read;
  }
  std::free(buffer);
  std::fclose(stream);
  if (!status.ok()) return status;
  if (offset == 0) return absl::InvalidArgumentError(absl::StrCat(file.string(), ": is empty"));
  opened->lines_.shrink_to_fit();
  return opened;
}

JsonLinesFile::~JsonLinesFile() { close(descriptor_); }

absl::StatusOr<JsonLinesFile::Json> JsonLinesFile::Read(size_t i) const {
  const Line& line = lines_[i];
  std::string bytes(line.num_bytes, '\0');
  size_t have = 0;
  while (have < bytes.size()) {
    const ssize_t read = pread(descriptor_, bytes.data() + have, bytes.size() - have,
                               line.offset + static_cast<int64_t>(have));
    if (read < 0 && errno == EINTR) continue;
    if (read < 0) return absl::ErrnoToStatus(errno, file_.string());
    if (read == 0) break;
    have += read;
  }
  if (have < bytes.size() || Check(bytes) != line.check) {
    return absl::DataLossError(
        absl::StrCat(file_.string(), ": was changed at byte ", line.offset, " after it had been read"));
  }
  return Json::parse(bytes);
}

}  // namespace almost::trainer
