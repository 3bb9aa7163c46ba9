#!/usr/bin/env python3
"""Stems and ROUGE-L values of the packages rouge_score and nltk, as the fixture of tests/unit/rouge_test.cpp.

    tools/rouge_fixture.py > tests/fixtures/rouge_l.json

Needs the pip packages rouge_score and nltk; made with rouge_score 0.1.2 and nltk 3.10.4. Building, running and testing
flanmoe needs no Python.
"""
import itertools
import json
import random

from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer

# Roots and ends meet every rule of the algorithm, with stems too short for it and long enough.
ROOTS = ["", "a", "y", "t", "oat", "sky", "hop", "hopp", "fil", "fall", "fizz", "rel", "condit", "digit", "radic", "differ",
         "vietnam", "oper", "hope", "sens", "form", "electr", "reviv", "adjust", "adopt", "homolog", "effect", "geo",
         "controll", "syzyg", "enjo", "happ", "dog", "church", "box", "argu", "2nd", "yy"]
ENDS = ["", "s", "es", "sses", "ies", "ied", "eed", "ed", "ing", "y", "ational", "tional", "enci", "anci", "izer", "abli",
        "alli", "entli", "eli", "ousli", "ization", "ation", "ator", "alism", "iveness", "fulness", "ousness", "aliti",
        "iviti", "biliti", "fulli", "logi", "icate", "ative", "alize", "iciti", "ical", "ful", "ness", "al", "ance", "ence",
        "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "tion", "ou", "ism", "ate", "iti", "ous", "ive",
        "ize", "e", "ll"]
IRREGULAR = ["sky", "skies", "dying", "lying", "tying", "news", "innings", "inning", "outings", "outing", "cannings",
             "canning", "howe", "proceed", "exceed", "succeed", "dies", "died", "flies", "spied", "by", "as", "is", "eat"]

PAIRS = [
    ("", "a"), ("...", "a"), ("a", ""), ("a", "a"), ("running", "runs"), ("The runners were running.", "A runner runs"),
    ("the cat sat on the mat", "the cat was under the mat"), ("b a", "a b"), ("The CAT, sat!", "the cats sat on-mats"),
    ("H\u00e4user am See", "h user am se"), ("don't stop", "do not stopping"), ("3.14 and 1,000", "3 14 and 1000"),
    ("happily argued", "happy argument"), ("dies dying died", "die die die"), ("snake_case words", "snake case word"),
    ("It is a generalization of organizational relativity.", "it is generally organized relative"),
    ("\u212aelvin \u0130stanbul", "kelvin i stanbul"), ("\u4f60\u597d", "\u4f60\u597d"), ("an answer \U0001F600 here", "answers here"),
    ("newspapers report the news", "a newspaper reported new things"), ("a\tb\nc", "a b c"),
]
WORDS = ("the a of stones rivers windows tables running runs runner happily happy happiness organized organization "
         "organizes quickly quick traditional tradition tries try tried dogs dog's flies fly 12 12th and or not").split()


def main():
    stemmer = PorterStemmer()
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    words = sorted(set(root + end for root, end in itertools.product(ROOTS, ENDS) if root + end) | set(IRREGULAR))
    draw = random.Random(7)
    for _ in range(60):
        PAIRS.append(tuple(" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(2)))
    values = [{"text": text, "reference": reference, "rouge_l": scorer.score(reference, text)["rougeL"].fmeasure}
              for text, reference in PAIRS]
    stems = [[word, stemmer.stem(word)] for word in words]
    print('{"stems": [\n' + ",\n".join(json.dumps(each) for each in stems) + '\n],\n"values": [\n' +
          ",\n".join(json.dumps(each) for each in values) + "\n]}")


if __name__ == "__main__":
    main()
