# LibTorch from the unpacked PyPI wheel (deploy/setup puts lib/ and include/ there), or from -DLIBTORCH_ROOT=….
# The wheel's own TorchConfig.cmake insists on a CUDA toolkit, so the libraries are imported here.
# Left out of the include path: include/google, which would shadow the system's protobuf headers
# (deploy/setup does not unpack it; for another root it is masked by order: system headers come first).
set(LIBTORCH_ROOT ${ALMOST_DEPS}/libtorch-${ALMOST_LIBTORCH_VERSION} CACHE PATH "Folder with LibTorch's lib/ and include/")
if(NOT EXISTS ${LIBTORCH_ROOT}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "No LibTorch in ${LIBTORCH_ROOT}: run deploy/setup, or set -DLIBTORCH_ROOT.")
endif()

add_library(almost_torch INTERFACE)
target_include_directories(almost_torch SYSTEM INTERFACE
  ${LIBTORCH_ROOT}/include ${LIBTORCH_ROOT}/include/torch/csrc/api/include)
target_link_libraries(almost_torch INTERFACE ${LIBTORCH_ROOT}/lib/libtorch_cpu.so ${LIBTORCH_ROOT}/lib/libc10.so Threads::Threads)
target_link_options(almost_torch INTERFACE
  -Wl,-rpath,${LIBTORCH_ROOT}/lib -Wl,-rpath-link,${LIBTORCH_ROOT}/lib -Wl,--allow-shlib-undefined)
if(ALMOST_CUDA AND EXISTS ${LIBTORCH_ROOT}/lib/libtorch_cuda.so)
  target_compile_definitions(almost_torch INTERFACE ALMOST_TORCH_CUDA)
  target_link_libraries(almost_torch INTERFACE
    -Wl,--no-as-needed ${LIBTORCH_ROOT}/lib/libtorch_cuda.so -Wl,--as-needed ${LIBTORCH_ROOT}/lib/libc10_cuda.so)
  # Ranks exchange what lies on GPUs by NCCL, whose headers come with the wheels that torch asks for.
  find_path(NCCL_INCLUDE nccl.h HINTS ${LIBTORCH_ROOT}/../nvidia/nccl/include)
  find_path(CUDA_INCLUDE cuda_runtime_api.h HINTS ${ALMOST_DEPS}/cuda-${ALMOST_CUDA_NVCC_VERSION}/include ${LIBTORCH_ROOT}/../nvidia/cu13/include /usr/local/cuda/include)
  if(NCCL_INCLUDE AND CUDA_INCLUDE)
    target_include_directories(almost_torch SYSTEM INTERFACE ${NCCL_INCLUDE} ${CUDA_INCLUDE})
    target_compile_definitions(almost_torch INTERFACE USE_C10D_NCCL)
  endif()
endif()

# <torch/torch.h> takes 25 s to compile; every target that sees torch shares one precompiled copy.
file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/almost_torch_pch.cc CONTENT "// Carries the precompiled header.\n")
add_library(almost_torch_pch OBJECT ${CMAKE_BINARY_DIR}/almost_torch_pch.cc)
target_link_libraries(almost_torch_pch PRIVATE almost_torch)
target_precompile_headers(almost_torch_pch PRIVATE <torch/torch.h>)
if(CCACHE_PROGRAM)
  target_compile_options(almost_torch_pch PRIVATE -fpch-preprocess)
endif()

function(almost_use_torch target visibility)
  target_link_libraries(${target} ${visibility} almost_torch)
  if(NOT visibility STREQUAL INTERFACE)
    target_precompile_headers(${target} REUSE_FROM almost_torch_pch)
    # CMake compiles executables with -fPIE, with which a header precompiled for libraries is no use.
    get_target_property(type ${target} TYPE)
    if(type STREQUAL EXECUTABLE)
      set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
      target_compile_options(${target} PRIVATE -fPIC)
    endif()
    if(CCACHE_PROGRAM)
      target_compile_options(${target} PRIVATE -fpch-preprocess)
    endif()
  endif()
endfunction()
