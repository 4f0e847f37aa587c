#include "services/trainer/torch/runtime.h"

#include <malloc.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <cstdlib>
#include <limits>

#include "absl/strings/str_cat.h"

namespace almost::trainer {

void ConfigureLibTorch() {
  // Equal bits on every x86-64 machine with AVX2; each is read at the library's first arithmetic.
  setenv("MKL_CBWR", "AVX2,STRICT", /*overwrite=*/1);
  setenv("ATEN_CPU_CAPABILITY", "avx2", /*overwrite=*/1);
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
  at::set_num_threads(1);
}

std::string LibTorchVersion() { return TORCH_VERSION; }

std::string TrainingNumericsId(int num_threads) {
  return absl::StrCat("libtorch-", LibTorchVersion(), "/float32/", at::get_cpu_capability(),
                      "/threads=", num_threads);
}

}  // namespace almost::trainer
