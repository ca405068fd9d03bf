"""`make contract`: the API asked for minutes, with everything its description allows and much that it does not.

python -m tests.contract URL [--seconds 600] [--examples 200] [--seed N]
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from pathlib import Path

from tests.contract.asking import ask


def main() -> None:
    """Ask a development server that serves the workflows `resize` and `fail`; exit code 1 when it was not true to its description."""
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        report = ask(chosen.url, Path(directory), examples=chosen.examples, seconds=chosen.seconds, seed=chosen.seed)
    print(f"{report.requests:,} requests to {report.operations} operations, {len(report.failures)} failures (seed {chosen.seed})")
    for line in (*report.failures, *report.errors):
        print(line)
    if report.failures:
        print(report.text, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
