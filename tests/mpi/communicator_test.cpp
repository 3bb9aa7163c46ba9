#include "parallel/communicator.hpp"

#include <gtest/gtest.h>
namespace flanmoe {
TEST(Communicator, BarrierReturns) { Communicator::world().barrier(); }
}
