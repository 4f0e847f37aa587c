#include "common/rpc/replica_pool.h"

#include <netdb.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/base/random.h"
#include "common/base/sleep.h"
#include "common/base/status_macros.h"
#include "common/rpc/call_metrics.h"
#include "common/rpc/call_trace.h"

namespace almost {
namespace {

constexpr absl::string_view kDns = "dns:///";

absl::StatusOr<std::vector<std::string>> Resolve(absl::string_view name_and_port) {
  const size_t colon = name_and_port.rfind(':');
  const std::string name(name_and_port.substr(0, colon)), port(name_and_port.substr(colon + 1));
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(name.c_str(), port.c_str(), &hints, &found); error != 0) {
    return absl::UnavailableError(absl::StrCat("looking up ", name, ": ", gai_strerror(error)));
  }
  std::vector<std::string> addresses;
  for (const addrinfo* a = found; a != nullptr; a = a->ai_next) {
    char host[NI_MAXHOST];
    if (::getnameinfo(a->ai_addr, a->ai_addrlen, host, sizeof host, nullptr, 0, NI_NUMERICHOST) != 0)
      continue;
    addresses.push_back(a->ai_family == AF_INET6 ? absl::StrCat("[", host, "]:", port)
                                                 : absl::StrCat(host, ":", port));
  }
  ::freeaddrinfo(found);
  std::sort(addresses.begin(), addresses.end());
  addresses.erase(std::unique(addresses.begin(), addresses.end()), addresses.end());
  return addresses;
}

}  // namespace

ReplicaPool::ReplicaPool(std::string target, const ReplicaPoolOptions& options,
                         prometheus::Registry* registry)
    : target_(std::move(target)), options_(options), registry_(registry) {}

absl::StatusOr<std::unique_ptr<ReplicaPool>> ReplicaPool::Create(const std::string& target,
                                                                 const ReplicaPoolOptions& options,
                                                                 prometheus::Registry* registry) {
  std::unique_ptr<ReplicaPool> pool(new ReplicaPool(target, options, registry));
  ALMOST_ASSIGN_OR_RETURN(pool->credentials_, ChannelCredentials(options.tls));
  if (!options.token_file.empty()) {
    ALMOST_ASSIGN_OR_RETURN(pool->token_, BearerToken::Read(options.token_file));
  }
  const bool dns = absl::StartsWith(target, std::string(kDns));
  std::vector<std::string> addresses = dns ? std::vector<std::string>{target.substr(kDns.size())}
                                           : std::vector<std::string>(absl::StrSplit(target, ','));
  for (const std::string& address : addresses) {
    const size_t colon = address.rfind(':');
    if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) {
      return InvalidField("target", "host:port, several separated by commas, or dns:///name:port", target);
    }
  }
  if (dns) {
    if (const auto resolved = Resolve(addresses[0]); resolved.ok()) pool->SetAddresses(*resolved);
    pool->resolver_ = std::jthread([p = pool.get()](const std::stop_token& stop) { p->ResolveLoop(stop); });
  } else {
    pool->SetAddresses(addresses);
  }
  return pool;
}

ReplicaPool::~ReplicaPool() {
  absl::MutexLock lock(&mutex_);
  stopping_ = true;
}

void ReplicaPool::ResolveLoop(const std::stop_token&) {
  for (;;) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), options_.resolve_every)) return;
    }
    // A failed lookup changes nothing: the addresses of before are the best guess.
    if (const auto resolved = Resolve(target_.substr(kDns.size())); resolved.ok()) SetAddresses(*resolved);
  }
}

void ReplicaPool::SetAddresses(const std::vector<std::string>& addresses) {
  absl::MutexLock lock(&mutex_);
  for (const auto& replica : replicas_) {
    replica->listed = std::find(addresses.begin(), addresses.end(), replica->address) != addresses.end();
  }
  std::erase_if(replicas_, [](const auto& replica) { return !replica->listed && replica->outstanding == 0; });
  for (const std::string& address : addresses) {
    const bool known = std::any_of(replicas_.begin(), replicas_.end(),
                                   [&](const auto& replica) { return replica->address == address; });
    if (known) continue;
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // A replica's certificate is for the name they share, not for the address that this channel is opened to.
    if (absl::StartsWith(target_, std::string(kDns))) {
      arguments.SetSslTargetNameOverride(target_.substr(kDns.size(), target_.rfind(':') - kDns.size()));
    }
    auto replica = std::make_shared<Replica>();
    replica->address = address;
    std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
    interceptors.push_back(ClientCallTrace());
    if (token_) interceptors.push_back(ShowToken(*token_));
    if (registry_ != nullptr) interceptors.push_back(ClientCallMetrics(*registry_));
    replica->channel = grpc::experimental::CreateCustomChannelWithInterceptors(
        address, credentials_, arguments, std::move(interceptors));
    replicas_.push_back(std::move(replica));
  }
}

