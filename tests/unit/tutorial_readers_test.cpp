#include <gtest/gtest.h>

#include "base/error.hpp"
#include "data/text.hpp"
#include "data/tutorial/dictd.hpp"
#include "data/tutorial/packages.hpp"
#include "data/tutorial/sources.hpp"
#include "data/tutorial/wordnet.hpp"

namespace flanmoe::tutorial {
namespace {

/// The message of the Error that `run` throws; "" when it throws none.
template <class Run>
std::string message_of(Run run) {
  try {
    run();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(WordNetReader, ReadsWordsRelationsGlossAndExamples) {
  const Synset synset = parse_synset(
      "00404222 30 s 02 land_line 0 galore(ip) 1 002 @ 00404642 n 0000 ! 05726345 r 021c 02 + 08 00 + 11 00 | give a "
      "structure to; or form; \"I need to structure my days\"; \"so\" ",
      WordClass::adjective, "data.adj:7");

  EXPECT_EQ(synset.offset, 404222);
  EXPECT_EQ(synset.file_number, 30);
  EXPECT_EQ(synset.words, (std::vector<std::string>{"land line", "galore"}));
  ASSERT_EQ(synset.relations.size(), 2U);
  EXPECT_EQ(synset.relations[0].symbol, "@");
  EXPECT_EQ(synset.relations[0].word_class, WordClass::noun);
  EXPECT_EQ(synset.relations[0].source, 0);
  EXPECT_EQ(synset.relations[1].offset, 5726345);
  EXPECT_EQ(synset.relations[1].source, 2);
  EXPECT_EQ(synset.relations[1].target, 28);
  EXPECT_EQ(synset.gloss, "give a structure to; or form");
  EXPECT_EQ(synset.examples, (std::vector<std::string>{"I need to structure my days", "so"}));
}

TEST(WordNetReader, MalformedLinesAreReportedWithTheirPlace) {
  const auto message = [](const char* line) {
    return message_of([&] { parse_synset(line, WordClass::noun, "data.noun:31"); });
  };
  EXPECT_NE(message("00001740 03 n 01 entity 0 000").find("data.noun:31"), std::string::npos);
  EXPECT_NE(message("0000x740 03 n 01 entity 0 000 | gloss").find("found \"0000x740\""), std::string::npos);
  EXPECT_NE(message("00001740 03 n 02 entity 0 | gloss").find("data.noun:31"), std::string::npos);
  EXPECT_NE(message("00001740 03 v 01 entity 0 000 | gloss").find("expected a noun"), std::string::npos);
  EXPECT_EQ(message("00001740 03 n 01 entity 0 000 | gloss"), "");
}

TEST(DictionaryReader, Base64NumbersAreReadMostSignificantDigitFirst) {
  EXPECT_EQ(parse_base64_number("A"), 0);
  EXPECT_EQ(parse_base64_number("Go"), 6 * 64 + 40);
  EXPECT_EQ(parse_base64_number("BAA"), 4096);
  EXPECT_EQ(parse_base64_number("+/"), 62 * 64 + 63);
  EXPECT_EQ(parse_base64_number(""), -1);
  EXPECT_EQ(parse_base64_number("B?"), -1);
}

TEST(DictionaryReader, CutsEntriesOutOfTheText) {
  const std::string text = "about\nalpha\n   first\nbeta\n   second\n";
  const auto entries = parse_dictd("00-database-short\tA\tG\nalpha\tG\tP\nbeta\tV\tP\n", "x.index", text, "x.dict");

  ASSERT_EQ(entries.size(), 2U);
  EXPECT_EQ(entries[0].headword, "alpha");
  EXPECT_EQ(entries[0].text, "alpha\n   first\n");
  EXPECT_EQ(entries[1].text, "beta\n   second\n");
}

TEST(DictionaryReader, DamagedIndexLinesAreReportedWithFileAndLine) {
  const auto message = [](const char* index) {
    return message_of([&] { parse_dictd(index, "x.index", "0123456789", "x.dict"); });
  };
  EXPECT_NE(message("a\tA\tB\nb\tA\n").find("x.index:2"), std::string::npos);
  EXPECT_NE(message("a\t?\tB\n").find("x.index:1"), std::string::npos);
  const std::string outside = message("a\tA\tB\nb\tC\tJ\n");
  EXPECT_NE(outside.find("x.index:2"), std::string::npos) << outside;
  EXPECT_NE(outside.find("10 bytes"), std::string::npos) << outside;
  EXPECT_EQ(message("a\tA\tK\n"), "");
}

TEST(DictionaryReader, StrayBytesAreReadAsWindows1252AndCounted) {
  std::int64_t repaired = 0;

  EXPECT_EQ(repaired_utf8("market\x92s caf\xe9 \xc3\xa9t\xc3\xa9", repaired), "market's caf\u00e9 \u00e9t\u00e9");
  EXPECT_EQ(repaired, 2);
  // Half a surrogate pair, an overlong form and a cut sequence are no UTF-8 either.
  for (const char* bad : {"\xed\xa0\x80", "\xe0\x80\xaf", "\xe2\x82"}) {
    repaired = 0;
    repaired_utf8(bad, repaired);
    EXPECT_EQ(repaired, std::int64_t(std::string(bad).size()));
  }
}

TEST(DictionaryReader, TranslationsKeepTheFirstOne) {
  const auto found = translations({{"a lot", "a lot /\u0259l\u0254t/\nbeaucoup\n"},
                                   {"bossu", "bossu /bosy/ <adj>\n1. hunch\u2010backed (old), bent\n2. hunchback\n"},
                                   {"empty", "empty /x/\n"}});

  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].word, "a lot");
  EXPECT_EQ(found[0].translation, "beaucoup");
  EXPECT_EQ(found[1].word, "bossu");
  EXPECT_EQ(found[1].translation, "hunch-backed");
}

TEST(ComputingDictionary, FindsAcronymsWhoseLettersFit) {
  const auto found = acronyms({{"acl", "ACL\n\n   1. {Access Control List}.\n\n   2. {A Coroutine Language}.\n"},
                               {"tcp", "TCP\n\n   <networking> (ABC) Nothing here.\n"},
                               {"transmission control protocol",
                                "Transmission Control Protocol\n\n   <networking, protocol> (TCP) The most common.\n"},
                               {"acm", "ACM\n\n   1. <body> {Wrong Words}.\n"}});

  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].letters, "ACL");
  EXPECT_EQ(found[0].expansion, "Access Control List");
  EXPECT_EQ(found[1].letters, "TCP");
  EXPECT_EQ(found[1].expansion, "Transmission Control Protocol");
}

