#include "common/kernels/vector_kernels.h"

namespace almost {

const Kernels& Avx512Kernels() {
  static constexpr VectorKernels<Vector16> kKernels;
  return kKernels;
}

}  // namespace almost
