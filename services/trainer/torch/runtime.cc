#include "services/trainer/torch/runtime.h"

#include <ATen/DeviceAccelerator.h>
#include <c10/core/Allocator.h>
#include <c10/core/alignment.h>
#include <malloc.h>
#include <torch/torch.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "common/base/status_macros.h"
#include "common/engine/engine.h"
#include "common/model/differentiable_kernels.h"
#include "services/trainer/torch/workers.h"
#ifdef ALMOST_CUDA
#include "common/engine/cuda/device.h"
#endif

namespace almost::trainer {
namespace {

// Goes up when our own arithmetic gives other bits (losses, optimizers, common/model).
constexpr int kArithmetic = 5;

std::string Arithmetic(c10::Device device) {
  if (device.is_cpu()) return at::get_cpu_capability();
#ifdef ALMOST_CUDA
  if (device.is_cuda()) return engine::cuda::DeviceName(device.index());
#endif
  return device.str();
}

// LibTorch's own asks glibc for aligned memory, which finds no place in a block of that very size that was
// freed before: a step's peak was half as much again as what it held.
class ReusingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::kCPU)};
    constexpr size_t kBefore = c10::gAlignment + sizeof(void*);
    void* block = std::malloc(kBefore + bytes);
    if (block == nullptr) throw std::bad_alloc();
    const auto address = reinterpret_cast<uintptr_t>(block) + kBefore;
    void* data = reinterpret_cast<void*>(address - address % c10::gAlignment);
    static_cast<void**>(data)[-1] = block;
    return {data, data, &Free, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &Free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void Free(void* data) {
    if (data != nullptr) std::free(static_cast<void**>(data)[-1]);
  }
};

}  // namespace

void ConfigureLibTorch() {
  static ReusingAllocator& allocator = *new ReusingAllocator();
  c10::SetAllocator(c10::kCPU, &allocator, /*priority=*/1);
  // Equal bits on every x86-64 machine with AVX2; each is read at the library's first arithmetic.
  setenv("MKL_CBWR", "AVX2,STRICT", /*overwrite=*/1);
  setenv("ATEN_CPU_CAPABILITY", "avx2", /*overwrite=*/1);
  // cuBLAS adds up in one order only with room of its own.
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  // NCCL's waits end when a rank is lost, with an error of ours, and not with the process.
  setenv("TORCH_NCCL_BLOCKING_WAIT", "1", /*overwrite=*/0);
  // What c10d warns of on its own, on stderr in a form of its own, our log says where it matters.
  setenv("TORCH_CPP_LOG_LEVEL", "FATAL", /*overwrite=*/0);
  c10::initLogging();
  mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  mallopt(M_TOP_PAD, 64 << 20);
  at::set_num_threads(1);
}

std::string LibTorchVersion() { return TORCH_VERSION; }

absl::StatusOr<c10::Device> OpenDevice(const std::string& name) {
  ALMOST_ASSIGN_OR_RETURN(const std::optional<int> gpu, engine::GpuOf(name));
  if (!gpu) return c10::Device(c10::kCPU);
#ifndef ALMOST_TORCH_CUDA
  return absl::UnimplementedError(
      absl::StrCat("device: ", name, ": this build's LibTorch has no code for GPUs"));
#else
  if (!torch::cuda::is_available() || *gpu >= static_cast<int>(torch::cuda::device_count())) {
    return absl::FailedPreconditionError(absl::StrCat("device: ", name, ": CUDA shows ",
                                                      torch::cuda::device_count(),
                                                      " GPUs to this process, or there is no driver"));
  }
  // What has no such form warns; nothing of ours does, but for sums that meet no two values in one place.
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  at::globalContext().setDeterministicFillUninitializedMemory(false);
  return c10::Device(c10::kCUDA, static_cast<c10::DeviceIndex>(*gpu));
#endif
}

double PeakFlops(c10::Device device, Precision precision, int num_threads) {
  static absl::Mutex mutex(absl::kConstInit);
  static std::map<std::pair<int, Precision>, double>& peaks =
      *new std::map<std::pair<int, Precision>, double>();
  const absl::MutexLock lock(&mutex);
  double& peak = peaks[{num_threads, precision}];
  if (peak > 0) return peak;
  const int64_t size = device.is_cuda() ? 8192 : 768;
  constexpr int kRounds = 5;
  Workers workers(num_threads);
  const torch::NoGradGuard no_grad;
  const torch::ScalarType dtype =
      device.is_cpu() || precision == Precision::kFloat32 ? torch::kFloat32 : torch::kBFloat16;
  const torch::Tensor matrix = torch::ones({size, size}, torch::dtype(dtype).device(device));
  std::vector<torch::Tensor> products;
  for (int worker = 0; worker < num_threads; ++worker) products.push_back(torch::empty_like(matrix));
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    workers.Run([&](int worker) {
      if (device.is_cpu()) {
        MatMulInto(products[worker], matrix, matrix, /*accumulate=*/false);
      } else {
        torch::mm_out(products[worker], matrix, matrix)[0][0].item();  // which waits for it
      }
    });
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - begin;
    peak = std::max(peak, num_threads * 2.0 * std::pow(static_cast<double>(size), 3) / time.count());
  }
  return peak;
}

double PeakMemoryBytes(c10::Device device) {
  if (device.is_cuda()) {
    return static_cast<double>(at::accelerator::getDeviceStats(device.index()).allocated_bytes[0].peak);
  }
  // Not getrusage's, which begins with what the process that started this one held.
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (absl::StartsWith(line, "VmHWM:")) return 1024.0 * std::atof(line.c_str() + 6);
  }
  return 0;
}

std::string MachineNumerics(c10::Device device) {
  return absl::StrCat("trainer-", kArithmetic, "/libtorch-", LibTorchVersion(), "/", Arithmetic(device));
}

std::string TrainingNumericsId(c10::Device device, Precision precision, int num_threads, int num_ranks) {
  return absl::StrCat("trainer-", kArithmetic, "/libtorch-", LibTorchVersion(),
                      precision == Precision::kFloat32 ? "/float32/" : "/bfloat16/", Arithmetic(device),
                      device.is_cpu() && precision != Precision::kFloat32 && !Bfloat16Instructions().empty()
                          ? absl::StrCat("/onednn=", Bfloat16Instructions())
                          : "",
                      device.is_cpu() ? absl::StrCat("/threads=", num_threads) : "",
                      num_ranks > 1 ? absl::StrCat("/ranks=", num_ranks) : "");
}

}  // namespace almost::trainer
