#include <algorithm>
#include <type_traits>

#include "common/engine/cuda/device.h"
#include "common/engine/cuda/kernels.h"

#ifndef ALMOST_CUDA_EMULATED
#include <cuda_runtime.h>
#include <mma.h>
#endif

namespace almost::engine::cuda {
namespace {

constexpr int kThreads = 128;  // of most kernels' blocks
constexpr int kWarps = kThreads / 32;
constexpr unsigned kAllLanes = ~0u;

// ---- types

__device__ float ToFloat(float x) { return x; }
__device__ float ToFloat(Half x) { return __half2float(x); }
__device__ float ToFloat(Bfloat x) { return __bfloat162float(x); }
template <typename T>
__device__ T FromFloat(float x) {
  if constexpr (std::is_same_v<T, Half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, Bfloat>) {
    return __float2bfloat16_rn(x);
  } else {
    return x;
  }
}
__device__ uint32_t Bits(float x) { return __float_as_uint(x); }

// ---- how a kernel is started

#ifdef ALMOST_CUDA_EMULATED

template <typename... Parameters, typename... Arguments>
void Launch(Stream& stream, dim3 grid, dim3 block, size_t, void (*kernel)(Parameters...),
            Arguments... arguments) {
  stream.Do([=] { emulated::RunGrid(grid, block, [=] { kernel(arguments...); }); });
}
__device__ std::byte* SharedMemory() { return emulated::shared_memory; }

#else

// Errors stay until Stream::Wait asks.
template <typename... Parameters, typename... Arguments>
void Launch(Stream& stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(Parameters...),
            Arguments... arguments) {
  if (shared_bytes > 48 << 10) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream.native());
  cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}
__device__ std::byte* SharedMemory() {
  extern __shared__ __align__(128) std::byte shared[];
  return shared;
}

#endif

// ---- sums over a warp and a block, in an order that depends on nothing

template <typename T>
__device__ T WarpSum(T x) {
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(kAllLanes, x, mask);
  return x;
}
__device__ float WarpMax(float x) {
  for (int mask = 16; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, mask));
  return x;
}

// Of all threads' values, by `combine`, to all threads. `room`: one a warp.
template <typename T, typename Combine>
__device__ T BlockReduce(T x, T* room, Combine combine) {
  for (int mask = 16; mask > 0; mask /= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, mask));
  __syncthreads();  // room may be in use
  if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
  __syncthreads();
  x = room[0];
  for (unsigned w = 1; w < blockDim.x / 32; ++w) x = combine(x, room[w]);
  return x;
}
template <typename T>
__device__ T BlockSum(T x, T* room) {
  return BlockReduce(x, room, [](T a, T b) { return a + b; });
}

// ---- products of tiles

// A 16×16 tile of float32 sums that the lanes of a warp hold together.
template <typename T>
class Tile {
 public:
  __device__ void Zero() {
    for (float& sum : sums_) sum = 0;
  }
  // += A [16, 16] · Bᵀ, B [16, 16].
  __device__ void AddTransposed(const T* a, size_t a_stride, const T* b, size_t b_stride) {
    for (int i = 0; i < 8; ++i) {
      for (int k = 0; k < 16; ++k)
        sums_[i] =
            fmaf(ToFloat(a[row() * a_stride + k]), ToFloat(b[(column() + i) * b_stride + k]), sums_[i]);
    }
  }
  // += A [16, 16] · B [16, 16].
  __device__ void Add(const T* a, size_t a_stride, const T* b, size_t b_stride) {
    for (int i = 0; i < 8; ++i) {
      for (int k = 0; k < 16; ++k)
        sums_[i] = fmaf(ToFloat(a[row() * a_stride + k]), ToFloat(b[k * b_stride + column() + i]), sums_[i]);
    }
  }
  __device__ void Store(float* out, size_t stride) const {
    for (int i = 0; i < 8; ++i) out[row() * stride + column() + i] = sums_[i];
  }

 private:
  __device__ static int row() { return threadIdx.x % 32 / 2; }
  __device__ static int column() { return threadIdx.x % 2 * 8; }
  float sums_[8];
};