std::vector<std::string> ReplicaPool::Addresses() const {
  absl::MutexLock lock(&mutex_);
  std::vector<std::string> addresses;
  for (const auto& replica : replicas_) {
    if (replica->listed) addresses.push_back(replica->address);
  }
  return addresses;
}

std::shared_ptr<ReplicaPool::Replica> ReplicaPool::Acquire(
    double cost, const Replica* last, const std::set<std::shared_ptr<Replica>>& lacking) {
  absl::MutexLock lock(&mutex_);
  const absl::Time now = absl::Now();
  std::shared_ptr<Replica> best;
  const auto worse = [&](const Replica& a, const Replica& b) {
    const bool avoid_a = a.avoid_until > now || &a == last, avoid_b = b.avoid_until > now || &b == last;
    return avoid_a != avoid_b ? avoid_a : a.outstanding > b.outstanding;
  };
  ++next_;
  for (size_t i = 0; i < replicas_.size(); ++i) {
    const std::shared_ptr<Replica>& replica = replicas_[(next_ + i) % replicas_.size()];
    if (!replica->listed || lacking.contains(replica)) continue;
    if (best == nullptr || worse(*best, *replica)) best = replica;
  }
  if (best != nullptr) best->outstanding += cost;
  return best;
}

void ReplicaPool::Release(const std::shared_ptr<Replica>& replica, double cost, const absl::Status& status) {
  absl::MutexLock lock(&mutex_);
  replica->outstanding -= cost;
  if (absl::IsUnavailable(status) || absl::IsNotFound(status))
    replica->avoid_until = absl::Now() + options_.avoid_for;
  std::erase_if(replicas_, [](const auto& r) { return !r->listed && r->outstanding <= 0; });
}

absl::Status ReplicaPool::Once(Replica& replica, absl::Time deadline, const std::stop_token& stop,
                               const Attempt& attempt) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(deadline));
  const std::stop_callback on_stop(stop, [&context] { context.TryCancel(); });
  return FromGrpc(attempt(replica.channel, context));
}

absl::Status ReplicaPool::Try(double cost, absl::Time deadline, const std::stop_token& stop,
                              const Attempt& attempt) {
  cost = std::max(cost, 1.0);
  absl::Duration backoff = options_.first_backoff;
  std::shared_ptr<Replica> last;
  std::set<std::shared_ptr<Replica>> lacking;
  absl::Status status;
  for (int tries = 1;;) {
    if (stop.stop_requested()) return absl::CancelledError("the caller gave up");
    const std::shared_ptr<Replica> replica = Acquire(cost, last.get(), lacking);
    if (replica == nullptr && !lacking.empty()) return Annotate(status, target_);
    if (replica == nullptr) {
      status = absl::UnavailableError(absl::StrCat(target_, " has no address now"));
    } else {
      status = Once(*replica, deadline, stop, attempt);
      // A server cancels what its drain leaves over.
      if (absl::IsCancelled(status) && !stop.stop_requested()) {
        status = absl::UnavailableError(status.message());
      }
      Release(replica, cost, status);
      last = replica;
    }
    if (absl::IsNotFound(status)) {
      lacking.insert(replica);
      continue;
    }
    const bool again = absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
    if (!again || tries >= options_.max_tries) {
      return status.ok() ? status : Annotate(status, target_);
    }
    // Half of the wait is chance, so that callers refused together do not come back together.
    static std::atomic<uint64_t> draws = 0;
    const double jitter = 0.5 + RandomUnit(static_cast<uint64_t>(absl::ToUnixNanos(absl::Now())), draws++, 0);
    const absl::Duration wait = std::max(backoff * jitter, RetryDelay(status));
    if (absl::Now() + wait >= deadline) return Annotate(status, target_);
    SleepUnlessStopped(wait, stop);
    ++tries;
    backoff = std::min(2 * backoff, options_.longest_backoff);
  }
}

absl::Status ReplicaPool::TryEach(absl::Time deadline, const std::stop_token& stop, const Attempt& attempt) {
  std::vector<std::shared_ptr<Replica>> replicas;
  {
    absl::MutexLock lock(&mutex_);
    for (const auto& replica : replicas_) {
      if (!replica->listed) continue;
      replica->outstanding += 1;
      replicas.push_back(replica);
    }
  }
  bool done = false;
  absl::Status unreached = absl::UnavailableError(absl::StrCat(target_, " has no address now"));
  absl::Status failed;
  for (const std::shared_ptr<Replica>& replica : replicas) {
    const absl::Status status = Once(*replica, deadline, stop, attempt);
    Release(replica, 1, status);
    done = done || status.ok();
    if (absl::IsUnavailable(status)) {
      unreached = Annotate(status, replica->address);
    } else if (!status.ok()) {
      failed.Update(Annotate(status, replica->address));
    }
  }
  if (!failed.ok()) return failed;
  return done ? absl::OkStatus() : unreached;
}

}  // namespace almost
