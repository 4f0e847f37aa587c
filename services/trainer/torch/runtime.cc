#include "services/trainer/torch/runtime.h"

#include <malloc.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/model/differentiable_kernels.h"
#include "services/trainer/torch/workers.h"

namespace almost::trainer {
namespace {

// Goes up when our own arithmetic gives other bits (losses, optimizers, common/model).
constexpr int kArithmetic = 2;

}  // namespace

void ConfigureLibTorch() {
  // Equal bits on every x86-64 machine with AVX2; each is read at the library's first arithmetic.
  setenv("MKL_CBWR", "AVX2,STRICT", /*overwrite=*/1);
  setenv("ATEN_CPU_CAPABILITY", "avx2", /*overwrite=*/1);
  // What c10d warns of on its own, on stderr in a form of its own, our log says where it matters.
  setenv("TORCH_CPP_LOG_LEVEL", "FATAL", /*overwrite=*/0);
  c10::initLogging();
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
  at::set_num_threads(1);
}

std::string LibTorchVersion() { return TORCH_VERSION; }

double PeakFlops(int num_threads) {
  static absl::Mutex mutex(absl::kConstInit);
  static std::map<int, double>& peaks = *new std::map<int, double>();
  const absl::MutexLock lock(&mutex);
  double& peak = peaks[num_threads];
  if (peak > 0) return peak;
  constexpr int64_t kSize = 768;
  constexpr int kRounds = 5;
  Workers workers(num_threads);
  const torch::NoGradGuard no_grad;
  const torch::Tensor matrix = torch::ones({kSize, kSize});
  std::vector<torch::Tensor> products;
  for (int worker = 0; worker < num_threads; ++worker) products.push_back(torch::empty_like(matrix));
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    workers.Run([&](int worker) { MatMulInto(products[worker], matrix, matrix, /*accumulate=*/false); });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    peak = std::max(peak, num_threads * 2.0 * kSize * kSize * kSize / time.count());
  }
  return peak;
}

double PeakMemoryBytes() {
  // Not getrusage's, which begins with what the process that started this one held.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (absl::StartsWith(line, "VmHWM:")) return 1024.0 * std::atof(line.c_str() + 6);
  }
  return 0;
}

std::string MachineNumerics() {
  return absl::StrCat("trainer-", kArithmetic, "/libtorch-", LibTorchVersion(), "/", at::get_cpu_capability());
}

std::string TrainingNumericsId(Precision precision, int num_threads, int num_ranks) {
  return absl::StrCat("trainer-", kArithmetic, "/libtorch-", LibTorchVersion(),
                      precision == Precision::kFloat32 ? "/float32/" : "/bfloat16/", at::get_cpu_capability(),
                      "/threads=", num_threads, num_ranks > 1 ? absl::StrCat("/ranks=", num_ranks) : "");
}

}  // namespace almost::trainer
