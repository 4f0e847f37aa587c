// The statistics of the tables on standard input, for check_statistics.py to compare with scipy and statsmodels.

#include <iostream>

#include "common/evaluation/statistics.h"
#include "nlohmann/json.hpp"

int main() {
  using almost::Estimate;
  using almost::Share;
  using nlohmann::json;
  const auto to_json = [](const Estimate& estimate) {
    return json{{"value", estimate.value}, {"low", estimate.low}, {"high", estimate.high}, {"n", estimate.n}};
  };
  json out = json::array();
  for (const json& table : json::parse(std::cin)) {
    const std::vector<double> x = table["x"], y = table["y"], wins = table["wins"];
    const int64_t successes = table["successes"], trials = table["trials"];
    json of_table = {{"proportion", to_json(almost::ExactProportion(successes, trials))},
                     {"sign_test", almost::SignTest(successes, trials)},
                     {"correlation", almost::Correlation(x, y)},
                     {"standard_error", almost::MeanOf(x).standard_error},
                     {"mean", almost::MeanOf(x).mean}};
    const almost::PairedCounts paired{table["only_a"], table["only_b"], table["both"], table["neither"]};
    of_table["mcnemar"] = paired.p_value();
    std::vector<Share> of_x, of_y;
    std::vector<almost::LengthOutcome> outcomes;
    for (size_t i = 0; i < x.size(); ++i) {
      of_x.push_back({x[i], 1});
      of_y.push_back({y[i], 1});
      outcomes.push_back({wins[i], x[i]});
    }
    of_table["bootstrap"] = to_json(almost::BootstrapRatio(of_x, 4000, 1));
    of_table["paired_bootstrap"] = to_json(almost::PairedBootstrap(of_x, of_y, 4000, 1));
    if (const auto fit = almost::LengthControlledWinRate(outcomes)) {
      of_table["length_controlled"] = {{"win_rate", to_json(fit->win_rate)},
                                       {"intercept", fit->intercept},
                                       {"slope", fit->slope},
                                       {"intercept_error", fit->intercept_error},
                                       {"slope_error", fit->slope_error}};
    }
    out.push_back(std::move(of_table));
  }
  std::cout << out << "\n";
}
