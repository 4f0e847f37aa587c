#pragma once

#include <c10/core/Device.h>

#include <string>

#include "absl/status/statusor.h"
#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// To be called once, by main, before the first tensor and before other threads. One intra-op thread (two are
// slower on small models; independent work runs side by side instead); AVX2 arithmetic everywhere, so that
// machines agree; and an allocator that keeps freed memory and finds it again: without the first most of a
// small model's step is spent on page faults, without the second it holds half as much again.
void ConfigureLibTorch();

// "cpu", or "cuda:N", of the GPUs that CUDA shows to this process, the N-th from 0. With a GPU LibTorch takes
// the deterministic form of its operations from then on. kInvalidArgument: another name; kUnimplemented: this
// build's LibTorch has no code for GPUs; kFailedPrecondition: no driver, or no such GPU.
absl::StatusOr<c10::Device> OpenDevice(const std::string& name);

// As almost_build_info says it, "2.7.1+cpu".
std::string LibTorchVersion();

// Floating-point operations a second that the device reaches in products of large matrices, a CPU with so
// many threads and in float32, a GPU in `precision`; measured once (a fifth of a second): what a model's
// utilisation is a share of.
double PeakFlops(c10::Device device, Precision precision, int num_threads);

// The most memory that this process has held so far: the GPU's if it trains on one, else main memory.
double PeakMemoryBytes(c10::Device device);

// What arithmetic on this machine's device depends on: ours, LibTorch, instruction set or GPU.
std::string MachineNumerics(c10::Device device);

// What the bits of trained weights depend on besides the job's data and rates: the above, dtype, a CPU's
// threads of a rank, ranks where there are several.
std::string TrainingNumericsId(c10::Device device, Precision precision, int num_threads, int num_ranks);

}  // namespace almost::trainer
