#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "common/engine/cuda/device.h"
#include "common/kernels/kernels.h"

namespace almost::engine::cuda {

// out [rows, N] (+)= a [rows, K] · wᵀ, w [N, K]; a and w of one type, out of float32; enqueued.
class Products {
 public:
  virtual ~Products() = default;
  virtual void operator()(Stream& stream, const void* a, const void* w, int rows, int n, int k,
                          bool accumulate, float* out) = 0;

  // By cuBLAS, opened when it is first asked for. kFailedPrecondition: there is none.
  static absl::StatusOr<std::unique_ptr<Products>> CuBlas(WeightType type, Stream& stream);
};

}  // namespace almost::engine::cuda
