#pragma once

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace almost {

// Whether `id` may name a run, job, model, stage or artifact: [A-Za-z0-9._-]{1,128}, not starting with a dot.
// Such an id is safe as one component of a path. kInvalidArgument names `field`, the rule and the value.
absl::Status ValidateId(absl::string_view field, absl::string_view id);

}  // namespace almost
