#include "clients/cli/ports.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <random>

#include "absl/strings/str_cat.h"

namespace almost::cli {
namespace {

// Binds `port` (0: any) and returns the one bound.
absl::StatusOr<int> Bind(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return absl::ErrnoToStatus(errno, "socket");
  const int yes = 1;  // a port whose last connections are in TIME_WAIT is free
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  socklen_t size = sizeof(address);
  const bool bound = bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0;
  const int error = errno;
  if (bound) getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  if (!bound) {
    return absl::FailedPreconditionError(absl::StrCat(
        "port ", port, " of 127.0.0.1 cannot be listened on: ", absl::ErrnoToStatus(error, "").message()));
  }
  return ntohs(address.sin_port);
}

}  // namespace

absl::StatusOr<int> FreePort() {
  // Beneath the ports that the kernel gives to outgoing connections (ip_local_port_range, from 32768 on): one
  // of those could be taken by anybody's connection while a service is being restarted.
  std::random_device random;
  std::uniform_int_distribution<int> ports(20000, 32767);
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const absl::StatusOr<int> port = Bind(ports(random));
    if (port.ok()) return port;
  }
  return absl::ResourceExhaustedError("no port of 127.0.0.1 between 20000 and 32767 is free");
}

absl::Status CheckPortFree(int port) { return Bind(port).status(); }

}  // namespace almost::cli
