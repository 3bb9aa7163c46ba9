#include "data/tutorial/arithmetic.hpp"

#include <fmt/format.h>

namespace flanmoe::tutorial {

namespace {

const std::vector<std::string> kNames = {"Anna", "Ben",   "Clara", "David", "Emma", "Felix", "Greta", "Hugo",
                                         "Ida",  "Jonas", "Karin", "Leo",   "Mara", "Nils",  "Olga",  "Paul"};
const std::vector<std::string> kThings = {"apples", "books",  "coins",   "eggs",  "cards", "pencils",
                                          "shells", "stamps", "flowers", "boxes", "nails", "plums"};
const std::vector<std::string> kContainers = {"bags", "boxes", "baskets", "jars", "crates", "trays"};

WordProblem gains_then_loses(Random& random) {
  const auto &name = random.pick(kNames), &thing = random.pick(kThings);
  const auto start = random.between(3, 40), gain = random.between(2, 30);
  const auto sum = start + gain, loss = random.between(1, sum - 1);
  return {fmt::format("{0} has {1} {4}. {0} finds {2} more and then gives away {3}. How many {4} does {0} have now?",
                      name, start, gain, loss, thing),
          fmt::format("{} + {} = {}. {} - {} = {}.", start, gain, sum, sum, loss, sum - loss), sum - loss};
}

WordProblem loses_twice(Random& random) {
  const auto &name = random.pick(kNames), &thing = random.pick(kThings);
  const auto start = random.between(10, 60), first = random.between(1, start - 2);
  const auto left = start - first, second = random.between(1, left);
  return {fmt::format("{0} had {1} {4}. {2} of them were sold on Monday and {3} on Tuesday. How many are left?", name,
                      start, first, second, thing),
          fmt::format("{} - {} = {}. {} - {} = {}.", start, first, left, left, second, left - second), left - second};
}

WordProblem groups_and_more(Random& random) {
  const auto &name = random.pick(kNames), &thing = random.pick(kThings), &container = random.pick(kContainers);
  const auto groups = random.between(2, 9), each = random.between(2, 10), more = random.between(1, 20);
  const auto product = groups * each;
  return {fmt::format("{0} buys {1} {5} with {2} {4} in each, and {3} {4} that are loose. How many {4} is that in all?",
                      name, groups, each, more, thing, container),
          fmt::format("{} * {} = {}. {} + {} = {}.", groups, each, product, product, more, product + more),
          product + more};
}

WordProblem groups_and_fewer(Random& random) {
  const auto &name = random.pick(kNames), &thing = random.pick(kThings), &container = random.pick(kContainers);
  const auto groups = random.between(2, 9), each = random.between(2, 10);
  const auto product = groups * each, fewer = random.between(1, product - 1);
  return {fmt::format("There are {1} {5} with {2} {4} in each. {0} takes {3} {4} out. How many {4} remain?", name,
                      groups, each, fewer, thing, container),
          fmt::format("{} * {} = {}. {} - {} = {}.", groups, each, product, product, fewer, product - fewer),
          product - fewer};
}

WordProblem two_people(Random& random) {
  const auto &first = random.pick(kNames), &thing = random.pick(kThings);
  std::string second = random.pick(kNames);
  while (second == first) second = random.pick(kNames);
  const auto has = random.between(2, 40), more = random.between(1, 20);
  const auto other = has + more;
  return {fmt::format("{0} has {2} {4}. {1} has {3} {4} more than {0}. How many {4} do they have together?", first,
                      second, has, more, thing),
          fmt::format("{} + {} = {}. {} + {} = {}.", has, more, other, has, other, has + other), has + other};
}

}  // namespace

WordProblem two_step_problem(Random& random) {
  switch (random.below(5)) {
    case 0: return gains_then_loses(random);
    case 1: return loses_twice(random);
    case 2: return groups_and_more(random);
    case 3: return groups_and_fewer(random);
    default: return two_people(random);
  }
}

Sum one_step_sum(Random& random) {
  switch (random.below(3)) {
    case 0: {
      const auto a = random.between(1, 50), b = random.between(1, 49);
      return {fmt::format("{} + {}", a, b), a + b};
    }
    case 1: {
      const auto a = random.between(2, 60), b = random.between(1, a);
      return {fmt::format("{} - {}", a, b), a - b};
    }
    default: {
      const auto a = random.between(2, 10), b = random.between(2, 10);
      return {fmt::format("{} * {}", a, b), a * b};
    }
  }
}

}  // namespace flanmoe::tutorial
