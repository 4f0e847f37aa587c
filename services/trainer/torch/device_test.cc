#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <gtest/gtest.h>
#include <torch/library.h>
#include <torch/torch.h>

#include <cstdlib>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "services/trainer/torch/job_fixture.h"
#include "services/trainer/torch/rendezvous.h"
#include "services/trainer/torch/runtime.h"
#include "services/trainer/torch/train.h"

// Jobs on a device that is not the CPU, without having one: LibTorch is told of a device whose memory is main
// memory and whose operations are the CPU's. As on a GPU, an operation refuses tensors that are elsewhere, so
// a tensor that was not brought over, or is read where it is, fails the job. What it cannot show: arithmetic
// on a GPU, and its order.
namespace almost::trainer {
namespace {

using torch::Tensor;

const c10::Device kEmulated(c10::kPrivateUse1, 0);

class EmulatedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    void* data = bytes == 0 ? nullptr : std::malloc(bytes);
    return {data, data, &std::free, kEmulated};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

EmulatedMemory memory;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

// The same elements as the CPU sees them.
Tensor AsCpu(const Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(),
                       tensor.options().device(at::kCPU));
}

Tensor Empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}

Tensor EmptyStrided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                    std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, c10::dtype_or_default(dtype));
}

Tensor CopyFrom(const Tensor& from, const Tensor& to, bool) {
  AsCpu(to).copy_(AsCpu(from));
  return to;
}

const Tensor& Resize(const Tensor& tensor, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  at::TensorImpl* impl = tensor.unsafeGetTensorImpl();
  impl->set_sizes_contiguous(size);
  const size_t bytes = impl->numel() * tensor.element_size();
  if (tensor.storage().nbytes() < bytes) {
    tensor.storage().set_data_ptr_noswap(memory.allocate(bytes));
    tensor.storage().set_nbytes(bytes);
  }
  return tensor;
}

Tensor CopyFromAndResize(const Tensor& from, const Tensor& to) {
  Resize(to, from.sizes(), std::nullopt);
  return CopyFrom(from, to, false);
}

void RefuseOthers(const c10::OperatorHandle& op, const Tensor& tensor) {
  if (!tensor.defined() || tensor.dim() == 0 || tensor.device() == kEmulated) return;
  TORCH_CHECK(false, op.schema().name(), ": a tensor is on ", tensor.device().str(),
              ", others on the device");
}

void Compute(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const size_t count = op.schema().arguments().size();
  for (size_t i = stack->size() - count; i < stack->size(); ++i) {
    const c10::IValue& argument = (*stack)[i];
    if (argument.isTensor()) RefuseOthers(op, argument.toTensor());
    if (argument.isTensorList()) {
      for (const Tensor& tensor : argument.toTensorVector()) RefuseOthers(op, tensor);
    }
  }
  at::native::cpu_fallback(op, stack);
}

struct EmulatedHooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
};

// One device with one stream, on which all is done at once.
struct EmulatedGuard final : c10::impl::NoOpDeviceGuardImpl<c10::kPrivateUse1> {
  c10::Device getDevice() const override { return kEmulated; }
  c10::Device exchangeDevice(c10::Device) const override { return kEmulated; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kEmulated);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override { return stream; }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, EmulatedGuard);

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&Compute>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &Empty);
  library.impl("empty_strided", &EmptyStrided);
  library.impl("_copy_from", &CopyFrom);
  library.impl("_copy_from_and_resize", &CopyFromAndResize);
  library.impl("resize_", &Resize);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", &at::native::view);
  library.impl("_reshape_alias", &at::native::_reshape_alias);
}

class DeviceTest : public JobFixture {
 protected:
  struct Result {
    absl::StatusOr<TrainedModel> trained;
    std::vector<double> losses;
  };
  Result Run(const JobSpec& spec, c10::Device device, const std::string& work, int64_t stop_after = 0) const {
    Result result;
    std::stop_source stop;
    TrainContext context;
    context.work_folder = root_ / work;
    context.device = device;
    context.reward = LengthReward;
    context.stop = stop.get_token();
    context.report = [&](int64_t step, int64_t, const std::map<std::string, double>& metrics) {
      result.losses.push_back(metrics.at("loss"));
      if (step == stop_after) stop.request_stop();
    };
    result.trained = Train(spec, context);
    return result;
  }
};

