# With ALMOST_CUDA: the toolkit from deploy/setup --cuda (NVIDIA's wheels, unpacked), or any folder with bin/nvcc and include/.
# The CUDA runtime is linked statically and cuBLAS is looked for at run time, so programs start without either.
set(CUDA_ROOT ${ALMOST_DEPS}/cuda-${ALMOST_CUDA_NVCC_VERSION} CACHE PATH "Folder with the CUDA toolkit's bin/, include/ and lib/")
if(NOT EXISTS ${CUDA_ROOT}/bin/nvcc)
  message(FATAL_ERROR "No nvcc in ${CUDA_ROOT}: run deploy/setup --cuda, or set -DCUDA_ROOT.")
endif()
find_library(CUDART_STATIC cudart_static HINTS ${CUDA_ROOT}/lib ${CUDA_ROOT}/lib64 REQUIRED NO_DEFAULT_PATH)

add_library(almost_cudart INTERFACE)
target_include_directories(almost_cudart SYSTEM INTERFACE ${CUDA_ROOT}/include)
target_link_libraries(almost_cudart INTERFACE ${CUDART_STATIC} Threads::Threads dl rt)

# almost_cuda_object(variable file.cu): compiles it for Ampere and Hopper, and as PTX for what comes later; the object's name
# goes into the variable.
function(almost_cuda_object variable source)
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${source}.o)
  cmake_path(GET object PARENT_PATH folder)
  file(MAKE_DIRECTORY ${folder})
  add_custom_command(OUTPUT ${object}
    COMMAND ${CCACHE_PROGRAM} ${CUDA_ROOT}/bin/nvcc -std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler -fPIC -ccbin ${CMAKE_CXX_COMPILER}
      -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90
      -Werror all-warnings -I${CMAKE_SOURCE_DIR} -MD -MF ${object}.d -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d VERBATIM)
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  set(${variable} ${object} PARENT_SCOPE)
endfunction()
