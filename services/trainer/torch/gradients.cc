#include "services/trainer/torch/gradients.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>

#include "torch/csrc/autograd/function_hook.h"
#include "torch/csrc/autograd/variable.h"

namespace almost::trainer {

using torch::Tensor;

namespace {

constexpr size_t kBucketBytes = size_t{25} << 20;
constexpr size_t kUnderWay = 2;

}  // namespace

std::vector<int> ShareOut(std::span<const Tensor> tensors, int num_ranks) {
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return tensors[a].numel() > tensors[b].numel(); });
  std::vector<int64_t> held(num_ranks);
  std::vector<int> owners(tensors.size());
  for (const size_t i : order) {
    const auto least = std::min_element(held.begin(), held.end());
    owners[i] = static_cast<int>(least - held.begin());
    *least += tensors[i].numel();
  }
  return owners;
}

class Gradients::Hook : public torch::autograd::PostAccumulateGradHook {
 public:
  Hook(Gradients& gradients, int worker, size_t p) : gradients_(gradients), worker_(worker), p_(p) {}
  void operator()(const Tensor&) override { gradients_.Accumulated(worker_, p_); }

 private:
  Gradients& gradients_;
  const int worker_;
  const size_t p_;
};

Gradients::Gradients(Workers& workers, Group& group, std::vector<std::vector<Tensor>> leaves,
                     std::vector<int> owners)
    : workers_(workers),
      group_(group),
      leaves_(std::move(leaves)),
      owners_(std::move(owners)),
      is_wide_(!leaves_[0].empty() && leaves_[0][0].element_size() < 4),
      wide_sums_(is_wide_ ? leaves_.size() : 0, std::vector<Tensor>(leaves_[0].size())),
      is_last_pass_(leaves_.size()) {
  if (group_.size() == 1 && leaves_.size() == 1 && !is_wide_) return;
  for (size_t worker = 0; worker < leaves_.size(); ++worker) {
    for (size_t p = 0; p < leaves_[worker].size(); ++p) {
      torch::autograd::impl::set_post_acc_grad_hooks(
          leaves_[worker][p], std::make_unique<Hook>(*this, static_cast<int>(worker), p));
    }
  }
}

Gradients::~Gradients() {
  for (const std::vector<Tensor>& replica : leaves_) {
    for (const Tensor& leaf : replica) torch::autograd::impl::set_post_acc_grad_hooks(leaf, nullptr);
  }
}

std::vector<Tensor> Gradients::Sum(size_t count, const std::function<Tensor(int, size_t)>& loss) {
  const size_t num_threads = workers_.size(), num_parameters = leaves_[0].size();
  const size_t first = group_.rank() * num_threads, stride = group_.size() * num_threads;
  {
    const absl::MutexLock lock(&mutex_);
    const size_t at_work = std::min(num_threads, count - std::min(count, first));
    missing_.assign(num_parameters, static_cast<int>(at_work));
    started_ = finished_ = 0;
  }
  workers_.Run([&](int worker) {
    for (size_t p = 0; p < num_parameters; ++p) SumOf(worker, p).reset();
    for (size_t i = first + worker; i < count; i += stride) {
      const Tensor value = loss(worker, i);
      is_last_pass_[worker] = i + stride >= count;
      value.backward();
    }
    is_last_pass_[worker] = false;
  });
  std::vector<Tensor> sums(num_parameters);
  if (group_.size() == 1) {
    for (size_t p = 0; p < num_parameters; ++p) sums[p] = SumOverWorkers(p);
    return sums;
  }
  const torch::NoGradGuard no_grad;
  const absl::MutexLock lock(&mutex_);
  if (buckets_.empty()) FillBuckets();
  while (started_ < buckets_.size()) Start();
  while (finished_ < buckets_.size()) Finish();
  for (Bucket& bucket : buckets_) {
    const Tensor sum = std::exchange(bucket.sum, Tensor());
    int64_t at = 0;
    for (const size_t p : bucket.members) {
      if (owners_[p] != group_.rank()) continue;
      const Tensor& leaf = leaves_[0][p];
      sums[p] = sum.narrow(0, at, leaf.numel()).view(leaf.sizes());
      at += leaf.numel();
    }
  }
  return sums;
}

