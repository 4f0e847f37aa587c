#include "clients/cli/supervisor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"

namespace almost::cli {
namespace {

constexpr absl::Duration kFirstBackoff = absl::Milliseconds(100);
constexpr absl::Duration kLargestBackoff = absl::Seconds(10);
constexpr absl::Duration kStable = absl::Seconds(30);
constexpr absl::Duration kReadyPoll = absl::Milliseconds(50);
constexpr size_t kLinesKept = 8;

bool IsReady(int metrics_port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const timeval patience{.tv_sec = 1, .tv_usec = 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(metrics_port));
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    constexpr absl::string_view kRequest = "GET /readyz HTTP/1.0\r\n\r\n";
    char piece[256];
    if (send(fd, kRequest.data(), kRequest.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(kRequest.size())) {
      for (ssize_t size;
           answer.find('\n') == std::string::npos && (size = read(fd, piece, sizeof(piece))) > 0;) {
        answer.append(piece, static_cast<size_t>(size));
      }
    }
  }
  close(fd);
  return absl::StrContains(answer.substr(0, answer.find('\n')), " 200");
}

std::string DescribeEnd(int wait_status) {
  if (WIFSIGNALED(wait_status)) {
    return absl::StrCat("was killed by signal ", WTERMSIG(wait_status), " (",
                        strsignal(WTERMSIG(wait_status)), ")");
  }
  return absl::StrCat("ended with exit code ", WEXITSTATUS(wait_status));
}

}  // namespace

Supervisor::Supervisor(std::vector<ServiceSpec> services, Options options, Observer observer)
    : options_(options), observer_(std::move(observer)) {
  for (ServiceSpec& spec : services) {
    children_.emplace_back();
    children_.back().spec = std::move(spec);
  }
}

absl::Status Supervisor::Run() {
  sigset_t taken;
  sigemptyset(&taken);
  // SIGPIPE: a log that nobody reads any more is no reason to stop.
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD, SIGPIPE}) sigaddset(&taken, signal);
  sigset_t before;
  sigprocmask(SIG_BLOCK, &taken, &before);
  const int signals = signalfd(-1, &taken, SFD_CLOEXEC | SFD_NONBLOCK);
  if (signals < 0) return absl::ErrnoToStatus(errno, "signalfd");

  const absl::Status status = Supervise(signals);
  StopAll(signals);
  signalfd_siginfo late;  // a SIGPIPE of the last lines is not to come now
  while (read(signals, &late, sizeof(late)) == sizeof(late)) continue;
  close(signals);
  sigprocmask(SIG_SETMASK, &before, nullptr);
  return status;
}

absl::Status Supervisor::Supervise(int signals) {
  for (Child& child : children_) ALMOST_RETURN_IF_ERROR(Start(child));
  bool changed = true;
  while (true) {
    const absl::Time now = absl::Now();
    bool all_ready = true;
    absl::Time next = absl::InfiniteFuture();
    for (Child& child : children_) {
      if (child.pid == 0 && child.restart_at <= now) {
        ALMOST_RETURN_IF_ERROR(Start(child));
        changed = true;
      }
      if (child.pid != 0 && !child.ready && IsReady(child.spec.metrics_port)) {
        child.ready = child.ever_ready = true;
        changed = true;
      }
      all_ready &= child.ready;
      if (child.pid == 0) next = std::min(next, child.restart_at);
      if (child.pid != 0 && !child.ready) next = std::min(next, now + kReadyPoll);
      if (!child.ever_ready && now - child.started > options_.start_deadline) {
        return absl::FailedPreconditionError(absl::StrCat(
            child.spec.name, " was not ready within ", absl::FormatDuration(options_.start_deadline),
            "; its last lines:\n  ", absl::StrJoin(child.last_lines, "\n  ")));
      }
    }
    if (changed) {
      std::map<std::string, pid_t> pids;
      for (const Child& child : children_) {
        if (child.pid != 0) pids[child.spec.name] = child.pid;
      }
      ALMOST_RETURN_IF_ERROR(observer_(pids, all_ready));
      changed = false;
    }
    if (Wait(signals, next)) return absl::OkStatus();
    ALMOST_RETURN_IF_ERROR(failure_);
  }
}

absl::Status Supervisor::Start(Child& child) {
  int output[2];
  if (pipe2(output, O_CLOEXEC) != 0) return absl::ErrnoToStatus(errno, "pipe2");
  std::vector<char*> argv;
  for (const std::string& argument : child.spec.argv) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return absl::ErrnoToStatus(errno, "fork");
  if (pid == 0) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, nullptr);
    const int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    dup2(output[1], 1);
    dup2(output[1], 2);
    execv(argv[0], argv.data());
    dprintf(2, "cannot run %s: %s\n", argv[0], strerror(errno));
    _exit(127);
  }
  close(output[1]);
  fcntl(output[0], F_SETFL, O_NONBLOCK);
  child.pid = pid;
  child.output = output[0];
  child.ready = false;
  child.started = absl::Now();
  child.restart_at = absl::InfiniteFuture();
  return absl::OkStatus();
}

