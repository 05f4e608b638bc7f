"""docs/VOCABULARY.md is held to the names of the code and to every sentence of the repository.

    python tests/docs/test_vocabulary.py [FILE]...

prints every avoided word, also of files that the test does not read yet.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

from support import prose

PAGE = "docs/VOCABULARY.md"
KEPT = (
    "gateway", "caller", "copy", "policy", "project", "document", "upstream", "budget", "refusal",
    "secret key", "signing key", "window", "lease", "purge", "representation",
)  # fmt: skip
ALLOWED = {
    "flight": ("in_flight", "single_flight"),
    "found": ("not_found",),  # an error code
    "mark": ("mark_down",),
    "open": ("open", "open_seconds"),  # to open a connection, a window
    "probe": ("probe",),  # the option --probe
}
"""Names in which an avoided word is right: the whole name, or a part of several words."""


def rows() -> list[list[str]]:
    """Word, meaning and avoided words of each line."""
    lines = (prose.ROOT / PAGE).read_text().splitlines()
    return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][1:]


def avoided(kind: str) -> dict[str, str]:
    """The words that are refused in `names`, in `sentences` or as `modules`, with the right one."""
    return {
        word: row[0]
        for row in rows()
        for word, only in re.findall(r"`([^`]+)`(?: \*(\w+)\*)?", row[2])
        if only in ("", kind) and not (kind == "modules" and not only)
    }


def wrong_names(**everything: bool) -> Iterator[str]:
    """Avoided words in names that `bff/` gives to something."""
    words = {prose.parts(word): right for word, right in avoided("names").items()}
    modules = avoided("modules")
    pattern = re.compile(rf"(?:^|_)({'|'.join(words)})(?=_|$)")
    for file in prose.to_read("bff/*.py", **everything):
        if (stem := Path(file).stem) in modules:
            yield f"{file}:1: {stem} → {modules[stem]}"
        for line, name in prose.identifiers(file):
            parts = prose.parts(name)
            for found in pattern.finditer(parts):
                if not _is_allowed(found[1], parts):
                    yield f"{file}:{line}: {name} → {words[found[1]]}"


def _is_allowed(word: str, parts: str) -> bool:
    right = ALLOWED.get(word, ())
    return parts in right or any("_" in part and part in parts for part in right)


def wrong_sentences(**everything: bool) -> Iterator[str]:
    """Avoided words in docstrings, comments and pages."""
    words = {word.lower(): instead for word, instead in avoided("sentences").items()}
    pattern = re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)
    for file in prose.to_read(**everything):
        for text in prose.texts(file):
            line = text.text.replace("\n", " ")
            for found in pattern.finditer(line):
                around = line[max(0, found.start() - 30) : found.end() + 30]
                yield f"{text.at(found.start())}: …{around}… → {words[found[1].lower()]}"


def test_names_avoid_the_words_that_the_vocabulary_refuses() -> None:
    assert not (hits := [*wrong_names()]), "\n".join(hits)


def test_sentences_avoid_the_words_that_the_vocabulary_refuses() -> None:
    assert not (hits := [*wrong_sentences()]), "\n".join(hits)


def test_vocabulary_is_sorted_and_holds_the_kept_words() -> None:
    words = [row[0].strip("`").lower() for row in rows()]
    assert words == sorted(words)
    assert set(KEPT) <= set(words)


def test_vocabulary_names_only_names_of_the_code() -> None:
    files = prose.files("bff/*.py")
    names = {name.lstrip("_") for file in files for _, name in prose.identifiers(file)}
    for row in rows():
        for name in re.findall(r"`(\w+)`", row[0] + row[1]):
            assert name in names or name == "bff", name


if __name__ == "__main__":
    prose.report(sys.argv[1:], wrong_names, wrong_sentences)
