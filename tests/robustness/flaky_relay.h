#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <mutex>
#include <thread>
#include <vector>

namespace almost {

// A TCP relay on loopback to 127.0.0.1:`target`, all of whose connections Cut ends in the middle of whatever
// they are carrying, as a client's machine that is switched off does. Thread-safe.
class FlakyRelay {
 public:
  explicit FlakyRelay(int target) : target_(target), listener_(Socket()) {
    sockaddr_in address = Loopback(0);
    socklen_t length = sizeof address;
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        ::listen(listener_, 64) != 0 ||
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
      std::abort();
    }
    port_ = ntohs(address.sin_port);
    acceptor_ = std::jthread([this](const std::stop_token& stop) { Accept(stop); });
  }
  ~FlakyRelay() {
    acceptor_.request_stop();
    acceptor_.join();
    Cut();
    ::close(listener_);
  }

  int port() const { return port_; }

  void Cut() {
    std::vector<std::jthread> pumps;
    {
      const std::lock_guard lock(mutex_);
      pumps.swap(pumps_);
    }
    for (std::jthread& pump : pumps) pump.request_stop();
  }

 private:
  static int Socket() { return ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); }
  static sockaddr_in Loopback(int port) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return address;
  }

  void Accept(const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      pollfd ready = {listener_, POLLIN, 0};
      if (::poll(&ready, 1, 20) <= 0) continue;
      const int client = ::accept(listener_, nullptr, nullptr);
      if (client < 0) continue;
      const std::lock_guard lock(mutex_);
      pumps_.emplace_back([this, client](const std::stop_token& cut) { Pump(client, cut); });
    }
  }

  void Pump(int client, const std::stop_token& cut) const {
    const int server = Socket();
    const sockaddr_in address = Loopback(target_);
    const bool connected =
        ::connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
    std::array<pollfd, 2> ends = {pollfd{client, POLLIN, 0}, pollfd{server, POLLIN, 0}};
    std::array<char, 1 << 14> bytes;
    for (bool open = connected; open && !cut.stop_requested();) {
      if (::poll(ends.data(), ends.size(), 10) <= 0) continue;
      for (const int from : {0, 1}) {
        if (ends[from].revents == 0) continue;
        const ssize_t count = ::recv(ends[from].fd, bytes.data(), bytes.size(), 0);
        open = open && count > 0 && ::send(ends[1 - from].fd, bytes.data(), count, MSG_NOSIGNAL) == count;
      }
    }
    const linger reset = {1, 0};  // RST instead of a farewell
    for (const int end : {client, server}) {
      ::setsockopt(end, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
      ::close(end);
    }
  }

  const int target_;
  const int listener_;
  int port_ = 0;
  std::mutex mutex_;
  std::vector<std::jthread> pumps_;  // one a connection; guarded by mutex_
  std::jthread acceptor_;
};

}  // namespace almost
