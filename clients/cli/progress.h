#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/time/time.h"

namespace almost::cli {

// One bar: something of which `done` out of `total` is done.
struct ProgressLine {
  enum class State { kWaiting, kRunning, kDone, kFailed };

  std::string label;
  State state = State::kWaiting;
  int64_t done = 0;
  int64_t total = 0;   // 0: not known
  double seconds = 0;  // of work so far
  std::string note;    // short, at the end of the line

  friend bool operator==(const ProgressLine&, const ProgressLine&) = default;
};

// `line` with bar, count, rate, and the time left or taken, without a newline; at most `columns` wide (0: no
// limit).
std::string FormatProgressLine(const ProgressLine& line, int columns);

// Shows several lines of progress at once. On a terminal they are drawn in place; elsewhere a line is printed
// when its state changes and otherwise at most every ten seconds. Not thread-safe.
class ProgressDisplay {
 public:
  // `out` must outlive it.
  explicit ProgressDisplay(FILE* out);

  // Shows `lines`, which replace those of the last call.
  void Update(const std::vector<ProgressLine>& lines, absl::Time now);

  // Prints `message` above the lines.
  void Say(const std::string& message);

 private:
  void Draw();

  FILE* const out_;
  const bool terminal_;
  std::vector<ProgressLine> lines_;
  std::vector<absl::Time> printed_;  // when each line last was, off a terminal
  int drawn_ = 0;                    // lines on the terminal that the next drawing replaces
};

}  // namespace almost::cli
