# Language level, warnings (errors in our code) and sanitizers.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()
# What waits for the network or for LibTorch gains nothing from more, and compiles a fifth faster; what computes says so
# (COMPUTES in AlmostTargets.cmake).
set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG")

set(ALMOST_SANITIZE "" CACHE STRING "Comma-separated sanitizers for our code: address,undefined or thread")
if(ALMOST_SANITIZE)
  add_compile_options(-fsanitize=${ALMOST_SANITIZE} -fno-omit-frame-pointer -g1)
  add_link_options(-fsanitize=${ALMOST_SANITIZE})
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  # base_dir lets two checkouts share their objects; the sloppiness is what a precompiled header needs.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR} CCACHE_NOHASHDIR=1
      CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime ${CCACHE_PROGRAM})
endif()
find_program(LLD_PROGRAM ld.lld)
if(LLD_PROGRAM)
  add_link_options(-fuse-ld=lld)
endif()

# For targets of ours; generated code is compiled without it.
add_library(almost_warnings INTERFACE)
target_compile_options(almost_warnings INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor -Werror
  # GCC 12 gives this even for designated initialisers, which leave out on purpose.
  -Wno-missing-field-initializers)
# GCC 12 reports these inside libstdc++ where there is nothing (GCC bugs 105329, 105562).
if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  target_compile_options(almost_warnings INTERFACE -Wno-restrict -Wno-maybe-uninitialized)
endif()