#ifndef ALMOST_CUDA_EMULATED
namespace wmma = nvcuda::wmma;

// By the tensor cores.
template <typename T>
  requires(sizeof(T) == 2)
class Tile<T> {
 public:
  __device__ void Zero() { wmma::fill_fragment(sums_, 0.0f); }
  __device__ void AddTransposed(const T* a, size_t a_stride, const T* b, size_t b_stride) {
    AddFragments<wmma::col_major>(a, a_stride, b, b_stride);
  }
  __device__ void Add(const T* a, size_t a_stride, const T* b, size_t b_stride) {
    AddFragments<wmma::row_major>(a, a_stride, b, b_stride);
  }
  __device__ void Store(float* out, size_t stride) const {
    wmma::store_matrix_sync(out, sums_, static_cast<unsigned>(stride), wmma::mem_row_major);
  }

 private:
  template <typename Layout>
  __device__ void AddFragments(const T* a, size_t a_stride, const T* b, size_t b_stride) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> left;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, Layout> right;
    wmma::load_matrix_sync(left, a, static_cast<unsigned>(a_stride));
    wmma::load_matrix_sync(right, b, static_cast<unsigned>(b_stride));
    wmma::mma_sync(sums_, left, right, sums_);
  }
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums_;
};
#endif

// ---- the kernels, in the order of a step

template <typename T>
__global__ void EmbedKernel(StepInput in, const T* embedding, int hidden, float* x) {
  const int row = blockIdx.x;
  if (row >= in.counts->rows) return;
  const T* from = embedding + size_t(in.rows[row].token) * hidden;
  for (int i = threadIdx.x; i < hidden; i += kThreads) x[size_t(row) * hidden + i] = ToFloat(from[i]);
}

template <typename T>
__global__ void NormalizeKernel(StepInput in, bool of_outputs, const float* x, const float* weight,
                                const float* bias, float eps, int width, T* out) {
  const int i = blockIdx.x;
  if (i >= (of_outputs ? in.counts->outputs : in.counts->rows)) return;
  x += size_t(of_outputs ? in.outputs[i].row : i) * width;
  out += size_t(i) * width;
  __shared__ float room[kWarps];
  float mean = 0;
  if (bias != nullptr) {
    for (int j = threadIdx.x; j < width; j += kThreads) mean += x[j];
    mean = BlockSum(mean, room) / width;
  }
  float squares = 0;
  for (int j = threadIdx.x; j < width; j += kThreads) squares = fmaf(x[j] - mean, x[j] - mean, squares);
  const float scale = 1.0f / sqrtf(BlockSum(squares, room) / width + eps);
  for (int j = threadIdx.x; j < width; j += kThreads)
    out[j] = FromFloat<T>((x[j] - mean) * scale * weight[j] + (bias != nullptr ? bias[j] : 0.0f));
}

// A block computes [64, 64] of the product; its tiles of a and w pass through shared memory 32 columns at a
// time.
constexpr int kProductTile = 64, kProductDepth = 32;
constexpr int kProductStride = kProductDepth + 8;  // other banks for the next row

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ProductKernel(const T* a, const T* w, int rows, int n, int k, bool accumulate, float* out) {
  __shared__ __align__(128) T left[kProductTile * kProductStride], right[kProductTile * kProductStride];
  __shared__ __align__(128) float sums[kProductTile * kProductTile];
  const int first_row = blockIdx.y * kProductTile, first_column = blockIdx.x * kProductTile;
  const int warp = threadIdx.x / 32, tile_row = warp / 2 * 32, tile_column = warp % 2 * 32;
  Tile<T> tiles[2][2];
  for (auto& line : tiles) {
    for (Tile<T>& tile : line) tile.Zero();
  }
  for (int depth = 0; depth < k; depth += kProductDepth) {
    for (int i = threadIdx.x; i < kProductTile * kProductDepth; i += kThreads) {
      const int line = i / kProductDepth, column = i % kProductDepth;
      const bool inside = depth + column < k;
      left[line * kProductStride + column] = inside && first_row + line < rows
                                                 ? a[size_t(first_row + line) * k + depth + column]
                                                 : FromFloat<T>(0);
      right[line * kProductStride + column] = inside && first_column + line < n
                                                  ? w[size_t(first_column + line) * k + depth + column]
                                                  : FromFloat<T>(0);
    }
    __syncthreads();
    for (int part = 0; part < kProductDepth; part += 16) {
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
          tiles[i][j].AddTransposed(left + (tile_row + 16 * i) * kProductStride + part, kProductStride,
                                    right + (tile_column + 16 * j) * kProductStride + part, kProductStride);
        }
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j)
      tiles[i][j].Store(sums + (tile_row + 16 * i) * kProductTile + tile_column + 16 * j, kProductTile);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kProductTile * kProductTile; i += kThreads) {
    const int row = first_row + i / kProductTile, column = first_column + i % kProductTile;
    if (row >= rows || column >= n) continue;
    float& to = out[size_t(row) * n + column];
    to = accumulate ? to + sums[i] : sums[i];
  }
}

