#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>

#include "nlohmann/json.hpp"
#include "services/trainer/core/datasets.h"
#include "services/trainer/core/ppo_math.h"
#include "services/trainer/torch/actor_critic.h"
#include "services/trainer/torch/gradients.h"
#include "services/trainer/torch/labeled_samples.h"
#include "services/trainer/torch/losses.h"
#include "services/trainer/torch/optimizer.h"
#include "services/trainer/torch/ppo_loss.h"
#include "services/trainer/torch/workers.h"

// The trainer's packed, micro-batched, threaded arithmetic against plain PyTorch's, one sequence at a time
// (make_training_goldens.py).
namespace almost::trainer {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;
using torch::Tensor;

fs::path Parity() { return fs::path(std::getenv("ALMOST_SOURCE_DIR")) / "tests/parity"; }

const ordered_json& Goldens() {
  static const ordered_json goldens = [] {
    std::ifstream file(Parity() / "goldens/training.json");
    return ordered_json::parse(file);
  }();
  return goldens;
}

Tensor Formula(const std::vector<int64_t>& shape, double scale, double phase) {
  int64_t count = 1;
  for (const int64_t extent : shape) count *= extent;
  return (scale * torch::sin(torch::arange(count, torch::kFloat64) * 0.7 + phase)).view(shape);
}

std::vector<Sample> Samples() {
  std::vector<Sample> samples;
  for (size_t i = 0; i < Goldens()["sequences"].size(); ++i) {
    samples.push_back({Goldens()["sequences"][i], Goldens()["is_target"][i]});
  }
  return samples;
}

LabeledSamples Pack(const std::vector<Sample>& samples, const std::vector<size_t>& chosen) {
  std::vector<const Sample*> pointers;
  for (const size_t i : chosen) pointers.push_back(&samples[i]);
  return LabeledSamples::Pack(pointers);
}

struct Case {
  std::string model, kind, precision;
};

class TrainingParity : public testing::TestWithParam<Case> {
 protected:
  // Both sides round at 1e-16 (6e-8) relative through some hundred operations.
  double Tolerance() const { return GetParam().precision == "f64" ? 1e-9 : 1e-4; }
  torch::ScalarType DType() const {
    return GetParam().precision == "f64" ? torch::kFloat64 : torch::kFloat32;
  }
  const ordered_json& Golden() const {
    return Goldens()["losses"][GetParam().model][GetParam().kind][GetParam().precision];
  }
  Transformer Model() const {
    const auto folder = ModelFolder::Open(Parity() / "goldens/models" / GetParam().model).value();
    return Transformer::Load(*folder, DType(), folder->config().reward_head).value();
  }

