"""Sentences and test names are plain: no tics, no clause in place of a subject.

    python tests/docs/test_sentences.py [FILE]...

prints every hit, also of files that the test does not read yet.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from support import prose

_BE = r"(?:is|are|was|were|be|been|being)"
_FIRST = r"(?:\A|(?<=[.;!?] ))"
TICS = {
    "a clause in place of a subject": rf"{_FIRST}(?:who|whose|what)\b(?![^.?]*\?)",
    "a sentence that begins with 'of'": rf"{_FIRST}of (?:an?|the|those|these|this|each|all|its?|"
    r"which|whom|what|one|two|several|such|their|them)\b",
    "whoever, whatever": r"\bwhoever\b|\bwhatever it is\b|\bwhosever\b",
    "somebody": r"\bsomebody\b|\bnobody's\b|\bsomeone\b",
    "is none": rf"\b{_BE} none\b",
    "is no thing": rf"(?<!there )\b{_BE} no (?!longer\b|(?:more|less|fewer|later|older|other) )\w",
    "as good as": r"\bas good as (?:never|none|nothing|ever)\b",
    "so many, so long": r"\bso (?:many|long|few)\b",
    "by itself": r"\bby (?:itself|themselves)\b",
    "there, for present": rf"\b(?:{_BE}|still) there\b(?! {_BE})",
    "here, for in this process": r"\bhere\b",
    "away, for unavailable": rf"\b(?:{_BE}|store|upstream|server|while) away\b",
    "goes on by": r"\b(?:go|goes|going|went|gone) on by\b",
    "knows not": r"\bknows? not\b",
    "good for": r"\bgood for\b",
    "a possessive without its noun": r"\b(?:ours|theirs)\b"
    r"|(?<!of )\b(?:its|their|our|his|your|'s) own"
    rf"(?=[.,;:)]|\Z| (?:and|or|{_BE}|in|by|for|to|at|on|with|as|that|which)\b)",
    "deaf": r"\bdeaf\b",
}
NAME_TICS = re.compile(r"(?:^|_)(?:ours|theirs|here|there|its|whoever|somebody|nobody|such)(?:_|$)")
TEST_NAME_TICS = re.compile(
    r"^test_(?:\d\d_)?(?:who|whose|what|whatever|of)_"
    r"|_(?:whoever|somebody|told|heard|asked|here|away|ours|theirs|lanes?|deaf|aloft|verdicts?|doors?|"
    r"so_many|so_long|is_no|are_no|is_none|are_none|by_itself|good_for|is_there|are_there|goes_on|"
    r"knows_not)(?:_|$)"
)
LONGEST = 60
"""Characters of a test's name."""

LONGEST_OF_INCIDENTS = 75
"""The same with the number of an incident."""


def wrong_sentences(**everything: bool) -> Iterator[str]:
    """Tics in docstrings, comments and pages."""
    patterns = {name: re.compile(tic, re.IGNORECASE) for name, tic in TICS.items()}
    for file in prose.to_read(**everything):
        for text in prose.texts(file):
            line = text.text.replace("\n", " ")
            for name, pattern in patterns.items():
                for found in pattern.finditer(line):
                    around = line[max(0, found.start() - 20) : found.end() + 40]
                    yield f"{text.at(found.start())}: {name}: …{around}…"


def wrong_names(**everything: bool) -> Iterator[str]:
    """Names of the code that have no noun of their own."""
    for file in prose.to_read("bff/*.py", **everything):
        for line, name in prose.identifiers(file):
            if NAME_TICS.search(prose.parts(name)):
                yield f"{file}:{line}: {name}"


def wrong_test_names(**everything: bool) -> Iterator[str]:
    """Test names that are too long or have a tic."""
    for file in prose.to_read("tests/**/test_*.py", **everything):
        for line, name in prose.test_names(file):
            longest = LONGEST_OF_INCIDENTS if re.match(r"test_\d\d_", name) else LONGEST
            if len(name) > longest:
                yield f"{file}:{line}: {len(name)} characters: {name}"
            if found := TEST_NAME_TICS.search(name):
                yield f"{file}:{line}: {found[0].strip('_')}: {name}"


def test_sentences_have_a_subject_and_no_tics() -> None:
    assert not (hits := [*wrong_sentences()]), "\n".join(hits)


def test_names_in_the_code_are_nouns_or_verbs() -> None:
    assert not (hits := [*wrong_names()]), "\n".join(hits)


def test_test_names_are_plain_and_short() -> None:
    assert not (hits := [*wrong_test_names()]), "\n".join(hits)


if __name__ == "__main__":
    prose.report(sys.argv[1:], wrong_sentences, wrong_names, wrong_test_names)