__global__ void AddBiasKernel(StepInput in, const float* bias, int width, float* x) {
  const int row = blockIdx.x;
  if (row >= in.counts->rows) return;
  for (int i = threadIdx.x; i < width; i += kThreads) x[size_t(row) * width + i] += bias[i];
}

constexpr int kMaxHeadDim = 256;

template <typename T>
__global__ void StoreKernel(StepInput in, Shape shape, const float* qkv, const float* bias,
                            const float* query_norm, const float* key_norm, float eps, const float* cosines,
                            const float* sines, T* q, LayerCache<T> cache) {
  const int row = blockIdx.x;
  if (row >= in.counts->rows) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = shape.head_dim,
            half = shape.num_rotary / 2, stride = shape.head_stride();
  const auto [token, position, table, partial] = in.rows[row];
  const size_t block = in.blocks[table + position / kBlockTokens];
  const int slot = position % kBlockTokens;
  __shared__ float heads[kWarps][kMaxHeadDim];
  float* head = heads[warp];
  const int count = shape.num_heads + 2 * shape.num_kv_heads;
  for (int h = warp; h < count; h += kWarps) {
    const int kv = h - shape.num_heads;  // the key's number, then the value's
    float squares = 0;
    for (int i = lane; i < dim; i += 32) {
      const float x = qkv[(size_t(row) * count + h) * dim + i] + (bias != nullptr ? bias[h * dim + i] : 0.0f);
      head[i] = x;
      squares = fmaf(x, x, squares);
    }
    const bool value = kv >= shape.num_kv_heads;
    const float* norm = value ? nullptr : kv < 0 ? query_norm : key_norm;
    const float scale = 1.0f / sqrtf(WarpSum(squares) / dim + eps);
    __syncwarp();
    if (norm != nullptr) {
      for (int i = lane; i < dim; i += 32) head[i] *= scale * norm[i];
    }
    __syncwarp();
    T* to = kv < 0 ? q + (size_t(row) * shape.num_heads + h) * stride
                   : cache.data + (2 * block + value) * cache.half_block +
                         (size_t(kv - (value ? shape.num_kv_heads : 0)) * kBlockTokens + slot) * stride;
    for (int i = lane; i < stride; i += 32) {
      float x = i < dim ? head[i] : 0.0f;
      if (!value && i < 2 * half) {
        const int pair = i % half;
        const float cosine = cosines[size_t(position) * half + pair],
                    sine = sines[size_t(position) * half + pair];
        x = i < half ? x * cosine - head[i + half] * sine : x * cosine + head[pair] * sine;
      }
      to[i] = FromFloat<T>(x);
    }
    __syncwarp();
  }
}

constexpr int kWarpTokens = kSplitTokens / kWarps;

