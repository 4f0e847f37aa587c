#include "common/engine/kernels.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace almost::engine {
namespace {

// Inputs of one pass over a panel: 512 · 16 floats stay in the first-level cache.
constexpr int kInputBlock = 512;

float HorizontalSum(__m256 v) {
  const __m128 quad = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 pair = _mm_add_ps(quad, _mm_movehl_ps(quad, quad));
  return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

// exp(x) = 2^n · p(r), r = x - n·ln2 in [-ln2/2, ln2/2]; the polynomial of Cephes' expf.
__m256 Exp8(__m256 x) {
  const __m256 underflow = _mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_LT_OQ);
  x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.3f)), _mm256_set1_ps(88.3f));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  for (const float coefficient :
       {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f}) {
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(coefficient));
  }
  p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
  const __m256i power =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(underflow, _mm256_mul_ps(p, _mm256_castsi256_ps(power)));
}

// ROWS rows by PANELS panels of 16 outputs, inputs [begin, end): 2·ROWS·PANELS registers accumulate.
template <int ROWS, int PANELS>
void Tile(const float* x, size_t x_stride, const float* const* panels, int begin, int end, float* out,
          size_t out_stride) {
  __m256 sum[ROWS][2 * PANELS];
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < 2 * PANELS; ++c) sum[r][c] = _mm256_loadu_ps(out + r * out_stride + 8 * c);
  }
  for (int k = begin; k < end; ++k) {
    __m256 w[2 * PANELS];
    for (int p = 0; p < PANELS; ++p) {
      w[2 * p] = _mm256_loadu_ps(panels[p] + size_t(k) * PackedMatrix::kPanel);
      w[2 * p + 1] = _mm256_loadu_ps(panels[p] + size_t(k) * PackedMatrix::kPanel + 8);
    }
    for (int r = 0; r < ROWS; ++r) {
      const __m256 value = _mm256_broadcast_ss(x + r * x_stride + k);
      for (int c = 0; c < 2 * PANELS; ++c) sum[r][c] = _mm256_fmadd_ps(value, w[c], sum[r][c]);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int c = 0; c < 2 * PANELS; ++c) _mm256_storeu_ps(out + r * out_stride + 8 * c, sum[r][c]);
  }
}

// `rows` < 6 rows (6 take Tile<6, 1>) by `panels` ≤ 4 whole panels.
template <int PANELS>
void TileRows(int rows, const float* x, size_t x_stride, const float* const* panels, int begin, int end,
              float* out, size_t out_stride) {
  switch (rows) {
    case 1:
      return Tile<1, PANELS>(x, x_stride, panels, begin, end, out, out_stride);
    case 2:
      return Tile<2, PANELS>(x, x_stride, panels, begin, end, out, out_stride);
    case 3:
      return Tile<3, PANELS>(x, x_stride, panels, begin, end, out, out_stride);
    case 4:
      return Tile<4, PANELS>(x, x_stride, panels, begin, end, out, out_stride);
    case 5:
      return Tile<5, PANELS>(x, x_stride, panels, begin, end, out, out_stride);
    default:
      return Tile<6, PANELS>(x, x_stride, panels, begin, end, out, out_stride);
  }
}

constexpr size_t kMaxQueries = 6;

// Scores of QUERIES queries against BLOCKS blocks from block number `first` on, the same for all of them.
template <int QUERIES, int BLOCKS>
void ScoreBlocks(const AttentionQuery* queries, int first, const HeadCache& cache, int head_dim,
                 float scale) {
  const float* keys[BLOCKS];
  for (int b = 0; b < BLOCKS; ++b) keys[b] = cache.keys + size_t(queries[0].blocks[first + b]) * cache.stride;
  __m256 sum[QUERIES][2 * BLOCKS];
  for (auto& row : sum) std::fill(std::begin(row), std::end(row), _mm256_setzero_ps());
  for (int d = 0; d < head_dim; ++d) {
    __m256 key[2 * BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) {
      key[2 * b] = _mm256_loadu_ps(keys[b] + d * kBlockTokens);
      key[2 * b + 1] = _mm256_loadu_ps(keys[b] + d * kBlockTokens + 8);
    }
    for (int q = 0; q < QUERIES; ++q) {
      const __m256 value = _mm256_broadcast_ss(queries[q].query + d);
      for (int c = 0; c < 2 * BLOCKS; ++c) sum[q][c] = _mm256_fmadd_ps(value, key[c], sum[q][c]);
    }
  }
  for (int q = 0; q < QUERIES; ++q) {
    float* scores = queries[q].scores + first * kBlockTokens;
    for (int c = 0; c < 2 * BLOCKS; ++c) {
      _mm256_storeu_ps(scores + 8 * c, _mm256_mul_ps(sum[q][c], _mm256_set1_ps(scale)));
    }
  }
}

