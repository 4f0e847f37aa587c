#pragma once

#include <string>

namespace almost::trainer {

// To be called once, by main, before the first tensor: one intra-op thread (two are slower on small models;
// independent work runs side by side instead), and an allocator that keeps freed memory, without which most
// of a small model's step is spent on page faults. Equal bits on every machine need MKL_CBWR=AVX2,STRICT in
// the environment before the process starts or before this call.
void ConfigureLibTorch();

// What the bits of trained weights depend on besides the job: LibTorch, dtype, instruction set, threads.
std::string TrainingNumericsId(int num_threads);

}  // namespace almost::trainer
