"""Watching a run: its progress bar, its log of epochs, and Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tlcgcnn_jax.config import TrainConfig
from tlcgcnn_jax.files import to_json

OnEpoch = Callable[[dict[str, float]], None]


class Interrupts:
    """Ctrl-C ends a run after the epoch or the part, when everything is on its way to the disk; a second one at once.

    An exception at any moment could leave the threads that write checkpoints waiting for each other.
    """

    def __init__(self, wait: bool) -> None:
        self._wait, self._asked, self._before = wait, False, None

    def __enter__(self) -> "Interrupts":
        ours = threading.current_thread() is threading.main_thread()
        if self._wait and ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def after(self, *shows: OnEpoch | None) -> OnEpoch:
        """`shows`, and then the end of the run if it was asked for."""

        def on_epoch(row: dict[str, float]) -> None:
            for show in shows:
                if show:
                    show(row)
            self.stop()

        return on_epoch

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:
            self.stop()

    def _note(self, *_: object) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        # Not `print`, which may be what was interrupted.
        os.write(2, b"\nstopping after this epoch or part; Ctrl-C again stops at once\n")

    def stop(self) -> None:
        """End the run if that was asked for."""
        if self._asked:
            raise KeyboardInterrupt


def epoch_log(folder: Path | None, member: int) -> OnEpoch | None:
    """Adds every epoch to metrics.jsonl, for people who watch; at the end of the run the file is written anew."""
    if folder is None:
        return None

    def on_epoch(row: dict[str, float]) -> None:
        with open(folder / "metrics.jsonl", "a") as handle:
            handle.write(to_json({"member": member, **row}) + "\n")

    return on_epoch


class NetworksBar:
    """A progress bar over the epochs of several networks that are trained together.

    As a context it gives `on_epoch`, which takes the network's number first.
    """

    def __init__(self, show: bool, networks: int, epochs: int) -> None:
        self.show, self.epochs, self.done = show, epochs, [0] * networks

    def __enter__(self) -> Callable[[int, dict[str, float]], None]:
        from tqdm import tqdm

        total, title = self.epochs * len(self.done), f"{len(self.done)} networks" if len(self.done) > 1 else "training"
        self.tqdm = tqdm(total=total, desc=title, unit="epoch", file=sys.stderr, disable=not self.show)

        def on_epoch(network: int, row: dict[str, float]) -> None:
            self.done[network] = int(row["epoch"])
            self.tqdm.update(sum(self.done) - self.tqdm.n)
            self.tqdm.set_postfix_str(f"loss {row['train_loss']:.4f}, val {row['val_score']:.4f}")

        return on_epoch

    def __exit__(self, *_: object) -> None:
        self.tqdm.close()


class EpochBar:
    """A progress bar over epochs with loss, score and rate, as a context that gives `on_epoch`."""

    def __init__(self, show: bool, member: int, seeds: int, config: TrainConfig) -> None:
        self.show, self.config = show, config
        self.title = f"network {member + 1}/{seeds}" if seeds > 1 else "training"

    def __enter__(self) -> OnEpoch | None:
        if not self.show:
            return None
        from tqdm import tqdm

        self.tqdm = tqdm(total=self.config.epochs, desc=self.title, unit="epoch", file=sys.stderr)

        def on_epoch(row: dict[str, float]) -> None:
            self.tqdm.update(int(row["epoch"]) - self.tqdm.n)
            speed = f"{row['crystals_per_second']:,.0f} crystals/s"
            self.tqdm.set_postfix_str(f"loss {row['train_loss']:.4f}, val {row['val_score']:.4f}, {speed}")

        return on_epoch

    def __exit__(self, *_: object) -> None:
        if self.show:
            self.tqdm.close()
