"""What the client keeps between its runs, for its owner's eyes only: typed lines, and sessions to go on with."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from client.files import write_whole


class State:
    """A folder of the client's own. Where it cannot be written, nothing is kept, and nothing fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of_user(cls, environ: Mapping[str, str] = os.environ) -> "State":
        """$XDG_STATE_HOME/simple-chat-gateway, by default in ~/.local/state."""
        try:
            folder = Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        except RuntimeError:  # there is no telling where home is
            folder = Path(os.devnull)  # where no folder can be
        return cls(folder / "simple-chat-gateway")

    def history_file(self) -> Path | None:
        """Where typed lines are kept; None if they cannot be."""
        path = self._folder / "history"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            with path.open("ab"):
                return path
        except OSError:
            return None

    def session(self, url: str) -> str | None:
        """The session that was last opened on a gateway and not stopped."""
        return self._sessions().get(url)

    def remember(self, url: str, session_id: str) -> None:
        """This session is the last one on its gateway."""
        self._write(self._sessions() | {url: session_id})

    def forget(self, url: str, session_id: str) -> None:
        """This session is over."""
        sessions = self._sessions()
        if sessions.get(url) == session_id:
            del sessions[url]
            self._write(sessions)

    def _sessions(self) -> dict[str, str]:
        with suppress(OSError, RecursionError, ValueError):
            told = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(told, dict):
                return {url: session for url, session in told.items() if isinstance(session, str)}
        return {}

    def _write(self, sessions: Mapping[str, str]) -> None:
        with suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self._path, json.dumps(sessions, indent=2).encode(), mode=0o600)

    @property
    def _path(self) -> Path:
        return self._folder / "sessions.json"
