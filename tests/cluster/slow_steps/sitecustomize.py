"""On the tests' PYTHONPATH: a training step takes as long as on a real network, so that something can happen in it."""

import os
import sys
import time

if any("train_" in argument for argument in sys.orig_argv[:2]):
    import torch

    step = torch.optim.SGD.step

    def slow_step(optimizer: torch.optim.SGD) -> None:
        """Wait, then step."""
        time.sleep(float(os.environ["SECONDS_A_STEP"]))
        step(optimizer)

    torch.optim.SGD.step = slow_step  # type: ignore[method-assign, assignment]
