#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace almost::cli {

// A TCP port of 127.0.0.1 that nothing listens on now, and that the kernel gives to no outgoing connection.
absl::StatusOr<int> FreePort();

// OK when `port` of 127.0.0.1 can be listened on; kFailedPrecondition naming the port when it is in use.
absl::Status CheckPortFree(int port);

}  // namespace almost::cli
