// Preloaded into a service by the campaign: an operating system whose disk fails and whose clock jumps, as a
// plan says that the campaign and the service share. No service knows of it.
//
// ALMOST_FAULTS names a file that holds a Plan; without it nothing happens. Operations are counted over all
// that change or sync a file beneath Plan.root, over restarts too, so that a plan can say "die at the 120th
// of them": between any two records of the journal, or in the middle of one.

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <ctime>

namespace {

enum Action : int64_t { kNone = 0, kDie = 1, kDieTorn = 2, kFull = 3, kBroken = 4 };

// The campaign writes this with Python's struct, so: no padding, eight bytes a number.
struct Plan {
  std::atomic<int64_t> operations;  // so far
  std::atomic<int64_t> first;       // those from here…
  std::atomic<int64_t> last;        // …to here meet `action`
  std::atomic<int64_t> action;
  std::atomic<int64_t> num_met;          // operations that did
  std::atomic<int64_t> clock_offset_ns;  // of the wall clock
  char root[976];                        // ends with '/'
};
static_assert(sizeof(Plan) == 1024);

Plan* plan = nullptr;

template <typename Function>
Function Real(const char* name, Function) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}
#define REAL(name)                                     \
  ([] {                                                \
    static const auto function = Real(#name, &::name); \
    return function;                                   \
  }())

__attribute__((constructor)) void Start() {
  const char* const file = getenv("ALMOST_FAULTS");
  if (file == nullptr) return;
  const int fd = open(file, O_RDWR | O_CLOEXEC);
  void* const mapped =
      fd < 0 ? MAP_FAILED : mmap(nullptr, sizeof(Plan), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) abort();
  close(fd);
  plan = static_cast<Plan*>(mapped);
  prctl(PR_SET_PDEATHSIG, SIGKILL);  // no service outlives the campaign
}

bool Beneath(const char* path) {
  if (plan == nullptr || strncmp(path, plan->root, strlen(plan->root)) != 0) return false;
  // An index in shared memory that SQLite makes anew after a crash.
  const size_t length = strlen(path);
  return length < 4 || strcmp(path + length - 4, "-shm") != 0;
}

bool Beneath(int fd) {
  if (plan == nullptr) return false;
  const int saved = errno;
  char link[32] = "/proc/self/fd/";
  char digits[12];
  int n = 0;
  for (int rest = fd; n == 0 || rest > 0; rest /= 10) digits[n++] = static_cast<char>('0' + rest % 10);
  for (size_t end = strlen(link); n > 0;) link[end++] = digits[--n];
  char path[1024];
  const ssize_t size = readlink(link, path, sizeof(path) - 1);
  errno = saved;
  if (size <= 0) return false;
  path[size] = 0;
  return Beneath(path);
}

[[noreturn]] void Die() {
  kill(getpid(), SIGKILL);
  while (true) pause();
}

// Counts an operation on a file that matters. What it meets: nothing, a full or broken disk (true, and errno
// is set), or death, before which `torn` does half of it.
template <typename Torn>
bool Fails(Torn torn) {
  const int64_t operation = plan->operations++;
  if (operation < plan->first || operation > plan->last) return false;
  const int64_t action = plan->action;
  if (action == kNone) return false;
  ++plan->num_met;
  if (action == kDieTorn || action == kBroken) torn();
  if (action == kDie || action == kDieTorn) Die();
  errno = action == kFull ? ENOSPC : EIO;
  return true;
}
bool Fails() {
  return Fails([] {});
}

void Jump(timespec& time, int64_t by_ns) {
  const int64_t ns = time.tv_nsec + by_ns % 1'000'000'000;
  time.tv_sec += by_ns / 1'000'000'000 + (ns < 0 ? -1 : ns / 1'000'000'000);
  time.tv_nsec = ns < 0 ? ns + 1'000'000'000 : ns % 1'000'000'000;
}

int64_t Offset() { return plan == nullptr ? 0 : plan->clock_offset_ns.load(); }

// A deadline by the wall clock as the kernel is to have it, whose clock has not jumped.
timespec OfTheKernel(const timespec& deadline) {
  timespec real = deadline;
  Jump(real, -Offset());
  return real.tv_sec < 0 ? timespec{} : real;
}

}  // namespace

extern "C" {

ssize_t write(int fd, const void* data, size_t size) {
  if (Beneath(fd) && Fails([&] { (void)!REAL(write)(fd, data, size / 2); })) return -1;
  return REAL(write)(fd, data, size);
}

ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  if (Beneath(fd) && Fails([&] { (void)!REAL(pwrite64)(fd, data, size / 2, offset); })) return -1;
  return REAL(pwrite64)(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  return pwrite64(fd, data, size, offset);
}

ssize_t writev(int fd, const iovec* pieces, int num) {
  if (Beneath(fd) && Fails([&] { (void)!REAL(writev)(fd, pieces, 1); })) return -1;
  return REAL(writev)(fd, pieces, num);
}

int fsync(int fd) { return Beneath(fd) && Fails() ? -1 : REAL(fsync)(fd); }
int fdatasync(int fd) { return Beneath(fd) && Fails() ? -1 : REAL(fdatasync)(fd); }
int rename(const char* from, const char* to) noexcept {
  return Beneath(to) && Fails() ? -1 : REAL(rename)(from, to);
}
int link(const char* from, const char* to) noexcept {
  return Beneath(to) && Fails() ? -1 : REAL(link)(from, to);
}
int mkdir(const char* path, mode_t mode) noexcept {
  return Beneath(path) && Fails() ? -1 : REAL(mkdir)(path, mode);
}

int clock_gettime(clockid_t clock, timespec* time) noexcept {
  const int result = REAL(clock_gettime)(clock, time);
  if (result == 0 && clock == CLOCK_REALTIME) Jump(*time, Offset());
  return result;
}

int gettimeofday(timeval* time, void*) noexcept {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  *time = {now.tv_sec, now.tv_nsec / 1000};
  return 0;
}

time_t time(time_t* to) noexcept {
  timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (to != nullptr) *to = now.tv_sec;
  return now.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t* condition, pthread_mutex_t* mutex, const timespec* deadline) {
  constexpr time_t kLongerThanUp = 1'000'000'000;  // what is less is of the monotonic clock
  const timespec real = deadline->tv_sec > kLongerThanUp ? OfTheKernel(*deadline) : *deadline;
  return REAL(pthread_cond_timedwait)(condition, mutex, &real);
}

long syscall(long number, ...) noexcept {
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& each : a) each = va_arg(list, long);
  va_end(list);
  timespec real;
  if (number == SYS_futex && (a[1] & FUTEX_CLOCK_REALTIME) != 0 && a[3] != 0) {
    real = OfTheKernel(*reinterpret_cast<const timespec*>(a[3]));
    a[3] = reinterpret_cast<long>(&real);
  }
  return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

}  // extern "C"
