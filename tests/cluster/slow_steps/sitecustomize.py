"""On the tests' PYTHONPATH: training steps that take as long as a test asks for, so that something can happen in them.

The file `pace` of the working directory holds a number of steps, and the seconds that each later step takes; without that
file, steps take no longer than they need. While a step is slow, the file `waiting` holds the number of finished steps. Each
finished step leaves a line in `steps.txt`: the SLURM job, and the GPUs that it sees.
"""

import os
import sys
import time
from pathlib import Path

if any(Path(argument).name.startswith("train") for argument in sys.orig_argv[1:2]):
    import torch

    step = torch.optim.SGD.step
    steps, pace, waiting = Path("steps.txt"), Path("pace"), Path("waiting")

    def seconds_of_step(finished: int) -> float:
        """How long the step after the finished ones is to take."""
        try:
            after, seconds = pace.read_text().split()
        except FileNotFoundError:
            return 0
        return float(seconds) if finished >= int(after) else 0

    def slow_step(optimizer: torch.optim.SGD) -> None:
        """Wait, then step."""
        start = time.monotonic()
        finished = steps.read_text().count("\n") if steps.exists() else 0
        while time.monotonic() - start < seconds_of_step(finished):
            waiting.write_text(str(finished))
            time.sleep(0.1)
        step(optimizer)
        with steps.open("a") as file:
            names = ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES")
            print(*(os.environ.get(name, "-") for name in names), file=file)

    torch.optim.SGD.step = slow_step  # type: ignore[method-assign, assignment]
