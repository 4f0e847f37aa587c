#include "common/kernels/vector_kernels.h"

namespace almost {

const Kernels& Avx2Kernels() {
  static constexpr VectorKernels<Vector8> kKernels;
  return kKernels;
}

}  // namespace almost