void Gradients::Accumulated(int worker, size_t p) {
  const torch::NoGradGuard no_grad;
  if (is_wide_) {
    Tensor& sum = wide_sums_[worker][p];
    Tensor& grad = leaves_[worker][p].mutable_grad();
    if (sum.defined()) {
      sum.add_(grad);
    } else {
      sum = grad.to(torch::kFloat32);
    }
    grad.reset();
  }
  if (is_last_pass_[worker]) Arrived(p);
}

Tensor& Gradients::SumOf(size_t worker, size_t p) const {
  return is_wide_ ? wide_sums_[worker][p] : leaves_[worker][p].mutable_grad();
}

void Gradients::Arrived(size_t p) {
  const absl::MutexLock lock(&mutex_);
  if (--missing_[p] > 0) return;
  if (group_.size() == 1) {
    // One tensor is left of the workers' while their passes go on.
    const Tensor sum = SumOverWorkers(p);
    for (size_t worker = 0; worker < leaves_.size(); ++worker) {
      if (Tensor& part = SumOf(worker, p); !part.is_same(sum)) part.reset();
    }
    return;
  }
  if (buckets_.empty()) arrival_.push_back(p);
  const auto has_arrived = [&](size_t member)
                               ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return missing_[member] == 0; };
  // One after another, so that all ranks start them in one order.
  while (started_ < buckets_.size() &&
         std::all_of(buckets_[started_].members.begin(), buckets_[started_].members.end(), has_arrived)) {
    Start();
  }
}

void Gradients::Start() {
  if (started_ - finished_ == kUnderWay) Finish();
  Bucket& bucket = buckets_[started_++];
  std::vector<Tensor> pieces;
  std::vector<int64_t> to(group_.size());
  for (int rank = 0; rank < group_.size(); ++rank) {
    for (const size_t p : bucket.members) {
      if (owners_[p] != rank) continue;
      pieces.push_back(SumOverWorkers(p).view(-1));
      to[rank] += pieces.back().numel();
    }
  }
  bucket.exchange = group_.StartExchange(pieces, to, std::vector<int64_t>(to.size(), to[group_.rank()]));
  for (const size_t p : bucket.members) {
    for (size_t worker = 0; worker < leaves_.size(); ++worker) SumOf(worker, p).reset();
  }
}

void Gradients::Finish() {
  Bucket& bucket = buckets_[finished_++];
  group_.Wait(bucket.exchange);
  const std::vector<Tensor>& parts = bucket.exchange.received;
  bucket.sum = parts[0] + parts[1];
  for (size_t rank = 2; rank < parts.size(); ++rank) bucket.sum.add_(parts[rank]);
  bucket.exchange = {};
}

Tensor Gradients::SumOverWorkers(size_t p) const {
  Tensor sum;
  for (size_t worker = 0; worker < leaves_.size(); ++worker) {
    const Tensor& part = SumOf(worker, p);
    if (!part.defined()) continue;
    sum = sum.defined() ? sum.add_(part) : part;
  }
  if (sum.defined()) return sum;
  const Tensor& leaf = leaves_[0][p];
  return torch::zeros(
      leaf.sizes(),
      leaf.options().dtype(is_wide_ ? torch::kFloat32 : leaf.scalar_type()).requires_grad(false));
}

void Gradients::FillBuckets() {
  std::vector<char> is_there(owners_.size());
  for (const size_t p : arrival_) is_there[p] = true;
  for (size_t p = 0; p < owners_.size(); ++p) {
    if (!is_there[p]) arrival_.push_back(p);
  }
  std::string bytes(arrival_.size() * sizeof(size_t), '\0');
  std::memcpy(bytes.data(), arrival_.data(), bytes.size());
  bytes = group_.Broadcast(bytes);
  std::memcpy(arrival_.data(), bytes.data(), bytes.size());
  size_t held = kBucketBytes;
  for (const size_t p : arrival_) {
    if (held >= kBucketBytes) {
      buckets_.emplace_back();
      held = 0;
    }
    buckets_.back().members.push_back(p);
    held += leaves_[0][p].nbytes();
  }
}

}  // namespace almost::trainer
