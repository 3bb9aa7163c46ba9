#include "evaluate/answer.hpp"

#include <algorithm>
#include <vector>

#include "data/text.hpp"
#include "evaluate/stemmer.hpp"

namespace flanmoe {
namespace {

constexpr std::string_view trigger = "the answer is";

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }
bool is_alnum(char c) { return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

// ASCII only: bytes of UTF-8 sequences stay as they are.
std::string lower_case(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = char(c - 'A' + 'a');
  }
  return out;
}

std::string without_commas(std::string_view text) {
  std::string out(text);
  std::erase(out, ',');
  return out;
}

std::string without_final_period(std::string text) {
  if (!text.empty() && text.back() == '.') text.pop_back();
  return collapse_whitespace(text);
}

/// All matches of -?\d+\.?\d*, without a final period.
std::vector<std::string> numbers_in(std::string_view text) {
  std::vector<std::string> found;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t begin = i;
    if (text[i] == '-' && i + 1 < text.size() && is_digit(text[i + 1])) ++i;
    if (!is_digit(text[i])) {
      i = begin + 1;
      continue;
    }
    while (i < text.size() && is_digit(text[i])) ++i;
    if (i < text.size() && text[i] == '.') ++i;
    while (i < text.size() && is_digit(text[i])) ++i;
    std::string number(text.substr(begin, i - begin));
    if (number.back() == '.') number.pop_back();
    found.push_back(std::move(number));
  }
  return found;
}

std::vector<std::string> yes_no_words_in(std::string_view text) {
  std::vector<std::string> found;
  std::string word;
  const std::string lower = lower_case(text) + ' ';
  for (const char c : lower) {
    // A byte of a non-ASCII letter belongs to a word, so that it cannot make a "no" out of part of one.
    if (is_alnum(c) || (static_cast<unsigned char>(c) & 0x80U) != 0) {
      word += c;
      continue;
    }
    if (word == "yes" || word == "no") found.push_back(word);
    word.clear();
  }
  return found;
}

bool is_capital(char c) { return c >= 'A' && c <= 'Z'; }

/// "(B)" at `i`.
bool bracketed_letter(std::string_view text, std::size_t i) {
  return i + 2 < text.size() && text[i] == '(' && is_capital(text[i + 1]) && text[i + 2] == ')';
}

/// The option that a whole answer begins with: "(B)", "(B) Paris", "B", "B.", "B) Paris"; "" when there is none.
std::string leading_letter(std::string_view text) {
  if (bracketed_letter(text, 0)) return std::string(text.substr(1, 1));
  if (text.empty() || !is_capital(text[0])) return "";
  const bool ends = text.size() == 1 || std::string_view(".):,;").find(text[1]) != std::string_view::npos;
  return ends ? std::string(text.substr(0, 1)) : "";
}

std::string letter_in(std::string_view text, bool triggered) {
  std::string last, alone;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (bracketed_letter(text, i)) {
      last.assign(1, text[i + 1]);
      if (triggered) return last;
    }
    const auto joins = [](char c) { return is_alnum(c) || (static_cast<unsigned char>(c) & 0x80U) != 0 || c == '\''; };
    if (alone.empty() && is_capital(text[i]) && (i == 0 || !joins(text[i - 1])) &&
        (i + 1 == text.size() || !joins(text[i + 1]))) {
      alone.assign(1, text[i]);
    }
  }
  return triggered ? alone : last;
}

/// Words as rouge_score takes them: runs of ASCII letters and digits in lower case, those of more than 3 characters
/// stemmed. The Kelvin sign and the capital I with a dot have an ASCII letter in lower case, and no other characters
/// do.
std::vector<std::string> stems_of(std::string text) {
  text = replace_all(replace_all(std::move(text), "\u212A", "k"), "\u0130", "i ");
  std::vector<std::string> words(1);
  for (const char c : lower_case(text)) {
    if (is_alnum(c)) {
      words.back() += c;
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) words.pop_back();
  for (std::string& word : words) {
    if (word.size() > 3) word = porter_stem(word);
  }
  return words;
}

/// "+007.50" -> "7.5"; "" when the text is no single number. Signs: "-0" is "0".
std::string canonical_number(std::string_view text) {
  std::string digits = without_final_period(collapse_whitespace(without_commas(text)));
  std::string sign;
  if (!digits.empty() && (digits[0] == '-' || digits[0] == '+')) {
    if (digits[0] == '-') sign = "-";
    digits.erase(0, 1);
  }
  const std::size_t point = digits.find('.');
  std::string whole = digits.substr(0, point);
  std::string fraction = point == std::string::npos ? "" : digits.substr(point + 1);
  if (whole.empty() || (point != std::string::npos && fraction.empty())) return "";
  if (!std::all_of(whole.begin(), whole.end(), is_digit)) return "";
  if (!std::all_of(fraction.begin(), fraction.end(), is_digit)) return "";
  whole.erase(0, std::min(whole.find_first_not_of('0'), whole.size() - 1));
  fraction.erase(fraction.find_last_not_of('0') + 1);
  if (whole == "0" && fraction.empty()) sign.clear();
  return sign + whole + (fraction.empty() ? "" : "." + fraction);
}

}  // namespace