void ScoreShared(std::span<const AttentionQuery> queries, int num_blocks, const HeadCache& cache,
                 int head_dim, float scale) {
  int b = 0;
  const auto run = [&]<int QUERIES, int BLOCKS>() {
    for (; b + BLOCKS <= num_blocks; b += BLOCKS) {
      ScoreBlocks<QUERIES, BLOCKS>(queries.data(), b, cache, head_dim, scale);
    }
  };
  switch (queries.size()) {
    case 1:
      run.operator()<1, 4>();
      return run.operator()<1, 1>();
    case 2:
      run.operator()<2, 3>();
      return run.operator()<2, 1>();
    case 3:
      run.operator()<3, 2>();
      return run.operator()<3, 1>();
    case 4:
      return run.operator()<4, 1>();
    case 5:
      return run.operator()<5, 1>();
    default:
      return run.operator()<6, 1>();
  }
}

// Scores become exp(score - largest), those of no token 0; returns their sum.
float ExponentiateScores(float* scores, int num_tokens) {
  const int padded = (num_tokens + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
  __m256 largest8 = _mm256_set1_ps(-INFINITY);
  for (int i = 0; i < padded; i += 8) largest8 = _mm256_max_ps(largest8, _mm256_loadu_ps(scores + i));
  float lanes[8];
  _mm256_storeu_ps(lanes, largest8);
  const __m256 largest = _mm256_set1_ps(*std::max_element(lanes, lanes + 8));
  __m256 sum = _mm256_setzero_ps();
  for (int i = 0; i < padded; i += 8) {
    const __m256 e = Exp8(_mm256_sub_ps(_mm256_loadu_ps(scores + i), largest));
    _mm256_storeu_ps(scores + i, e);
    sum = _mm256_add_ps(sum, e);
  }
  return HorizontalSum(sum);
}

// Output dimensions [d, d + 8·VECTORS) of QUERIES queries over tokens [begin, end), the same for all of them.
template <int QUERIES, int VECTORS>
void AddValues(const AttentionQuery* queries, int begin, int end, const HeadCache& cache, int head_dim,
               int d) {
  __m256 sum[QUERIES][VECTORS];
  for (int q = 0; q < QUERIES; ++q) {
    for (int c = 0; c < VECTORS; ++c) sum[q][c] = _mm256_loadu_ps(queries[q].out + d + 8 * c);
  }
  for (int t = begin; t < end;) {
    const float* value = cache.values + size_t(queries[0].blocks[t / kBlockTokens]) * cache.stride + d;
    const int block_end = std::min(end, t + kBlockTokens);
    for (; t < block_end; ++t, value += head_dim) {
      __m256 v[VECTORS];
      for (int c = 0; c < VECTORS; ++c) v[c] = _mm256_loadu_ps(value + 8 * c);
      for (int q = 0; q < QUERIES; ++q) {
        const __m256 weight = _mm256_broadcast_ss(queries[q].scores + t);
        for (int c = 0; c < VECTORS; ++c) sum[q][c] = _mm256_fmadd_ps(weight, v[c], sum[q][c]);
      }
    }
  }
  for (int q = 0; q < QUERIES; ++q) {
    for (int c = 0; c < VECTORS; ++c) _mm256_storeu_ps(queries[q].out + d + 8 * c, sum[q][c]);
  }
}

// The dimensions from `d` on that fill no vector.
void AddRest(const AttentionQuery& q, int begin, int end, const HeadCache& cache, int head_dim, int d) {
  for (; d < head_dim; ++d) {
    float sum = q.out[d];
    for (int t = begin; t < end; ++t) {
      const float* values = cache.values + size_t(q.blocks[t / kBlockTokens]) * cache.stride;
      sum = std::fma(q.scores[t], values[t % kBlockTokens * head_dim + d], sum);
    }
    q.out[d] = sum;
  }
}

void AddShared(std::span<const AttentionQuery> queries, int num_tokens, const HeadCache& cache,
               int head_dim) {
  int d = 0;
  const auto run = [&]<int QUERIES, int VECTORS>() {
    for (; d + 8 * VECTORS <= head_dim; d += 8 * VECTORS) {
      AddValues<QUERIES, VECTORS>(queries.data(), 0, num_tokens, cache, head_dim, d);
    }
  };
  switch (queries.size()) {
    case 1:
      run.operator()<1, 8>();
      run.operator()<1, 4>();
      run.operator()<1, 1>();
      break;
    case 2:
      run.operator()<2, 4>();
      run.operator()<2, 1>();
      break;
    case 3:
      run.operator()<3, 4>();
      run.operator()<3, 1>();
      break;
    case 4:
      run.operator()<4, 2>();
      run.operator()<4, 1>();
      break;
    case 5:
      run.operator()<5, 2>();
      run.operator()<5, 1>();
      break;
    default:
      run.operator()<6, 2>();
      run.operator()<6, 1>();
  }
  for (const AttentionQuery& q : queries) AddRest(q, 0, num_tokens, cache, head_dim, d);
}

}  // namespace

