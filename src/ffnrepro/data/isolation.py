"""Untrusted files are examined in a child: one that hangs or kills its decoder costs itself and nothing else.

A decoder is native code, and native code that spins or crashes cannot be stopped from within its process. The
children live on from file to file, so that starting them costs nothing in the end; files travel in small chunks,
and only when a chunk does not come back is each of its files examined alone, with the time limit to itself.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import TimeoutError as OutOfTime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool

from ffnrepro.data.decode import DecodeError, Verify, VideoHeader, examine
from ffnrepro.errors import UserError

Outcome = tuple[VideoHeader, int] | str
"""What `examine` gives, or the reason why it gives nothing."""

CRASHED = "decoder crashed"
NOT_FINISHED = "decoder did not finish"

_CHUNK = 8
_START = 60
"""Seconds that children may take to begin."""


def examine_apart(
    paths: Iterable[Path],
    *,
    verify: Verify = "decode",
    workers: int = 1,
    seconds: float = 30,
    examine_one: Callable[[Path, Verify], tuple[VideoHeader, int]] = examine,
) -> Iterator[tuple[Path, Outcome]]:
    """Examine files in child processes, in their order.

    Args:
        paths: Video files, or folders of frames.
        verify: As in `ffnrepro.data.decode.examine`.
        workers: Children that work side by side.
        seconds: Time that a file may take.
        examine_one: Examines one file in the child; a test puts in one that hangs.

    Yields:
        Each path with its outcome.

    Raises:
        UserError: The children do not even start.
    """
    work = partial(_examine_chunk, verify=verify, examine_one=examine_one)
    chunks = _chunks(paths)
    first = next(chunks, None)
    if first is None:
        return
    chunks = chain([first], chunks)
    # Spawned: a fork of a process with threads, as the pool's, may inherit a lock that nobody opens again.
    context = multiprocessing.get_context("spawn")
    with ProcessPool(max_workers=workers, context=context) as pool:
        waiting: deque[tuple[list[Path], Any]] = deque()
        try:
            while True:
                for chunk in islice(chunks, 3 * workers - len(waiting)):
                    waiting.append((chunk, pool.schedule(work, [chunk], timeout=seconds)))
                if not waiting:
                    break
                chunk, future = waiting.popleft()
                outcomes = _result(future, seconds)
                if isinstance(outcomes, str) and len(chunk) > 1:
                    alone = [pool.schedule(work, [[path]], timeout=seconds) for path in chunk]
                    outcomes = [_first(_result(one, seconds)) for one in alone]
                yield from zip(chunk, [outcomes] if isinstance(outcomes, str) else outcomes, strict=True)
        except (RuntimeError, BrokenPipeError) as error:  # all that the pool says of itself
            raise UserError(
                f"the processes that examine videos end before they begin ({error}): see whether memory, or the number of "
                "processes, is limited here"
            ) from error
        finally:
            pool.stop()  # type: ignore[no-untyped-call]  # also where the caller goes no further: nobody waits for what is under way


def _chunks(paths: Iterable[Path]) -> Iterator[list[Path]]:
    source = iter(paths)
    return iter(lambda: list(islice(source, _CHUNK)), [])


def _result(future: Any, seconds: float) -> list[Outcome] | str:
    try:
        # The children keep the time limit, and a file waits for few others. Beyond that the pool itself is gone.
        outcomes: list[Outcome] = future.result(timeout=10 * seconds + _START)
    except OutOfTime:
        if not future.done():
            raise RuntimeError("no answer") from None
        return f"{NOT_FINISHED} in {seconds:g} s"
    except ProcessExpired:
        return CRASHED
    return outcomes


def _first(outcomes: list[Outcome] | str) -> Outcome:
    return outcomes if isinstance(outcomes, str) else outcomes[0]


def _examine_chunk(
    paths: list[Path], *, verify: Verify, examine_one: Callable[[Path, Verify], tuple[VideoHeader, int]]
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for path in paths:
        try:
            outcomes.append(examine_one(path, verify))
        except DecodeError as error:
            outcomes.append(error.reason)
        except Exception as error:  # noqa: BLE001 - one file never ends an index, whatever it leads a library to
            outcomes.append(f"{CRASHED} ({type(error).__name__})")
    return outcomes