  // Two micro-batches on two threads, each with its replica.
  void ExpectGolden(
      const Transformer& model, const std::map<std::string, Tensor>& more,
      const std::function<Tensor(const Transformer&, const std::vector<Tensor>& more, size_t part)>& loss) {
    Workers workers(2);
    std::vector<Transformer> replicas = {model.Replica(), model.Replica()};
    std::vector<std::vector<Tensor>> leaves(2), more_leaves(2);
    for (int worker = 0; worker < 2; ++worker) {
      for (const auto& [name, parameter] : replicas[worker].parameters()) leaves[worker].push_back(parameter);
      for (const auto& [name, parameter] : more) {
        more_leaves[worker].push_back(parameter.detach().requires_grad_());
        leaves[worker].push_back(more_leaves[worker].back());
      }
    }
    std::vector<double> losses(2);
    Group alone;
    const std::vector<int> owners(leaves[0].size(), 0);
    Gradients sum(workers, alone, leaves, owners);
    const std::vector<Tensor> gradients = sum.Sum(2, [&](int worker, size_t part) {
      const Tensor value = loss(replicas[worker], more_leaves[worker], part);
      losses[part] = value.item<double>();
      return value;
    });
    const double wanted = Golden()["loss"];
    EXPECT_NEAR(losses[0] + losses[1], wanted, Tolerance() * std::max(1.0, std::abs(wanted)));
    std::vector<std::string> names;
    for (const auto& [name, parameter] : model.parameters()) names.push_back(name);
    for (const auto& [name, parameter] : more) names.push_back(name);
    for (size_t i = 0; i < names.size(); ++i) {
      const ordered_json& norms = Golden()["grad_norms"];
      const double norm = norms.contains(names[i]) ? norms[names[i]].get<double>() : 0.0;
      EXPECT_NEAR(gradients[i].norm().item<double>(), norm, Tolerance() * std::max(1.0, norm)) << names[i];
    }
  }
};

const std::vector<size_t> kParts[2] = {{3, 1, 4}, {5, 0, 2}};

TEST_P(TrainingParity, LossAndGradientsAreThoseOfPlainPyTorch) {
  const Transformer model = Model();
  const std::vector<Sample> samples = Samples();
  double targets = 0;
  for (const Sample& sample : samples) targets += static_cast<double>(sample.num_targets());
  const ordered_json& inputs = Golden()["inputs"];
  const std::string& kind = GetParam().kind;

  if (kind == "pretrain") {
    const std::vector<std::vector<int32_t>> rows = inputs["sequences"];
    std::vector<Sample> all;
    for (const auto& row : rows) {
      all.push_back({row, std::vector<bool>(row.size(), true)});
      all.back().is_target[0] = false;
    }
    ExpectGolden(model, {}, [&](const Transformer& replica, const auto&, size_t part) {
      return -Pack(all, part == 0 ? std::vector<size_t>{0, 3} : std::vector<size_t>{2, 1})
                  .Logprobs(replica)
                  .sum() /
             (4.0 * 23.0);
    });
  } else if (kind == "sft") {
    ExpectGolden(model, {}, [&](const Transformer& replica, const auto&, size_t part) {
      return -Pack(samples, kParts[part]).Logprobs(replica).sum() / targets;
    });
  } else if (kind == "reward_model") {
    ExpectGolden(model, {}, [&](const Transformer& replica, const auto&, size_t part) {
      const LabeledSamples pairs =
          Pack(samples, part == 0 ? std::vector<size_t>{0, 3} : std::vector<size_t>{1, 2, 4, 5});
      const int64_t p = pairs.packed.num_samples() / 2;
      const Tensor rewards = replica.Rewards(pairs.packed);
      const Tensor chosen = rewards.narrow(0, 0, p);
      return PairwiseRankingLosses(chosen, rewards.narrow(0, p, p), torch::zeros_like(chosen)).sum() / 3.0;
    });
  } else if (kind == "reward_model_with_margins") {
    // One of the micro-batches has the first pair, the other the rest; answers are read once.
    ExpectGolden(model, {}, [&](const Transformer& replica, const auto&, size_t part) {
      const LabeledSamples answers =
          Pack(samples, part == 0 ? std::vector<size_t>{0, 1} : std::vector<size_t>{0, 1, 2});
      const Tensor rewards = replica.Rewards(answers.packed);
      Tensor sum;
      for (size_t pair = part; pair < (part == 0 ? 1 : inputs["pairs"].size()); ++pair) {
        const auto at = [&](int side) { return rewards.narrow(0, inputs["pairs"][pair][side], 1); };
        const Tensor margin = torch::full({1}, inputs["margins"][pair].get<double>(), rewards.options());
        const Tensor loss = PairwiseRankingLosses(at(0), at(1), margin) +
                            inputs["center_coefficient"].get<double>() * CenteringLosses(at(0), at(1));
        sum = sum.defined() ? sum + loss.sum() : loss.sum();
      }
      return sum / 3.0;
    });
  } else if (kind == "grpo") {
    const std::vector<std::vector<double>> old = inputs["old_logprobs"],
                                           reference = inputs["reference_logprobs"];
    const std::vector<double> scores = inputs["scores"];
    std::vector<double> advantages;
    const size_t group = inputs["group_size"];
    for (size_t begin = 0; begin < samples.size(); begin += group) {
      std::vector<double> kls;
      for (size_t i = begin; i < begin + group; ++i) {
        double kl = 0;
        for (size_t t = 0; t < old[i].size(); ++t) kl += KlK1(old[i][t], reference[i][t]);
        kls.push_back(kl);
      }
      const std::vector<double> ours =
          GroupAdvantages(std::span(scores).subspan(begin, group), kls, inputs["kl_coefficient"], true);
      advantages.insert(advantages.end(), ours.begin(), ours.end());
    }
    ExpectGolden(model, {}, [&](const Transformer& replica, const auto&, size_t part) {
      std::vector<double> old_M, advantages_M;
      for (const size_t i : kParts[part]) {
        old_M.insert(old_M.end(), old[i].begin(), old[i].end());
        advantages_M.insert(advantages_M.end(), old[i].size(), advantages[i]);
      }
      const auto tensor = [&](const std::vector<double>& values) {
        return torch::tensor(values, torch::kFloat64).to(DType());
      };
      return ComputePpoLosses(replica, nullptr, Pack(samples, kParts[part]),
                              {.logprobs_M = tensor(old_M), .advantages_M = tensor(advantages_M)},
                              inputs["clip_range"], 0, 1.0)
                 .policy_M.sum() /
             targets;
    });
  } else if (kind == "dpo") {
    const Tensor reference =
        torch::tensor(inputs["reference"].get<std::vector<double>>(), torch::kFloat64).to(DType());
    ExpectGolden(model, {}, [&](const Transformer& replica, const auto&, size_t part) {
      const std::vector<size_t> chosen =
          part == 0 ? std::vector<size_t>{2, 5} : std::vector<size_t>{1, 0, 4, 3};
      const LabeledSamples pairs = Pack(samples, chosen);
      const int64_t p = pairs.packed.num_samples() / 2;
      const Tensor sums = pairs.SumBySample(pairs.Logprobs(replica));
      const Tensor ours = reference.index_select(
          0, torch::tensor(std::vector<int64_t>(chosen.begin(), chosen.end()), torch::kInt64));
      return DpoLosses(sums.narrow(0, 0, p), sums.narrow(0, p, p), ours.narrow(0, 0, p), ours.narrow(0, p, p),
                       inputs["beta"])
                 .sum() /
             3.0;
    });
  } else {
    const std::vector<std::vector<double>> old = inputs["old_logprobs"],
                                           reference = inputs["reference_logprobs"],
                                           values = inputs["old_values"];
    std::vector<std::vector<double>> advantages, returns;
    for (size_t i = 0; i < samples.size(); ++i) {
      const std::vector<double> rewards =
          TokenRewards(old[i], reference[i], inputs["kl_coefficient"], inputs["scores"][i]);
      Advantages estimated = EstimateAdvantages(rewards, values[i], inputs["gamma"], inputs["gae_lambda"]);
      advantages.push_back(estimated.advantages);
      returns.push_back(estimated.returns);
    }
    Whiten(advantages);
    const int64_t d = model.config().hidden_size;
    const auto parameter = [&](const std::vector<int64_t>& shape, double phase) {
      return Formula(shape, 0.3, phase).to(DType());
    };
    // In the order of their names, as the map has them.
    const std::map<std::string, Tensor> head = {{"value_head.hidden.bias", parameter({d}, 1)},
                                                {"value_head.hidden.weight", parameter({d, d}, 0)},
                                                {"value_head.output.bias", parameter({1}, 3)},
                                                {"value_head.output.weight", parameter({1, d}, 2)}};
    ExpectGolden(model, head, [&](const Transformer& replica, const std::vector<Tensor>& more, size_t part) {
      const auto gather = [&](const std::vector<std::vector<double>>& field) {
        std::vector<double> all;
        for (const size_t i : kParts[part]) all.insert(all.end(), field[i].begin(), field[i].end());
        return torch::tensor(all, torch::kFloat64).to(DType());
      };
      const ValueFunction value_head(ValueHead{more[1], more[0], more[3], more[2]});
      const PpoLosses losses =
          ComputePpoLosses(replica, &value_head, Pack(samples, kParts[part]),
                           {gather(old), gather(advantages), gather(values), gather(returns)},
                           inputs["clip_range"], inputs["value_clip_range"], 1.0);
      return (losses.policy_M.sum() + inputs["value_coefficient"].get<double>() * losses.value_M.sum()) /
             targets;
    });
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const auto& [model, kinds] : Goldens()["losses"].items()) {
    for (const auto& [kind, precisions] : kinds.items()) {
      for (const auto& [precision, golden] : precisions.items()) cases.push_back({model, kind, precision});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Kinds, TrainingParity, testing::ValuesIn(Cases()), [](const auto& param_info) {
  return param_info.param.model + "_" + param_info.param.kind + "_" + param_info.param.precision;
});

class OptimizerParity : public testing::TestWithParam<bool> {};

// Twelve steps in double precision under a schedule, with clipping.
TEST_P(OptimizerParity, StepsAreThoseOfTorchOptim) {
  const bool muon = GetParam();
  const ordered_json& golden = Goldens()["optimizers"];
  const OptimizerSpec spec{.learning_rate = golden["learning_rate"],
                           .weight_decay = golden["weight_decay"],
                           .beta1 = golden["beta1"],
                           .beta2 = golden["beta2"],
                           .max_grad_norm = golden["max_grad_norm"],
                           .muon_learning_rate = muon ? golden["muon_learning_rate"].get<double>() : 0.0,
                           .muon_weight_decay = golden["muon_weight_decay"]};
  std::map<std::string, Tensor> parameters;
  std::map<std::string, double> phases;
  for (const auto& [name, shape] : golden["shapes"].items()) {
    const auto index = static_cast<double>(phases.size());
    phases[name] = index;
    parameters[name] = Formula(shape, 1.0, index);
  }
  Group alone;
  Optimizer optimizer(spec, parameters, alone);
  const ordered_json& wanted = golden[muon ? "muon" : "adamw"];
  for (size_t step = 0; step < golden["factors"].size(); ++step) {
    std::vector<Tensor> gradients;
    for (const auto& [name, parameter] : parameters) {
      gradients.push_back(Formula(parameter.sizes().vec(), 0.2 + 0.1 * static_cast<double>(step),
                                  1.3 * phases[name] + static_cast<double>(step)));
    }
    const double norm = optimizer.Step(std::move(gradients), golden["factors"][step]);
    EXPECT_NEAR(norm, wanted["grad_norms"][step], 1e-9);
  }
  for (const auto& [name, parameter] : parameters) {
    const Tensor expected =
        torch::tensor(wanted["parameters"][name].get<std::vector<double>>(), torch::kFloat64);
    EXPECT_LT((parameter.flatten() - expected).abs().max().item<double>(), 1e-9) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Rules, OptimizerParity, testing::Bool(),
                         [](const auto& param_info) { return param_info.param ? "MuonAndAdamW" : "AdamW"; });

}  // namespace
}  // namespace almost::trainer
