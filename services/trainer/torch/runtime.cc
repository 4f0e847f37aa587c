#include "services/trainer/torch/runtime.h"

#include <malloc.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <cstdlib>
#include <limits>

#include "absl/strings/str_cat.h"

namespace almost::trainer {

void ConfigureLibTorch() {
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
  at::set_num_threads(1);
}

std::string TrainingNumericsId(int num_threads) {
  const char* branch = std::getenv("MKL_CBWR");
  return absl::StrCat("libtorch-", TORCH_VERSION, "/float32/", at::get_cpu_capability(),
                      "/mkl=", branch == nullptr ? "auto" : branch, "/threads=", num_threads);
}

}  // namespace almost::trainer
