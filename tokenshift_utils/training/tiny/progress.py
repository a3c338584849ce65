"""How a training process tells the one that shows the progress bar how far it is."""

import os
from pathlib import Path

from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Writes how many updates are finished, and of how many, to a file after each."""

    def __init__(self, file: Path):
        self.file = file

    def on_train_begin(self, args, state, control, **kwargs):
        self._write(state)

    def on_step_end(self, args, state, control, **kwargs):
        self._write(state)

    def _write(self, state) -> None:
        temporary = self.file.with_suffix(".partial")
        temporary.write_text(f"{state.global_step} {state.max_steps}")
        os.replace(temporary, self.file)

    @staticmethod
    def read(file: Path) -> tuple[int, int]:
        """Updates finished and in all; 0 and 0 before training begins."""
        if not file.exists():
            return 0, 0
        done, total = file.read_text().split()
        return int(done), int(total)
