#include "common/engine/cuda/emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/engine/cuda/device.h"
#include "common/engine/cuda/products.h"

namespace almost::engine::cuda {
namespace emulated {

ThreadState here;
alignas(128) std::byte shared_memory[256 << 10];

namespace {

constexpr size_t kStackBytes = 64 << 10;

// Where a fiber or the scheduler goes on. swapcontext asks the kernel for the signal mask, 100 times what a
// switch takes; so it only begins fibers, but for AddressSanitizer, which follows no jump to another stack.
struct Place {
  ucontext_t context;
#ifndef __SANITIZE_ADDRESS__
  jmp_buf jump;
#endif
};

void Switch(Place& from, Place& to, [[maybe_unused]] bool begin) {
#ifdef __SANITIZE_ADDRESS__
  swapcontext(&from.context, &to.context);
#else
  if (_setjmp(from.jump) != 0) return;
  begin ? void(setcontext(&to.context)) : _longjmp(to.jump, 1);
#endif
}

struct Fiber {
  Place place;
  bool begun = false;
  std::unique_ptr<std::byte[]> stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
  Wait wait = Wait::kNo;
};
std::deque<Fiber> fibers;  // kept from block to block
Place scheduler;
size_t running;
const std::function<void()>* kernel_of_grid;
uint64_t lane_slots[32][32];  // of warp and lane

void Main() {
  for (;;) {
    (*kernel_of_grid)();
    fibers[running].wait = Wait::kDone;
    Switch(fibers[running].place, scheduler, false);
  }
}

void Make(Fiber& fiber) {
  ucontext_t& context = fiber.place.context;
  getcontext(&context);
  context.uc_stack.ss_sp = fiber.stack.get();
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = nullptr;
  makecontext(&context, Main, 0);
}

// Runs the fibers of one block to their ends.
void RunBlock(size_t size) {
  for (size_t i = 0; i < size; ++i) fibers[i].wait = Wait::kNo;
  for (;;) {
    for (running = 0; running < size; ++running) {
      here.thread.x = static_cast<unsigned>(running);
      if (fibers[running].wait != Wait::kNo) continue;
      Switch(scheduler, fibers[running].place, !std::exchange(fibers[running].begun, true));
    }
    size_t released = 0, done = 0, at_block = 0;
    for (size_t warp = 0; warp < size; warp += 32) {
      const size_t end = std::min(size, warp + 32);
      const auto waiting = [&](Wait what) {
        return std::all_of(fibers.begin() + warp, fibers.begin() + end,
                           [&](const Fiber& f) { return f.wait == what; });
      };
      if (waiting(Wait::kWarp)) {
        for (size_t i = warp; i < end; ++i) fibers[i].wait = Wait::kNo;
        ++released;
      }
      done += waiting(Wait::kDone) ? end - warp : 0;
      at_block += waiting(Wait::kBlock) ? end - warp : 0;
    }
    if (done == size) return;
    if (at_block == size) {
      for (size_t i = 0; i < size; ++i) fibers[i].wait = Wait::kNo;
      ++released;
    }
    if (released == 0) {
      fprintf(stderr, "a barrier that not all threads of a block or warp reach\n");
      abort();
    }
  }
}

}  // namespace

void WaitFor(Wait what) {
  const ThreadState mine = here;
  fibers[running].wait = what;
  Switch(fibers[running].place, scheduler, false);
  here.thread = mine.thread;
}

uint64_t& LaneSlot(unsigned lane) { return lane_slots[here.thread.x / 32][lane]; }

void RunGrid(dim3 grid, dim3 block, const std::function<void()>& kernel) {
  while (fibers.size() < block.x) Make(fibers.emplace_back());
  kernel_of_grid = &kernel;
  here.grid_size = grid;
  here.block_size = block;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      here.block = dim3(x, y);
      RunBlock(block.x);
    }
  }
}

}  // namespace emulated

absl::StatusOr<std::unique_ptr<Products>> Products::CuBlas(WeightType, Stream&) {
  return absl::FailedPreconditionError("cuda: no cuBLAS in the emulation");
}

class Stream::Graph {
 public:
  std::vector<std::function<void()>> works;
};

absl::Status UseDevice(int number) {
  return number == 0 ? absl::OkStatus() : absl::FailedPreconditionError("cuda: no such GPU");
}
std::string DeviceName(int) { return "emulated"; }

absl::StatusOr<Memory> Memory::Allocate(size_t bytes, Kind) {
  Memory memory;
  memory.data_ = std::shared_ptr<void>(std::aligned_alloc(256, (bytes + 255) / 256 * 256), std::free);
  if (memory.data_ == nullptr) return absl::ResourceExhaustedError("out of memory");
  memset(memory.data_.get(), 0xff, bytes);  // NaN: nothing may count on zeros
  return memory;
}

absl::StatusOr<std::unique_ptr<Stream>> Stream::Create() { return std::unique_ptr<Stream>(new Stream); }
Stream::~Stream() = default;
void Stream::Do(std::function<void()> work) {
  if (recording_ != nullptr) {
    recording_->works.push_back(std::move(work));
  } else {
    work();
  }
}
void Stream::Copy(void* to, const void* from, size_t bytes) {
  Do([=] { memcpy(to, from, bytes); });
}
void Stream::CopyPieces(void* to, const void* from, size_t bytes, size_t pitch, int count) {
  Do([=] {
    for (int i = 0; i < count; ++i) {
      memcpy(static_cast<std::byte*>(to) + i * pitch, static_cast<const std::byte*>(from) + i * pitch, bytes);
    }
  });
}
absl::Status Stream::Wait() { return std::exchange(failure_, absl::OkStatus()); }
absl::StatusOr<std::shared_ptr<Stream::Graph>> Stream::Record(const std::function<void()>& enqueue) {
  auto graph = std::make_shared<Graph>();
  recording_ = graph.get();
  enqueue();
  recording_ = nullptr;
  return graph;
}
void Stream::Run(const Graph& graph) {
  for (const auto& work : graph.works) work();
}

}  // namespace almost::engine::cuda
