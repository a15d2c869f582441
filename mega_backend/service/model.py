"""The model behind the service: loaded while the server already answers, its device shared by requests."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import mega_backend
from mega_backend import protocol
from mega_backend.batching import Batcher, is_out_of_memory
from mega_backend.service import logs
from mega_backend.service.limits import busy

Progress = Callable[[float, str], None]

ROW_FUNCTIONS = {"model": ("features", "condition", "logits"), "tokenizer": ("decode",)}
"""What concurrent requests share batches of; each maps rows to rows."""


class Model:
    """A recoverer that is there, or will be.

    Args:
        load: makes the recoverer; called once, on a thread, with a progress callback.
        batcher: shares the device between requests.
        report: called with (fraction, text) as loading proceeds, then once with 1.0.
        failed: called with the error where loading failed.
    """

    def __init__(
        self, load: Callable[[Progress], Any], batcher: Batcher,
        report: Progress | None = None, failed: Callable[[Exception], None] | None = None,
    ) -> None:  # fmt: skip
        self.progress, self.text = 0.0, "starting"
        self.status = "loading"
        self.topology_bytes = b""
        self.body = self.device = self.reads = ""
        self.card: dict[str, Any] = {}
        self._load, self._batcher, self._recoverer = load, batcher, None
        self._report, self._failed = report or (lambda *_: None), failed or (lambda _: None)

    def start(self) -> None:
        threading.Thread(target=self._run, name="mega-load", daemon=True).start()

    def set(self, recoverer: Any) -> None:
        """The recoverer is there."""
        topology = protocol.topology_of(recoverer.body)
        self.topology_bytes, self.body = protocol.encode(topology.message()), topology.digest
        self.card, self.device = dict(recoverer.card), str(recoverer.device)
        self.reads = "landmarks" if getattr(recoverer, "reads_landmarks", True) else "picture"
        self._recoverer = share(recoverer, self._batcher)
        self.status, self.progress, self.text = "ready", 1.0, "ready"

    def check(self) -> None:
        """Raise the 503 of `busy` while the recoverer is not there."""
        if self.status == "failed":
            raise busy("The model could not be loaded; the backend's log says why.", 60)
        if self._recoverer is None:
            raise busy(f"The model is being loaded ({self.progress:.0%}); try again in a few seconds.", 2)

    @property
    def recoverer(self) -> Any:
        """The recoverer whose work is shared; see `check`."""
        self.check()
        return self._recoverer

    def _run(self) -> None:
        try:
            self.set(self._load(self._step))
        # Whatever is wrong with a model folder or a device, the user must learn of it.
        except Exception as error:
            self.status = "failed"
            # A wrong folder or a full device explains itself; anything else needs its trace.
            expected = isinstance(error, (ValueError, OSError)) or is_out_of_memory(error)
            logs.log.error("the model could not be loaded: %s", error, exc_info=None if expected else error)
            self._failed(error)
            return
        self._report(1.0, "ready")

    def _step(self, fraction: float, text: str) -> None:
        self.progress, self.text = fraction, text
        self._report(fraction, text)


def share(recoverer: Any, batcher: Batcher) -> Any:
    """A view of a recoverer whose row functions run in batches shared with other requests.

    Only views of the model's modules differ, in these functions; weights are the same. A recoverer without such modules
    (in tests) is shared as it is.
    """
    shared = copy.copy(recoverer)
    for part, names in ROW_FUNCTIONS.items():
        module = getattr(recoverer, part, None)
        if module is None:
            continue
        view = copy.copy(module)
        for name in names:
            if hasattr(module, name):
                object.__setattr__(view, name, batcher.rows_of(getattr(module, name)))
        setattr(shared, part, view)
    return shared


def loader(model: str, device: str) -> Callable[[Progress], Any]:
    """Loads a model folder for `Model`, everything that a first request would otherwise wait for included."""

    def load(progress: Progress) -> Any:
        progress(0.05, "starting torch")
        import torch  # noqa: F401  (its own step, because it takes the longest)

        progress(0.4, "reading the weights")
        recoverer = mega_backend.load(model, device=device)
        recoverer.check_complete()
        progress(0.7, "starting the detector of people")
        from mega_backend.people.pose_network import shared_network

        shared_network()
        progress(0.9, "warming up")
        if hasattr(recoverer.model, "draw"):
            recoverer.random(1, steps=1)
        return recoverer

    return load
