// Generated arithmetic. Nothing here comes from a source; the questions are drawn from a fixed seed.
#include <algorithm>
#include <set>

#include "data/tutorial/arithmetic.hpp"
#include "data/tutorial/items.hpp"

namespace flanmoe::tutorial {

namespace {

/// Three numbers near the answer, none below 0.
std::vector<std::string> near_numbers(std::int64_t answer, Random& random) {
  std::vector<std::string> wrong;
  while (wrong.size() < 3) {
    const std::int64_t step = random.pick(std::vector<std::int64_t>{-10, -3, -2, -1, 1, 2, 3, 10});
    const std::string text = std::to_string(answer + step);
    if (answer + step >= 0 && std::find(wrong.begin(), wrong.end(), text) == wrong.end()) wrong.push_back(text);
  }
  return wrong;
}

}  // namespace

Items sums(const Sources&) {
  Items items;
  std::set<std::string> known;
  Random random("sums", 0);
  for (int draw = 0; draw < 8000; ++draw) {
    const Sum sum = one_step_sum(random);
    if (!known.insert(sum.expression).second) continue;
    Item item{sum.expression, {{"expression", sum.expression}}, std::to_string(sum.answer), {}};
    set_choices(item, near_numbers(sum.answer, random), random);
    items.push_back(std::move(item));
  }
  return items;
}

Items larger_number(const Sources&) {
  Items items;
  std::set<std::string> known;
  Random random("larger_number", 0);
  for (int draw = 0; draw < 4000; ++draw) {
    const auto a = random.between(1, 999), b = random.between(1, 999);
    const auto key = std::to_string(std::min(a, b)) + " " + std::to_string(std::max(a, b));
    if (a == b || !known.insert(key).second) continue;
    const auto first = std::to_string(a), second = std::to_string(b);
    items.push_back({key, {{"first", first}, {"second", second}}, std::to_string(std::max(a, b)), {first, second}});
  }
  return items;
}

Items word_problem(const Sources&) {
  Items items;
  std::set<std::string> known;
  Random random("word_problem", 0);
  for (int draw = 0; draw < 8000; ++draw) {
    const WordProblem problem = two_step_problem(random);
    if (!known.insert(problem.question).second) continue;
    Item item;
    item.key = problem.question;
    item.answer = std::to_string(problem.answer);
    item.fields = {{"question", problem.question}, {"rationale", problem.rationale}};
    set_choices(item, near_numbers(problem.answer, random), random);
    items.push_back(std::move(item));
  }
  return items;
}

}  // namespace flanmoe::tutorial