bool CpuIsSupported() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

PackedMatrix::PackedMatrix(std::span<const float> weight_NK, int num_outputs, int num_inputs)
    : num_outputs_(num_outputs), num_inputs_(num_inputs) {
  data_.resize(size_t(num_panels()) * num_inputs * kPanel);
  for (int n = 0; n < num_outputs; ++n) {
    float* column = data_.data() + size_t(n / kPanel) * num_inputs * kPanel + n % kPanel;
    const float* row = weight_NK.data() + size_t(n) * num_inputs;
    for (int k = 0; k < num_inputs; ++k) column[size_t(k) * kPanel] = row[k];
  }
}

PackedMatrix PackedMatrix::Stack(const std::vector<std::vector<float>>& weights, int num_inputs) {
  std::vector<float> all;
  for (const std::vector<float>& weight : weights) all.insert(all.end(), weight.begin(), weight.end());
  return PackedMatrix(all, static_cast<int>(all.size() / num_inputs), num_inputs);
}

void MatMulAdd(const float* x_MK, int rows, const PackedMatrix& weight, float* out_MN) {
  constexpr int kPanel = PackedMatrix::kPanel;
  const int inputs = weight.num_inputs();
  const int outputs = weight.num_outputs();
  const int whole_panels = outputs / kPanel;
  // Few rows would leave most accumulators idle: they take several panels at once.
  const int panels_at_once = rows >= 3 ? 1 : rows == 2 ? 2 : 4;
  for (int begin = 0; begin < inputs; begin += kInputBlock) {
    const int end = std::min(inputs, begin + kInputBlock);
    for (int p = 0; p < whole_panels;) {
      const int count = whole_panels - p >= panels_at_once ? panels_at_once : 1;
      const float* panels[4];
      for (int i = 0; i < count; ++i) panels[i] = weight.panel(p + i);
      for (int row = 0; row < rows; row += 6) {
        const float* x = x_MK + size_t(row) * inputs;
        float* out = out_MN + size_t(row) * outputs + size_t(p) * kPanel;
        const int left = std::min(6, rows - row);
        if (count == 4) {
          Tile<1, 4>(x, inputs, panels, begin, end, out, outputs);
        } else if (count == 2) {
          Tile<2, 2>(x, inputs, panels, begin, end, out, outputs);
        } else {
          TileRows<1>(left, x, inputs, panels, begin, end, out, outputs);
        }
      }
      p += count;
    }
    if (const int tail = outputs - whole_panels * kPanel; tail > 0) {
      const float* panel = weight.panel(whole_panels);
      for (int row = 0; row < rows; ++row) {
        float padded[kPanel] = {};
        float* out = out_MN + size_t(row) * outputs + size_t(whole_panels) * kPanel;
        std::memcpy(padded, out, tail * sizeof(float));
        Tile<1, 1>(x_MK + size_t(row) * inputs, inputs, &panel, begin, end, padded, kPanel);
        std::memcpy(out, padded, tail * sizeof(float));
      }
    }
  }
}

float Dot(const float* x, const float* y, int count) {
  __m256 sum = _mm256_setzero_ps();
  int i = 0;
  for (; i + 8 <= count; i += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(x + i), _mm256_loadu_ps(y + i), sum);
  float total = HorizontalSum(sum);
  for (; i < count; ++i) total = std::fma(x[i], y[i], total);
  return total;
}

