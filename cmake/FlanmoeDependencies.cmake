# Libraries, all from the distribution's packages (the list of packages is tools/packages.txt).
find_package(MPI REQUIRED COMPONENTS C)
find_package(OpenMP REQUIRED COMPONENTS CXX)
set(HDF5_PREFER_PARALLEL ON)
find_package(HDF5 REQUIRED COMPONENTS C)
if(NOT HDF5_IS_PARALLEL)
  message(FATAL_ERROR "flanmoe writes checkpoints in parallel and needs the MPI build of HDF5 (libhdf5-openmpi-dev)")
endif()
# The packaged dnnl-config.cmake asks for OpenCL headers, which its package does not bring and flanmoe does not use.
find_library(DNNL_LIBRARY dnnl REQUIRED)
find_path(DNNL_INCLUDE_DIR oneapi/dnnl/dnnl.hpp REQUIRED)
find_package(Boost REQUIRED COMPONENTS program_options)
find_package(fmt REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(ZLIB REQUIRED)
find_package(pugixml REQUIRED)
find_package(Threads REQUIRED)
find_library(SENTENCEPIECE_LIBRARY sentencepiece REQUIRED)
find_library(SENTENCEPIECE_TRAIN_LIBRARY sentencepiece_train REQUIRED)

add_library(flanmoe_dependencies INTERFACE)
target_include_directories(flanmoe_dependencies SYSTEM INTERFACE ${HDF5_C_INCLUDE_DIRS} ${DNNL_INCLUDE_DIR})
target_link_libraries(
  flanmoe_dependencies
  INTERFACE MPI::MPI_C OpenMP::OpenMP_CXX ${HDF5_C_LIBRARIES} ${DNNL_LIBRARY} Boost::program_options fmt::fmt
            nlohmann_json::nlohmann_json ZLIB::ZLIB pugixml::pugixml Threads::Threads ${SENTENCEPIECE_LIBRARY})
# C++ bindings of MPI are not used; keep their header out.
target_compile_definitions(flanmoe_dependencies INTERFACE OMPI_SKIP_MPICXX=1)
