#include "services/trainer/torch/group.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace almost::trainer {
namespace {

using torch::Tensor;

// Tensors travel together up to this size: few calls, and little memory beside them.
constexpr int64_t kBytesAtOnce = int64_t{64} << 20;

Tensor BytesTensor(const std::string& bytes) {
  Tensor tensor = torch::empty({static_cast<int64_t>(bytes.size())}, torch::kUInt8);
  if (!bytes.empty()) std::memcpy(tensor.data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

}  // namespace

Group::Group(int rank, int size, c10::intrusive_ptr<c10d::Backend> cpu, c10::intrusive_ptr<c10d::Backend> gpu)
    : rank_(rank), size_(size), cpu_(std::move(cpu)), gpu_(std::move(gpu)) {}

template <typename Call>
auto Group::Guard(const Call& call) {
  try {
    return call();
  } catch (const c10::Error& e) {
    lost_ = true;
    throw RankLost(e.what_without_backtrace());
  } catch (const std::exception& e) {
    lost_ = true;
    throw RankLost(e.what());
  }
}

void Group::Wait(const c10::intrusive_ptr<c10d::Work>& work) {
  Guard([&] {
    work->wait();
    return true;
  });
}

void Group::Broadcast(const std::vector<Tensor>& tensors, int root) {
  if (size_ == 1) return;
  const torch::NoGradGuard no_grad;
  for (size_t begin = 0; begin < tensors.size();) {
    size_t end = begin;
    std::vector<Tensor> flat;
    for (int64_t bytes = 0;
         end < tensors.size() && tensors[end].scalar_type() == tensors[begin].scalar_type() &&
         (end == begin || bytes + tensors[end].nbytes() <= kBytesAtOnce);
         ++end) {
      bytes += static_cast<int64_t>(tensors[end].nbytes());
      flat.push_back(tensors[end].detach().reshape(-1));
    }
    std::vector<Tensor> all = {torch::cat(flat)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    Wait(Guard([&] { return BackendOf(all[0]).broadcast(all, options); }));
    if (rank_ != root) {
      int64_t at = 0;
      for (; begin < end; ++begin) {
        tensors[begin].detach().copy_(
            all[0].narrow(0, at, tensors[begin].numel()).view(tensors[begin].sizes()));
        at += tensors[begin].numel();
      }
    }
    begin = end;
  }
}

std::string Group::Broadcast(const std::string& bytes) {
  if (size_ == 1) return bytes;
  const Tensor size = torch::tensor({static_cast<int64_t>(bytes.size())}, torch::kInt64);
  Broadcast({size}, 0);
  Tensor payload = rank_ == 0 ? BytesTensor(bytes) : torch::empty({size.item<int64_t>()}, torch::kUInt8);
  if (payload.numel() > 0) Broadcast({payload}, 0);
  return {static_cast<const char*>(payload.data_ptr()), static_cast<size_t>(payload.numel())};
}

std::vector<std::string> Group::Gather(const std::string& bytes) {
  if (size_ == 1) return {bytes};
  const auto gather = [&](Tensor mine) {
    Tensor all = torch::empty({size_ * mine.size(0)}, mine.options());
    Wait(Guard([&] { return cpu_->_allgather_base(all, mine); }));
    return all.view({size_, mine.size(0)});
  };
  const Tensor sizes = gather(torch::tensor({static_cast<int64_t>(bytes.size())}, torch::kInt64));
  std::string padded = bytes;
  padded.resize(std::max<int64_t>(1, sizes.max().item<int64_t>()));
  const Tensor all = gather(BytesTensor(padded));
  std::vector<std::string> gathered;
  for (int r = 0; r < size_; ++r) {
    gathered.emplace_back(static_cast<const char*>(all[r].data_ptr()), sizes[r].item<int64_t>());
  }
  return gathered;
}

void Group::Merge(std::span<double> values) {
  if (size_ == 1 || values.empty()) return;
  std::vector<Tensor> sum = {
      torch::from_blob(values.data(), {static_cast<int64_t>(values.size())}, torch::kFloat64)};
  Wait(Guard([&] { return cpu_->allreduce(sum); }));
}

void Group::Move(const Tensor& tensor, int from, int to) {
  if (from == to || (rank_ != from && rank_ != to)) return;
  std::vector<Tensor> flat = {tensor.detach().to(torch::kCPU).contiguous().view(-1)};
  if (flat[0].numel() == 0) return;
  Wait(Guard([&] { return rank_ == from ? cpu_->send(flat, to, 0) : cpu_->recv(flat, from, 0); }));
  if (rank_ == to && flat[0].data_ptr() != tensor.data_ptr()) tensor.detach().copy_(flat[0].view_as(tensor));
}

Group::Exchange Group::StartExchange(const std::vector<Tensor>& pieces, std::vector<int64_t> to,
                                     std::vector<int64_t> from) {
  Exchange exchange{.sent = torch::cat(pieces)};
  exchange.storage =
      torch::empty({std::accumulate(from.begin(), from.end(), int64_t{0})}, exchange.sent.options());
  exchange.received = exchange.storage.split_with_sizes(from);
  exchange.work = Guard(
      [&] { return BackendOf(exchange.sent).alltoall_base(exchange.storage, exchange.sent, from, to); });
  return exchange;
}

}  // namespace almost::trainer