TEST(ComputingDictionary, TermsHaveTheirSubjectAndCleanText) {
  const auto found = computing_terms(
      {{"jef raskin",
        "Jef Raskin\n\n   <person, x> The person who started the {Macintosh} project at\n   Apple by J. "
        "Smith and others. He left.\n\n   (1994-11-22)\n"}});

  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0].name, "Jef Raskin");
  EXPECT_EQ(found[0].subject, "person");
  EXPECT_EQ(found[0].text, "The person who started the Macintosh project at Apple by J. Smith and others. He left.");
  EXPECT_EQ(short_definition(found[0]), "The person who started the Macintosh project at Apple by J. Smith and others");
}

TEST(EnglishDictionary, FindsPluralsAndPastForms) {
  const std::vector<DictEntry> entries = {
      {"Galaxy", "Galaxy \\Gal\"ax*y\\, n.; pl. {Galaxies}. [F. galaxie]\n   1. Stars.\n"},
      {"Funiculus", "Funiculus \\Fu*nic\"u*lus\\, n.; pl. {-li}. [L.]\n"},
      {"Abandon", "Abandon \\A*ban\"don\\ (x), v. t. [imp. & p. p.\n   {Abandoned} (-d); p. pr. {Abandoning}.]\n"},
      {"Plain", "Plain \\Plain\\, n.\n   1. See also; pl. {Plainers}.\n"}};

  const auto plurals = plural_forms(entries), past = past_forms(entries);

  ASSERT_EQ(plurals.size(), 1U);
  EXPECT_EQ(plurals[0].word, "galaxy");
  EXPECT_EQ(plurals[0].form, "galaxies");
  ASSERT_EQ(past.size(), 1U);
  EXPECT_EQ(past[0].form, "abandoned");
  EXPECT_EQ(english_entry_text(entries[0]), "Galaxy, n.; pl. Galaxies. 1. Stars.");
}

