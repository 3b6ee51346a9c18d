"""As much of an FTP server as fsspec asks of one: anonymous, in memory, on a free port of this machine."""

import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePosixPath

ANSWERS = {
    "USER": "230 in",
    "TYPE": "200 yes",
    "REST": "350 from the beginning",
    "ABOR": "226 no more",
    "QUIT": "221 bye",
}


@contextmanager
def server(files: Mapping[str, bytes]) -> Iterator[str]:
    """The address, ftp://host:port, of a server with these files by their absolute paths."""

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.say("220 here")
            passive = socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler)
            with passive:
                while line := self.rfile.readline().decode().strip():
                    word, _, path = line.partition(" ")
                    if word == "PASV":
                        port = passive.server_address[1]
                        self.say(f"227 ({','.join(['127,0,0,1', str(port // 256), str(port % 256)])})")
                    elif word in ("MLSD", "RETR"):
                        self.send(passive, listed(path) if word == "MLSD" else files.get(path))
                    else:
                        self.say(ANSWERS.get(word, "502 no"))

        def send(self, passive: socketserver.TCPServer, content: bytes | None) -> None:
            if content is None:
                self.say("550 not there")
                return
            self.say("150 it comes")
            data, _ = passive.get_request()
            with data:
                data.sendall(content)
            self.say("226 sent")

        def say(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

    def listed(folder: str) -> bytes | None:
        below = [
            PurePosixPath(name).relative_to(folder or "/") for name in files if name.startswith(folder.rstrip("/"))
        ]
        kinds = {one.parts[0]: "file" if len(one.parts) == 1 else "dir" for one in below}
        whole = {name: len(files.get(f"{folder.rstrip('/')}/{name}", b"")) for name in kinds}
        lines = [f"type={kinds[name]};size={whole[name]}; {name}\r\n" for name in kinds]
        return "".join(lines).encode() if kinds else None

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads, block_on_close = True, False  # connections end with the tests' process

    with Server(("127.0.0.1", 0), Connection) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ftp://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join()
