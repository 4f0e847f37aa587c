#include "common/engine/vector_kernels.h"

namespace almost::engine {

const Kernels& Avx512Kernels() {
  static constexpr VectorKernels<Vector16> kKernels;
  return kKernels;
}

}  // namespace almost::engine
