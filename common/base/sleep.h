#pragma once

#include <stop_token>

#include "absl/time/time.h"

namespace almost {

// False: `stop` was requested before `duration` was over.
bool SleepUnlessStopped(absl::Duration duration, const std::stop_token& stop);

}  // namespace almost
