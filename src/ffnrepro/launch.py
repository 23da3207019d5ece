"""Start a training's processes, one a GPU: `python -m ffnrepro.launch COUNT SCRIPT ARGUMENT...`.

They are torchrun's, which ends with code 1 whatever its processes end with. Here "unfinished" (75) stays "unfinished".
"""

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from ffnrepro.logs import UNFINISHED


def main() -> int:
    """Run to the end of all processes and return the exit code of the first that failed."""
    count, *command = sys.argv[1:]
    try:
        # Without the dashes torchrun takes the script's --log for its own.
        torchrun(["--standalone", "--nproc-per-node", count, "--", *command])
    except ChildFailedError as error:
        code: int = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException:  # the processes were signalled and waited for
        return UNFINISHED
    return 0


if __name__ == "__main__":
    sys.exit(main())
