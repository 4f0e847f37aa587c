#include "common/engine/cuda/device.h"

#include <cuda_runtime.h>

#include "absl/strings/str_cat.h"

namespace almost::engine::cuda {
namespace {

absl::Status ToStatus(cudaError_t error, absl::string_view what) {
  if (error == cudaSuccess) return absl::OkStatus();
  const std::string text = absl::StrCat("cuda: ", what, ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  if (error == cudaErrorNoDevice || error == cudaErrorInvalidDevice || error == cudaErrorInsufficientDriver) {
    return absl::FailedPreconditionError(text);
  }
  return absl::InternalError(text);
}

cudaStream_t Native(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

}  // namespace

class Stream::Graph {
 public:
  explicit Graph(cudaGraphExec_t instantiated) : exec(instantiated) {}
  ~Graph() { cudaGraphExecDestroy(exec); }
  const cudaGraphExec_t exec;
};

absl::Status UseDevice(int number) {
  return ToStatus(cudaSetDevice(number), absl::StrCat("device ", number));
}

std::string DeviceName(int number) {
  cudaDeviceProp properties;
  if (cudaGetDeviceProperties(&properties, number) != cudaSuccess) return "unknown";
  return absl::StrCat(properties.name, ", compute capability ", properties.major, ".", properties.minor);
}

absl::StatusOr<Memory> Memory::Allocate(size_t bytes, Kind kind) {
  void* data = nullptr;
  const cudaError_t error = kind == kDevice ? cudaMalloc(&data, bytes) : cudaMallocHost(&data, bytes);
  if (error != cudaSuccess) {
    cudaGetLastError();  // not the next launch's
    return ToStatus(error, absl::StrCat("allocating ", bytes, " bytes"));
  }
  Memory memory;
  memory.data_ = kind == kDevice ? std::shared_ptr<void>(data, [](void* p) { cudaFree(p); })
                                 : std::shared_ptr<void>(data, [](void* p) { cudaFreeHost(p); });
  return memory;
}

absl::StatusOr<std::unique_ptr<Stream>> Stream::Create() {
  cudaStream_t native;
  if (const absl::Status status =
          ToStatus(cudaStreamCreateWithFlags(&native, cudaStreamNonBlocking), "stream");
      !status.ok()) {
    return status;
  }
  std::unique_ptr<Stream> stream(new Stream);
  stream->native_ = native;
  return stream;
}
Stream::~Stream() { cudaStreamDestroy(Native(*this)); }

void Stream::Copy(void* to, const void* from, size_t bytes) {
  cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, Native(*this));
}
void Stream::CopyPieces(void* to, const void* from, size_t bytes, size_t pitch, int count) {
  cudaMemcpy2DAsync(to, pitch, from, pitch, bytes, count, cudaMemcpyDeviceToDevice, Native(*this));
}
absl::Status Stream::Wait() {
  const cudaError_t waited = cudaStreamSynchronize(Native(*this)), launched = cudaGetLastError();
  Failed(ToStatus(waited != cudaSuccess ? waited : launched, "a step"));
  return std::exchange(failure_, absl::OkStatus());
}

absl::StatusOr<std::shared_ptr<Stream::Graph>> Stream::Record(const std::function<void()>& enqueue) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaError_t error = cudaStreamBeginCapture(Native(*this), cudaStreamCaptureModeThreadLocal);
  if (error == cudaSuccess) {
    enqueue();
    error = cudaStreamEndCapture(Native(*this), &graph);
  }
  if (error == cudaSuccess) error = cudaGraphInstantiate(&exec, graph, 0);
  if (graph != nullptr) cudaGraphDestroy(graph);
  if (const absl::Status status = ToStatus(error, "recording a step"); !status.ok()) return status;
  return std::make_shared<Graph>(exec);
}
void Stream::Run(const Graph& graph) { cudaGraphLaunch(graph.exec, Native(*this)); }

}  // namespace almost::engine::cuda
