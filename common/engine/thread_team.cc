#include "common/engine/thread_team.h"

#include <algorithm>

namespace almost::engine {
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

}  // namespace almost::engine
