#pragma once

#include <cstddef>
#include <cstdint>

#include "common/kernels/kernels.h"
#include "common/model/model_config.h"

#ifdef ALMOST_CUDA_EMULATED
#include "common/engine/cuda/emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#ifdef __CUDACC__
#define ALMOST_HOST_DEVICE __host__ __device__
#else
#define ALMOST_HOST_DEVICE
#endif

// The engine's arithmetic on a GPU. Every function enqueues on the stream and returns; what is wrong with a
// launch Stream::Wait says. Pointers are the device's. Weights, what products multiply, and the cache are of
// the model's type T, float32, bfloat16 or float16; everything is added up in float32, and the residual
// stream stays so.
namespace almost::engine::cuda {

class Stream;

using Half = __half;
using Bfloat = __nv_bfloat16;

// What the kernels of a step read of it, on the device.
struct StepInput {
  struct Row {
    int32_t token;
    int32_t position;
    int32_t table;    // where its sequence's blocks begin in `blocks`
    int32_t partial;  // place of its first partial result of attention
  };
  // Attention of rows [first_row, first_row + num_rows) to the keys of one split, whose blocks they share.
  struct Piece {
    int32_t first_row;
    int32_t num_rows;
    int32_t split;
    int32_t table;
  };
  // A hidden state that is wanted, and what for.
  struct Output {
    int32_t row;
    int32_t target;     // the token whose log-likelihood is wanted; -1: draw one
    float temperature;  // 0: the likeliest
    float top_p, min_p;
    int32_t top_k;  // 0: all
    double unit;    // the random number, in [0, 1)
  };
  struct Counts {
    int32_t rows, pieces, outputs;
  };
  Counts* counts;
  Row* rows;
  Piece* pieces;
  Output* outputs;
  int32_t* blocks;
};

struct StepResult {
  int32_t token;
  int32_t finite;  // 0: a logit is not
  float model_logprob, sampled_logprob;
  float score;  // of a target, or the reward head's
};

// Keys that one piece of attention goes over; the order of all sums follows from it, so batches change no
// bit.
inline constexpr int kSplitTokens = 512;
// Queries of one key-value head that a piece holds.
inline constexpr int kPieceQueries = 16;

struct Shape {
  int num_heads, num_kv_heads, head_dim, num_rotary;
  // Numbers from one head to the next in q and in the cache: head_dim and zeros up to a multiple of 16.
  ALMOST_HOST_DEVICE int head_stride() const { return (head_dim + 15) / 16 * 16; }
};

// Keys and values of one layer: block b's keys are [kv_heads, 16, head_stride] at 2b, its values at 2b + 1.
template <typename T>
struct LayerCache {
  T* data;
  size_t half_block;  // numbers in the keys of a block
};

// x[row] = embedding[token].
template <typename T>
void Embed(Stream& stream, const StepInput& in, int max_rows, const T* embedding, int hidden, float* x);

// RMSNorm (bias null) or LayerNorm. Row i of out is that of x, or with `of_outputs` that of the i-th
// output's.
template <typename T>
void Normalize(Stream& stream, const StepInput& in, int max_rows, bool of_outputs, const float* x,
               const float* weight, const float* bias, float eps, int width, T* out);

// out = a · wᵀ, or out += with `accumulate`: a [rows, K], w [N, K], out [rows, N]. Each number is one chain
// over k, whatever `rows` is.
template <typename T>
void Multiply(Stream& stream, const T* a, const T* w, int rows, int n, int k, bool accumulate, float* out);

// x[row] += bias.
void AddBias(Stream& stream, const StepInput& in, int max_rows, const float* bias, int width, float* x);

// Adds biases, norms and rotates queries and keys; queries go to q, keys and values into the cache. Norms and
// bias may be null.
template <typename T>
void StoreKeysAndValues(Stream& stream, const StepInput& in, int max_rows, const Shape& shape,
                        const float* qkv, const float* bias, const float* query_norm, const float* key_norm,
                        float eps, const float* cosines, const float* sines, T* q, LayerCache<T> cache);

// Softmax attention of every row to its sequence up to itself. `partials`: PartialFloats(shape) for each
// split of each row.
template <typename T>
void Attend(Stream& stream, const StepInput& in, int max_rows, int max_pieces, const Shape& shape, const T* q,
            LayerCache<T> cache, float* partials, T* attended);
size_t PartialFloats(const Shape& shape);

// out = silu(gate) · up, or gelu(up), of up + bias (may be null).
template <typename T>
void Activate(Stream& stream, const StepInput& in, int max_rows, MlpKind kind, const float* up,
              const float* bias, int width, T* out);

// results[first + i] of logits [count, V], of as many outputs from `first` on as there are. `weights`: as
// large as the logits.
void Draw(Stream& stream, const StepInput& in, int first, int count, const float* logits, int vocab,
          float* weights, StepResult* results);

// results[i].score of the hidden states of all outputs.
template <typename T>
void Reward(Stream& stream, const StepInput& in, int max_outputs, const T* hidden, const float* head,
            int width, StepResult* results);

}  // namespace almost::engine::cuda