std::string collapse_whitespace(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (!is_space(c)) {
      out += c;
    } else if (!out.empty() && out.back() != ' ') {
      out += ' ';
    }
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

AnswerKind kind_of_answer(std::string_view gold) {
  const std::string plain = lower_case(without_final_period(collapse_whitespace(gold)));
  if (plain == "yes" || plain == "no") return AnswerKind::yes_no;
  return canonical_number(plain).empty() ? AnswerKind::text : AnswerKind::number;
}

AnswerKind kind_of_answer(Extraction rule, std::string_view gold) {
  switch (rule) {
    case Extraction::text: return AnswerKind::text;
    case Extraction::letter: return AnswerKind::letter;
    // Some released answers are words, ratios or times: those are compared as what they are.
    case Extraction::number: return kind_of_answer(gold);
    case Extraction::yes_no: return AnswerKind::yes_no;
    case Extraction::whole: return AnswerKind::whole;
    case Extraction::automatic: break;
  }
  return kind_of_answer(gold);
}

std::string extract_answer(std::string_view output, AnswerKind kind, bool chain_of_thought) {
  if (!chain_of_thought || kind == AnswerKind::whole) {
    const std::string answer = collapse_whitespace(output);
    return kind == AnswerKind::letter ? leading_letter(answer) : without_final_period(answer);
  }
  // Whitespace first, so that a trigger broken over lines is still one.
  const std::string text = collapse_whitespace(output);
  const std::size_t at = lower_case(text).rfind(trigger);
  const bool triggered = at != std::string::npos;
  const std::string piece = triggered ? text.substr(at + trigger.size()) : text;
  if (kind == AnswerKind::text) {
    std::string answer = collapse_whitespace(piece);
    if (triggered && !answer.empty() && answer[0] == ':') answer = collapse_whitespace(answer.substr(1));
    return without_final_period(answer);
  }
  if (kind == AnswerKind::letter) return letter_in(piece, triggered);
  const auto found = kind == AnswerKind::number ? numbers_in(without_commas(piece)) : yes_no_words_in(piece);
  if (found.empty()) return "";
  return triggered ? found.front() : found.back();
}

bool answers_match(std::string_view answer, std::string_view gold, AnswerKind kind) {
  const std::string a = without_final_period(collapse_whitespace(answer));
  const std::string g = without_final_period(collapse_whitespace(gold));
  if (a.empty()) return false;
  switch (kind) {
    case AnswerKind::number: return !canonical_number(a).empty() && canonical_number(a) == canonical_number(g);
    case AnswerKind::yes_no: return lower_case(a) == lower_case(g);
    case AnswerKind::letter: return !leading_letter(a).empty() && leading_letter(a) == leading_letter(g);
    case AnswerKind::text:
    case AnswerKind::whole: break;
  }
  return a == g;
}

bool matches_any_answer(std::string_view answer, const std::vector<std::string>& golds, AnswerKind kind) {
  return std::any_of(golds.begin(), golds.end(), [&](const auto& gold) { return answers_match(answer, gold, kind); });
}

double rouge_l(std::string_view text, std::string_view reference) {
  const auto a = stems_of(std::string(text)), b = stems_of(std::string(reference));
  if (a.empty() || b.empty()) return 0;
  // Row by row: length[j] is that of the first i words of a and the first j of b.
  std::vector<std::size_t> length(b.size() + 1, 0);
  for (const auto& word : a) {
    std::size_t diagonal = 0;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t above = length[j];
      length[j] = word == b[j - 1] ? diagonal + 1 : std::max(above, length[j - 1]);
      diagonal = above;
    }
  }
  // 2PR / (P + R) with P = common / words of a, R = common / words of b.
  return 2 * double(length.back()) / double(a.size() + b.size());
}

}  // namespace flanmoe
