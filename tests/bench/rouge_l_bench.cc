// How fast near-duplicates are found among prompts (METHOD.md section 1), beside
// tests/bench/rouge_l_official.py.
//
//   rouge_l_bench [PROMPTS]     20,000 unless said otherwise
//
// Every prompt asks whether any one before it has a ROUGE-L F1 of at least 0.5; none is dropped, so that all
// PROMPTS * (PROMPTS - 1) / 2 pairs are decided. The texts are those of rouge_l_official.py.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/text/rouge_l.h"

namespace {

// A linear congruential generator, so that the Python script can make the same texts.
class Texts {
 public:
  std::string Next() {
    std::string text;
    const uint64_t words = 6 + Below(20);
    for (uint64_t i = 0; i < words; ++i) {
      // Word ranks follow about 1 / rank over 20,000, as in language: a few words are in most prompts.
      uint64_t bound = 1;
      for (uint64_t doublings = Below(15); doublings > 0; --doublings) bound *= 2;
      absl::StrAppend(&text, i == 0 ? "W" : " w", Below(bound < 20000 ? bound : 20000));
    }
    return text + "?";
  }

 private:
  uint64_t Below(uint64_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % bound;
  }
  uint64_t state_ = 1;
};

}  // namespace

int main(int argc, char** argv) {
  const int num_prompts = argc > 1 ? std::atoi(argv[1]) : 20000;
  Texts texts;
  std::vector<std::string> prompts;
  for (int i = 0; i < num_prompts; ++i) prompts.push_back(texts.Next());
  const auto begin = std::chrono::steady_clock::now();
  almost::RougeLIndex index;
  int64_t near = 0;
  int64_t pairs = 0;
  for (const std::string& prompt : prompts) {
    const auto match = index.FirstAtLeast(prompt, 0.5);
    near += match.has_value();
    pairs += static_cast<int64_t>(match.has_value() ? match->index + 1 : index.size());
    index.Add(prompt);
  }
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::printf("%d prompts, %lld with one before at F1 >= 0.5, %lld pairs decided in %.2f s: %.2f ns a pair\n",
              num_prompts, static_cast<long long>(near), static_cast<long long>(pairs), seconds,
              seconds / static_cast<double>(pairs) * 1e9);
  return 0;
}
