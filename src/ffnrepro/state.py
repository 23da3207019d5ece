"""The state of a training run: saved whole, resumed, and kept by what decides the result.

A state lies in `state/{stage}/{key}/`, where the key is the digest of everything that decides the result (settings,
data, pretrained weights). So a run never continues from another configuration's state, and going back to an
earlier configuration finds its state again. Snakemake does not know these files: it deletes the declared outputs
of a job that was killed, and this is what such a job continues from.
"""

from pathlib import Path
from typing import Any

import torch

from ffnrepro.errors import UserError
from ffnrepro.files import replacing, settings_digest


class StateDirectory:
    """The folder of one run's state.

    Args:
        root: folder of the stage, such as `state/train`.
        decides: plain values that decide the result.
    """

    def __init__(self, root: Path, decides: Any) -> None:
        self.key = settings_digest(decides)[:16]
        self.path = root / self.key
        self.path.mkdir(parents=True, exist_ok=True)

    @property
    def file(self) -> Path:
        """The saved state."""
        return self.path / "state.pt"

    def save(self, state: dict[str, Any]) -> None:
        """Write the state: tensors and plain values. A save that is cut short leaves the one before it."""
        with replacing(self.file) as temporary:
            torch.save(state, temporary)

    def load(self) -> dict[str, Any] | None:
        """The saved state, on the CPU, or None where there is none.

        Raises:
            UserError: the file is damaged.
        """
        if not self.file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise UserError(
                f"{self.file}: the saved state cannot be read ({type(error).__name__}); delete it to train anew"
            ) from error
        return state