TEST(PackageList, ReadsStanzasAndContinuedTags) {
  const auto packages = parse_packages(
      "Package: 0ad\nVersion: 1\nDescription: Strategy game\nTag: game::strategy, role::program,\n uitoolkit::sdl\n"
      "Section: games\n\nPackage: foo\nDescription: Foo\nSection: non-free/net\n\nPackage: 0ad\nDescription: again\n",
      "list");

  ASSERT_EQ(packages.size(), 2U);
  EXPECT_EQ(packages[0].name, "0ad");
  EXPECT_EQ(packages[0].description, "Strategy game");
  EXPECT_EQ(packages[0].tags, (std::vector<std::string>{"game::strategy", "role::program", "uitoolkit::sdl"}));
  EXPECT_EQ(packages[0].tag("role"), "program");
  EXPECT_EQ(packages[0].tag("rol"), "");
  EXPECT_EQ(packages[1].section, "net");
}

TEST(PackageList, MalformedLinesAreReportedWithTheirNumber) {
  const auto message = [](const char* text) { return message_of([&] { parse_packages(text, "list"); }); };
  EXPECT_NE(message("Package: a\n\n continued\n").find("list:3"), std::string::npos);
  EXPECT_NE(message("Package: a\nnonsense\n").find("list:2"), std::string::npos);
}

TEST(Sources, MissingFilesNameThePackagesToInstall) {
  SourcePaths paths;
  paths.wordnet = "/nonexistent/wordnet";
  paths.dictd = "/nonexistent/dictd";
  const std::string message = message_of([&] { check_sources(paths); });

  for (const char* package : {"wordnet-base", "dict-foldoc", "dict-gcide", "dict-freedict-eng-fra",
                              "dict-freedict-fra-eng", "dict-freedict-nld-eng", "dict-freedict-spa-eng"}) {
    EXPECT_NE(message.find(package), std::string::npos) << package << " in " << message;
  }
  EXPECT_NE(message.find("/nonexistent/wordnet/data.noun"), std::string::npos);
}

TEST(Sources, ExceptionListsAreReadAndChecked) {
  const auto found = parse_exceptions("mice mouse\nlice louse\n", "noun.exc");
  ASSERT_EQ(found.size(), 2U);
  EXPECT_EQ(found[0].word, "mouse");
  EXPECT_EQ(found[0].form, "mice");
  EXPECT_NE(message_of([] { parse_exceptions("mice mouse\nlice\n", "noun.exc"); }).find("noun.exc:2"),
            std::string::npos);
}

TEST(Text, GroupsSpacesAndShorteningWorkAsSaid) {
  EXPECT_EQ(collapse_spaces("  a \n\t b  "), "a b");
  EXPECT_EQ(without_groups("a (b) c [d", '(', ')'), "a  c [d");
  EXPECT_EQ(shortened("One two. Three four five", 20), "One two.");
  EXPECT_EQ(shortened("One two three", 9), "One two");
  EXPECT_EQ(with_article("apple") + " " + with_article("pear"), "an apple a pear");
  EXPECT_FALSE(is_plain_word("ab"));
  EXPECT_FALSE(is_plain_word("Abc"));
  EXPECT_TRUE(is_plain_word("abc"));
}

}  // namespace
}  // namespace flanmoe::tutorial
