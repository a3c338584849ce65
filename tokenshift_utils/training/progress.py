"""How a training process tells the one that shows the progress bar how far it is."""

import os
from pathlib import Path

from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Writes the number of finished updates to a file after each."""

    def __init__(self, file: Path):
        self.file = file

    def on_step_end(self, args, state, control, **kwargs):
        temporary = self.file.with_suffix(".partial")
        temporary.write_text(str(state.global_step))
        os.replace(temporary, self.file)

    @staticmethod
    def read(file: Path) -> int:
        """Updates finished so far, 0 before the first."""
        return int(file.read_text()) if file.exists() else 0
