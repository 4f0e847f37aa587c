#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <string>
#include <vector>

// A layer's arithmetic in float32 on the CPU, differentiable, by the kernels that the engine serves with: a
// result's bits depend on its own sample alone, not on which samples are packed with it, and are the same
// with AVX2 and AVX-512. Products of large matrices run at twice MKL's rate where there is AVX-512, and a
// backward pass finds less of the forward one. One thread each; several threads may call side by side. No
// second derivatives. Other dtypes and devices: LibTorch's operators, but for products of bfloat16.
//
// Shapes: N packed tokens, S samples, M rows, D hidden size, F intermediate size, H heads, K key-value heads,
// E head dimension, R dimensions of it that turn.
namespace almost {

// Whether what follows takes tensors like this one.
bool RunsOnKernels(const torch::Tensor& tensor);

// The instructions by which LibTorch multiplies matrices of bfloat16 here, "amx_bf16" or "avx512_bf16".
// Empty: it has none, and takes ten times as long as with float32.
const std::string& Bfloat16Instructions();

// Whether MatMulInto and what products are made by takes tensors like this one and is the best there is: as
// above, and in bfloat16 without such instructions.
bool MultipliesOnKernels(const torch::Tensor& tensor);

// out [M, O] = x [M, I] · w [I, O], or out += with `accumulate`. Each element is one chain of fused
// multiply-adds over I, in order. All are float32 or bfloat16, which is rounded to once, in the end. The rows
// of out and x are contiguous, w or its transpose is; no gradients.
void MatMulInto(const torch::Tensor& out, const torch::Tensor& x, const torch::Tensor& w, bool accumulate);

// x · w in x's dtype, on the kernels where they multiply it, else by LibTorch. No gradients.
torch::Tensor Product(const torch::Tensor& x_MI, const torch::Tensor& w_IO);

// x · wᵀ + bias of several weights [O_i, D] side by side, [M, sum of O_i]. Without biases: none given.
torch::Tensor StackedLinear(const torch::Tensor& x_MD, const std::vector<torch::Tensor>& weights,
                            const std::vector<torch::Tensor>& biases = {});

// x · wᵀ + bias (undefined: none) on these kernels where they take x, else by LibTorch's operators.
torch::Tensor Linear(const torch::Tensor& x_MD, const torch::Tensor& weight_OD,
                     const torch::Tensor& bias_O = {});

// down(silu(gate(x)) · up(x)), without biases.
torch::Tensor SiluGatedMlp(const torch::Tensor& x_MD, const torch::Tensor& gate_FD,
                           const torch::Tensor& up_FD, const torch::Tensor& down_DF);

// What stands between an MLP's matrices where they have biases or adapters: silu(gate) · up, and gelu by the
// error function or by its approximation with tanh.
torch::Tensor KernelSiluMul(const torch::Tensor& gate_MF, const torch::Tensor& up_MF);
torch::Tensor KernelGelu(const torch::Tensor& x_MF, bool by_tanh);

// x / sqrt(mean(x²) + eps) · weight, over the last dimension.
torch::Tensor KernelRmsNorm(const torch::Tensor& x, const torch::Tensor& weight, double eps);

// Causal softmax attention (Vaswani et al. 2017) of each sample by itself, of rows [N, (H + 2K) · E] that
// hold a token's queries, keys and values; its first R dimensions of queries and keys are turned by the
// angles of `cos` and `sin` [N, R/2]. Sample s is the prefix_tokens[s] rows from prefix_rows[s] on, which are
// another sample's own, and then its own, [offsets[s], offsets[s + 1]); both [S]. Returns [N, H · E], with
// the bits that the same sample has with all rows its own; with `first_queries` [S], which are no tokens of a
// prefix, a sample's rows before that token hold anything. A backward pass finds the turned rows, the result
// and one number a head and row; probabilities are computed again (Dao et al. 2022, arXiv 2205.14135).
torch::Tensor PackedAttention(const torch::Tensor& rows, const torch::Tensor& cos, const torch::Tensor& sin,
                              const std::vector<int64_t>& offsets, const std::vector<int64_t>& prefix_rows,
                              const std::vector<int64_t>& prefix_tokens,
                              const std::vector<int64_t>& first_queries, int64_t num_heads,
                              int64_t num_kv_heads);

}  // namespace almost
