#include "services/orchestrator/core/cost_meter.h"

#include <algorithm>
#include <cmath>

namespace almost::orchestrator {

void AddTo(const v1::Cost& cost, v1::Cost* sum, double times) {
  const auto scaled = [times](int64_t count) { return std::llround(static_cast<double>(count) * times); };
  sum->set_prompt_tokens(sum->prompt_tokens() + scaled(cost.prompt_tokens()));
  sum->set_generated_tokens(sum->generated_tokens() + scaled(cost.generated_tokens()));
  sum->set_scored_items(sum->scored_items() + scaled(cost.scored_items()));
  sum->set_judged_items(sum->judged_items() + scaled(cost.judged_items()));
  sum->set_trained_tokens(sum->trained_tokens() + scaled(cost.trained_tokens()));
  sum->set_device_seconds(sum->device_seconds() + cost.device_seconds() * times);
}

namespace {

double SecondsSince(std::chrono::steady_clock::time_point then) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - then).count();
}

}  // namespace

CostMeter::Busy::Busy(CostMeter* meter, Device device, int num_replicas) : meter_(meter), device_(device) {
  const absl::MutexLock lock(&meter_->mutex_);
  Use& use = meter_->uses_[static_cast<size_t>(device_)];
  use.num_replicas = std::max(num_replicas, 1);
  if (use.num_calls++ == 0) use.since = Clock::now();
  if (meter_->num_waiting_++ == 0) meter_->waiting_since_ = Clock::now();
}

CostMeter::Busy::~Busy() {
  const absl::MutexLock lock(&meter_->mutex_);
  if (--meter_->num_waiting_ == 0) meter_->waited_seconds_ += SecondsSince(meter_->waiting_since_);
  Use& use = meter_->uses_[static_cast<size_t>(device_)];
  if (--use.num_calls > 0 || device_ == Device::kNone) return;
  meter_->counted_.set_device_seconds(meter_->counted_.device_seconds() +
                                      SecondsSince(use.since) * use.num_replicas);
}

double CostMeter::WaitedSeconds() const {
  const absl::MutexLock lock(&mutex_);
  return waited_seconds_ + (num_waiting_ > 0 ? SecondsSince(waiting_since_) : 0);
}

void CostMeter::Add(const v1::Cost& cost) {
  const absl::MutexLock lock(&mutex_);
  AddTo(cost, &counted_);
}

v1::Cost CostMeter::TotalLocked() const {
  v1::Cost total = counted_;
  for (const Device device : {Device::kGeneration, Device::kReward, Device::kTrainer}) {
    const Use& use = uses_[static_cast<size_t>(device)];
    if (use.num_calls == 0) continue;
    total.set_device_seconds(total.device_seconds() + SecondsSince(use.since) * use.num_replicas);
  }
  return total;
}

v1::Cost CostMeter::Total() const {
  const absl::MutexLock lock(&mutex_);
  return TotalLocked();
}

v1::Cost CostMeter::TakeNew() {
  const absl::MutexLock lock(&mutex_);
  const v1::Cost total = TotalLocked();
  v1::Cost fresh = total;
  AddTo(taken_, &fresh, -1);
  taken_ = total;
  return fresh;
}

}  // namespace almost::orchestrator
