"""Documentation that cannot drift: blocks equal the examples that run, links lead somewhere, everything named has a row."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import fields

import pytest

from dispatcher.errors import CODES
from dispatcher.settings import Settings
from tests import reference
from tests.architecture.markdown import blocks, relative_links
from tests.architecture.source import ROOT, python_files, tracked_paths

DOCUMENTS = [path for path in tracked_paths() if path.endswith(".md")]
TOUR = "README.md"
NAMED = re.compile(r"\b(?:DISPATCHER_[A-Z_]+[A-Z]|dispatcher_[a-z_]+[a-z])\b")
EVERY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS)


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def strayed(text: str, read: dict[str, str]) -> list[str]:
    """Blocks of a tour that are no example, or no longer equal theirs."""
    wrong = []
    for block in blocks(text):
        if block.language not in {"python", "bash", "sh", "json"}:
            continue
        if block.example is None:
            wrong.append(f"line {block.line}: a {block.language} block without `<!-- tests/examples/… -->` above it")
        elif read.get(block.example, "").strip() != block.body.strip():
            wrong.append(f"line {block.line}: differs from {block.example}")
    return wrong


def test_tour_shows_the_examples_that_run() -> None:
    named = [block.example for block in blocks(_text(TOUR)) if block.example]
    assert not strayed(_text(TOUR), {example: _text(example) for example in named if (ROOT / example).is_file()})


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("```python\nx = 1\n```\n", 1),
        ("<!-- a.py -->\n```python\nx = 2\n```\n", 1),
        ("<!-- b.py -->\n```bash\nx = 1\n```\n", 1),
        ("<!-- a.py -->\n```python\nx = 1\n```\n\n```text\nanything\n```\n", 0),
    ],
)
def test_a_strayed_block_is_seen(text: str, count: int) -> None:
    assert len(strayed(text, {"a.py": "x = 1\n"})) == count


@EVERY_DOCUMENT
def test_blocks_are_what_they_say(document: str) -> None:
    """A json block is JSON, a python block is Python."""
    for block in blocks(_text(document)):
        if block.language == "json":
            json.loads(block.body)
        if block.language == "python":
            ast.parse(block.body)


@EVERY_DOCUMENT
def test_links_lead_somewhere(document: str) -> None:
    missing = [target for target in relative_links(_text(document)) if not ((ROOT / document).parent / target).exists()]
    assert not missing


def unknown_names(text: str, known: str) -> list[str]:
    """Settings and metrics a text speaks of that the reference does not know."""
    return sorted(name for name in set(NAMED.findall(text)) if not re.search(rf"\b{name}\b", known))


@EVERY_DOCUMENT
def test_settings_and_metrics_spoken_of_exist(document: str) -> None:
    assert not unknown_names(_text(document), reference.render(reference.tables()))


def test_an_unknown_name_is_seen() -> None:
    assert unknown_names("`DISPATCHER_PORT` and `DISPATCHER_POT`", "| `DISPATCHER_PORT` |") == ["DISPATCHER_POT"]


def test_reference_is_up_to_date() -> None:
    assert reference.render(reference.tables()) == _text(reference.TARGET), "run `make reference`"


def test_everything_named_is_described() -> None:
    assert not reference.undescribed(reference.tables())


def test_a_missing_description_is_seen() -> None:
    row = reference.Row("setting", "DISPATCHER_X", ("1",), "")
    assert reference.undescribed([reference.Table("", "", (), (row,))]) == ["setting DISPATCHER_X"]


def test_every_setting_has_a_row() -> None:
    documented = {row.name for table in reference.settings_tables() for row in table.rows}
    assert documented == reference.setting_names()


def _strings_outside(home: str) -> set[str]:
    """Every string constant of the server, but for one file."""
    sources = [source for source in python_files() if source.path.startswith("dispatcher/") and source.path != home]
    return {text for source in sources for _, text in source.strings()}


def test_every_error_code_is_used() -> None:
    """A code that nothing raises is a promise nobody keeps."""
    strings = _strings_outside("dispatcher/errors.py")
    unused = sorted(code for code in CODES if not {code, code.removeprefix("discovery_")} & strings)
    assert not unused


def test_every_setting_is_read() -> None:
    """A bound that nothing looks at bounds nothing."""
    read = {
        node.attr
        for source in python_files()
        if source.path.startswith("dispatcher/") and source.path != "dispatcher/settings.py"
        for node in source.nodes
        if isinstance(node, ast.Attribute)
    }
    through_a_method = {"api_url"}
    unread = sorted({field.name for field in fields(Settings)} - read - through_a_method)
    assert not unread
