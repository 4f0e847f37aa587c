#include "services/trainer/torch/rendezvous.h"

#include <netdb.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "torch/csrc/distributed/c10d/PrefixStore.hpp"
#include "torch/csrc/distributed/c10d/TCPStore.hpp"
#define USE_C10D_GLOO  // which LibTorch is built with; its own headers ask
#include "torch/csrc/distributed/c10d/ProcessGroupGloo.hpp"
#ifdef USE_C10D_NCCL
#include "torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp"
#endif

// The store's keys: `attempt`, the number of the latest call; `attempt/N/job`, what it is to;
// `attempt/N/rank/R`, the numerics of rank R, which has come; `attempt/N/go`, all have;
// `attempt/N/complaint`.
namespace almost::trainer {
namespace {

using std::chrono::milliseconds;

constexpr char kAttempt[] = "attempt";
constexpr milliseconds kPoll{100};
constexpr milliseconds kConnect{30'000};  // once everybody has said to be there
constexpr auto kTellOfWaiting = std::chrono::seconds(10);

std::vector<uint8_t> Bytes(absl::string_view text) { return {text.begin(), text.end()}; }
std::string Text(const std::vector<uint8_t>& bytes) { return {bytes.begin(), bytes.end()}; }

bool IsLoopback(const std::string& host) { return host == "localhost" || host.rfind("127.", 0) == 0; }

// Bound to the host's address where that is this machine's, else to all of them: within a container the name
// may not be known yet.
absl::StatusOr<int> BindSocket(const std::string& host, int port) {
  for (const char* node : {host.c_str(), static_cast<const char*>(nullptr)}) {
    addrinfo hints{.ai_flags = AI_PASSIVE, .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    addrinfo* found = nullptr;
    if (getaddrinfo(node, std::to_string(port).c_str(), &hints, &found) != 0) continue;
    const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> addresses(found, freeaddrinfo);
    for (const addrinfo* address = found; address != nullptr; address = address->ai_next) {
      const int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const int yes = 1;
      setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
      if (fd >= 0 && bind(fd, address->ai_addr, address->ai_addrlen) == 0) return fd;
      const bool taken = errno == EADDRINUSE;
      close(fd);
      if (taken) return absl::UnavailableError(absl::StrCat("master_port: ", port, " is in use"));
    }
  }
  return absl::UnavailableError(absl::StrCat("master_port: cannot listen on ", port));
}

absl::Status Check(const RankOptions& options) {
  if (options.world_size < 2) {
    return absl::InvalidArgumentError(absl::StrCat("world_size: must be above 1, is ", options.world_size));
  }
  if (options.rank < 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank: must be in [0, world_size = ", options.world_size, "), is ", options.rank));
  }
  if (options.master_addr.empty()) return absl::InvalidArgumentError("master_addr: must be set, is empty");
  if (options.master_port < 1 || options.master_port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("master_port: must be in [1, 65535], is ", options.master_port));
  }
  if (options.silence < absl::Seconds(1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank_silence: must be at least a second, is ", absl::FormatDuration(options.silence)));
  }
#ifndef USE_C10D_NCCL
  if (!options.device.is_cpu()) {
    return absl::UnimplementedError(absl::StrCat("device: ", options.device.str(), " with world_size ",
                                                 options.world_size, ": this build's LibTorch has no NCCL"));
  }
#endif
  return absl::OkStatus();
}

}  // namespace

Rendezvous::~Rendezvous() = default;

absl::StatusOr<std::unique_ptr<Rendezvous>> Rendezvous::Open(const RankOptions& options) {
  ALMOST_RETURN_IF_ERROR(Check(options));
  // Gloo and the store write to sockets whose other end may be gone: an error, not the end of this process.
  signal(SIGPIPE, SIG_IGN);
  auto rendezvous = std::unique_ptr<Rendezvous>(new Rendezvous(options));
  if (options.rank != 0) return rendezvous;
  int fd = options.listen_socket;
  if (fd < 0) {
    ALMOST_ASSIGN_OR_RETURN(fd, BindSocket(options.master_addr, options.master_port));
  }
  c10d::TCPStoreOptions store;
  store.port = static_cast<uint16_t>(options.master_port);
  store.isServer = true;
  store.waitWorkers = false;
  store.masterListenFd = fd;
  try {
    rendezvous->store_ = c10::make_intrusive<c10d::TCPStore>(
        IsLoopback(options.master_addr) ? options.master_addr : "localhost", store);
  } catch (const c10::Error& e) {
    return absl::UnavailableError(absl::StrCat("master_port: ", e.what_without_backtrace()));
  }
  return rendezvous;
}

std::string Rendezvous::Key(absl::string_view what) const {
  return absl::StrCat(kAttempt, "/", attempt_, "/", what);
}

Group Rendezvous::Connect() const {
  // The store's own connection serves this thread; a backend's threads get theirs.
  const auto store = c10::make_intrusive<c10d::PrefixStore>(Key("group"), store_->clone());
  const auto silence = milliseconds(absl::ToInt64Milliseconds(options_.silence));
  auto gloo = c10d::ProcessGroupGloo::Options::create_default(kConnect);
  if (IsLoopback(options_.master_addr)) {
    gloo->devices = {c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")};
  }
  auto cpu =
      c10::make_intrusive<c10d::ProcessGroupGloo>(store, options_.rank, options_.world_size, std::move(gloo));
  cpu->setTimeout(silence);
  c10::intrusive_ptr<c10d::Backend> gpu;
#ifdef USE_C10D_NCCL
  if (options_.device.is_cuda()) {
    auto nccl = c10d::ProcessGroupNCCL::Options::create();
    nccl->timeout = silence;
    gpu = c10::make_intrusive<c10d::ProcessGroupNCCL>(
        c10::make_intrusive<c10d::PrefixStore>(Key("nccl"), store_->clone()), options_.rank,
        options_.world_size, std::move(nccl));
  }
#endif
  return {options_.rank, options_.world_size, std::move(cpu), std::move(gpu)};
}

absl::StatusOr<Group> Rendezvous::Call(const std::string& job, const std::string& numerics,
                                       const std::stop_token& stop, const std::function<void(int)>& waiting) {
  try {
    ++attempt_;
    store_->set(Key("job"), Bytes(job));
    store_->add(kAttempt, 1);
    auto told = std::chrono::steady_clock::now();
    for (int missing = options_.world_size - 1; missing > 0;) {
      if (stop.stop_requested()) return absl::CancelledError("stopped while waiting for ranks");
      missing = 0;
      for (int rank = 1; rank < options_.world_size; ++rank) {
        missing += store_->check({Key(absl::StrCat("rank/", rank))}) ? 0 : 1;
      }
      if (missing == 0) break;
      if (const auto now = std::chrono::steady_clock::now(); now - told >= kTellOfWaiting) {
        told = now;
        if (waiting) waiting(missing);
      }
      std::this_thread::sleep_for(kPoll);
    }
    for (int rank = 1; rank < options_.world_size; ++rank) {
      if (const std::string theirs = Text(store_->get(Key(absl::StrCat("rank/", rank))));
          theirs != numerics) {
        return absl::FailedPreconditionError(
            absl::StrCat("rank ", rank, " computes with ", theirs, ", rank 0 with ", numerics));
      }
    }
    store_->set(Key("go"), Bytes("go"));
    return Connect();
  } catch (const std::exception& e) {
    return absl::UnavailableError(absl::StrCat("a rank went away: ", e.what()));
  }
}

absl::Status Rendezvous::Complaint() {
  try {
    if (!store_->check({Key("complaint")})) return absl::OkStatus();
    const std::string text = Text(store_->get(Key("complaint")));
    const size_t code_end = text.find(' ');
    return {static_cast<absl::StatusCode>(std::stoi(text)), text.substr(code_end + 1)};
  } catch (const std::exception& e) {
    return absl::InternalError(e.what());
  }
}

absl::StatusOr<Rendezvous::Attempt> Rendezvous::Follow(const std::string& numerics,
                                                       const std::stop_token& stop) {
  const std::string own = absl::StrCat("rank/", options_.rank);
  while (!stop.stop_requested()) {
    try {
      if (store_ == nullptr) {
        c10d::TCPStoreOptions store;
        store.port = static_cast<uint16_t>(options_.master_port);
        store.timeout = milliseconds(5000);
        attempt_ = 0;
        store_ = c10::make_intrusive<c10d::TCPStore>(options_.master_addr, store);
      }
      const int64_t latest = store_->add(kAttempt, 0);
      if (latest > attempt_) {
        attempt_ = latest;
        // Where this rank is said to have come already, that was a process before this one.
        if (!store_->check({Key(own)})) {
          store_->set(Key(own), Bytes(numerics));
          while (!stop.stop_requested() && store_->add(kAttempt, 0) == attempt_) {
            if (store_->check({Key("go")})) return Attempt{Text(store_->get(Key("job"))), Connect()};
            std::this_thread::sleep_for(kPoll);
          }
          continue;
        }
      }
    } catch (const std::exception&) {
      store_ = nullptr;  // rank 0 is not there, or no more
    }
    std::this_thread::sleep_for(kPoll);
  }
  return absl::CancelledError("stopped while waiting for a job");
}

void Rendezvous::Complain(const absl::Status& status) {
  try {
    store_->set(Key("complaint"), Bytes(absl::StrCat(static_cast<int>(status.code()), " rank ", options_.rank,
                                                     ": ", status.message())));
  } catch (const std::exception&) {
    store_ = nullptr;
  }
}

}  // namespace almost::trainer
