"""Reads names and sentences out of the repository, for the tests of words and of style.

A text is a paragraph of a docstring, of comments or of a page, a cell of a table, or a message in
the code of `bff/`. Code in it is replaced by `CODE`, so that only sentences are left.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
CODE = "_"
"""Stands for code, file names and addresses."""

NOT_YET: tuple[str, ...] = ()
"""Files that the tests of words and of style do not read yet."""

_CODE = re.compile(
    r"``.+?``|`[^`]*`|\]\([^)]*\)|https?://\S+|<[^>\s][^>]*>|[\w./*-]*\w\.(?:md|py|json|toml|yml|yaml)\b",
    re.DOTALL,
)
_MESSAGE = re.compile(r"(?:[A-Za-z]+ ){3}")
"""Three words: shorter texts are names and patterns."""

_COMMENT_SIGNS = {
    **dict.fromkeys(
        (".toml", ".yml", ".yaml", ".cfg", ".conf", ".service", ".socket", ".env"), "#"
    ),
    **dict.fromkeys((".js", ".mjs", ".ts"), "//"),
    ".lua": "--",
    "": "#",
}
"""By the end of a file's name; the last is for Makefile, Caddyfile and the like."""


class Text(NamedTuple):
    """A paragraph without its code, and the place of its first line."""

    file: str
    line: int
    text: str

    def at(self, position: int) -> str:
        """The file and line of a character."""
        return f"{self.file}:{self.line + self.text[:position].count(chr(10))}"


def files(*patterns: str) -> list[str]:
    """The files under version control, and new ones, that match one of *patterns*."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def to_read(*patterns: str, everything: bool = False) -> list[str]:
    """The files that are held to the rules; *everything* includes `NOT_YET`."""
    return [name for name in files(*patterns) if everything or not name.startswith(NOT_YET)]


def report(chosen: list[str], *checks: Callable[..., Iterator[str]]) -> None:
    """Print every hit in files whose names begin with one of *chosen*, or in all files."""
    for check in checks:
        hits = check(everything=True)
        sys.stdout.writelines(f"{hit}\n" for hit in hits if hit.startswith(tuple(chosen) or ""))


def identifiers(file: str) -> Iterator[tuple[int, str]]:
    """Every name that a Python file gives to something, with its line."""
    yield 1, Path(file).stem
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield node.lineno, name
            case ast.AsyncFunctionDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield node.lineno, name
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
                yield node.lineno, name


def parts(name: str) -> str:
    """The words of a name, joined by underscores: `RequestHead` is ``request_head``."""
    return "_".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)).lower()


def texts(file: str) -> Iterator[Text]:
    """Every paragraph of a file."""
    path = ROOT / file
    if path.suffix == ".py":
        pieces = _python(path.read_text(), messages=file.startswith("bff/"))
    elif path.suffix == ".md":
        pieces = _markdown(path.read_text())
    else:
        sign = _COMMENT_SIGNS.get(path.suffix)
        pieces = iter(()) if sign is None else _comments(path.read_text(), sign)
    for line, text in pieces:
        yield Text(file, line, _CODE.sub(_blank, text))


def test_names(file: str) -> Iterator[tuple[int, str]]:
    """Every test that a file defines, with its line."""
    for number, line in enumerate((ROOT / file).read_text().splitlines(), start=1):
        if found := re.match(r" *(?:async )?def (test_\w+)\(", line):
            yield number, found[1]


def _blank(code: re.Match[str]) -> str:
    return ("]" if code[0].startswith("]") else CODE) + "\n" * code[0].count("\n")


def _python(source: str, *, messages: bool) -> Iterator[tuple[int, str]]:
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text)) as docstring):
                docstrings.add(docstring)
                yield from _paragraphs(node.lineno, text)
            case ast.Constant(value=str(text)) if messages and node not in docstrings:
                if _MESSAGE.search(text) and "\n" not in text:
                    yield node.lineno, text
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [
        (token.start[0], token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT
    ]
    yield from _joined(
        [
            (line, re.sub(r"^(?:noqa|type|fmt)\b:?[\w\s,:\[\]-]*?(?:  |$)", "", c))
            for line, c in comments
        ]
    )


def _comments(source: str, sign: str) -> Iterator[tuple[int, str]]:
    lines = enumerate(source.splitlines(), start=1)
    found = [(n, re.search(rf"(?:^|\s){re.escape(sign)}{{1,2}} (.*)", line)) for n, line in lines]
    yield from _joined([(number, comment[1]) for number, comment in found if comment])


def _joined(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Comments on consecutive lines are one text."""
    start, last = 0, -1
    kept: list[str] = []
    for number, text in [*lines, (-9, "")]:
        if number != last + 1:
            yield from _paragraphs(start, "\n".join(kept))
            start, kept = number, []
        kept.append(text)
        last = number


def _markdown(source: str) -> Iterator[tuple[int, str]]:
    kept, fenced = [], False
    for line in source.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            kept.append("")
        elif fenced:
            comment = re.search(r"(?:^|\s)# (.*)", line)
            kept.append(f"* {comment[1]}" if comment else "")
        elif line.startswith(("    ", "| <pre>", "<!--", "|---")):
            kept.append("")
        else:
            kept.append(line)
    yield from _paragraphs(1, "\n".join(kept))


def _paragraphs(line: int, text: str) -> Iterator[tuple[int, str]]:
    """Split at empty lines, headings, items of lists and cells of tables."""
    start = line
    kept: list[str] = []
    for number, raw in enumerate([*text.split("\n"), ""], start=line):
        one = raw.strip()
        item = re.match(r"(?:[*-]|\d+\.|#+|\|) +", one)
        if (not one or item) and any(kept):
            yield start, "\n".join(kept)
        if not one or item:
            start, kept = number, []
        if one.startswith("|"):
            for cell in re.split(r"(?<!\\)\|", one.strip("|")):
                yield number, cell.strip()
        elif one:
            if not kept:
                start = number
            kept.append(one[item.end() :] if item else one)
