"""A kubectl that is a fake: there is no cluster behind it. Its answers are files, and its ports lead where a test says.

It notes down each call, so that a test sees what would have been asked of a cluster. In the folder `FAKE_KUBECTL`:

    calls            a line of JSON for each call: its words, and the pid
    config.json      what `config view` prints; without it there is no context
    get/KIND.json    what `get KIND` prints, or get/KIND-NAME.json; without it the thing is not there
    fail/VERB        what VERB complains of, before it ends with 1
    forward.json     {"rabbitmq": {"5672": 21232}}: where the ports of each Service lead to, on this machine
    logs             what `logs` prints, and goes on printing with --follow
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

HERE = Path(os.environ["FAKE_KUBECTL"])


def main(words: list[str]) -> None:
    with (HERE / "calls").open("a") as calls:
        calls.write(json.dumps({"words": words, "pid": os.getpid()}) + "\n")
    verb, *rest = [word for word in words if not word.startswith("-")]
    if (HERE / "fail" / verb).exists():
        fail((HERE / "fail" / verb).read_text())
    if verb == "config":
        show(HERE / "config.json", "error: current-context must exist in order to minify")
    elif verb == "get":
        kind = rest[0].partition(".")[0]
        missing = f'Error from server (NotFound): {kind} "{rest[-1]}" not found'
        if len(rest) == 1:
            missing = f'error: the server doesn\'t have a resource type "{kind}"'
        show(HERE / "get" / f"{'-'.join([kind, *rest[1:]])}.json", missing)
    elif verb == "port-forward":
        asyncio.run(forward(rest[0].removeprefix("service/"), rest[1:]))
    elif verb == "logs":
        follow = ["-f"] if "--follow" in words else []
        os.execvp("tail", ["tail", "-c", "+1", *follow, str(HERE / "logs")])  # noqa: S606


def show(file: Path, missing: str) -> None:
    if not file.exists():
        fail(missing)
    print(file.read_text())  # noqa: T201


def fail(text: str) -> NoReturn:
    print(text, file=sys.stderr)  # noqa: T201
    sys.exit(1)


async def forward(service: str, pairs: list[str]) -> None:
    """Opens a port for each `LOCAL:REMOTE` and carries what comes, until SIGTERM."""
    targets = json.loads((HERE / "forward.json").read_text())[service]
    servers = []
    for pair in pairs:
        local, _, remote = pair.partition(":")

        async def carry(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = targets[remote]
        ) -> None:
            there, here = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, here), pump(there, writer))

        server = await asyncio.start_server(carry, "127.0.0.1", int(local))
        servers.append(server)
        print(f"Forwarding from 127.0.0.1:{local} -> {remote}", flush=True)  # noqa: T201
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await stopped.wait()
    os._exit(0)  # with what is still carried


async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    sink.close()


if __name__ == "__main__":
    main(sys.argv[1:])