TEST_P(DeviceTest, AJobOnAnotherDeviceLearnsWhatItLearnsOnTheCpu) {
  const JobSpec spec = Spec(GetParam());
  const Result there = Run(spec, kEmulated, "there"), here = Run(spec, c10::kCPU, "here");
  ASSERT_TRUE(there.trained.ok()) << there.trained.status();
  ASSERT_TRUE(here.trained.ok()) << here.trained.status();
  ASSERT_EQ(there.losses.size(), here.losses.size());
  // Their arithmetic differs (LibTorch's there, the kernels' here), and so the last bits, which training
  // spreads; a policy may then draw another token.
  const size_t compared = GetParam() == "ppo" || GetParam() == "grpo" ? 3 : here.losses.size();
  for (size_t i = 0; i < compared; ++i)
    EXPECT_NEAR(there.losses[i], here.losses[i], 1e-3) << "step " << i + 1;
}

TEST_P(DeviceTest, StoppedAndResumedItEndsWithTheSameBits) {
  JobSpec spec = Spec(GetParam());
  spec.memory.precision = Precision::kBfloat16;
  spec.memory.recompute_layers = true;
  if (GetParam() != "pretrain") spec.memory.adapters = MemorySpec::Adapters{.rank = 4, .alpha = 8};
  spec.optimizer.muon_learning_rate = 0;
  EXPECT_EQ(Run(spec, kEmulated, "stopped", 3).trained.status().code(), absl::StatusCode::kCancelled);
  const Result resumed = Run(spec, kEmulated, "stopped"), whole = Run(spec, kEmulated, "whole");
  ASSERT_TRUE(resumed.trained.ok()) << resumed.trained.status();
  ASSERT_TRUE(whole.trained.ok()) << whole.trained.status();
  EXPECT_EQ(resumed.trained->output_digest, whole.trained->output_digest);
  EXPECT_LT(resumed.losses.size(), whole.losses.size());
}

TEST_P(DeviceTest, ACheckpointOfAnotherDeviceIsRefused) {
  const JobSpec spec = Spec(GetParam());
  EXPECT_EQ(Run(spec, kEmulated, "job", 3).trained.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(Run(spec, c10::kCPU, "job").trained.status().code(), absl::StatusCode::kFailedPrecondition);
}

INSTANTIATE_TEST_SUITE_P(Kinds, DeviceTest,
                         testing::Values("pretrain", "sft", "reward_model", "reward_model_of_rankings", "dpo",
                                         "ppo", "grpo"));

TEST(OpenDevice, NamesWhatItDoesNotKnow) {
  EXPECT_TRUE(OpenDevice("cpu")->is_cpu());
  for (const char* name : {"", "gpu", "cuda", "cuda:", "cuda:x", "cuda:-1"}) {
    EXPECT_EQ(OpenDevice(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

#ifdef ALMOST_TORCH_CUDA
TEST(OpenDevice, RefusesAGpuThatIsNotThere) {
  const absl::Status status = OpenDevice("cuda:99").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}
#else
TEST(OpenDevice, RefusesAGpuThatThisBuildHasNoCodeFor) {
  const absl::Status status = OpenDevice("cuda:0").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_EQ(status.message().substr(0, 14), "device: cuda:0");
}

TEST(Rendezvous, RefusesRanksOnGpusWithoutNccl) {
  const absl::Status status =
      Rendezvous::Open({.rank = 1, .world_size = 2, .device = c10::Device(c10::kCUDA, 1)}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_NE(status.message().find("NCCL"), std::string::npos) << status;
}
#endif

}  // namespace
}  // namespace almost::trainer

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  almost::trainer::ConfigureLibTorch();
  c10::register_privateuse1_backend("emulated");
  almost::trainer::EmulatedHooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
  return RUN_ALL_TESTS();
}
