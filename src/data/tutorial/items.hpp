// Items: the questions of a task before a template puts them into words.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "data/templates.hpp"
#include "data/text.hpp"
#include "data/tutorial/sources.hpp"

namespace flanmoe::tutorial {

struct Task {
  const char* name;
  Items (*build)(const Sources&);
};
/// Every task. Each has a template file of the same name.
const std::vector<Task>& tasks();

// Builders, by source.
Items define_word(const Sources&);
Items word_for_gloss(const Sources&);
Items synonym(const Sources&);
Items antonym(const Sources&);
Items kind_of(const Sources&);
Items is_kind_of(const Sources&);
Items sort_of_thing(const Sources&);
Items belongs_with(const Sources&);
Items fill_blank(const Sources&);
Items part_of_speech(const Sources&);
Items plural(const Sources&);
Items singular_or_plural(const Sources&);
Items past_tense(const Sources&);
Items expand_acronym(const Sources&);
Items computing_subject(const Sources&);
Items computing_term(const Sources&);
Items package_section(const Sources&);
Items package_for_description(const Sources&);
Items describe_package(const Sources&);
Items package_role(const Sources&);
Items translate_english_french(const Sources&);
Items translate_french_english(const Sources&);
Items translate_dutch_english(const Sources&);
Items word_language(const Sources&);
Items sums(const Sources&);
Items larger_number(const Sources&);
Items word_problem(const Sources&);

/// Sets the choices: the answer and `wrong` texts drawn from `pool` that are neither the answer nor refused.
void draw_choices(Item& item, const std::vector<std::string>& pool, std::size_t wrong, Random& random,
                  const std::function<bool(const std::string&)>& refused = {});
/// Sets the choices to the answer and the given wrong ones, in random order.
void set_choices(Item& item, std::vector<std::string> wrong, Random& random);
/// The same number of items for every answer (as many as the rarest has, at most `each`), chosen by hash of the key.
Items balanced(Items items, std::size_t each);
/// At most `limit` items, chosen by hash of the key.
Items limited(Items items, std::size_t limit);

}  // namespace flanmoe::tutorial
