#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <future>
#include <stop_token>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/logging/trace.h"

namespace almost::simulator {

// A waiting caller looks so often whether it is to give up.
inline constexpr std::chrono::milliseconds kLook{100};

// Runs work(0), …, work(count - 1), up to `width` of them at once, each on a thread of its own, and hands
// their results to `use` in that order, on the caller's thread. Returns the first error, by that order, of
// either; then, or when `given_up` becomes true, the work under way is asked to stop and waited for. The
// threads work for the caller's trace.
template <typename T>
absl::Status InOrder(int count, int width, const std::function<bool()>& given_up,
                     const std::function<absl::StatusOr<T>(int, const std::stop_token&)>& work,
                     const std::function<absl::Status(T)>& use) {
  const auto traced = [&work, trace = CurrentTrace()](int i, const std::stop_token& stop) {
    const TraceScope scope(trace);
    return work(i, stop);
  };
  std::stop_source stop;
  std::deque<std::future<absl::StatusOr<T>>> under_way;  // its destructor waits
  int started = 0;
  for (int i = 0; i < count; ++i) {
    while (started < count && static_cast<int>(under_way.size()) < width) {
      under_way.push_back(std::async(std::launch::async, traced, started++, stop.get_token()));
    }
    while (under_way.front().wait_for(kLook) != std::future_status::ready) {
      if (given_up()) stop.request_stop();
    }
    absl::StatusOr<T> result = under_way.front().get();
    under_way.pop_front();
    absl::Status status = result.status();
    if (status.ok()) status = use(*std::move(result));
    if (!status.ok()) {
      stop.request_stop();
      return status;
    }
  }
  return absl::OkStatus();
}

}  // namespace almost::simulator
