# flanmoe_test(name FILES... [RANKS n...] [LABEL l] [DEVICE target]): one test executable, registered once per number of ranks;
# with the GPU code of this build, if any, or with that of another target: flanmoe_emulated, flanmoe_gpu. Exit code 77 skips it.
find_package(GTest REQUIRED)
# Tests share few cores: ranks run one thread each, and neither waiting threads (OMP_WAIT_POLICY) nor waiting ranks
# (mpi_yield_when_idle; a rank that waits for another one's disk otherwise keeps its core busy) spin.
set(FLANMOE_MPIEXEC ${MPIEXEC_EXECUTABLE} --oversubscribe --allow-run-as-root --bind-to none --mca mpi_yield_when_idle 1)

# Tests read the decks of input/ and headers of src/ from here.
function(flanmoe_test name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "LABEL;DEVICE" "FILES;RANKS")
  if(NOT ARG_DEVICE)
    set(ARG_DEVICE flanmoe_device)
  endif()
  add_executable(${name} ${ARG_FILES})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  target_include_directories(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests)
  target_compile_definitions(${name} PRIVATE FLANMOE_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE flanmoe_core ${ARG_DEVICE} GTest::gmock GTest::gtest ${CMAKE_DL_LIBS})
  if(ARG_RANKS)
    target_sources(${name} PRIVATE ${CMAKE_SOURCE_DIR}/tests/test_main.cpp)
  else()
    target_link_libraries(${name} PRIVATE GTest::gtest_main)
    add_test(NAME ${name} COMMAND ${name})
    set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABEL}" TIMEOUT 600 PROCESSORS 2 SKIP_RETURN_CODE 77
                                          ENVIRONMENT OMP_WAIT_POLICY=passive)
  endif()
  foreach(ranks IN LISTS ARG_RANKS)
    add_test(NAME ${name}.ranks_${ranks} COMMAND ${FLANMOE_MPIEXEC} -n ${ranks} $<TARGET_FILE:${name}>)
    set_tests_properties(${name}.ranks_${ranks} PROPERTIES LABELS "${ARG_LABEL}" TIMEOUT 600 PROCESSORS 2 SKIP_RETURN_CODE 77
                                                           ENVIRONMENT "OMP_NUM_THREADS=1;OMP_WAIT_POLICY=passive")
  endforeach()
endfunction()
