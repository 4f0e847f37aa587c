#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

// The registers that the kernels are written for: the same operations on 8 floats (AVX2, FMA, F16C) and on 16
// (AVX-512). A lane's result does not depend on the width. Included by the files that are compiled for one of
// them, and by no other.
namespace almost {

struct Vector8 {
  static constexpr int kWidth = 8;
  // Of 16 registers: 12 sums.
  static constexpr int kTileSums = 12;
  static constexpr int kTileRows = 6;
  // Inputs that a pass of the innermost loop takes: its instructions bound a core that two threads share.
  static constexpr int kStepsAtOnce = 2;
  static constexpr int PanelsAtOnce(int rows) { return rows == 1 ? 4 : rows == 2 ? 2 : 1; }

  __m256 v;

  static Vector8 Zero() { return {_mm256_setzero_ps()}; }
  static Vector8 Set(float x) { return {_mm256_set1_ps(x)}; }
  static Vector8 Load(const float* p) { return {_mm256_loadu_ps(p)}; }
  // The first `count` < 8 lanes; the others are 0 and are not touched.
  static Vector8 LoadPart(const float* p, int count) { return {_mm256_maskload_ps(p, Mask(count))}; }
  // 16-bit floats, widened.
  static Vector8 LoadBfloat16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
  }
  static Vector8 LoadFloat16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  void Store(float* p) const { _mm256_storeu_ps(p, v); }
  void StorePart(float* p, int count) const { _mm256_maskstore_ps(p, Mask(count), v); }

  friend Vector8 operator+(Vector8 a, Vector8 b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vector8 operator-(Vector8 a, Vector8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vector8 operator*(Vector8 a, Vector8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vector8 operator/(Vector8 a, Vector8 b) { return {_mm256_div_ps(a.v, b.v)}; }
  friend Vector8 Fma(Vector8 a, Vector8 b, Vector8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vector8 Min(Vector8 a, Vector8 b) { return {_mm256_min_ps(a.v, b.v)}; }
  friend Vector8 Max(Vector8 a, Vector8 b) { return {_mm256_max_ps(a.v, b.v)}; }
  friend Vector8 Round(Vector8 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  // 2^n of whole numbers n.
  friend Vector8 PowerOfTwo(Vector8 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23))};
  }
  // 0 where x < bound, else a.
  friend Vector8 ZeroWhereLess(Vector8 a, Vector8 x, Vector8 bound) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(x.v, bound.v, _CMP_LT_OQ), a.v)};
  }
  // Bit i: lane i of a is not less than that of b.
  friend uint32_t NotLess(Vector8 a, Vector8 b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NLT_UQ)));
  }
  // a where x is negative, else b.
  friend Vector8 Select(Vector8 x, Vector8 a, Vector8 b) { return {_mm256_blendv_ps(b.v, a.v, x.v)}; }
  // Adds to eight sums: lane i to sum i mod 8, in order.
  friend __m256 AddTo(__m256 sums, Vector8 a) { return _mm256_add_ps(sums, a.v); }
  friend float LargestLane(Vector8 a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

 private:
  static __m256i Mask(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

#ifdef __AVX512F__
struct Vector16 {
  static constexpr int kWidth = 16;
  // Of 32 registers: 24 sums. Eight are the least that hide a multiply-add's latency; a single row waits for
  // memory instead, which four streams use best.
  static constexpr int kTileSums = 24;
  static constexpr int kTileRows = 8;
  static constexpr int kStepsAtOnce = 1;
  static constexpr int PanelsAtOnce(int rows) { return rows == 1 ? 4 : rows == 2 ? 8 : rows <= 5 ? 4 : 3; }

  __m512 v;

  static Vector16 Zero() { return {_mm512_setzero_ps()}; }
  static Vector16 Set(float x) { return {_mm512_set1_ps(x)}; }
  static Vector16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vector16 LoadPart(const float* p, int count) { return {_mm512_maskz_loadu_ps(Mask(count), p)}; }
  static Vector16 LoadBfloat16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
  }
  static Vector16 LoadFloat16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  void Store(float* p) const { _mm512_storeu_ps(p, v); }
  void StorePart(float* p, int count) const { _mm512_mask_storeu_ps(p, Mask(count), v); }

  friend Vector16 operator+(Vector16 a, Vector16 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vector16 operator-(Vector16 a, Vector16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vector16 operator*(Vector16 a, Vector16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vector16 operator/(Vector16 a, Vector16 b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend Vector16 Fma(Vector16 a, Vector16 b, Vector16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vector16 Min(Vector16 a, Vector16 b) { return {_mm512_min_ps(a.v, b.v)}; }
  friend Vector16 Max(Vector16 a, Vector16 b) { return {_mm512_max_ps(a.v, b.v)}; }
  friend Vector16 Round(Vector16 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  friend Vector16 PowerOfTwo(Vector16 n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
  }
  friend Vector16 ZeroWhereLess(Vector16 a, Vector16 x, Vector16 bound) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, bound.v, _CMP_NLT_UQ), a.v)};
  }
  friend uint32_t NotLess(Vector16 a, Vector16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ); }
  friend Vector16 Select(Vector16 x, Vector16 a, Vector16 b) {
    return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.v)), b.v, a.v)};
  }
  friend __m256 AddTo(__m256 sums, Vector16 a) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
    return _mm256_add_ps(_mm256_add_ps(sums, _mm512_castps512_ps256(a.v)), high);
  }
  friend float LargestLane(Vector16 a) { return _mm512_reduce_max_ps(a.v); }

 private:
  static __mmask16 Mask(int count) { return static_cast<__mmask16>((1u << count) - 1); }
};
#endif

}  // namespace almost
