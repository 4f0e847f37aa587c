#include "clients/cli/evaluation_folder.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "clients/cli/progress.h"
#include "common/base/status_macros.h"
#include "common/storage/env.h"
#include "common/storage/json_lines.h"

namespace almost::cli {
namespace {

using nlohmann::ordered_json;

constexpr int kBatchesAtOnce = 4;

// The first field in which the two differ, as a path.
std::string Difference(const ordered_json& before, const ordered_json& now, const std::string& path) {
  if (!before.is_object() || !now.is_object()) {
    return absl::StrCat(path, " was ", before.dump(), ", is ", now.dump());
  }
  for (const auto& [key, value] : now.items()) {
    const auto old = before.find(key);
    if (old == before.end() || *old != value) {
      return Difference(old == before.end() ? ordered_json() : *old, value,
                        path.empty() ? key : absl::StrCat(path, ".", key));
    }
  }
  return "it was asked for more";
}

}  // namespace

absl::StatusOr<std::unique_ptr<EvaluationFolder>> EvaluationFolder::Open(const std::filesystem::path& folder,
                                                                         const ordered_json& about) {
  std::unique_ptr<EvaluationFolder> out(new EvaluationFolder(folder));
  const std::filesystem::path file = folder / "items.jsonl";
  absl::StatusOr<std::string> lines = Env::Posix()->Read(file);
  // What failed before its first item is not gone on with.
  if (absl::IsNotFound(lines.status()) || (lines.ok() && absl::StartsWith(*lines, R"({"about":)") &&
                                           std::count(lines->begin(), lines->end(), '\n') < 2)) {
    ALMOST_RETURN_IF_ERROR(Env::Posix()->CreateFolders(folder));
    std::string header;
    ALMOST_RETURN_IF_ERROR(AppendJsonLine({{"about", about}}, &header));
    ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(file, header));
    return out;
  }
  ALMOST_RETURN_IF_ERROR(lines.status());
  if (const size_t whole = lines->rfind('\n') + 1; whole < lines->size()) {
    lines->resize(whole);
    ALMOST_RETURN_IF_ERROR(Env::Posix()->WriteAtomically(file, *lines));
  }
  ALMOST_RETURN_IF_ERROR(
      ForEachJsonLine(file.string(), *lines, [&](int64_t number, const ordered_json& line) {
        if (number == 0) {
          const ordered_json before = line.value("about", ordered_json());
          if (before == about) return absl::OkStatus();
          return absl::FailedPreconditionError(
              absl::StrCat(folder.string(), " holds another evaluation: ", Difference(before, about, ""),
                           "\n  Name another folder with --to, or remove this one."));
        }
        if (!line.contains("id") || !line["id"].is_number_integer()) {
          return absl::DataLossError(absl::StrCat(file.string(), ": line ", number + 1, " has no id"));
        }
        out->items_[line["id"]] = line;
        return absl::OkStatus();
      }));
  return out;
}

size_t EvaluationFolder::size() const {
  absl::MutexLock lock(&mutex_);
  return items_.size();
}

absl::Status EvaluationFolder::Add(const std::vector<ordered_json>& items) {
  std::string lines;
  for (const ordered_json& item : items) ALMOST_RETURN_IF_ERROR(AppendJsonLine(item, &lines));
  absl::MutexLock lock(&mutex_);
  ALMOST_RETURN_IF_ERROR(Env::Posix()->Append(folder_ / "items.jsonl", lines));
  for (const ordered_json& item : items) items_[item.at("id")] = item;
  return absl::OkStatus();
}

std::vector<ordered_json> EvaluationFolder::Items(int64_t num_items) const {
  absl::MutexLock lock(&mutex_);
  std::vector<ordered_json> items;
  for (const auto& [id, item] : items_) {
    if (id < num_items) items.push_back(item);
  }
  return items;
}

absl::Status EvaluationFolder::Write(const std::string& name, const std::string& contents) const {
  return Env::Posix()->WriteAtomically(folder_ / name, contents);
}

absl::Status EvaluateMissing(EvaluationFolder& folder, int64_t num_items, int batch, const std::string& label,
                             bool quiet, const EvaluateBatch& evaluate) {
  std::vector<int64_t> missing;
  for (int64_t id = 0; id < num_items; ++id) {
    if (!folder.Has(id)) missing.push_back(id);
  }
  const auto before = num_items - static_cast<int64_t>(missing.size());
  const auto others = static_cast<int64_t>(folder.size()) - before;
  const absl::Time started = absl::Now();
  absl::Mutex mutex;
  absl::Status status;  // the first error
  int at_work = kBatchesAtOnce;
  size_t next = 0;
  std::vector<std::jthread> threads;
  for (int i = 0; i < kBatchesAtOnce; ++i) {
    threads.emplace_back([&] {
      for (;;) {
        std::span<const int64_t> ids;
        {
          absl::MutexLock lock(&mutex);
          if (!status.ok() || next >= missing.size()) {
            --at_work;
            return;
          }
          ids = std::span(missing).subspan(next, std::min(static_cast<size_t>(batch), missing.size() - next));
          next += ids.size();
        }
        auto items = evaluate(ids);
        const absl::Status done = items.ok() ? folder.Add(*items) : items.status();
        absl::MutexLock lock(&mutex);
        if (status.ok()) status = done;
      }
    });
  }
  ProgressDisplay display(stderr);
  const auto show = [&](ProgressLine::State state) {
    if (quiet) return;
    const auto done = static_cast<int64_t>(folder.size()) - others;
    ProgressLine line{label, state, done, num_items, absl::ToDoubleSeconds(absl::Now() - started), ""};
    if (before > 0) line.note = absl::StrCat(before, " were there");
    display.Update({line}, absl::Now());
  };
  {
    absl::MutexLock lock(&mutex);
    const auto ended = [&] { return at_work == 0; };
    while (!mutex.AwaitWithTimeout(absl::Condition(&ended), absl::Milliseconds(200))) {
      show(ProgressLine::State::kRunning);
    }
  }
  threads.clear();
  show(status.ok() ? ProgressLine::State::kDone : ProgressLine::State::kFailed);
  return status;
}

}  // namespace almost::cli
