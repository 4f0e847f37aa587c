#pragma once

#include <cstddef>
#include <span>
#include <vector>

// The arithmetic of the CPU engine: float32, AVX2 and FMA. What they promise beyond speed: an output's bits
// depend on its own inputs alone, never on how many rows are computed together, where a row stands, or who
// else runs. Shapes: M rows (tokens), K inputs, N outputs, D head dimension, V vocabulary. Not here: threads
// (callers split rows), 16-bit weights, AVX-512.
namespace almost::engine {

// Whether this processor can run them.
bool CpuIsSupported();

// A weight [N, K] (as checkpoints store it) laid out in panels of 16 outputs, so that a panel's inputs
// stream. Immutable; about 4·N·K bytes.
class PackedMatrix {
 public:
  static constexpr int kPanel = 16;

  PackedMatrix() = default;
  PackedMatrix(std::span<const float> weight_NK, int num_outputs, int num_inputs);
  // The rows of several weights [N_i, K] under each other: one product instead of several.
  static PackedMatrix Stack(const std::vector<std::vector<float>>& weights, int num_inputs);

  int num_outputs() const { return num_outputs_; }
  int num_inputs() const { return num_inputs_; }
  // Panel p holds inputs [K] of outputs 16p to 16p + 15 as [K, 16]; outputs past N are zero.
  const float* panel(int p) const { return data_.data() + size_t(p) * num_inputs_ * kPanel; }
  int num_panels() const { return (num_outputs_ + kPanel - 1) / kPanel; }

 private:
  int num_outputs_ = 0;
  int num_inputs_ = 0;
  std::vector<float> data_;
};

// out_MN += x_MK · Wᵀ. Each element is one chain of fused multiply-adds over k, in order: blocking, the
// number of rows and a row's position change no bit. `out_MN` begins as zeros, a bias or a residual.
void MatMulAdd(const float* x_MK, int rows, const PackedMatrix& weight, float* out_MN);

// x / sqrt(mean(x²) + eps) · weight, row by row (Zhang and Sennrich 2019). In place allowed.
void RmsNorm(const float* x, const float* weight, float eps, int rows, int width, float* out);

// (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias, row by row (Ba et al. 2016, arXiv 1607.06450).
void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int rows, int width,
               float* out);

// Rotates the pairs (i, i + R/2) of a head's first R dimensions by the angles whose cosines and sines are
// given, [R/2] each (the layout of Hugging Face checkpoints). In place.
void Rotate(float* head_D, const float* cosines, const float* sines, int num_dims);

// silu(gate) · up, where each row of `gate_up` is gate [F] then up [F]; out [rows, F].
void SiluMul(const float* gate_up, int rows, int width, float* out);

// x · Φ(x), Φ the normal distribution's; the error is under 3e-7 · |x|. In place.
void Gelu(float* x, size_t count);
// Its approximation x · sigmoid(2u), u = √(2/π) (x + 0.044715 x³), which is ½x (1 + tanh u). In place.
void GeluTanh(float* x, size_t count);

// exp(x) by a fixed polynomial, relative error under 2e-7; 0 below -87.3.
void Exp(float* x, int count);

// Keys and values of one head in blocks of 16 tokens: block b has its keys, transposed [D, 16], at
// keys + b · stride, and its values, [16, D], at values + b · stride.
inline constexpr int kBlockTokens = 16;
struct HeadCache {
  const float* keys;
  const float* values;
  size_t stride;
};

// A query over the first `num_tokens` tokens of the sequence that lies in `blocks`.
struct AttentionQuery {
  const float* query;  // [D]
  const int* blocks;
  int num_tokens;
  float* scores;  // scratch for num_tokens rounded up to 16
  float* out;     // [D]
};

// Softmax attention of each query. The first `shared_blocks` blocks are the same for all and whole for each:
// they are read once for up to six queries. Scores are one chain over D, outputs one chain over the tokens in
// order, so company, chunks, sharing and recomputation change no bit.
void Attend(std::span<const AttentionQuery> queries, int shared_blocks, const HeadCache& cache, int head_dim,
            float scale);

// x · y in eight fixed lanes.
float Dot(const float* x, const float* y, int count);

// log(sum(exp(x))), summed in double in the order of the index.
double LogSumExp(std::span<const float> x);

}  // namespace almost::engine
