#pragma once

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/kernels/kernels.h"
#include "common/kernels/vector.h"

// The kernels, written once for any width of vector. kernels_avx2.cc and kernels_avx512.cc make one object
// each of them; nothing here may be seen from outside those files, or code for one processor would run on
// another.
namespace almost {
namespace {

// Inputs of one pass over a panel: a group of panels and a tile's rows then stay in the first-level cache.
constexpr int kInputBlock = 256;

// f.operator()<n>(), for n in [1, MAX].
template <int MAX, typename F>
inline void WithConstant(int n, const F& f) {
  if constexpr (MAX > 1) {
    if (n < MAX) return WithConstant<MAX - 1>(n, f);
  }
  f.template operator()<MAX>();
}

template <typename V>
inline V LoadWeights(const float* w) {
  return V::Load(w);
}
struct Bfloat16 {
  uint16_t bits;
};
template <typename V>
inline V LoadWeights(const Bfloat16* w) {
  return V::LoadBfloat16(&w->bits);
}
struct Float16 {
  uint16_t bits;
};
template <typename V>
inline V LoadWeights(const Float16* w) {
  return V::LoadFloat16(&w->bits);
}

// The inner loop of everything: sums of ROWS rows by STREAMS · VECTORS vectors of outputs, in registers. A
// stream is what lies together: a panel's 16 outputs, say.
template <typename V, int ROWS, int STREAMS, int VECTORS>
struct Tile {
  V sum[ROWS][STREAMS * VECTORS];

