#include "common/model/rotary_embedding.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/base/status_macros.h"
#include "common/model/config_fields.h"

namespace almost {
namespace {

using nlohmann::json;

absl::Status ScaleAsLlama3(ConfigFields& fields, double factor, std::vector<double>& frequencies) {
  const double low = fields.Number("low_freq_factor");
  const double high = fields.Number("high_freq_factor");
  const double original = fields.Int("original_max_position_embeddings");
  ALMOST_RETURN_IF_ERROR(fields.status());
  if (!(high > low)) {
    return absl::InvalidArgumentError(
        "config.json: rope_scaling.high_freq_factor must exceed low_freq_factor");
  }
  for (double& frequency : frequencies) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength < original / high) continue;
    if (wavelength > original / low) {
      frequency /= factor;
    } else {
      const double smooth = (original / wavelength - low) / (high - low);
      frequency = (1.0 - smooth) * frequency / factor + smooth * frequency;
    }
  }
  return absl::OkStatus();
}

absl::Status ScaleAsYarn(ConfigFields& fields, double factor, double theta, int max_positions,
                         RotaryEmbedding& rotary) {
  const double original = fields.Int("original_max_position_embeddings", max_positions);
  const double beta_fast = fields.Number("beta_fast", 32);
  const double beta_slow = fields.Number("beta_slow", 1);
  const bool truncate = fields.Bool("truncate", true);
  const auto sharpness = [&](double scale) {
    return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
  };
  if (fields.Has("attention_factor")) {
    rotary.attention_factor = fields.Number("attention_factor");
  } else if (fields.Has("mscale") && fields.Has("mscale_all_dim")) {
    rotary.attention_factor = sharpness(fields.Number("mscale")) / sharpness(fields.Number("mscale_all_dim"));
  } else {
    rotary.attention_factor = sharpness(1.0);
  }
  ALMOST_RETURN_IF_ERROR(fields.status());
  if (!(theta > 1)) return absl::InvalidArgumentError("config.json: rope_theta must exceed 1 with yarn");

  // The dimension that turns so often within the original context.
  const double dims = rotary.num_dims();
  const auto dimension = [&](double rotations) {
    return dims * std::log(original / (rotations * 2.0 * std::numbers::pi)) / (2.0 * std::log(theta));
  };
  double low = dimension(beta_fast), high = dimension(beta_slow);
  if (truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < rotary.inverse_frequencies.size(); ++i) {
    double& frequency = rotary.inverse_frequencies[i];
    const double slowed = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequency = frequency / factor * slowed + frequency * (1.0 - slowed);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RotaryEmbedding> RotaryEmbedding::Create(int num_dims, double theta, int max_positions,
                                                        const json& scaling) {
  RotaryEmbedding rotary;
  std::vector<double>& frequencies = rotary.inverse_frequencies;
  for (int i = 0; i < num_dims; i += 2) {
    frequencies.push_back(1.0 / std::pow(theta, static_cast<double>(i) / num_dims));
  }
  if (scaling.is_null()) return rotary;
  const json type = scaling.contains("rope_type") ? scaling["rope_type"] : scaling.value("type", json());
  if (type == "default") return rotary;
  if (type != "linear" && type != "dynamic" && type != "llama3" && type != "yarn") {
    return Unsupported("rope_scaling.rope_type", type, "default, linear, dynamic, llama3, yarn");
  }
  ConfigFields fields(scaling);
  const double factor = fields.Number("factor");
  ALMOST_RETURN_IF_ERROR(fields.status());
  if (type == "linear") {
    for (double& frequency : frequencies) frequency /= factor;
  } else if (type == "llama3") {
    ALMOST_RETURN_IF_ERROR(ScaleAsLlama3(fields, factor, frequencies));
  } else if (type == "yarn") {
    ALMOST_RETURN_IF_ERROR(ScaleAsYarn(fields, factor, theta, max_positions, rotary));
  }
  return rotary;
}

}  // namespace almost
