"""A Hugging Face Hub on the loopback interface.

`LoopbackHub` speaks the part of the Hub's HTTP protocol that publishing and loading a model need. The unmodified
`huggingface_hub` and `transformers` clients run against it without an account and without a network:

    with LoopbackHub() as hub:
        hub.create_repo("acme/base", files={"config.json": b"{}", "model.safetensors": Path("w.safetensors")})
        subprocess.run(["hf", "download", "acme/base"], env={**os.environ, **hub.env()})
        assert hub.errors == []

It is as strict as the Hub: it refuses stale parents, wrong checksums and objects that were never uploaded. What a
correct client never sends, it notes in `errors`. It logs every request in `requests`, and `fail` makes any of them go
wrong, before or after the Hub has acted on it.

Large files are on a second origin, as on the Hub. They are reached through secret addresses, and no token may be sent
there. There is no Xet storage, so clients need `HF_HUB_DISABLE_XET=1`, which `env` sets. Datasets and Spaces are
named as in addresses: `datasets/acme/samples`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from .faults import Fault
from .messages import Request
from .server import Server
from .state import HubState


class LoopbackHub(HubState):
    """A Hub on the loopback interface; see the module's description.

    It begins with one account, `user`, whose `token` may write, and no repository. `faults` are those that `fail` set.
    """

    def __init__(
        self, token: str = "hf_loopback", user: str = "loopback", *, role: Literal["read", "write"] = "write"
    ) -> None:
        super().__init__()
        self.token = token
        self.user = user
        self.faults: list[Fault] = []
        self._servers: list[Server] = []
        self.add_token(token, user, role)

    def start(self) -> LoopbackHub:
        """Begin to answer, each origin on a free port."""
        # Clients send their token to the Hub's origin only, so content is served from another one.
        self._servers = [Server(self, self.faults, storage).start() for storage in (False, True)]
        self.url, storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self.storage_url = f"{storage_url}/{self.secret}"
        return self

    def stop(self) -> None:
        """Stop answering, close every connection and forget what was stored."""
        for server in self._servers:
            server.stop()
        self._servers = []
        self.content.close()

    def __enter__(self) -> LoopbackHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def env(self) -> dict[str, str]:
        """The environment variables with which a process takes this for the Hub."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "no_proxy": "127.0.0.1",  # a proxy cannot reach the loopback interface of this machine
        }

    def fail(
        self,
        match: Callable[[Request], bool] | None = None,
        nth: int = 1,
        *,
        status: int = 500,
        when: Literal["before", "during", "after"] = "before",
        action: Literal["status", "drop", "stall", "hang"] = "status",
        times: int = 1,
        seconds: float = 30.0,
        retry_after: int | None = None,
    ) -> threading.Event:
        """Make matching requests from now on go wrong: the `nth` and those after it, `times` in all.

        Args:
            match: which requests; all if left out.
            nth: the first that goes wrong, counted from 1.
            status: the status that the action `status` answers with.
            when: `before` the Hub acts on the request; `after` it has acted, so that only the answer is lost; or
                `during` the request, with `drop` or `hang` only: the Hub reads half of the body and no more.
            action: `status` answers with a status. `drop` closes the connection; `after`, a download breaks off
                halfway. `stall` holds the answer back for a while. `hang` never answers and waits until the client
                goes away.
            times: how many requests go wrong.
            seconds: how long `stall` waits, and `hang` at most if it is `during`: the Hub cannot see that a client
                has gone as long as part of its body is unread.
            retry_after: seconds for a `Retry-After` header.

        Returns:
            An event that is set when the first request has been struck; `after`, when the Hub has acted on it.
        """
        accept = match or (lambda _: True)
        fault = Fault(accept, nth, nth + times - 1, status, when, action, seconds, retry_after)
        self.faults.append(fault)
        return fault.struck
