#include "common/kernels/thread_team.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <utility>

namespace almost {
namespace {

// About 50 microseconds.
constexpr int kAwakeSpins = 2000;

void Pause() { __builtin_ia32_pause(); }

}  // namespace

ThreadTeam::ThreadTeam(int num_threads) {
  for (int thread = 1; thread < num_threads; ++thread)
    helpers_.emplace_back([this, thread] { Help(thread); });
}

ThreadTeam::~ThreadTeam() {
  stopping_ = true;
  ++epoch_;
  epoch_.notify_all();
}

void ThreadTeam::Work(Loop& loop, int thread) {
  for (int begin; (begin = loop.next.fetch_add(loop.grain)) < loop.count;) {
    loop.body(thread, begin, std::min(loop.count, begin + loop.grain));
  }
}

void ThreadTeam::For(int count, int grain, Body body) {
  if (count <= grain || helpers_.empty()) {
    if (count > 0) body(0, 0, count);
    return;
  }
  Loop loop{body, count, grain};
  loop_ = &loop;
  ++epoch_;
  epoch_.notify_all();
  Work(loop, 0);
  // Who comes from here on finds no loop; who came before is waited for.
  loop_ = nullptr;
  for (int spins = 0; inside_ > 0; ++spins) spins < kAwakeSpins ? Pause() : std::this_thread::yield();
}

void ThreadTeam::Help(int thread) {
  uint32_t seen = 0;
  while (!stopping_) {
    for (int spins = 0; epoch_ == seen && spins < kAwakeSpins; ++spins) Pause();
    epoch_.wait(seen);
    seen = epoch_;
    ++inside_;
    if (Loop* loop = loop_) Work(*loop, thread);
    --inside_;
  }
}

SharedTeam::Turn::Turn(SharedTeam& shared) : shared_(shared) {
  std::unique_lock lock(shared.mutex_);
  if (!std::exchange(shared.taken_, true)) return;
  std::condition_variable given;
  shared.waiting_.push_back(&given);
  // Whoever ends its turn takes the first out and leaves the turn taken.
  given.wait(lock, [&] {
    return std::find(shared.waiting_.begin(), shared.waiting_.end(), &given) == shared.waiting_.end();
  });
}

SharedTeam::Turn::~Turn() {
  const std::lock_guard lock(shared_.mutex_);
  if (shared_.waiting_.empty()) {
    shared_.taken_ = false;
    return;
  }
  shared_.waiting_.front()->notify_one();
  shared_.waiting_.pop_front();
}

int SharedTeam::num_waiting() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(waiting_.size());
}

int UsableProcessors() {
  cpu_set_t affinity;
  CPU_ZERO(&affinity);
  double processors = std::thread::hardware_concurrency();
  if (sched_getaffinity(0, sizeof(affinity), &affinity) == 0) processors = CPU_COUNT(&affinity);
  // Control groups of version 2, as containers see their own: "max 100000" or a quota, in microseconds.
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  if (double quota = 0, period = 0; file >> quota >> period && period > 0) {
    processors = std::min(processors, std::ceil(quota / period));
  }
  return std::max(1, static_cast<int>(processors));
}

}  // namespace almost