// What a warp needs of shared memory for its part of a split.
template <typename T>
struct WarpRoom {
  float* scores;  // [16, kWarpTokens], then the outputs [16, D]
  T* weights;     // [16, kWarpTokens]
  T* values;      // [16, 16]
  float* largest;
  float* sum;
};
__host__ __device__ constexpr size_t ScoreFloats(int dim) {
  return kPieceQueries * (dim > kWarpTokens ? dim : kWarpTokens);
}
template <typename T>
__host__ __device__ constexpr size_t WarpBytes(int dim) {
  return ScoreFloats(dim) * sizeof(float) +
         kPieceQueries * ((kWarpTokens + kBlockTokens) * sizeof(T) + 2 * sizeof(float));
}

// One split of the keys, for up to 16 queries of one key-value head whose sequences share the split's blocks.
// Each warp takes a quarter of the split: all scores, their softmax, then the weighted values; the quarters
// are added in order.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    AttendKernel(StepInput in, Shape shape, const T* q, LayerCache<T> cache, float* partials) {
  std::byte* const shared = SharedMemory();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = shape.head_stride();
  const int group = shape.num_heads / shape.num_kv_heads;  // queries of a row
  T* const queries = reinterpret_cast<T*>(shared);         // [16, D]
  const auto room_of = [&](int w) {
    std::byte* at = shared + kPieceQueries * dim * sizeof(T) + w * WarpBytes<T>(dim);
    float* scores = reinterpret_cast<float*>(at);
    T* weights = reinterpret_cast<T*>(scores + ScoreFloats(dim));
    T* values = weights + kPieceQueries * kWarpTokens;
    float* largest = reinterpret_cast<float*>(values + kBlockTokens * kBlockTokens);
    return WarpRoom<T>{scores, weights, values, largest, largest + kPieceQueries};
  };
  const WarpRoom<T> room = room_of(warp);
  const float scale = 1.0f / sqrtf(static_cast<float>(shape.head_dim));
  const int num_pieces = in.counts->pieces;
  for (int item = blockIdx.x; item < num_pieces * shape.num_kv_heads; item += gridDim.x) {
    const int kv_head = item / num_pieces;
    const auto [first_row, num_rows, split, table] = in.pieces[item % num_pieces];
    const int num_queries = num_rows * group;
    int last = 0;
    for (int r = 0; r < num_rows; ++r) {
      const int tokens = in.rows[first_row + r].position + 1;
      if (tokens > last) last = tokens;
    }
    for (int i = threadIdx.x; i < kPieceQueries * dim; i += kThreads) {
      const int query = i / dim;
      queries[i] =
          query < num_queries
              ? q[(size_t(first_row + query / group) * shape.num_heads + kv_head * group + query % group) *
                      dim +
                  i % dim]
              : FromFloat<T>(0);
    }
    __syncthreads();

    const int begin = split * kSplitTokens + warp * kWarpTokens;
    const int num_blocks =
        last <= begin ? 0
                      : (last - begin < kWarpTokens ? (last - begin + kBlockTokens - 1) / kBlockTokens
                                                    : kWarpTokens / kBlockTokens);
    const int32_t* blocks = in.blocks + table + begin / kBlockTokens;
    const auto keys = [&](int b) {
      return cache.data + 2 * size_t(blocks[b]) * cache.half_block + size_t(kv_head) * kBlockTokens * dim;
    };
    for (int b = 0; b < num_blocks; ++b) {
      Tile<T> scores;
      scores.Zero();
      for (int d = 0; d < dim; d += 16) scores.AddTransposed(queries + d, dim, keys(b) + d, dim);
      scores.Store(room.scores + b * kBlockTokens, kWarpTokens);
    }
    __syncwarp();
    const int width = num_blocks * kBlockTokens;
    for (int query = 0; query < num_queries; ++query) {  // the rest of the tile is nobody's
      const int valid = in.rows[first_row + query / group].position + 1 - begin;  // it attends to no more
      const float* scores = room.scores + query * kWarpTokens;
      float largest = -INFINITY;
      for (int j = lane; j < width && j < valid; j += 32) largest = fmaxf(largest, scores[j] * scale);
      largest = WarpMax(largest);
      float sum = 0;
      for (int j = lane; j < width; j += 32) {
        const float weight = j < valid ? expf(scores[j] * scale - largest) : 0.0f;
        sum += weight;
        room.weights[query * kWarpTokens + j] = FromFloat<T>(weight);
      }
      sum = WarpSum(sum);
      if (lane == 0) {
        room.largest[query] = largest;
        room.sum[query] = sum;
      }
    }
    __syncwarp();
    for (int d = 0; d < dim; d += 16) {
      Tile<T> outputs;
      outputs.Zero();
      for (int b = 0; b < num_blocks; ++b) {
        const T* values = keys(b) + cache.half_block + d;
        const int valid = last - begin - b * kBlockTokens;
        if (valid >= kBlockTokens) {
          outputs.Add(room.weights + b * kBlockTokens, kWarpTokens, values, dim);
          continue;
        }
        // Nobody has written the rest of the block, or someone else: what is there need not be finite.
        for (int i = lane; i < kBlockTokens * kBlockTokens; i += 32)
          room.values[i] =
              i / kBlockTokens < valid ? values[i / kBlockTokens * dim + i % kBlockTokens] : FromFloat<T>(0);
        __syncwarp();
        outputs.Add(room.weights + b * kBlockTokens, kWarpTokens, room.values, kBlockTokens);
        __syncwarp();
      }
      outputs.Store(room.scores + d, dim);
    }
    __syncthreads();

    for (int i = threadIdx.x; i < num_queries * (dim + 2); i += kThreads) {
      const int query = i / (dim + 2), d = i % (dim + 2);
      const int row = first_row + query / group;
      if (split * kSplitTokens > in.rows[row].position) continue;
      float largest = -INFINITY, sum = 0, output = 0;
      for (int w = 0; w < kWarps; ++w) largest = fmaxf(largest, room_of(w).largest[query]);
      for (int w = 0; w < kWarps; ++w) {
        const WarpRoom<T> part = room_of(w);
        const float share = expf(part.largest[query] - largest);
        sum = fmaf(share, part.sum[query], sum);
        if (d < dim) output = fmaf(share, part.scores[query * dim + d], output);
      }
      const int head = kv_head * group + query % group;
      partials[((size_t(in.rows[row].partial) + split) * shape.num_heads + head) * (dim + 2) + d] =
          d < dim    ? output
          : d == dim ? largest
                     : sum;
    }
    __syncthreads();
  }
}

