# Compiler settings, as one interface target that everything links.
option(FLANMOE_TESTS "Build the tests" ON)
option(FLANMOE_FUZZ "Build the fuzzers of tests/fuzz (clang)" OFF)
option(FLANMOE_SANITIZE "Build with address and undefined-behaviour sanitizers" OFF)
set(FLANMOE_ARCH "native" CACHE STRING "Value of -march; set it when the login node differs from the compute nodes")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
# Preconditions (FLANMOE_EXPECT) stay in every build; NDEBUG only switches off assertions of the libraries.
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -DNDEBUG")

find_program(CCACHE ccache)
if(CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE})
endif()

add_library(flanmoe_options INTERFACE)
# -fno-math-errno and -fno-trapping-math let loops vectorise without changing any result.
target_compile_options(
  flanmoe_options
  INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Werror;-march=${FLANMOE_ARCH};-fno-math-errno;-fno-trapping-math>"
            "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra;--expt-relaxed-constexpr;-lineinfo;-Xptxas=-v>")
# Compilers shy away from 512-bit vectors by default; the loops of kernels/cpu are long enough to gain from them.
include(CheckCXXCompilerFlag)
check_cxx_compiler_flag(-mprefer-vector-width=512 FLANMOE_WIDE_VECTORS)

if(FLANMOE_SANITIZE)
  target_compile_options(
    flanmoe_options
    INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=address,undefined;-fno-sanitize-recover=all;-fno-omit-frame-pointer>")
  target_link_options(flanmoe_options INTERFACE -fsanitize=address,undefined)
endif()
