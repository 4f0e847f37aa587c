#include "common/kernels/kernels.h"

#include <xmmintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace almost {

// Each in a file of its own, compiled for its processors.
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();

const Kernels* Kernels::For(InstructionSet set) {
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (set == InstructionSet::kAvx2) return avx2 ? &Avx2Kernels() : nullptr;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? &Avx512Kernels() : nullptr;
}

const Kernels* Kernels::Best() {
  static const Kernels* const best = [] {
    const Kernels* wide = For(InstructionSet::kAvx512);
    return wide != nullptr ? wide : For(InstructionSet::kAvx2);
  }();
  return best;
}

namespace {

template <typename T>
T Read(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

// Four outputs' next four inputs, to four rows of a panel.
void TransposeFour(const float* from, size_t output_stride, float* to) {
  __m128 a = _mm_loadu_ps(from), b = _mm_loadu_ps(from + output_stride),
         c = _mm_loadu_ps(from + 2 * output_stride), d = _mm_loadu_ps(from + 3 * output_stride);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_store_ps(to, a);
  _mm_store_ps(to + PackedMatrix::kPanel, b);
  _mm_store_ps(to + 2 * PackedMatrix::kPanel, c);
  _mm_store_ps(to + 3 * PackedMatrix::kPanel, d);
}

float AsFloat(WeightType type, const std::byte* data, size_t index) {
  switch (type) {
    case WeightType::kFloat32:
      return Read<float>(data + 4 * index);
    case WeightType::kBfloat16:
      return std::bit_cast<float>(uint32_t{Read<uint16_t>(data + 2 * index)} << 16);
    case WeightType::kFloat16:
      return static_cast<float>(Read<_Float16>(data + 2 * index));
  }
  return 0;
}

}  // namespace

PackedMatrix::PackedMatrix(std::span<const WeightView> weights, int num_inputs) : num_inputs_(num_inputs) {
  type_ = weights.front().type;
  for (const WeightView& weight : weights) {
    num_outputs_ += weight.num_outputs;
    if (weight.type != type_) type_ = WeightType::kFloat32;
  }
  const auto pack = [&]<typename T>(T, const auto& read) {
    data_ = AlignedBuffer<std::byte>(size_t(num_panels()) * kPanel * num_inputs * sizeof(T));
    T* panels = reinterpret_cast<T*>(data_.data());
    int n = 0;
    const auto column = [&] { return panels + size_t(n / kPanel) * num_inputs * kPanel + n % kPanel; };
    for (const WeightView& weight : weights) {
      for (int row = 0; row < weight.num_outputs; ++row, ++n) {
        T* to = column();
        for (int k = 0; k < num_inputs; ++k)
          to[size_t(k) * kPanel] = read(weight, size_t(row) * num_inputs + k);
      }
    }
    for (; n % kPanel != 0; ++n) {
      T* to = column();
      for (int k = 0; k < num_inputs; ++k) to[size_t(k) * kPanel] = T{};
    }
  };
  if (type_ == WeightType::kFloat32) {
    pack(float{}, [](const WeightView& w, size_t i) { return AsFloat(w.type, w.data, i); });
  } else {
    pack(uint16_t{}, [](const WeightView& w, size_t i) { return Read<uint16_t>(w.data + 2 * i); });
  }
}

void PackedMatrix::Assign(const float* w, int num_outputs, int num_inputs, size_t output_stride,
                          size_t input_stride) {
  type_ = WeightType::kFloat32;
  num_outputs_ = num_outputs;
  num_inputs_ = num_inputs;
  const size_t bytes = size_t(num_panels()) * kPanel * num_inputs * sizeof(float);
  if (bytes > capacity_) {
    data_ = AlignedBuffer<std::byte>(bytes);
    capacity_ = bytes;
  }
  float* to = reinterpret_cast<float*>(data_.data());
  for (int n = 0; n < num_outputs; n += kPanel) {
    const float* from = w + n * output_stride;
    const int count = std::min(kPanel, num_outputs - n);
    int k = 0;
    for (; count == kPanel && input_stride == 1 && k + 4 <= num_inputs; k += 4, to += 4 * kPanel) {
      for (int i = 0; i < kPanel; i += 4) TransposeFour(from + i * output_stride + k, output_stride, to + i);
    }
    for (; k < num_inputs; ++k, to += kPanel) {
      const float* row = from + k * input_stride;
      if (count == kPanel && output_stride == 1) {
        std::memcpy(to, row, kPanel * sizeof(float));
      } else {
        for (int i = 0; i < kPanel; ++i) to[i] = i < count ? row[i * output_stride] : 0.0f;
      }
    }
  }
}

}  // namespace almost