// The splits of a row, added in order.
template <typename T>
__global__ void MergeKernel(StepInput in, Shape shape, const float* partials, T* attended) {
  const int row = blockIdx.x;
  if (row >= in.counts->rows) return;
  const int dim = shape.head_dim, stride = shape.head_stride(),
            splits = in.rows[row].position / kSplitTokens + 1;
  for (int i = threadIdx.x; i < shape.num_heads * dim; i += kThreads) {
    const auto part = [&](int split) {
      return partials + ((size_t(in.rows[row].partial) + split) * shape.num_heads + i / dim) * (stride + 2);
    };
    float largest = -INFINITY, sum = 0, output = 0;
    for (int s = 0; s < splits; ++s) largest = fmaxf(largest, part(s)[stride]);
    for (int s = 0; s < splits; ++s) {
      const float share = expf(part(s)[stride] - largest);
      sum = fmaf(share, part(s)[stride + 1], sum);
      output = fmaf(share, part(s)[i % dim], output);
    }
    attended[size_t(row) * shape.num_heads * dim + i] = FromFloat<T>(output / sum);
  }
}

template <typename T>
__global__ void ActivateKernel(StepInput in, MlpKind kind, const float* up, const float* bias, int width,
                               T* out) {
  const int row = blockIdx.x;
  if (row >= in.counts->rows) return;
  const bool gated = kind == MlpKind::kSiluGated;
  up += size_t(row) * width * (gated ? 2 : 1);
  for (int i = threadIdx.x; i < width; i += kThreads) {
    const float x = up[i] + (bias != nullptr ? bias[i] : 0.0f);
    float y = 0;
    if (gated) {
      y = x / (1.0f + expf(-x)) * (up[width + i] + (bias != nullptr ? bias[width + i] : 0.0f));
    } else if (kind == MlpKind::kGelu) {
      y = 0.5f * x * (1.0f + erff(x * 0.70710678f));
    } else {
      y = 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    }
    out[size_t(row) * width + i] = FromFloat<T>(y);
  }
}

