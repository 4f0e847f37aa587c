#pragma once

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "clients/cli/endpoints.h"

namespace almost::cli {

// What is done with the events of a Watch call.
template <typename Event>
struct Watcher {
  std::function<void(const Event&)> take;       // each event once, in order; no heartbeats
  std::function<bool()> ended;                  // whether the last event was the end
  std::function<void(const std::string&)> say;  // the service goes away, or is back
};

// Reads the events of `request` until `watcher.ended()`. When the service goes away the call is made again
// from the last sequence, for up to ten minutes without a word from it; then kUnavailable.
template <typename Stub, typename Request, typename Event>
absl::Status Watch(const Endpoint& endpoint, Stub& stub,
                   std::unique_ptr<grpc::ClientReader<Event>> (Stub::*method)(grpc::ClientContext*,
                                                                              const Request&),
                   Request request, const Watcher<Event>& watcher) {
  constexpr absl::Duration kPatience = absl::Minutes(10);
  constexpr absl::Duration kFirstPause = absl::Milliseconds(100);
  constexpr absl::Duration kLongestPause = absl::Seconds(2);
  absl::Time last_heard = absl::Now();
  absl::Duration pause = kFirstPause;
  bool away = false;
  while (true) {
    grpc::ClientContext context;
    const auto stream = (stub.*method)(&context, request);
    Event event;
    while (stream->Read(&event)) {
      last_heard = absl::Now();
      pause = kFirstPause;
      if (std::exchange(away, false)) watcher.say(endpoint.service + " is back.");
      if (event.state() == 0) continue;  // a heartbeat
      request.set_after_sequence(event.sequence());
      watcher.take(event);
    }
    const grpc::Status status = stream->Finish();
    if (watcher.ended()) return absl::OkStatus();
    if (!status.ok()) {
      const bool patient =
          status.error_code() == grpc::StatusCode::UNAVAILABLE && absl::Now() - last_heard < kPatience;
      if (!patient) return ServiceError(endpoint, status);
      if (!std::exchange(away, true)) watcher.say(endpoint.service + " is away; waiting for it.");
    }
    std::this_thread::sleep_for(absl::ToChronoMilliseconds(pause));
    pause = std::min(pause * 2, kLongestPause);
  }
}

}  // namespace almost::cli
