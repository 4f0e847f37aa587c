#include "clients/cli/supervisor.h"

#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>

#include "clients/cli/ports.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace almost::cli {
namespace {

using testing::HasSubstr;

// The child that the tests run is this program again: `listen PORT` is ready, `fail` ends at once, `stubborn
// PORT` serves and ignores SIGTERM.
int Child(const std::string& what, const char* port) {
  printf("%s starts\n", what.c_str());
  fflush(stdout);
  if (what == "fail") {
    fprintf(stderr, "no such model: x\n");
    return 3;
  }
  if (what == "stubborn") signal(SIGTERM, SIG_IGN);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const int yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(atoi(port)));
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0 || listen(fd, 8) != 0) return 4;
  while (true) {
    const int peer = accept(fd, nullptr, nullptr);
    if (peer < 0) continue;
    char request[256];
    (void)!read(peer, request, sizeof(request));
    dprintf(peer, "HTTP/1.0 200 OK\r\n\r\n");
    close(peer);
  }
}

class SupervisorTest : public testing::Test {
 protected:
  ServiceSpec Spec(const std::string& name, const std::string& what) {
    const int port = FreePort().value();
    return {name,
            {std::filesystem::read_symlink("/proc/self/exe"), what, std::to_string(port)},
            /*tier=*/0,
            port};
  }

  void SetUp() override {
    log_ = tmpfile();
    options_.log_fd = fileno(log_);
    options_.stop_deadline = absl::Seconds(20);
  }
  void TearDown() override { fclose(log_); }

  std::string Logged() {
    std::string text(1 << 16, '\0');
    const ssize_t size = pread(fileno(log_), text.data(), text.size(), 0);
    text.resize(static_cast<size_t>(size));
    return text;
  }

  FILE* log_;
  Supervisor::Options options_;
};

TEST_F(SupervisorTest, StartsAllPrefixesTheirOutputAndStopsOnSignal) {
  std::map<std::string, pid_t> last;
  Supervisor supervisor({Spec("one", "listen"), Spec("two", "listen")}, options_,
                        [&](const std::map<std::string, pid_t>& pids, bool all_ready) {
                          last = pids;
                          if (all_ready) kill(getpid(), SIGTERM);
                          return absl::OkStatus();
                        });
  EXPECT_TRUE(supervisor.Run().ok());
  EXPECT_THAT(Logged(), HasSubstr("[one] listen starts\n"));
  EXPECT_THAT(Logged(), HasSubstr("[two] listen starts\n"));
  ASSERT_EQ(last.size(), 2u);
  for (const auto& [name, pid] : last) EXPECT_NE(kill(pid, 0), 0) << name << " still runs";
}

TEST_F(SupervisorTest, RestartsAChildThatIsKilled) {
  std::set<pid_t> seen;
  Supervisor supervisor({Spec("one", "listen")}, options_,
                        [&](const std::map<std::string, pid_t>& pids, bool all_ready) {
                          if (!all_ready) return absl::OkStatus();
                          seen.insert(pids.at("one"));
                          if (seen.size() == 1) {
                            kill(pids.at("one"), SIGKILL);
                          } else {
                            kill(getpid(), SIGTERM);
                          }
                          return absl::OkStatus();
                        });
  EXPECT_TRUE(supervisor.Run().ok());
  EXPECT_EQ(seen.size(), 2u);
  EXPECT_THAT(Logged(), HasSubstr("was killed by signal 9"));
}

TEST_F(SupervisorTest, GoesOnWhenNobodyReadsItsLogAnyMore) {
  int log[2];
  ASSERT_EQ(pipe(log), 0);
  close(log[0]);
  options_.log_fd = log[1];
  Supervisor supervisor({Spec("one", "listen")}, options_,
                        [](const std::map<std::string, pid_t>&, bool all_ready) {
                          if (all_ready) kill(getpid(), SIGTERM);
                          return absl::OkStatus();
                        });
  EXPECT_TRUE(supervisor.Run().ok());
  close(log[1]);
}

TEST_F(SupervisorTest, GivesUpOnAChildThatEndsBeforeItWasReady) {
  Supervisor supervisor({Spec("one", "listen"), Spec("two", "fail")}, options_,
                        [](const std::map<std::string, pid_t>&, bool) { return absl::OkStatus(); });
  const absl::Status status = supervisor.Run();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()),
              testing::AllOf(HasSubstr("two ended with exit code 3"), HasSubstr("no such model: x")));
}

TEST_F(SupervisorTest, NamesAProgramThatIsNotThere) {
  ServiceSpec spec = Spec("one", "listen");
  spec.argv[0] = "/nonexistent/almost-generation";
  Supervisor supervisor({spec}, options_,
                        [](const std::map<std::string, pid_t>&, bool) { return absl::OkStatus(); });
  EXPECT_THAT(std::string(supervisor.Run().message()),
              HasSubstr("cannot run /nonexistent/almost-generation: No such file or directory"));
}

TEST_F(SupervisorTest, KillsWhatIgnoresTheStopBeyondTheDeadline) {
  options_.stop_deadline = absl::Milliseconds(200);
  pid_t stubborn = 0;
  Supervisor supervisor({Spec("one", "stubborn")}, options_,
                        [&](const std::map<std::string, pid_t>& pids, bool all_ready) {
                          stubborn = pids.at("one");
                          if (all_ready) kill(getpid(), SIGINT);
                          return absl::OkStatus();
                        });
  EXPECT_TRUE(supervisor.Run().ok());
  EXPECT_NE(kill(stubborn, 0), 0);
  EXPECT_THAT(Logged(), HasSubstr("still runs at the deadline"));
}

}  // namespace
}  // namespace almost::cli

int main(int argc, char** argv) {
  if (argc == 3) return almost::cli::Child(argv[1], argv[2]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
