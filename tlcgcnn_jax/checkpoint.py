"""Resumable checkpoints with Orbax, of which this is the only importer."""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from tlcgcnn_jax.errors import InputError


class Checkpoints:
    """A folder that holds the state after the newest epoch.

    Saving happens in the background and is atomic: a run that is killed while saving still has the epoch before.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as checkpoints:
        ...     checkpoints.save(1, {"w": jnp.ones(2)}, {"epoch": 1})
        ...     checkpoints.wait()
        ...     checkpoints.meta(), checkpoints.restore({"w": jnp.zeros(2)})["w"].tolist()
        ({'epoch': 1}, [1.0, 1.0])
    """

    def __init__(self, folder: str | Path) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells every step of every save
        self.folder = Path(folder).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def save(self, step: int, tree: Any, meta: dict[str, Any]) -> None:
        """Keep a tree of arrays, and a dictionary that JSON can hold, under a number."""
        # A copy: Orbax reads in the background, and the next training step gives up the memory of its input.
        tree = jax.tree.map(jnp.array, tree)
        args = ocp.args.Composite(tree=ocp.args.StandardSave(tree), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=args)

    def meta(self) -> dict[str, Any] | None:
        """The dictionary of the newest tree, or None where there is nothing yet.

        Raises:
            InputError: The folder is damaged.
        """
        if self._manager.latest_step() is None:
            return None
        return self._read("meta", ocp.args.JsonRestore())

    def restore(self, like: Any) -> Any:
        """The newest tree.

        Args:
            like: A tree of arrays with the shapes that are expected.

        Raises:
            InputError: There is nothing, something else, or it is damaged.
        """
        return self._read("tree", ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like)))

    def _read(self, item: str, args: Any) -> Any:
        step = self._manager.latest_step()
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:  # Orbax raises a dozen kinds
            told = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
            raise InputError(
                f"{self.folder}: the checkpoint of epoch {step} cannot be used ({told}); it was made with other "
                "settings or is damaged; remove it to start again"
            ) from error

    def wait(self) -> None:
        """Block until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish saving and let go of the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
