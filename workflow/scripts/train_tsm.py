"""Train vanilla TSM at one frame count."""

import sys

from ffnrepro.experiment import parse_arguments, run_experiment
from ffnrepro.logs import run
from ffnrepro.losses import classification_loss
from ffnrepro.models.tsm import TSM


def main() -> int:
    """Parse the arguments and train."""
    arguments = parse_arguments(__doc__ or "")
    network = arguments.settings["network"]
    return run(
        lambda: run_experiment(
            build_model=lambda classes: TSM(classes=classes, **network),
            compute_loss=classification_loss,
            arguments=arguments,
        ),
        arguments.log,
    )


if __name__ == "__main__":
    sys.exit(main())
