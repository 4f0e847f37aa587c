#pragma once

#include <sys/types.h>

#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace almost::cli {

// A long-running program to keep alive.
struct ServiceSpec {
  std::string name;               // prefix of its log lines
  std::vector<std::string> argv;  // argv[0] is the program's path
  int tier = 0;                   // at the stop, higher tiers end before lower ones are asked to
  int metrics_port = 0;           // of 127.0.0.1; it is ready once /readyz there answers 200
};

// Runs programs as children, prefixes their output with their name, and starts one again when it dies.
//
// A child that ends before it was ever ready has a configuration that cannot work: everything is stopped and
// Run says why. Later deaths of any kind are answered by a restart after 100 ms, doubled up to 10 s while it
// dies again within 30 s. Children are in process groups of their own, so that Ctrl-C reaches the supervisor
// alone, and are terminated by the kernel when the supervisor itself dies.
//
// Not thread-safe, and to be used by the main thread of a process that has no other one yet: it blocks
// SIGINT, SIGTERM, SIGHUP, SIGCHLD and SIGPIPE there and takes them; a log that nobody reads stops nothing.
class Supervisor {
 public:
  struct Options {
    // From the request to stop until whatever still runs is killed.
    absl::Duration stop_deadline = absl::Seconds(30);
    // How long a child may take to become ready for the first time.
    absl::Duration start_deadline = absl::Minutes(5);
    // Where prefixed output goes.
    int log_fd = 2;
  };

  // Called whenever children were started or have become ready, with the process ids of those that run.
  using Observer = std::function<absl::Status(const std::map<std::string, pid_t>& pids, bool all_ready)>;

  Supervisor(std::vector<ServiceSpec> services, Options options, Observer observer);

  // Runs until SIGINT, SIGTERM or SIGHUP, then stops the children tier by tier; OK after such a stop.
  // kFailedPrecondition: a child ended, or took too long, before it was ready; names it and its last lines.
  // An error of the observer stops everything too and is returned. No child is left in any case.
  absl::Status Run();

 private:
  struct Child {
    ServiceSpec spec;
    pid_t pid = 0;    // 0 while it does not run
    int output = -1;  // read end of its stdout and stderr
    std::string partial_line;
    std::deque<std::string> last_lines;
    bool ready = false;
    bool ever_ready = false;
    absl::Time started;
    absl::Time restart_at = absl::InfiniteFuture();
    absl::Duration backoff;
  };

  absl::Status Supervise(int signals);
  absl::Status Start(Child& child);
  // Forwards output and collects the dead until `until` or a signal; returns whether it asks to stop.
  bool Wait(int signals, absl::Time until);
  absl::Status AfterDeath(Child& child, int wait_status);
  void StopAll(int signals);
  void Forward(Child& child);
  void Log(Child& child, absl::string_view line);

  std::vector<Child> children_;
  const Options options_;
  const Observer observer_;
  bool stopping_ = false;
  absl::Status failure_;  // first reason to give up
};

}  // namespace almost::cli