void RmsNorm(const float* x, const float* weight, float eps, int rows, int width, float* out) {
  for (int row = 0; row < rows; ++row, x += width, out += width) {
    const float scale = 1.0f / std::sqrt(Dot(x, x, width) / static_cast<float>(width) + eps);
    for (int i = 0; i < width; ++i) out[i] = x[i] * scale * weight[i];
  }
}

void LayerNorm(const float* x, const float* weight, const float* bias, float eps, int rows, int width,
               float* out) {
  const auto sum = [width](const auto& eight, const auto& one) {
    __m256 lanes = _mm256_setzero_ps();
    int i = 0;
    for (; i + 8 <= width; i += 8) lanes = _mm256_add_ps(lanes, eight(i));
    float total = HorizontalSum(lanes);
    for (; i < width; ++i) total += one(i);
    return total / static_cast<float>(width);
  };
  for (int row = 0; row < rows; ++row, x += width, out += width) {
    const float mean = sum([&](int i) { return _mm256_loadu_ps(x + i); }, [&](int i) { return x[i]; });
    const __m256 mean8 = _mm256_set1_ps(mean);
    const float variance = sum(
        [&](int i) {
          const __m256 d = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean8);
          return _mm256_mul_ps(d, d);
        },
        [&](int i) { return (x[i] - mean) * (x[i] - mean); });
    const float scale = 1.0f / std::sqrt(variance + eps);
    for (int i = 0; i < width; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
  }
}

void Rotate(float* head_D, const float* cosines, const float* sines, int num_dims) {
  const int half = num_dims / 2;
  for (int i = 0; i < half; ++i) {
    const float a = head_D[i], b = head_D[i + half];
    head_D[i] = a * cosines[i] - b * sines[i];
    head_D[i + half] = b * cosines[i] + a * sines[i];
  }
}

void Exp(float* x, int count) {
  int i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(x + i, Exp8(_mm256_loadu_ps(x + i)));
  if (i < count) {
    float padded[8] = {};
    std::memcpy(padded, x + i, (count - i) * sizeof(float));
    _mm256_storeu_ps(padded, Exp8(_mm256_loadu_ps(padded)));
    std::memcpy(x + i, padded, (count - i) * sizeof(float));
  }
}

void SiluMul(const float* gate_up, int rows, int width, float* out) {
  const __m256 one = _mm256_set1_ps(1.0f);
  for (int row = 0; row < rows; ++row, gate_up += 2 * width, out += width) {
    const auto eight = [&](const float* gate, const float* up) {
      const __m256 g = _mm256_loadu_ps(gate);
      const __m256 e = Exp8(_mm256_sub_ps(_mm256_setzero_ps(), g));
      return _mm256_mul_ps(_mm256_div_ps(g, _mm256_add_ps(one, e)), _mm256_loadu_ps(up));
    };
    int i = 0;
    for (; i + 8 <= width; i += 8) _mm256_storeu_ps(out + i, eight(gate_up + i, gate_up + width + i));
    if (i < width) {
      float gate[8] = {}, up[8] = {}, result[8];
      std::memcpy(gate, gate_up + i, (width - i) * sizeof(float));
      std::memcpy(up, gate_up + width + i, (width - i) * sizeof(float));
      _mm256_storeu_ps(result, eight(gate, up));
      std::memcpy(out + i, result, (width - i) * sizeof(float));
    }
  }
}

namespace {

// Eight at a time, the last ones padded: an element's bits do not depend on where it stands.
template <typename Eight>
void Map(float* x, size_t count, const Eight& eight) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) _mm256_storeu_ps(x + i, eight(_mm256_loadu_ps(x + i)));
  if (i < count) {
    float padded[8] = {};
    std::memcpy(padded, x + i, (count - i) * sizeof(float));
    _mm256_storeu_ps(padded, eight(_mm256_loadu_ps(padded)));
    std::memcpy(x + i, padded, (count - i) * sizeof(float));
  }
}

}  // namespace

