"""Two processes under ``accelerate launch`` compute what one does on the same batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes=2",
    "--num_machines=1",
]
LAUNCH += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]


def run(pair, out: Path, launch: list[str]) -> dict:
    command = [sys.executable, *launch, str(HERE / "distributed_loss.py")]
    path = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, sys.path)])
    finished = subprocess.run(
        [*command, str(pair.base), str(pair.tuned), str(out)],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.slow
def test_two_processes_have_the_loss_and_gradient_of_one(tiny_pair, tmp_path):
    # accelerate's flag is --multi_gpu; use_cpu in the arguments makes the processes CPU ones (gloo)
    one, two = (run(tiny_pair, tmp_path / f"{len(launch)}.json", launch) for launch in ([], LAUNCH))
    assert one.keys() == two.keys() == {"dapo", "grpo"}
    for loss_type in one:
        for case, alone in one[loss_type].items():
            shared = two[loss_type][case]
            assert (alone["processes"], shared["processes"]) == (1, 2)
            assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
            assert shared["gradient"] == pytest.approx(alone["gradient"], rel=1e-3, abs=1e-6)
            assert shared["logged"] == pytest.approx(alone["logged"], rel=1e-6)
        assert one[loss_type]["mean-1"]["logged"]["weights/mean"] == pytest.approx(1, abs=1e-6)
        losses = {case: value["loss"] for case, value in one[loss_type].items()}
        assert len(set(losses.values())) == 3, losses
