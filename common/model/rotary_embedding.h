#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json_fwd.hpp"

namespace almost {

// Rotary position embedding (Su et al. 2021, arXiv 2104.09864): at position p the pair (i, i + R/2) of a
// head's first R dimensions turns by p · inverse_frequencies[i]; the other dimensions stay.
struct RotaryEmbedding {
  std::vector<double> inverse_frequencies;  // [R / 2]; scaling already applied
  double attention_factor = 1.0;            // of cosines and sines, so of queries and keys each

  int num_dims() const { return 2 * static_cast<int>(inverse_frequencies.size()); }

  // Scaled as `scaling`, config.json's rope_scaling or null, says; the arithmetic is transformers'.
  //   linear   frequencies / factor
  //   dynamic  within max_positions nothing changes, and beyond nothing is served: there transformers' result
  //            depends on how a text was cut into calls
  //   llama3   wavelengths beyond the original context are slowed by factor, short ones left, between blended
  //   yarn     Peng et al. 2023 (arXiv 2309.00071): the same by dimension, and attention is sharpened
  // kUnimplemented: another type; kInvalidArgument names a malformed field.
  static absl::StatusOr<RotaryEmbedding> Create(int num_dims, double theta, int max_positions,
                                                const nlohmann::json& scaling);
};

}  // namespace almost
