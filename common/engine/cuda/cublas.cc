#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "common/base/status_macros.h"
#include "common/engine/cuda/products.h"

// cuBLAS by its C interface, looked up at run time: half a gigabyte that neither the build nor a CPU image
// needs.
namespace almost::engine::cuda {
namespace {

using Handle = void*;
// Of cublas_api.h and library_types.h.
constexpr int kNotTransposed = 0, kTransposed = 1, kFloat32 = 0, kFloat16 = 2, kBfloat16 = 14,
              kComputeFloat32 = 68, kDefaultAlgorithm = -1;
constexpr size_t kWorkspaceBytes = 32 << 20;  // what NVIDIA advises for compute capability 9

struct Library {
  int (*create)(Handle*);
  int (*destroy)(Handle);
  int (*set_stream)(Handle, void* stream);
  int (*set_workspace)(Handle, void*, size_t bytes);
  int (*gemm)(Handle, int transpose_a, int transpose_b, int m, int n, int k, const void* alpha, const void* a,
              int a_type, int lda, const void* b, int b_type, int ldb, const void* beta, void* c, int c_type,
              int ldc, int compute_type, int algorithm);
};

absl::StatusOr<Library> Open() {
  void* const file = dlopen("libcublas.so.13", RTLD_NOW | RTLD_GLOBAL);
  if (file == nullptr) return absl::FailedPreconditionError(absl::StrCat("cuda: no cuBLAS: ", dlerror()));
  Library library;
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
    return function != nullptr;
  };
  if (!find("cublasCreate_v2", library.create) || !find("cublasDestroy_v2", library.destroy) ||
      !find("cublasSetStream_v2", library.set_stream) ||
      !find("cublasSetWorkspace_v2", library.set_workspace) || !find("cublasGemmEx", library.gemm)) {
    return absl::FailedPreconditionError(absl::StrCat("cuda: cuBLAS is not as expected: ", dlerror()));
  }
  return library;
}

class CuBlasProducts final : public Products {
 public:
  CuBlasProducts(const Library& library, Handle handle, Memory workspace, WeightType type)
      : library_(library),
        handle_(handle),
        workspace_(std::move(workspace)),
        type_(type == WeightType::kFloat32    ? kFloat32
              : type == WeightType::kBfloat16 ? kBfloat16
                                              : kFloat16) {}
  ~CuBlasProducts() override { library_.destroy(handle_); }

  // Row-major here is column-major there: outᵀ [N, rows] = w · aᵀ.
  void operator()(Stream& stream, const void* a, const void* w, int rows, int n, int k, bool accumulate,
                  float* out) override {
    const float one = 1, kept = accumulate ? 1 : 0;
    const int error = library_.gemm(handle_, kTransposed, kNotTransposed, n, rows, k, &one, w, type_, k, a,
                                    type_, k, &kept, out, kFloat32, n, kComputeFloat32, kDefaultAlgorithm);
    if (error != 0) stream.Failed(absl::InternalError(absl::StrCat("cuda: cuBLAS error ", error)));
  }

 private:
  const Library library_;
  const Handle handle_;
  const Memory workspace_;  // its own choice would be allocated while a graph is recorded
  const int type_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Products>> Products::CuBlas(WeightType type, Stream& stream) {
  ALMOST_ASSIGN_OR_RETURN(const Library library, Open());
  ALMOST_ASSIGN_OR_RETURN(Memory workspace, Memory::Allocate(kWorkspaceBytes, Memory::kDevice));
  Handle handle = nullptr;
  if (const int error = library.create(&handle); error != 0)
    return absl::FailedPreconditionError(absl::StrCat("cuda: cuBLAS does not start, error ", error));
  auto products = std::make_unique<CuBlasProducts>(library, handle, workspace, type);
  if (library.set_stream(handle, stream.native()) != 0 ||
      library.set_workspace(handle, workspace.as<void>(), kWorkspaceBytes) != 0) {
    return absl::InternalError("cuda: cuBLAS refuses its stream or workspace");
  }
  return products;
}

}  // namespace almost::engine::cuda
