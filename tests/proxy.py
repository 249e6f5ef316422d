"""A network between a client and a server, which can hold back, cut and go down."""

import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


class Network:
    """Forwards connections to a server.

    Attributes:
        url: where it listens.
        is_up: while it is not, connections are refused, and there are none.
        held: requests that begin so are not passed on until `release`.
        seen: what clients have sent, as it was read.
        heard: what they were last sent.
        answers: what the next chats are answered with here, past the server; None ends the connection.
    """

    def __init__(self, server_url: str, port: int = 0) -> None:
        host, server_port = server_url.removeprefix("http://").split(":")
        self._server = (host, int(server_port))
        self._listener = socket.create_server(("127.0.0.1", port))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_up = True
        self.held: bytes | None = None
        self.seen: list[bytes] = []
        self.heard = b""
        self.answers: deque[Sequence[bytes | None]] = deque()
        self._chat: socket.socket | None = None
        self._left: set[socket.socket] = set()
        self._released = threading.Event()
        self._drop_answer_to: bytes | None = None
        self._muted: set[socket.socket] = set()
        self._open: list[socket.socket] = []

    @property
    def open_connections(self) -> int:
        """How many clients have."""
        return len(self._open) // 2 - len(self._left)

    @property
    def chat_is_open(self) -> bool:
        """Whether the connection is on which the last chat was asked for."""
        return self._chat is not None and self._chat not in self._left

    def go_down(self) -> None:
        """Cut every connection and refuse new ones."""
        self.is_up = False
        self.cut()

    def cut(self) -> None:
        """Cut every connection."""
        self._end(*self._open)

    def say(self, data: bytes) -> None:
        """Say something to every client that reads."""
        for client in self._open[::2]:
            with suppress(OSError):  # it has gone, or there is no room for more before it reads
                client.send(data, socket.MSG_DONTWAIT)

    def garble(self) -> None:
        """Say what is no HTTP to every client, and cut."""
        self.say(b"no size\r\n")
        self.cut()

    def release(self) -> None:
        """Pass on what was held."""
        self._released.set()

    def drop_answer_to(self, beginning: bytes) -> None:
        """Let the next request that begins so reach the server, and cut before its answer."""
        self._drop_answer_to = beginning

    def run(self) -> None:
        """Accept until closed."""
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if not self.is_up:
                    client.close()
                    continue
                server = socket.create_connection(self._server)
                self._open += [client, server]
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._released.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for end in self._open:
            end.close()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                self.seen.append(data)
                if data.startswith(b"POST /v1/chat/"):
                    self._chat = client
                    if self.answers:
                        if not self._answer(client, self.answers.popleft()):
                            break
                        continue
                if self.held is not None and data.startswith(self.held):
                    self._released.wait(30)
                if self._drop_answer_to is not None and data.startswith(self._drop_answer_to):
                    self._drop_answer_to = None
                    self._muted.add(server)
                server.sendall(data)
        self._left.add(client)
        self._end(client, server)

    @staticmethod
    def _answer(client: socket.socket, answer: Sequence[bytes | None]) -> bool:
        """Send an answer; whether the connection goes on."""
        for part in answer:
            if part is None:
                return False
            client.sendall(part)
        return True

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if server in self._muted:
                    break
                client.sendall(data)
                self.heard = data
        self._end(client, server)
        server.close()  # it may have more to say, and would wait for someone to listen

    @staticmethod
    def _end(*ends: socket.socket) -> None:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def network_to(server_url: str, port: int = 0) -> Iterator[Network]:
    """A network before a server."""
    network = Network(server_url, port)
    thread = threading.Thread(target=network.run)
    thread.start()
    try:
        yield network
    finally:
        network.close()
        thread.join(10)
