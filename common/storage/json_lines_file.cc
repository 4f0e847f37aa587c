#include "common/storage/json_lines_file.h"

#include <zlib.h>

#include <cerrno>
#include <cstdint>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/storage/json_lines.h"

namespace almost {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr size_t kPieceBytes = size_t{4} << 20;

bool IsCompressed(const fs::path& file) { return file.extension() == ".gz"; }

}  // namespace

absl::StatusOr<std::unique_ptr<JsonLinesWriter>> JsonLinesWriter::Create(Env* env, fs::path file) {
  std::unique_ptr<JsonLinesWriter> writer(new JsonLinesWriter(env, std::move(file)));
  ALMOST_RETURN_IF_ERROR(env->Write(writer->file_, ""));
  if (IsCompressed(writer->file_)) writer->gzip_ = std::make_unique<GzipEncoder>();
  return writer;
}

absl::Status JsonLinesWriter::Append(const ordered_json& value) {
  ALMOST_RETURN_IF_ERROR(AppendJsonLine(value, &lines_));
  return lines_.size() < kPieceBytes ? absl::OkStatus() : Flush(/*last=*/false);
}

absl::Status JsonLinesWriter::AppendLines(absl::string_view lines) {
  absl::StrAppend(&lines_, lines);
  return lines_.size() < kPieceBytes ? absl::OkStatus() : Flush(/*last=*/false);
}

absl::Status JsonLinesWriter::Close() { return Flush(/*last=*/true); }

absl::Status JsonLinesWriter::Flush(bool last) {
  std::string bytes = std::exchange(lines_, "");
  if (gzip_ != nullptr) {
    const std::string plain = std::exchange(bytes, "");
    gzip_->Add(plain, &bytes);
    if (last) gzip_->Finish(&bytes);
  }
  return bytes.empty() ? absl::OkStatus() : env_->Append(file_, bytes);
}

absl::Status ForEachJsonLineOf(const fs::path& file,
                               const std::function<absl::Status(int64_t, const ordered_json&)>& use) {
  const std::string name = file.filename().string();
  // Reads plain files as well.
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> reader(gzopen(file.c_str(), "rb"), gzclose);
  if (reader == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("opening ", name));
  gzbuffer(reader.get(), 1 << 18);
  int64_t number = 0;
  const auto use_lines = [&](absl::string_view lines) {
    const int64_t first = number;
    return ForEachJsonLine(
        name, lines,
        [&](int64_t i, const ordered_json& line) {
          number = first + i + 1;
          return use(first + i, line);
        },
        first);
  };
  std::string lines;
  while (true) {
    const size_t kept = lines.size();
    lines.resize(kept + kPieceBytes);
    const int count = gzread(reader.get(), lines.data() + kept, static_cast<unsigned>(kPieceBytes));
    lines.resize(kept + static_cast<size_t>(std::max(count, 0)));
    int error = Z_OK;
    const char* const why = gzerror(reader.get(), &error);
    if (count < 0 || (error != Z_OK && error != Z_STREAM_END) ||
        (number == 0 && kept == 0 && IsCompressed(file) && gzdirect(reader.get()) != 0)) {
      return absl::DataLossError(absl::StrCat(name, ": damaged, or cut off: ", why));
    }
    if (count == 0) break;
    const size_t end = lines.rfind('\n');
    if (end == std::string::npos) continue;
    ALMOST_RETURN_IF_ERROR(use_lines(absl::string_view(lines).substr(0, end + 1)));
    lines.erase(0, end + 1);
  }
  return use_lines(lines);
}

}  // namespace almost