  void Zero() {
    for (auto& row : sum) {
      for (V& s : row) s = V::Zero();
    }
  }
  void Load(const float* out, size_t stride) {
    for (int r = 0; r < ROWS; ++r) {
      for (int c = 0; c < STREAMS * VECTORS; ++c) sum[r][c] = V::Load(out + r * stride + c * V::kWidth);
    }
  }
  void Store(float* out, size_t stride) const {
    for (int r = 0; r < ROWS; ++r) {
      for (int c = 0; c < STREAMS * VECTORS; ++c) sum[r][c].Store(out + r * stride + c * V::kWidth);
    }
  }
  // sum[r][c] += x[r][k] · w[c / VECTORS][k · w_stride + c % VECTORS · width …], for k in [0, count), in
  // order.
  template <typename W>
  void Add(const float* x, size_t x_stride, const W* const (&w_in)[STREAMS], size_t w_stride, int count) {
    // Every third row has a pointer: an address reaches the two after it. More would not fit the registers.
    constexpr int kPointers = (ROWS + 2) / 3;
    const float* rows[kPointers];
    for (int i = 0; i < kPointers; ++i) rows[i] = x + 3 * i * x_stride;
    const W* w[STREAMS];
    std::copy_n(w_in, STREAMS, w);
    const auto step = [&](int k) {
      if constexpr (ROWS == 1 && sizeof(W) == 2) {
        // At half a cache line a step, the processor does not run ahead far enough by itself.
        for (const W* stream : w) __builtin_prefetch(stream + (k + 32) * w_stride);
      }
      V weights[STREAMS * VECTORS];
      for (int c = 0; c < STREAMS * VECTORS; ++c) {
        weights[c] = LoadWeights<V>(w[c / VECTORS] + k * w_stride + c % VECTORS * V::kWidth);
      }
      for (int r = 0; r < ROWS; ++r) {
        const V value = V::Set(rows[r / 3][r % 3 * x_stride + k]);
        for (int c = 0; c < STREAMS * VECTORS; ++c) sum[r][c] = Fma(value, weights[c], sum[r][c]);
      }
    };
    constexpr int kSteps = V::kStepsAtOnce;
    for (; count >= kSteps; count -= kSteps) {
      for (int k = 0; k < kSteps; ++k) step(k);
      for (const float*& row : rows) row += kSteps;
      for (const W*& stream : w) stream += kSteps * w_stride;
    }
    for (int k = 0; k < count; ++k) step(k);
  }
};

// exp(x) = 2^n · p(r), r = x - n·ln2 in [-ln2/2, ln2/2]; the polynomial of Cephes' expf.
template <typename V>
inline V Exponential(V x) {
  const V lowest = V::Set(-87.3f);
  const V clamped = Min(Max(x, lowest), V::Set(88.3f));
  const V n = Round(clamped * V::Set(1.44269504088896341f));
  V r = Fma(n, V::Set(-0.693359375f), clamped);
  r = Fma(n, V::Set(2.12194440e-4f), r);
  V p = V::Set(1.9875691500e-4f);
  for (const float coefficient :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) {
    p = Fma(p, r, V::Set(coefficient));
  }
  p = Fma(p, r * r, r) + V::Set(1.0f);
  return ZeroWhereLess(p * PowerOfTwo(n), x, lowest);
}

// The sum of eight lanes.
inline float SumOfLanes(__m256 v) {
  const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

// f(i, load, store) for each vector of `count` numbers: load(p) reads what there is from p + i on.
template <typename V, typename F>
inline void ForEachVector(int count, const F& f) {
  int i = 0;
  for (; i + V::kWidth <= count; i += V::kWidth) {
    f([i](const float* p) { return V::Load(p + i); }, [i](float* p, V value) { value.Store(p + i); });
  }
  if (const int left = count - i; left > 0) {
    f([i, left](const float* p) { return V::LoadPart(p + i, left); },
      [i, left](float* p, V value) { value.StorePart(p + i, left); });
  }
}

template <typename V>
class VectorKernels final : public Kernels {
 public:
  int PanelsAtOnce(int rows) const override { return V::PanelsAtOnce(rows); }
  int QueriesAtOnce() const override { return V::kTileRows; }
  size_t AttentionScratch(int num_tokens, int head_dim) const override {
    return V::kTileRows * (2 * RowStride(head_dim) + RowStride(num_tokens));
  }

  void MatMul(const float* x, size_t x_stride, int rows, const PackedMatrix& weight, int first_panel,
              int num_panels, bool accumulate, float* out, size_t out_stride) const override {
    const Product product{x, x_stride, rows, weight, accumulate, out, out_stride};
    switch (weight.type()) {
      case WeightType::kFloat32:
        return MultiplyPanels<float>(product, first_panel, num_panels);
      case WeightType::kBfloat16:
        return MultiplyPanels<Bfloat16>(product, first_panel, num_panels);
      case WeightType::kFloat16:
        return MultiplyPanels<Float16>(product, first_panel, num_panels);
    }
  }

  void RmsNorm(const float* x, const float* weight, float eps, int width, float* out) const override {
    const V scale = V::Set(1.0f / std::sqrt(Dot(x, x, width) / static_cast<float>(width) + eps));
    ForEachVector<V>(width, [&](auto load, auto store) { store(out, load(x) * scale * load(weight)); });
  }

  void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int width,
                 float* out) const override {
    // Means in eight fixed lanes.
    const auto mean_of = [width](const auto& eight, const auto& one) {
      __m256 lanes = _mm256_setzero_ps();
      int i = 0;
      for (; i + 8 <= width; i += 8) lanes = _mm256_add_ps(lanes, eight(i));
      float total = SumOfLanes(lanes);
      for (; i < width; ++i) total += one(i);
      return total / static_cast<float>(width);
    };
    const float mean = mean_of([&](int i) { return _mm256_loadu_ps(x + i); }, [&](int i) { return x[i]; });
    const float variance = mean_of(
        [&](int i) {
          const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i), _mm256_set1_ps(mean));
          return _mm256_mul_ps(d, d);
        },
        [&](int i) { return (x[i] - mean) * (x[i] - mean); });
    const V scale = V::Set(1.0f / std::sqrt(variance + eps));
    ForEachVector<V>(width, [&](auto load, auto store) {
      store(out, (load(x) - V::Set(mean)) * scale * load(weight) + load(bias));
    });
  }

  void Rotate(float* head, const float* cosines, const float* sines, int num_dims) const override {
    float* other = head + num_dims / 2;
    ForEachVector<V>(num_dims / 2, [&](auto load, auto store) {
      const V a = load(head), b = load(other), cosine = load(cosines), sine = load(sines);
      store(head, a * cosine - b * sine);
      store(other, b * cosine + a * sine);
    });
  }

