#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// The little of CUDA's runtime that the engine uses; with ALMOST_CUDA_EMULATED on this processor.
namespace almost::engine::cuda {

// kFailedPrecondition: no such GPU, or no driver. Calls of this thread are for it from then on.
absl::Status UseDevice(int number);
// "NVIDIA H200, compute capability 9.0".
std::string DeviceName(int number);

// Memory of the device, or of the host and locked, so that copies run beside the host. Its owner's until it
// ends.
class Memory {
 public:
  enum Kind { kDevice, kPinned };
  Memory() = default;
  // kResourceExhausted: there is not so much.
  static absl::StatusOr<Memory> Allocate(size_t bytes, Kind kind);
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  std::shared_ptr<void> data_;
};

// What is enqueued runs in order. One thread at a time.
class Stream {
 public:
  static absl::StatusOr<std::unique_ptr<Stream>> Create();
  ~Stream();
  // Between device and host, in either direction; pinned memory of the host may not change until Wait.
  void Copy(void* to, const void* from, size_t bytes);
  // Within the device: `count` pieces of `bytes`, each `pitch` after the one before.
  void CopyPieces(void* to, const void* from, size_t bytes, size_t pitch, int count);
  // Until all is done. kInternal: what went wrong with a launch or a copy since the last call.
  absl::Status Wait();
  // Wait is to say so.
  void Failed(const absl::Status& error) { failure_.Update(error); }

  // What `enqueue` puts on this stream, recorded and not run.
  class Graph;
  absl::StatusOr<std::shared_ptr<Graph>> Record(const std::function<void()>& enqueue);
  void Run(const Graph& graph);

  void* native() const { return native_; }  // a cudaStream_t
  // For the emulation's launches.
  void Do(std::function<void()> work);

 private:
  Stream() = default;
  void* native_ = nullptr;
  Graph* recording_ = nullptr;
  absl::Status failure_;
};

}  // namespace almost::engine::cuda
