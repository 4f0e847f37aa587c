#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/engine/cpu_model.h"
#include "common/engine/step_runner.h"

namespace almost::engine {
namespace {

// Bumped when a change of ours changes bits.
constexpr absl::string_view kEngineVersion = "almost-cpu-1/float32/fma-chain";

// Rows of logits held at once: a long completion times a large vocabulary is not.
constexpr size_t kLogitRows = 64;
// Logits that a thread should at least have to draw from.
constexpr int kRowNumbers = 1 << 12;

class CpuRunner final : public StepRunner {
 public:
  CpuRunner(std::unique_ptr<const CpuModel> model, int num_blocks, std::shared_ptr<SharedTeam> team)
      : model_(std::move(model)),
        num_blocks_(num_blocks),
        numerics_id_(kEngineVersion),
        cache_(model_->config(), num_blocks),
        team_(std::move(team)),
        workspace_(team_->team()),
        samplers_(team_->team().size()) {}

  void Copy(int from, int to) override { cache_.Copy(from, to); }

  absl::Status Run(std::span<Sequence* const> sequences,
                   std::span<std::optional<Sampler::Draw>> draws) override {
    std::vector<SequenceChunk> chunks;
    for (const Sequence* s : sequences) {
      chunks.push_back({std::span(s->tokens).subspan(s->num_computed, s->num_scheduled), s->num_computed,
                        s->blocks, s->num_outputs()});
    }
    model_->Forward(chunks, cache_, workspace_, hidden_);
    Use(sequences, chunks, draws);
    return absl::OkStatus();
  }

  int num_blocks() const override { return num_blocks_; }
  const ModelConfig& config() const override { return model_->config(); }
  const std::string& numerics_id() const override { return numerics_id_; }

 private:
  // What the hidden states are for: candidates draw their next token, items are scored.
  void Use(std::span<Sequence* const> sequences, std::span<const SequenceChunk> chunks,
           std::span<std::optional<Sampler::Draw>> draws) {
    struct Row {
      size_t sequence;
      int output;  // counted from the sequence's first
    };
    std::vector<Row> rows;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const int end = chunks[i].first_position + static_cast<int>(chunks[i].tokens.size());
      for (int p = end - chunks[i].num_outputs; p < end; ++p)
        rows.push_back({i, p - sequences[i]->first_output});
    }
    const size_t width = config().hidden_size, vocab = config().vocab_size;
    const std::span<const float> hidden = hidden_;
    for (size_t begin = 0; begin < rows.size(); begin += kLogitRows) {
      const size_t count = std::min(kLogitRows, rows.size() - begin);
      if (config().reward_head) {
        for (size_t r = begin; r < begin + count; ++r) {
          sequences[rows[r].sequence]->scores[rows[r].output] =
              model_->Reward(hidden.subspan(r * width, width));
        }
        continue;
      }
      model_->Logits(hidden.subspan(begin * width, count * width), workspace_, logits_);
      const int grain = std::max(1, kRowNumbers / config().vocab_size);
      workspace_.team.For(static_cast<int>(count), grain, [&](int thread, int first, int last) {
        for (int r = first; r < last; ++r) {
          const auto [i, output] = rows[begin + r];
          Sequence& s = *sequences[i];
          const auto row = std::span<const float>(logits_).subspan(r * vocab, vocab);
          if (s.scoring != nullptr) {
            s.scores[output] = static_cast<float>(row[s.targets[output]] - model_->kernels().LogSumExp(row));
          } else {
            draws[i] = samplers_[thread](row, *s.sampling, s.index, s.num_new());
          }
        }
      });
    }
  }

  const std::unique_ptr<const CpuModel> model_;
  const int num_blocks_;
  const std::string numerics_id_;
  KvCache cache_;
  const std::shared_ptr<SharedTeam> team_;
  Workspace workspace_;
  std::vector<Sampler> samplers_;       // of each thread
  std::vector<float> hidden_, logits_;  // of the step under way
};

}  // namespace

absl::StatusOr<std::unique_ptr<StepRunner>> MakeCpuRunner(const ModelFolder& model, int64_t kv_cache_bytes,
                                                          std::shared_ptr<SharedTeam> team) {
  ALMOST_ASSIGN_OR_RETURN(
      const int num_blocks,
      NumCacheBlocks(kv_cache_bytes, KvCache::BlockBytes(model.config()), model.config()));
  ALMOST_ASSIGN_OR_RETURN(std::unique_ptr<const CpuModel> loaded, CpuModel::Load(model));
  return std::make_unique<CpuRunner>(std::move(loaded), num_blocks, std::move(team));
}

}  // namespace almost::engine
