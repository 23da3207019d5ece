"""On the tests' PYTHONPATH: a training step takes as long as on a real network, so that something can happen in it.

Each step leaves a line in `steps.txt` of the working directory: SLURM job, and the GPUs that it sees. From as many steps on
as the file `hold` says, training waits until that file is gone.
"""

import os
import sys
import time
from pathlib import Path

if any("train_" in argument for argument in sys.orig_argv[:2]):
    import torch

    step = torch.optim.SGD.step
    steps, hold = Path("steps.txt"), Path("hold")

    def held() -> bool:
        """Whether training is to wait."""
        made = steps.read_text().count("\n") if steps.exists() else 0
        try:
            return made >= int(hold.read_text())
        except FileNotFoundError:
            return False

    def slow_step(optimizer: torch.optim.SGD) -> None:
        """Wait, then step."""
        time.sleep(float(os.environ["SECONDS_A_STEP"]))
        while held():
            time.sleep(0.1)
        step(optimizer)
        with steps.open("a") as file:
            names = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES")
            print(*(os.environ.get(name, "-") for name in names), file=file)

    torch.optim.SGD.step = slow_step  # type: ignore[method-assign, assignment]
