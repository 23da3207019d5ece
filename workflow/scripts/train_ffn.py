"""Train a Frame Flexible Network at several frame counts at once."""

import sys
from functools import partial

from ffnrepro.experiment import parse_arguments, run_experiment
from ffnrepro.logs import run
from ffnrepro.losses import frame_flexible_loss
from ffnrepro.models.ffn import FrameFlexibleNetwork


def main() -> int:
    """Parse the arguments and train."""
    arguments = parse_arguments(__doc__ or "")
    settings = arguments.settings
    frame_counts = tuple(settings["train_frames"])
    return run(
        lambda: run_experiment(
            build_model=lambda classes: FrameFlexibleNetwork(
                classes=classes,
                frame_counts=frame_counts,
                training_shift=settings["training_shift"],
                adapter_init=settings["adapter_init"],
                **settings["network"],
            ),
            compute_loss=partial(
                frame_flexible_loss,
                frame_counts=frame_counts,
                distillation_weight=settings["distillation_weight"],
            ),
            arguments=arguments,
        ),
        arguments.log,
    )


if __name__ == "__main__":
    sys.exit(main())
