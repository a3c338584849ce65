"""How far a training process is: for the one that shows progress, and for one that goes on with it."""

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from tokenshift_utils.files import read_text, write_text


class AfterRollouts(TrainerCallback):
    """Calls ``then`` with the number of rollouts made, after the last update of each."""

    def __init__(self, updates_per_rollout: int, then: Callable[[int], None]):
        self.updates_per_rollout, self.then = updates_per_rollout, then

    def on_step_end(self, args, state, control, **kwargs):
        rollout, update = divmod(state.global_step, self.updates_per_rollout)
        if not update:
            self.then(rollout)


class Updates(TrainerCallback):
    """Writes how many updates are finished, and of how many, to a file after each.

    In a worker process it ends the run when the process that started it is gone.
    """

    def __init__(self, file: Path):
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        self._write(state)

    def on_step_end(self, args, state, control, **kwargs):
        self._write(state)
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            raise KeyboardInterrupt

    def _write(self, state) -> None:
        if state.is_world_process_zero:
            write_text(self.file, f"{state.global_step} {state.max_steps}")

    @staticmethod
    def read(file: Path) -> tuple[int, int]:
        """Updates finished and in all; 0 and 0 before training begins."""
        try:
            done, total = read_text(file, "remove it").split()
        except FileNotFoundError:  # or the run has ended since
            return 0, 0
        return int(done), int(total)


def last_checkpoint(output: str | Path) -> str | None:
    """The last whole checkpoint; what a kill left half written is removed.

    transformers writes ``trainer_state.json`` behind weights and optimiser.
    """
    for directory in Path(output).glob("checkpoint-*"):
        try:
            json.loads((directory / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(directory)
    return get_last_checkpoint(output) if Path(output).is_dir() else None