// With z = |x|/√2: Φ(-|x|) = erfc(z)/2, and erfc(z) = t·p(t)·exp(-z²), t = 1/(1 + 0.3275911 z)
// (Abramowitz and Stegun 7.1.26).
void Gelu(float* x, size_t count) {
  Map(x, count, [](__m256 v) {
    const __m256 sign = _mm256_set1_ps(-0.0f), one = _mm256_set1_ps(1.0f);
    const __m256 z = _mm256_mul_ps(_mm256_andnot_ps(sign, v), _mm256_set1_ps(0.70710678118654752f));
    const __m256 t = _mm256_div_ps(one, _mm256_fmadd_ps(z, _mm256_set1_ps(0.3275911f), one));
    __m256 p = _mm256_set1_ps(1.061405429f);
    for (const float coefficient : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
      p = _mm256_fmadd_ps(p, t, _mm256_set1_ps(coefficient));
    }
    const __m256 gaussian = Exp8(_mm256_xor_ps(sign, _mm256_mul_ps(z, z)));
    const __m256 tail = _mm256_mul_ps(_mm256_set1_ps(0.5f), _mm256_mul_ps(_mm256_mul_ps(p, t), gaussian));
    const __m256 positive = _mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ);
    return _mm256_mul_ps(v, _mm256_blendv_ps(tail, _mm256_sub_ps(one, tail), positive));
  });
}

void GeluTanh(float* x, size_t count) {
  Map(x, count, [](__m256 v) {
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(v, v), _mm256_set1_ps(0.044715f), one);
    const __m256 minus_2u = _mm256_mul_ps(_mm256_mul_ps(v, cubic), _mm256_set1_ps(-1.5957691216057308f));
    return _mm256_div_ps(v, _mm256_add_ps(one, Exp8(minus_2u)));
  });
}

void Attend(std::span<const AttentionQuery> queries, int shared_blocks, const HeadCache& cache, int head_dim,
            float scale) {
  for (; queries.size() > kMaxQueries; queries = queries.subspan(kMaxQueries)) {
    Attend(queries.first(kMaxQueries), shared_blocks, cache, head_dim, scale);
  }
  if (shared_blocks > 0) ScoreShared(queries, shared_blocks, cache, head_dim, scale);
  for (const AttentionQuery& q : queries) {
    const int num_blocks = (q.num_tokens + kBlockTokens - 1) / kBlockTokens;
    int b = shared_blocks;
    for (; b + 4 <= num_blocks; b += 4) ScoreBlocks<1, 4>(&q, b, cache, head_dim, scale);
    for (; b < num_blocks; ++b) ScoreBlocks<1, 1>(&q, b, cache, head_dim, scale);
    // What lies past the query in its own block is another's, or not yet written.
    std::fill(q.scores + q.num_tokens, q.scores + num_blocks * kBlockTokens, -INFINITY);
  }
  float inverse[kMaxQueries];
  for (size_t i = 0; i < queries.size(); ++i) {
    inverse[i] = 1.0f / ExponentiateScores(queries[i].scores, queries[i].num_tokens);
    std::fill(queries[i].out, queries[i].out + head_dim, 0.0f);
  }
  if (shared_blocks > 0) AddShared(queries, shared_blocks * kBlockTokens, cache, head_dim);
  for (size_t i = 0; i < queries.size(); ++i) {
    const AttentionQuery& q = queries[i];
    int d = 0;
    const int begin = shared_blocks * kBlockTokens;
    for (; d + 64 <= head_dim; d += 64) AddValues<1, 8>(&q, begin, q.num_tokens, cache, head_dim, d);
    for (; d + 32 <= head_dim; d += 32) AddValues<1, 4>(&q, begin, q.num_tokens, cache, head_dim, d);
    for (; d + 8 <= head_dim; d += 8) AddValues<1, 1>(&q, begin, q.num_tokens, cache, head_dim, d);
    AddRest(q, begin, q.num_tokens, cache, head_dim, d);
    for (int c = 0; c < head_dim; ++c) q.out[c] *= inverse[i];
  }
}

double LogSumExp(std::span<const float> x) {
  const float largest = *std::max_element(x.begin(), x.end());
  double sum = 0;
  float part[64];
  for (size_t i = 0; i < x.size(); i += 64) {
    const int count = static_cast<int>(std::min<size_t>(64, x.size() - i));
    for (int j = 0; j < count; ++j) part[j] = x[i + j] - largest;
    Exp(part, count);
    for (int j = 0; j < count; ++j) sum += part[j];
  }
  return largest + std::log(sum);
}

}  // namespace almost::engine