template <typename T>
__global__ void RewardKernel(StepInput in, const T* hidden, const float* head, int width,
                             StepResult* results) {
  const int i = blockIdx.x;
  if (i >= in.counts->outputs) return;
  __shared__ float room[kWarps];
  float sum = 0;
  for (int j = threadIdx.x; j < width; j += kThreads)
    sum = fmaf(ToFloat(hidden[size_t(i) * width + j]), head[j], sum);
  sum = BlockSum(sum, room);
  if (threadIdx.x == 0) results[i].score = sum;
}

// ---- drawing

#ifdef ALMOST_CUDA_EMULATED
constexpr int kDrawThreads = 64;
#else
constexpr int kDrawThreads = 256;
#endif

// Of a vocabulary's tokens those that are kept: above a weight, of that weight those up to an id; and at
// least min_p.
struct Kept {
  uint32_t bits;  // of the bound: weights are not negative, so their bits have their order
  int last_id;
  float least;
  __device__ bool operator()(float weight, int id) const {
    const uint32_t own = Bits(weight);
    return (own > bits || (own == bits && id <= last_id)) && weight >= least;
  }
};

// Cuts what is kept to the fewest of the likeliest whose amounts add up to `target`; among equals the smaller
// id first.
template <typename Amount>
__device__ void KeepLikeliest(const float* weights, int vocab, double target, Amount amount, Kept& kept,
                              double* room, double* by_thread, int* chosen) {
  uint32_t low = 0, high = Bits(1.0f) + 1;  // at least the target from low on, not from high on
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    double reached = 0;
    for (int i = threadIdx.x; i < vocab; i += kDrawThreads) {
      if (Bits(weights[i]) >= middle && kept(weights[i], i)) reached += amount(weights[i]);
    }
    if (BlockSum(reached, room) >= target) {
      low = middle;
    } else {
      high = middle;
    }
  }
  double above = 0;
  for (int i = threadIdx.x; i < vocab; i += kDrawThreads) {
    if (Bits(weights[i]) > low && kept(weights[i], i)) above += amount(weights[i]);
  }
  above = BlockSum(above, room);
  // Equals, by id: a thread has a range of them.
  const int range = (vocab + kDrawThreads - 1) / kDrawThreads;
  const int begin = threadIdx.x * range, end = begin + range < vocab ? begin + range : vocab;
  double equal = 0;
  for (int i = begin; i < end; ++i) {
    if (Bits(weights[i]) == low && kept(weights[i], i)) equal += amount(weights[i]);
  }
  by_thread[threadIdx.x] = equal;
  if (threadIdx.x == 0) *chosen = vocab;
  __syncthreads();
  double reached = above;
  for (unsigned t = 0; t < threadIdx.x; ++t) reached += by_thread[t];
  if (reached < target && reached + equal >= target) {
    int last = end - 1;
    for (int i = begin; i < end && reached < target; ++i) {
      if (Bits(weights[i]) != low || !kept(weights[i], i)) continue;
      reached += amount(weights[i]);
      last = i;
    }
    *chosen = last;
  }
  __syncthreads();
  kept.bits = low;
  kept.last_id = *chosen;
  __syncthreads();
}

