#pragma once

#include <string>

#include "services/trainer/core/job_spec.h"

namespace almost::trainer {

// To be called once, by main, before the first tensor and before other threads. One intra-op thread (two are
// slower on small models; independent work runs side by side instead); AVX2 arithmetic everywhere, so that
// machines agree; and an allocator that keeps freed memory, without which most of a small model's step is
// spent on page faults.
void ConfigureLibTorch();

// As almost_build_info says it, "2.7.1+cpu".
std::string LibTorchVersion();

// Floating-point operations a second that `num_threads` threads of this machine reach in products of large
// float32 matrices, measured once (a fifth of a second): what a model's utilisation is a share of.
double PeakFlops(int num_threads);

// The most main memory that this process has held so far.
double PeakMemoryBytes();

// What arithmetic on this machine depends on: ours, LibTorch, instruction set.
std::string MachineNumerics();

// What the bits of trained weights depend on besides the job's data and rates: the above, dtype, threads of a
// rank, ranks where there are several.
std::string TrainingNumericsId(Precision precision, int num_threads, int num_ranks);

}  // namespace almost::trainer
