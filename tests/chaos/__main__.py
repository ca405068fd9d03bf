"""`make chaos`: two hundred kills under load, and every promise looked after.

python -m tests.chaos [--kills 200] [--seed N] [--dispatchers 3]
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
from pathlib import Path

from tests.bench.system import workspace
from tests.chaos.campaign import Plan, Result, campaign
from tests.chaos.ledger import MOST_SHOWN, shown


async def _run(plan: Plan, keep: Path | None) -> Result:
    async with workspace() as directory:
        try:
            return await campaign(plan, directory, lambda text: print(text, file=sys.stderr, flush=True))
        finally:
            if keep is not None:
                for log in directory.glob("*.log"):
                    keep.mkdir(parents=True, exist_ok=True)
                    shutil.copy(log, keep)


def main() -> None:
    """Run one campaign and report it; exit code 1 when a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(1_000_000))
    parser.add_argument("--dispatchers", type=int, default=3)
    parser.add_argument("--freezes", type=int, default=20, help="of a hundred strikes at dispatchers (default %(default)s)")
    parser.add_argument("--keep", type=Path, help="a directory to copy the logs to")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    result = asyncio.run(_run(Plan(arguments.seed, arguments.kills, arguments.dispatchers, freezes=arguments.freezes), arguments.keep))
    print(f"strikes       {dict(result.strikes)}")
    print(f"acknowledged  {result.acknowledged:,} calls; answers {dict(result.answers)}")
    print(f"runs          {dict(result.runs)}; most attempts of one: {result.most_attempts}")
    print(f"attempts      {dict(result.attempts)}; {result.requests:,} seen by the endpoints")
    print(f"quiet after   {result.quiet_after:.1f} s")
    print("".join(f"stuck         {row}\n" for row in result.stuck[:MOST_SHOWN]), end="")
    print(shown(result.broken) if result.broken else "every promise kept")
    sys.exit(1 if result.broken else 0)


if __name__ == "__main__":
    main()
