#include "clients/cli/progress.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace almost::cli {
namespace {

constexpr int kBarCells = 20;
constexpr absl::Duration kPlainInterval = absl::Seconds(10);

std::string Bar(double share) {
  static constexpr const char* kEighths[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
  const int eighths = static_cast<int>(std::lround(std::clamp(share, 0.0, 1.0) * kBarCells * 8));
  std::string bar;
  for (int i = 0; i < eighths / 8; ++i) bar += "█";
  bar += kEighths[eighths % 8];
  const int used = (eighths + 7) / 8;
  return bar + std::string(static_cast<size_t>(kBarCells - used), ' ');
}

std::string Seconds(double seconds) {
  if (seconds < 100) return absl::StrFormat("%.1f s", seconds);
  const int64_t whole = std::llround(seconds);
  if (whole < 3600) return absl::StrFormat("%d:%02d min", whole / 60, whole % 60);
  return absl::StrFormat("%d:%02d h", whole / 3600, whole % 3600 / 60);
}

std::string Rate(double per_second) {
  return per_second >= 100 ? absl::StrFormat("%.0f/s", per_second) : absl::StrFormat("%.1f/s", per_second);
}

// The first `columns` characters of UTF-8 `text`.
std::string Cut(const std::string& text, int columns) {
  size_t end = 0;
  while (end < text.size() && columns > 0) {
    ++end;
    while (end < text.size() && (text[end] & 0xC0) == 0x80) ++end;
    --columns;
  }
  return text.substr(0, end);
}

}  // namespace

std::string FormatProgressLine(const ProgressLine& line, int columns) {
  const bool known = line.total > 0;
  const double share = line.state == ProgressLine::State::kDone ? 1
                       : known ? static_cast<double>(line.done) / static_cast<double>(line.total)
                               : 0;
  const double rate = line.seconds > 0 ? static_cast<double>(line.done) / line.seconds : 0;
  const std::string count = known           ? absl::StrCat(line.done, "/", line.total)
                            : line.done > 0 ? absl::StrCat(line.done)
                                            : "";
  std::string time;
  switch (line.state) {
    case ProgressLine::State::kWaiting:
      time = "waiting";
      break;
    case ProgressLine::State::kRunning:
      time = line.done == 0 ? "started"
             : known && rate > 0
                 ? absl::StrCat(Seconds(static_cast<double>(line.total - line.done) / rate), " left")
                 : "";
      break;
    case ProgressLine::State::kDone:
      time = Seconds(line.seconds);
      break;
    case ProgressLine::State::kFailed:
      time = "FAILED";
      break;
  }
  std::string text = absl::StrFormat("%-16s %s %11s %9s %14s", line.label, Bar(share), count,
                                     rate > 0 && line.done > 0 ? Rate(rate) : "", time);
  if (!line.note.empty()) absl::StrAppend(&text, "  ", line.note);
  return columns > 0 ? Cut(text, columns) : text;
}

ProgressDisplay::ProgressDisplay(FILE* out) : out_(out), terminal_(isatty(fileno(out)) != 0) {}

void ProgressDisplay::Update(const std::vector<ProgressLine>& lines, absl::Time now) {
  if (lines == lines_) return;
  if (terminal_) {
    lines_ = lines;
    Draw();
    return;
  }
  printed_.resize(lines.size(), absl::InfinitePast());
  for (size_t i = 0; i < lines.size(); ++i) {
    const bool changed_state = i < lines_.size() ? lines[i].state != lines_[i].state
                                                 : lines[i].state != ProgressLine::State::kWaiting;
    const bool due = lines[i].state == ProgressLine::State::kRunning && now - printed_[i] >= kPlainInterval;
    if (!changed_state && !due) continue;
    absl::FPrintF(out_, "%s\n", FormatProgressLine(lines[i], 0));
    printed_[i] = now;
  }
  fflush(out_);
  lines_ = lines;
}

void ProgressDisplay::Say(const std::string& message) {
  if (drawn_ > 0) absl::FPrintF(out_, "\033[%dA\033[J", drawn_);
  drawn_ = 0;
  absl::FPrintF(out_, "%s\n", message);
  if (terminal_ && !lines_.empty()) Draw();
  fflush(out_);
}

void ProgressDisplay::Draw() {
  winsize size{};
  const int columns = ioctl(fileno(out_), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
  std::string text;
  if (drawn_ > 0) absl::StrAppend(&text, "\033[", drawn_, "A");
  for (const ProgressLine& line : lines_) {
    absl::StrAppend(&text, "\r\033[K", FormatProgressLine(line, columns - 1), "\n");
  }
  drawn_ = static_cast<int>(lines_.size());
  fwrite(text.data(), 1, text.size(), out_);
  fflush(out_);
}

}  // namespace almost::cli
