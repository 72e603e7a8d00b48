"""`vae` for shell scripts in tests: a process that has imported torch once and forks for every command.

Each command is a process of its own with the caller's folder and descriptors; only the import,
seconds each time, is shared. As a script this file is the server; `command_on_path` makes the `vae`.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
args = sys.argv[1:] + {more!r}.get(sys.argv[1], [])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [json.dumps([os.getcwd(), args]).encode()], [0, 1, 2])
    sys.exit(int(server.recv(16) or b"1"))
"""


@contextlib.contextmanager
def command_on_path(more: dict[str, list[str]]) -> Iterator[str]:
    """The PATH on which `vae` is the warm one, while it lives; `more` arguments follow those of a command."""
    with tempfile.TemporaryDirectory(prefix="vae") as folder:
        address, client = f"{folder}/socket", Path(folder, "vae")
        client.write_text(CLIENT.format(python=sys.executable, address=address, more=more))
        client.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, address])
        try:
            while not os.path.exists(address) and server.poll() is None:
                time.sleep(0.02)
            yield f"{folder}:{os.environ['PATH']}"
        finally:
            server.terminate()
            server.wait()


def serve(address: str) -> None:
    import torch

    import vaecli.services.curves
    import vaecli.services.encode
    import vaecli.services.sample
    import vaecli.services.train  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(16)
        while True:
            caller, _ = listener.accept()
            if not os.fork():
                listener.close()
                answer(caller)
            caller.close()


def answer(caller: socket.socket) -> None:
    """In the child: be the command that the caller wants."""
    from vaecli.cli import main

    code = 1
    try:
        request, descriptors, *_ = socket.recv_fds(caller, 2**16, 3)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        folder, args = json.loads(request)
        os.chdir(folder)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = main(args)
    finally:
        caller.sendall(str(code).encode())
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
