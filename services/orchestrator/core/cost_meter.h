#pragma once

#include <array>
#include <chrono>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "almost/orchestrator/v1/orchestrator.pb.h"

namespace almost::orchestrator {

// What a stage uses of the services: counts by answer, device-seconds by the clock. A device is at work for
// the stage from a call's start to its end; calls at once are one stretch of time, times the device's
// replicas. What others ask of it meanwhile is not known here, so runs at once are each charged in full.
// Thread-safe.
class CostMeter {
 public:
  // kNone: the stage waits for something that is no device: any service, another stage, its turn.
  enum class Device { kGeneration, kReward, kTrainer, kNone };

  // A call at work, for as long as it lives. Must not outlive the meter.
  class Busy {
   public:
    Busy(CostMeter* meter, Device device, int num_replicas = 1);
    ~Busy();
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

   private:
    CostMeter* const meter_;
    const Device device_;
  };

  void Add(const v1::Cost& cost);
  // Calls under way are counted up to now.
  v1::Cost Total() const;
  // Time in which the stage waited for anything at all.
  double WaitedSeconds() const;
  // What has come since the last call of this.
  v1::Cost TakeNew();

 private:
  using Clock = std::chrono::steady_clock;
  struct Use {
    int num_calls = 0;
    int num_replicas = 1;
    Clock::time_point since;
  };
  v1::Cost TotalLocked() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  mutable absl::Mutex mutex_;
  v1::Cost counted_ ABSL_GUARDED_BY(mutex_);
  v1::Cost taken_ ABSL_GUARDED_BY(mutex_);
  std::array<Use, 4> uses_ ABSL_GUARDED_BY(mutex_);  // by Device
  int num_waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  Clock::time_point waiting_since_ ABSL_GUARDED_BY(mutex_);
  double waited_seconds_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Field by field.
void AddTo(const v1::Cost& cost, v1::Cost* sum, double times = 1);

}  // namespace almost::orchestrator
