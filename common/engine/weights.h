#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "common/kernels/kernels.h"
#include "common/model/model_folder.h"

namespace almost::engine {

// A model's weights as the engine computes with them, whatever family they are read from. Matrices are views
// of the folder's tensors, vectors are float32.
struct Weights {
  // Of a product x · Wᵀ: parts of [num_outputs, num_inputs] of one type, under each other. Valid while the
  // folder and these Weights are.
  struct Matrix {
    std::vector<WeightView> parts;
    int num_inputs = 0;
  };
  struct Norm {
    std::vector<float> weight, bias;  // no bias: RMSNorm
  };
  struct LayerVectors {
    Norm input_norm, post_attention_norm;
    std::vector<float> query_norm, key_norm;                       // empty: none
    std::vector<float> qkv_bias, output_bias, up_bias, down_bias;  // empty: none
  };
  struct Layer : LayerVectors {
    Matrix qkv;  // heads of q, then k, then v
    Matrix output;
    Matrix up;  // gate and up under each other where the MLP is gated
    Matrix down;
  };

  // kNotFound or kDataLoss name a tensor. The folder must outlive it.
  static absl::StatusOr<std::unique_ptr<Weights>> Read(const ModelFolder& folder);

  TensorView embedding;  // [V, hidden]
  std::vector<Layer> layers;
  Norm final_norm;
  Matrix head;                     // [V, hidden]; no parts with a reward head
  std::vector<float> reward_head;  // [hidden], or empty
  std::vector<float> cosines;      // [max_positions, R/2], R dimensions of a head turn
  std::vector<float> sines;

 private:
  class Reader;
  std::deque<std::vector<float>> rounded_;  // of float64 tensors
};

// The type that a GPU computes a model in, that of its embedding: kF32, kF16 or kBF16.
DType ComputedType(const ModelFolder& folder);

}  // namespace almost::engine
