// SVAMP: a list of word problems, each a body and a question.
#include <cmath>

#include "data/formats/formats.hpp"
#include "data/formats/json_text.hpp"
#include "data/text.hpp"

namespace flanmoe::formats {

void read_svamp(Input& input, BadRecords& bad, const Sink& sink) {
  const JsonFile file = parse_json_file(input, "");
  const Json& list = list_of(file, "", input.name());
  for (std::size_t i = 0; i < list.size(); ++i) {
    bad.guard([&] {
      const std::string where = input.where(file.lines[i]);
      const Json& answer = member(list[i], "Answer", where);
      if (!answer.is_number())
        fail("{}: expected \"Answer\" to be a number, found {}", where, shown(answer.dump(-1, ' ', true)));
      const double value = answer.get<double>();
      Record record;
      record.key = text_member(list[i], "ID", where);
      const std::string body = text_member(list[i], "Body", where), question = text_member(list[i], "Question", where);
      record.question = record.question_as_written = std::string(trim(body)) + " " + std::string(trim(question));
      // Written as floats, nearly all of them whole: "51.0" is asked for as 51.
      record.answers = {std::abs(value) < 1e15 && value == std::floor(value) ? fmt::format("{:.0f}", value)
                                                                             : fmt::format("{}", value)};
      sink.record(std::move(record));
    });
  }
}

}  // namespace flanmoe::formats