__global__ void __launch_bounds__(kDrawThreads)
    DrawKernel(StepInput in, int first, const float* all_logits, int vocab, float* all_weights,
               StepResult* results) {
  const int i = first + blockIdx.x;
  if (i >= in.counts->outputs) return;
  const StepInput::Output want = in.outputs[i];
  const float* logits = all_logits + size_t(blockIdx.x) * vocab;
  float* weights = all_weights + size_t(blockIdx.x) * vocab;
  __shared__ double room[kDrawThreads / 32], by_thread[kDrawThreads];
  __shared__ float float_room[kDrawThreads / 32];
  __shared__ int int_room[kDrawThreads / 32], chosen;

  float largest = -INFINITY;
  int infinite = 0;
  for (int t = threadIdx.x; t < vocab; t += kDrawThreads) {
    largest = fmaxf(largest, logits[t]);
    infinite |= !(fabsf(logits[t]) < INFINITY);
  }
  largest = BlockReduce(largest, float_room, [](float a, float b) { return fmaxf(a, b); });
  infinite = BlockSum(infinite, int_room);
  double exps = 0;
  for (int t = threadIdx.x; t < vocab; t += kDrawThreads) exps += expf(logits[t] - largest);
  const double log_sum = largest + log(BlockSum(exps, room));
  StepResult result{0, infinite == 0, 0, 0, 0};
  if (want.target >= 0) {
    result.score = static_cast<float>(logits[want.target] - log_sum);
  } else if (infinite == 0 && want.temperature == 0) {
    int id = vocab;
    for (int t = threadIdx.x; t < vocab; t += kDrawThreads) {
      if (logits[t] == largest && t < id) id = t;
    }
    result.token = BlockReduce(id, int_room, [](int a, int b) { return a < b ? a : b; });
    result.model_logprob = static_cast<float>(logits[result.token] - log_sum);
  } else if (infinite == 0) {
    const float inverse = 1.0f / want.temperature;
    for (int t = threadIdx.x; t < vocab; t += kDrawThreads)
      weights[t] = expf((logits[t] - largest) * inverse);
    __syncthreads();
    Kept kept{0, vocab, 0};
    if (want.top_k > 0 && want.top_k < vocab) {
      KeepLikeliest(weights, vocab, want.top_k, [](float) { return 1.0; }, kept, room, by_thread, &chosen);
    }
    if (want.top_p < 1) {
      double mass = 0;
      for (int t = threadIdx.x; t < vocab; t += kDrawThreads) mass += kept(weights[t], t) ? weights[t] : 0.0f;
      mass = BlockSum(mass, room);
      KeepLikeliest(
          weights, vocab, want.top_p * mass, [](float w) { return double(w); }, kept, room, by_thread,
          &chosen);
    }
    kept.least = want.min_p;

    const int range = (vocab + kDrawThreads - 1) / kDrawThreads;
    const int begin = threadIdx.x * range, end = begin + range < vocab ? begin + range : vocab;
    double own = 0;
    int last = -1;  // kept of the thread's range
    for (int t = begin; t < end; ++t) {
      if (!kept(weights[t], t)) continue;
      own += weights[t];
      last = t;
    }
    by_thread[threadIdx.x] = own;
    // Where rounding leaves something at the end, the last token that is kept.
    const int fallback = BlockReduce(last, int_room, [](int a, int b) { return a > b ? a : b; });
    if (threadIdx.x == 0) chosen = fallback;
    __syncthreads();
    double mass = 0, before = 0;
    for (int t = 0; t < kDrawThreads; ++t) {
      if (t == int(threadIdx.x)) before = mass;
      mass += by_thread[t];
    }
    const double point = mass * want.unit;
    if (before <= point && point < before + own) {
      double left = point - before;
      int token = last;
      for (int t = begin; t < end; ++t) {
        if (!kept(weights[t], t)) continue;
        if (left < weights[t]) {
          token = t;
          break;
        }
        left -= weights[t];
      }
      chosen = token;
    }
    __syncthreads();
    result.token = chosen;
    result.model_logprob = static_cast<float>(logits[result.token] - log_sum);
    result.sampled_logprob = static_cast<float>(log(weights[result.token] / mass));
  }
  if (threadIdx.x == 0) results[i] = result;
}

// Blocks that a device has room for at once, about; those that find nothing to do cost microseconds.
#ifdef ALMOST_CUDA_EMULATED
constexpr int kMostBlocks = 8;
#else
constexpr int kMostBlocks = 1024;
#endif

}  // namespace

// ---- from the host

template <typename T>
void Embed(Stream& stream, const StepInput& in, int max_rows, const T* embedding, int hidden, float* x) {
  Launch(stream, max_rows, kThreads, 0, EmbedKernel<T>, in, embedding, hidden, x);
}