  void SiluMul(const float* gate, const float* up, int count, float* out) const override {
    ForEachVector<V>(count, [&](auto load, auto store) {
      const V g = load(gate);
      store(out, g / (V::Set(1.0f) + Exponential(V::Zero() - g)) * load(up));
    });
  }

  // With z = |x|/√2: Φ(-|x|) = erfc(z)/2, and erfc(z) = t·p(t)·exp(-z²), t = 1/(1 + 0.3275911 z)
  // (Abramowitz and Stegun 7.1.26).
  void Gelu(const float* x, int count, float* out) const override {
    ForEachVector<V>(count, [&](auto load, auto store) {
      const V v = load(x), one = V::Set(1.0f);
      const V z = Max(v, V::Zero() - v) * V::Set(0.70710678118654752f);
      const V t = one / Fma(z, V::Set(0.3275911f), one);
      V p = V::Set(1.061405429f);
      for (const float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
        p = Fma(p, t, V::Set(coefficient));
      }
      const V tail = V::Set(0.5f) * (p * t * Exponential(V::Zero() - z * z));
      store(out, v * Select(v, tail, one - tail));
    });
  }

  void GeluTanh(const float* x, int count, float* out) const override {
    ForEachVector<V>(count, [&](auto load, auto store) {
      const V v = load(x), one = V::Set(1.0f);
      const V minus_2u = v * Fma(v * v, V::Set(0.044715f), one) * V::Set(-1.5957691216057308f);
      store(out, v / (one + Exponential(minus_2u)));
    });
  }

  void Exp(float* x, int count) const override {
    ForEachVector<V>(count, [&](auto load, auto store) { store(x, Exponential(load(x))); });
  }

  void Attend(std::span<const AttentionQuery> queries, int shared_blocks, const HeadCache& cache,
              int head_dim, float scale, float* scratch) const override {
    int longest = 0;
    for (const AttentionQuery& q : queries) longest = std::max(longest, q.num_tokens);
    const size_t stride = RowStride(head_dim);
    float* outs = scratch + V::kTileRows * stride;
    const Heads heads{
        cache, head_dim, scratch, stride, outs, outs + V::kTileRows * stride, RowStride(longest)};
    while (!queries.empty()) {
      const size_t count = std::min<size_t>(V::kTileRows, queries.size());
      AttendTogether(queries.first(count), shared_blocks, heads, scale);
      queries = queries.subspan(count);
    }
  }

