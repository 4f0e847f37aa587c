#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "common/kernels/aligned_buffer.h"

// The arithmetic of the CPU engine, and of float32 training: weights in 32 or 16 bits, all else in float32.
// What it promises beyond speed: an output's bits depend on its own inputs alone, never on how many rows are
// computed together, where a row stands, which thread computes it, or how wide the processor's vectors are.
// Shapes: M rows (tokens), K inputs, N outputs, D head dimension, V vocabulary.
namespace almost {

enum class WeightType { kFloat32, kBfloat16, kFloat16 };

// A weight as checkpoints store it: [N, K], row-major, not necessarily aligned.
struct WeightView {
  WeightType type;
  const std::byte* data;
  int num_outputs;
};

// A weight laid out in panels of 16 outputs, so that a panel's inputs stream; in the type of the checkpoint,
// widened where it is used. N·K numbers.
class PackedMatrix {
 public:
  static constexpr int kPanel = 16;

  PackedMatrix() = default;
  // The rows of several weights under each other: one product instead of several. Of different types: as
  // float32.
  PackedMatrix(std::span<const WeightView> weights, int num_inputs);
  // Float32 numbers that change from one product to the next: output n's k-th input is at
  // w[n · output_stride + k · input_stride], one of the strides being 1. Takes the place of what was here, in
  // the same memory where that is enough.
  void Assign(const float* w, int num_outputs, int num_inputs, size_t output_stride, size_t input_stride);

  WeightType type() const { return type_; }
  int num_outputs() const { return num_outputs_; }
  int num_inputs() const { return num_inputs_; }
  int num_panels() const { return (num_outputs_ + kPanel - 1) / kPanel; }
  // Panel p holds inputs [K] of outputs 16p to 16p + 15 as [K, 16]; outputs past N are zero. T: float, or
  // uint16_t for the 16-bit types.
  template <typename T>
  const T* panel(int p) const {
    return reinterpret_cast<const T*>(data_.data()) + size_t(p) * num_inputs_ * kPanel;
  }

 private:
  WeightType type_ = WeightType::kFloat32;
  int num_outputs_ = 0;
  int num_inputs_ = 0;
  size_t capacity_ = 0;  // in bytes, of what Assign has made
  AlignedBuffer<std::byte> data_;
};

// Row length, in floats, of an [M, K] buffer: whole cache lines, and no power of two, which would make the
// rows of a tile evict each other.
constexpr size_t RowStride(int width) {
  const size_t stride = (size_t(width) + 15) / 16 * 16;
  return stride % 256 == 0 ? stride + 16 : stride;
}

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
  float* out;  // [D]
};

// The kernels for one instruction set. Stateless and thread-safe; callers split the work.
class Kernels {
 public:
  enum class InstructionSet { kAvx2, kAvx512 };

  // Null where this processor cannot run them. Equal bits whichever is taken.
  static const Kernels* For(InstructionSet set);
  static const Kernels* Best();

  // out[:, n] = x · Wᵀ, or out += x · Wᵀ with `accumulate`, for the outputs n of panels
  // [first_panel, first_panel + num_panels). Each element is one chain of fused multiply-adds over k, in
  // order, from 0 or from what `out` holds.
  virtual void MatMul(const float* x_MK, size_t x_stride, int rows, const PackedMatrix& weight,
                      int first_panel, int num_panels, bool accumulate, float* out_MN,
                      size_t out_stride) const = 0;
  // Panels that MatMul takes at once with so many rows: who splits should hand out whole multiples.
  virtual int PanelsAtOnce(int rows) const = 0;

  // x / sqrt(mean(x²) + eps) · weight (Zhang and Sennrich 2019). In place allowed, here as in all that
  // follow.
  virtual void RmsNorm(const float* x, const float* weight, float eps, int width, float* out) const = 0;
  // (x - mean(x)) / sqrt(variance(x) + eps) · weight + bias (Ba et al. 2016, arXiv 1607.06450).
  virtual void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int width,
                         float* out) const = 0;

  // Rotates the pairs (i, i + R/2) of a head's first R dimensions by the angles whose cosines and sines are
  // given, [R/2] each (the layout of Hugging Face checkpoints). In place.
  virtual void Rotate(float* head_D, const float* cosines, const float* sines, int num_dims) const = 0;

  // silu(gate) · up.
  virtual void SiluMul(const float* gate, const float* up, int count, float* out) const = 0;
  // x · Φ(x), Φ the normal distribution's; the error is under 3e-7 · |x|.
  virtual void Gelu(const float* x, int count, float* out) const = 0;
  // Its approximation x · sigmoid(2u), u = √(2/π) (x + 0.044715 x³), which is ½x (1 + tanh u).
  virtual void GeluTanh(const float* x, int count, float* out) const = 0;

  // exp(x) by a fixed polynomial, relative error under 2e-7; 0 below -87.3.
  virtual void Exp(float* x, int count) const = 0;

  // Softmax attention of each query. The first `shared_blocks` blocks are the same for all and whole for
  // each: they are read once for QueriesAtOnce() queries. Scores are one chain over D, outputs one chain over
  // the tokens in order, so company, chunks, sharing and recomputation change no bit.
  // `scratch` holds AttentionScratch(most tokens of a query, D) floats.
  virtual void Attend(std::span<const AttentionQuery> queries, int shared_blocks, const HeadCache& cache,
                      int head_dim, float scale, float* scratch) const = 0;
  virtual int QueriesAtOnce() const = 0;
  virtual size_t AttentionScratch(int num_tokens, int head_dim) const = 0;

  // x · y in eight fixed lanes.
  virtual float Dot(const float* x, const float* y, int count) const = 0;

  // log(sum(exp(x))), summed in double in the order of the index; NaN where one is not finite.
  virtual double LogSumExp(std::span<const float> x) const = 0;

  // The largest of x_V; NaN where one is not finite.
  virtual float Largest(std::span<const float> x) const = 0;
  // out = exp((x - largest) · inverse).
  virtual void Weights(std::span<const float> x, float largest, float inverse, float* out) const = 0;
  // In double, in four fixed lanes.
  virtual double Sum(std::span<const float> x) const = 0;
  // Writes the indices of the numbers that are at least `least`, ascending; returns how many. `indices` has
  // room for all.
  virtual int AtLeast(std::span<const float> x, float least, int32_t* indices) const = 0;

 protected:
  ~Kernels() = default;
};

}  // namespace almost
