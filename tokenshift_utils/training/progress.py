"""How a training process tells the one that shows the progress bar how far it is."""

import multiprocessing
import os
from pathlib import Path

from transformers import TrainerCallback


class Progress(TrainerCallback):
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
            temporary = self.file.with_name(f"{self.file.name}.partial")
            temporary.write_text(f"{state.global_step} {state.max_steps}", encoding="utf-8")
            os.replace(temporary, self.file)

    @staticmethod
    def read(file: Path) -> tuple[int, int]:
        """Updates finished and in all; 0 and 0 before training begins."""
        try:
            done, total = file.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return 0, 0
        return int(done), int(total)