  float Dot(const float* x, const float* y, int count) const override {
    __m256 sum = _mm256_setzero_ps();
    int i = 0;
    for (; i + 8 <= count; i += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i), sum);
    float total = SumOfLanes(sum);
    for (; i < count; ++i) total = __builtin_fmaf(x[i], y[i], total);
    return total;
  }

  double LogSumExp(std::span<const float> x) const override {
    const float largest = Largest(x);
    double sum = 0;
    float part[64];
    for (size_t i = 0; i < x.size(); i += 64) {
      const int count = static_cast<int>(std::min<size_t>(64, x.size() - i));
      for (int j = 0; j < count; ++j) part[j] = x[i + j] - largest;
      Exp(part, count);
      for (int j = 0; j < count; ++j) sum += static_cast<double>(part[j]);
    }
    return static_cast<double>(largest) + std::log(sum);
  }

  float Largest(std::span<const float> x) const override {
    V largest = V::Set(x[0]), zeros = V::Zero();
    const int count = static_cast<int>(x.size());
    int i = 0;
    for (; i + V::kWidth <= count; i += V::kWidth) {
      const V v = V::Load(x.data() + i);
      largest = Max(largest, v);
      zeros = Fma(v, V::Zero(), zeros);  // NaN from what is not finite on
    }
    float most = LargestLane(largest), zero = SumOfLanes(AddTo(_mm256_setzero_ps(), zeros));
    for (; i < count; ++i) {
      most = std::max(most, x[i]);
      zero += x[i] * 0.0f;
    }
    return zero == 0 ? most : NAN;
  }

  void Weights(std::span<const float> x, float largest, float inverse, float* out) const override {
    ForEachVector<V>(static_cast<int>(x.size()), [&](auto load, auto store) {
      store(out, Exponential((load(x.data()) - V::Set(largest)) * V::Set(inverse)));
    });
  }

  double Sum(std::span<const float> x) const override {
    __m256d lanes = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + 4 <= x.size(); i += 4) lanes = _mm256_add_pd(lanes, _mm256_cvtps_pd(_mm_loadu_ps(&x[i])));
    double sums[4];
    _mm256_storeu_pd(sums, lanes);
    for (; i < x.size(); ++i) sums[0] += static_cast<double>(x[i]);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

  int AtLeast(std::span<const float> x, float least, int32_t* indices) const override {
    const V bound = V::Set(least);
    const int count = static_cast<int>(x.size());
    int found = 0, i = 0;
    for (; i + V::kWidth <= count; i += V::kWidth) {
      for (uint32_t lanes = NotLess(V::Load(x.data() + i), bound); lanes != 0; lanes &= lanes - 1) {
        indices[found++] = i + __builtin_ctz(lanes);
      }
    }
    for (; i < count; ++i) {
      if (x[i] >= least) indices[found++] = i;
    }
    return found;
  }

 private:
  static constexpr int kPanel = PackedMatrix::kPanel;
  static constexpr int kVectorsPerPanel = kPanel / V::kWidth;

  struct Product {
    const float* x;
    size_t x_stride;
    int rows;
    const PackedMatrix& weight;
    bool accumulate;
    float* out;
    size_t out_stride;
  };

  template <typename W>
  static void MultiplyPanels(const Product& p, int first_panel, int num_panels) {
    const int whole_end = std::min(first_panel + num_panels, p.weight.num_outputs() / kPanel);
    // One row stays in the cache as it is, and whole panels are what memory streams best.
    const int block = p.rows == 1 ? p.weight.num_inputs() : kInputBlock;
    for (int begin = 0; begin < p.weight.num_inputs(); begin += block) {
      const int end = std::min(p.weight.num_inputs(), begin + block);
      WithConstant<V::kTileRows>(std::min(p.rows, V::kTileRows), [&]<int ROWS>() {
        constexpr int kPanels = V::PanelsAtOnce(ROWS);
        int panel = first_panel;
        for (; panel + kPanels <= whole_end; panel += kPanels) {
          MultiplyGroup<W, kPanels, ROWS>(p, panel, begin, end);
        }
        for (; panel < whole_end; ++panel) MultiplyGroup<W, 1, ROWS>(p, panel, begin, end);
      });
      if (whole_end < first_panel + num_panels) MultiplyLastPanel<W>(p, begin, end);
    }
  }

  // All rows by PANELS whole panels, inputs [begin, end). ROWS of them at once: all, or the most there is.
  template <typename W, int PANELS, int ROWS>
  static void MultiplyGroup(const Product& p, int panel, int begin, int end) {
    const W* weights[PANELS];
    for (int i = 0; i < PANELS; ++i) {
      weights[i] = p.weight.template panel<W>(panel + i) + size_t(begin) * kPanel;
    }
    const bool from_zero = begin == 0 && !p.accumulate;
    const size_t to_next_group = size_t(PANELS) * p.weight.num_inputs() * kPanel;
    const auto multiply = [&]<int COUNT>(int row) {
      if (p.rows >= 8 * V::kTileRows) {
        // Each tile asks for its share of the weights that the next group will have: its first tile would
        // otherwise wait for all of them. With fewer tiles the shares are large, and cost more than that.
        const auto share_end = [&](int rows) { return int64_t{end - begin} * rows / p.rows; };
        for (const W* w : weights) {
          for (int64_t k = share_end(row); k < share_end(row + COUNT); k += 64 / (kPanel * sizeof(W))) {
            __builtin_prefetch(w + to_next_group + k * kPanel, 0, 2);
          }
        }
      }
      float* out = p.out + row * p.out_stride + size_t(panel) * kPanel;
      Tile<V, COUNT, PANELS, kVectorsPerPanel> tile;
      from_zero ? tile.Zero() : tile.Load(out, p.out_stride);
      tile.Add(p.x + row * p.x_stride + begin, p.x_stride, weights, kPanel, end - begin);
      tile.Store(out, p.out_stride);
    };
    int row = 0;
    for (; row + ROWS <= p.rows; row += ROWS) multiply.template operator()<ROWS>(row);
    if constexpr (ROWS == V::kTileRows) {
      if (row == p.rows) return;
      WithConstant<ROWS - 1>(p.rows - row, [&]<int REST>() { multiply.template operator()<REST>(row); });
    }
  }

  // All rows by the last panel, which is not whole.
  template <typename W>
  static void MultiplyLastPanel(const Product& p, int begin, int end) {
    const int panel = p.weight.num_outputs() / kPanel, tail = p.weight.num_outputs() % kPanel;
    const W* const weights = p.weight.template panel<W>(panel) + size_t(begin) * kPanel;
    for (int row = 0; row < p.rows; ++row) {
      float padded[kPanel] = {};
      float* out = p.out + row * p.out_stride + size_t(panel) * kPanel;
      if (begin > 0 || p.accumulate) std::copy(out, out + tail, padded);
      Tile<V, 1, 1, kVectorsPerPanel> tile;
      tile.Load(padded, kPanel);
      tile.Add(p.x + row * p.x_stride + begin, p.x_stride, {weights}, kPanel, end - begin);
      tile.Store(padded, kPanel);
      std::copy(padded, padded + tail, out);
    }
  }

  // One head's cache, and scratch for kTileRows queries.
  struct Heads {
    HeadCache cache;
    int head_dim;
    float* queries;  // [kTileRows, query_stride]
    size_t query_stride;
    float* outs;    // likewise
    float* scores;  // [kTileRows, score_stride]
    size_t score_stride;
  };

  static void AttendTogether(std::span<const AttentionQuery> queries, int shared_blocks, const Heads& h,
                             float scale) {
    const int count = static_cast<int>(queries.size());
    for (int i = 0; i < count; ++i) {
      std::copy_n(queries[i].query, h.head_dim, h.queries + i * h.query_stride);
      std::fill_n(h.outs + i * h.query_stride, h.head_dim, 0.0f);
    }
    WithConstant<V::kTileRows>(count, [&]<int QUERIES>() {
      ScoreBlocks<QUERIES>(queries[0].blocks, 0, shared_blocks, h, 0, scale);
    });
    for (int i = 0; i < count; ++i) {
      const AttentionQuery& q = queries[i];
      const int num_blocks = (q.num_tokens + kBlockTokens - 1) / kBlockTokens;
      ScoreBlocks<1>(q.blocks, shared_blocks, num_blocks, h, i, scale);
      // What lies past the query in its own block is another's, or not yet written.
      float* scores = h.scores + i * h.score_stride;
      std::fill(scores + q.num_tokens, scores + num_blocks * kBlockTokens, -INFINITY);
    }
    float inverse[V::kTileRows];
    for (int i = 0; i < count; ++i) {
      inverse[i] = 1.0f / ExponentiateScores(h.scores + i * h.score_stride, queries[i].num_tokens);
    }
    WithConstant<V::kTileRows>(count, [&]<int QUERIES>() {
      AddValues<QUERIES>(queries[0].blocks, 0, shared_blocks * kBlockTokens, h, 0);
    });
    for (int i = 0; i < count; ++i) {
      const AttentionQuery& q = queries[i];
      AddValues<1>(q.blocks, shared_blocks * kBlockTokens, q.num_tokens, h, i);
      const float* out = h.outs + i * h.query_stride;
      const V factor = V::Set(inverse[i]);
      ForEachVector<V>(h.head_dim, [&](auto load, auto store) { store(q.out, load(out) * factor); });
    }
  }

  // The next block of a shared prefix lies elsewhere: the processor does not read ahead that far by itself.
  static void AskFor(const float* p, int lines, int stride) {
    for (int i = 0; i < lines; ++i) __builtin_prefetch(p + i * stride);
  }

  // Scores of queries [first, first + QUERIES) against blocks [begin, end) of `blocks`.
  template <int QUERIES>
  static void ScoreBlocks(const int* blocks, int begin, int end, const Heads& h, int first, float scale) {
    const auto run = [&]<int BLOCKS>() {
      for (; begin + BLOCKS <= end; begin += BLOCKS) {
        const float* keys[BLOCKS];
        for (int i = 0; i < BLOCKS; ++i) keys[i] = h.cache.keys + blocks[begin + i] * h.cache.stride;
        if (QUERIES > 1 && begin + BLOCKS < end) {
          AskFor(h.cache.keys + blocks[begin + BLOCKS] * h.cache.stride, 8, kBlockTokens);
        }
        Tile<V, QUERIES, BLOCKS, kVectorsPerPanel> tile;
        tile.Zero();
        tile.Add(h.queries + first * h.query_stride, h.query_stride, keys, kBlockTokens, h.head_dim);
        for (auto& row : tile.sum) {
          for (V& sum : row) sum = sum * V::Set(scale);
        }
        tile.Store(h.scores + first * h.score_stride + begin * kBlockTokens, h.score_stride);
      }
    };
    run.template operator()<V::PanelsAtOnce(QUERIES)>();
    run.template operator()<1>();
  }

  // Scores become exp(score - largest), those of no token 0; returns their sum, of eight lanes.
  static float ExponentiateScores(float* scores, int num_tokens) {
    const int padded = (num_tokens + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
    V largest = V::Load(scores);
    for (int i = V::kWidth; i < padded; i += V::kWidth) largest = Max(largest, V::Load(scores + i));
    largest = V::Set(LargestLane(largest));
    __m256 sum = _mm256_setzero_ps();
    for (int i = 0; i < padded; i += V::kWidth) {
      const V e = Exponential(V::Load(scores + i) - largest);
      e.Store(scores + i);
      sum = AddTo(sum, e);
    }
    return SumOfLanes(sum);
  }

  // A power of two of vectors, as many as there are registers for.
  static constexpr int ColumnsAtOnce(int queries) {
    int columns = 8;
    while (columns * queries > V::kTileSums) columns /= 2;
    return columns;
  }

  // Adds to the outputs of queries [first, first + QUERIES) the values of tokens [begin, end); begin is a
  // block's first.
  template <int QUERIES>
  static void AddValues(const int* blocks, int begin, int end, const Heads& h, int first) {
    if (begin >= end) return;
    float* out = h.outs + first * h.query_stride;
    const float* scores = h.scores + first * h.score_stride;
    int d = 0;
    const auto run = [&]<int VECTORS>(const auto& self) {
      for (; d + VECTORS * V::kWidth <= h.head_dim; d += VECTORS * V::kWidth) {
        Tile<V, QUERIES, 1, VECTORS> tile;
        tile.Load(out + d, h.query_stride);
        for (int t = begin; t < end; t += kBlockTokens) {
          const float* values = h.cache.values + blocks[t / kBlockTokens] * h.cache.stride + d;
          if (QUERIES > 1 && t + kBlockTokens < end) {
            AskFor(h.cache.values + blocks[t / kBlockTokens + 1] * h.cache.stride + d, kBlockTokens,
                   h.head_dim);
          }
          tile.Add(scores + t, h.score_stride, {values}, h.head_dim, std::min(kBlockTokens, end - t));
        }
        tile.Store(out + d, h.query_stride);
      }
      if constexpr (VECTORS > 1) self.template operator()<VECTORS / 2>(self);
    };
    run.template operator()<ColumnsAtOnce(QUERIES)>(run);
    // The dimensions that fill no vector.
    for (; d < h.head_dim; ++d) {
      for (int i = 0; i < QUERIES; ++i) {
        float& sum = out[i * h.query_stride + d];
        for (int t = begin; t < end; ++t) {
          const float* values = h.cache.values + size_t(blocks[t / kBlockTokens]) * h.cache.stride;
          sum =
              __builtin_fmaf(scores[i * h.score_stride + t], values[t % kBlockTokens * h.head_dim + d], sum);
        }
      }
    }
  }
};

}  // namespace
}  // namespace almost