bool Supervisor::Wait(int signals, absl::Time until) {
  std::vector<pollfd> polled = {{signals, POLLIN, 0}};
  for (const Child& child : children_) {
    if (child.output >= 0) polled.push_back({child.output, POLLIN, 0});
  }
  const absl::Duration left = std::clamp(until - absl::Now(), absl::ZeroDuration(), absl::Seconds(60));
  poll(polled.data(), polled.size(),
       static_cast<int>(absl::ToInt64Milliseconds(absl::Ceil(left, absl::Milliseconds(1)))));

  for (Child& child : children_) Forward(child);
  bool stop = false;
  signalfd_siginfo info;
  while (read(signals, &info, sizeof(info)) == sizeof(info)) {
    stop |= info.ssi_signo != SIGCHLD && info.ssi_signo != SIGPIPE;
  }
  // One SIGCHLD may stand for several deaths.
  for (Child& child : children_) {
    int wait_status = 0;
    if (child.pid == 0 || waitpid(child.pid, &wait_status, WNOHANG) != child.pid) continue;
    failure_.Update(AfterDeath(child, wait_status));
  }
  return stop;
}

absl::Status Supervisor::AfterDeath(Child& child, int wait_status) {
  Forward(child);
  if (!child.partial_line.empty()) Log(child, std::exchange(child.partial_line, {}));
  if (child.output >= 0) close(child.output);
  child.output = -1;
  child.pid = 0;
  child.ready = false;
  if (stopping_) return absl::OkStatus();
  if (!child.ever_ready) {
    return absl::FailedPreconditionError(absl::StrCat(child.spec.name, " ", DescribeEnd(wait_status),
                                                      " before it was ready; its last lines:\n  ",
                                                      absl::StrJoin(child.last_lines, "\n  ")));
  }
  const bool stable = absl::Now() - child.started >= kStable || child.backoff == absl::ZeroDuration();
  child.backoff = stable ? kFirstBackoff : std::min(child.backoff * 2, kLargestBackoff);
  child.restart_at = absl::Now() + child.backoff;
  Log(child, absl::StrCat("(supervisor) ", DescribeEnd(wait_status), "; restarting in ",
                          absl::FormatDuration(child.backoff)));
  return absl::OkStatus();
}

void Supervisor::StopAll(int signals) {
  stopping_ = true;  // what dies from here on is not started again
  absl::Time deadline = absl::Now() + options_.stop_deadline;
  std::set<int, std::greater<>> tiers;
  for (const Child& child : children_) tiers.insert(child.spec.tier);
  for (const int tier : tiers) {
    std::vector<Child*> members;
    for (Child& child : children_) {
      if (child.spec.tier == tier) members.push_back(&child);
    }
    const auto any_runs = [&] {
      return std::any_of(members.begin(), members.end(), [](const Child* child) { return child->pid != 0; });
    };
    for (const Child* child : members) {
      if (child->pid != 0) kill(child->pid, SIGTERM);
    }
    while (any_runs() && absl::Now() < deadline) {
      if (Wait(signals, deadline)) deadline = absl::Now();  // asked a second time
    }
    for (Child* child : members) {
      if (child->pid == 0) continue;
      Log(*child, "(supervisor) still runs at the deadline; killing it");
      kill(child->pid, SIGKILL);
    }
    while (any_runs()) Wait(signals, absl::Now() + absl::Seconds(1));
  }
}

void Supervisor::Forward(Child& child) {
  if (child.output < 0) return;
  char buffer[1 << 16];
  ssize_t size;
  while ((size = read(child.output, buffer, sizeof(buffer))) > 0) {
    absl::string_view rest(buffer, static_cast<size_t>(size));
    for (size_t end; (end = rest.find('\n')) != absl::string_view::npos; rest.remove_prefix(end + 1)) {
      absl::StrAppend(&child.partial_line, rest.substr(0, end));
      Log(child, std::exchange(child.partial_line, {}));
    }
    absl::StrAppend(&child.partial_line, rest);
  }
  if (size == 0) {  // closed by the child; polling it again would spin
    close(child.output);
    child.output = -1;
  }
}

void Supervisor::Log(Child& child, absl::string_view line) {
  child.last_lines.emplace_back(line);
  if (child.last_lines.size() > kLinesKept) child.last_lines.pop_front();
  const std::string prefixed = absl::StrCat("[", child.spec.name, "] ", line, "\n");
  (void)!write(options_.log_fd, prefixed.data(), prefixed.size());
}

}  // namespace almost::cli
