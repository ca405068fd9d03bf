"""A program that runs an embedded Postgres until it gets SIGTERM: `python -m tests.postgres.owner DIRECTORY [uvloop]`.

It prints one JSON line when the server is ready, and one when it has stopped it. SIGHUP is not handled, so it ends the program at once.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

from dispatcher.store.embedded import EmbeddedPostgres


async def main(directory: Path) -> None:
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with await EmbeddedPostgres.start(directory, settings={"fsync": "off"}) as postgres:
        print(json.dumps({"dsn": postgres.dsn, "owner": postgres.owner, "version": postgres.version}), flush=True)
        await asked.wait()
    print(json.dumps({"stopped": True}), flush=True)


if __name__ == "__main__":
    if sys.argv[2:] == ["uvloop"]:
        import uvloop

        uvloop.run(main(Path(sys.argv[1])))
    else:
        asyncio.run(main(Path(sys.argv[1])))
