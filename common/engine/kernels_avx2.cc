#include "common/engine/vector_kernels.h"

namespace almost::engine {

const Kernels& Avx2Kernels() {
  static constexpr VectorKernels<Vector8> kKernels;
  return kKernels;
}

}  // namespace almost::engine
