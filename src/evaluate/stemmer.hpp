// Word stems, for ROUGE.
#pragma once

#include <string>
#include <string_view>

namespace flanmoe {

/// Stem of a word of lower-case ASCII letters and digits by the algorithm of Porter (1980), with the departures of
/// NLTK, which the package rouge_score stems with: a list of irregular words, "ies" and "ied" of short words, y after
/// consonants only, "alli" before the other rules, "fulli" and "logi", and stems of a vowel and a consonant keep their
/// e.
std::string porter_stem(std::string_view word);

}  // namespace flanmoe