template <typename T>
void Normalize(Stream& stream, const StepInput& in, int max_rows, bool of_outputs, const float* x,
               const float* weight, const float* bias, float eps, int width, T* out) {
  Launch(stream, max_rows, kThreads, 0, NormalizeKernel<T>, in, of_outputs, x, weight, bias, eps, width, out);
}

template <typename T>
void Multiply(Stream& stream, const T* a, const T* w, int rows, int n, int k, bool accumulate, float* out) {
  const dim3 grid((n + kProductTile - 1) / kProductTile, (rows + kProductTile - 1) / kProductTile);
  Launch(stream, grid, kThreads, 0, ProductKernel<T>, a, w, rows, n, k, accumulate, out);
}

void AddBias(Stream& stream, const StepInput& in, int max_rows, const float* bias, int width, float* x) {
  Launch(stream, max_rows, kThreads, 0, AddBiasKernel, in, bias, width, x);
}

template <typename T>
void StoreKeysAndValues(Stream& stream, const StepInput& in, int max_rows, const Shape& shape,
                        const float* qkv, const float* bias, const float* query_norm, const float* key_norm,
                        float eps, const float* cosines, const float* sines, T* q, LayerCache<T> cache) {
  Launch(stream, max_rows, kThreads, 0, StoreKernel<T>, in, shape, qkv, bias, query_norm, key_norm, eps,
         cosines, sines, q, cache);
}

size_t PartialFloats(const Shape& shape) { return size_t(shape.num_heads) * (shape.head_stride() + 2); }

template <typename T>
void Attend(Stream& stream, const StepInput& in, int max_rows, int max_pieces, const Shape& shape, const T* q,
            LayerCache<T> cache, float* partials, T* attended) {
  const int blocks = std::min(max_pieces, kMostBlocks / shape.num_kv_heads + 1) * shape.num_kv_heads;
  const size_t shared_bytes =
      kPieceQueries * shape.head_stride() * sizeof(T) + kWarps * WarpBytes<T>(shape.head_stride());
  Launch(stream, blocks, kThreads, shared_bytes, AttendKernel<T>, in, shape, q, cache, partials);
  Launch(stream, max_rows, kThreads, 0, MergeKernel<T>, in, shape, static_cast<const float*>(partials),
         attended);
}

template <typename T>
void Activate(Stream& stream, const StepInput& in, int max_rows, MlpKind kind, const float* up,
              const float* bias, int width, T* out) {
  Launch(stream, max_rows, kThreads, 0, ActivateKernel<T>, in, kind, up, bias, width, out);
}

void Draw(Stream& stream, const StepInput& in, int first, int count, const float* logits, int vocab,
          float* weights, StepResult* results) {
  Launch(stream, count, kDrawThreads, 0, DrawKernel, in, first, logits, vocab, weights, results);
}

template <typename T>
void Reward(Stream& stream, const StepInput& in, int max_outputs, const T* hidden, const float* head,
            int width, StepResult* results) {
  Launch(stream, max_outputs, kThreads, 0, RewardKernel<T>, in, hidden, head, width, results);
}

#define ALMOST_FOR_TYPE(T)                                                                                   \
  template void Embed(Stream&, const StepInput&, int, const T*, int, float*);                                \
  template void Normalize(Stream&, const StepInput&, int, bool, const float*, const float*, const float*,    \
                          float, int, T*);                                                                   \
  template void Multiply(Stream&, const T*, const T*, int, int, int, bool, float*);                          \
  template void StoreKeysAndValues(Stream&, const StepInput&, int, const Shape&, const float*, const float*, \
                                   const float*, const float*, float, const float*, const float*, T*,        \
                                   LayerCache<T>);                                                           \
  template void Attend(Stream&, const StepInput&, int, int, const Shape&, const T*, LayerCache<T>, float*,   \
                       T*);                                                                                  \
  template void Activate(Stream&, const StepInput&, int, MlpKind, const float*, const float*, int, T*);      \
  template void Reward(Stream&, const StepInput&, int, const T*, const float*, int, StepResult*);
ALMOST_FOR_TYPE(float)
ALMOST_FOR_TYPE(Half)
ALMOST_FOR_TYPE(Bfloat)

}  // namespace almost::engine::cuda
