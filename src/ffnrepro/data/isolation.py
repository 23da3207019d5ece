"""Read untrusted files in a child process: if a file hangs or crashes the decoder, only that file is lost.

A decoder is native code, which cannot be stopped from within its own process. One child examines many files; after
a crash or a time limit, a new one is started. This module does not import pandas, so that a child starts quickly.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import wait
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from ffnrepro.data.decode import DecodeError, Verify, VideoHeader, examine
from ffnrepro.errors import UserError


class Refusal(NamedTuple):
    """Why a video cannot be used: the reason in a few words, by which videos are counted, and details of this video."""

    reason: str
    detail: str = ""


Outcome = tuple[VideoHeader, int] | Refusal
"""What `examine` returns, or why a video cannot be used."""

CRASHED = "decoder crashed"
NOT_FINISHED = "decoder did not finish"


Item = TypeVar("Item")
Result = TypeVar("Result")


def examine_in_child(paths: Iterable[Path], *, verify: Verify = "decode") -> Iterator[tuple[Path, Outcome]]:
    """Examine files in a child process, one at a time, in the given order.

    Args:
        paths: Video files, or folders of frames.
        verify: As in `ffnrepro.data.decode.examine`.

    Yields:
        Each path with its outcome.

    Raises:
        UserError: The child does not start.
    """
    for path, outcome in in_child(partial(examine, verify=verify), paths, seconds=30):
        if isinstance(outcome, Refusal):
            # Without the folder, so that an index is the same wherever the videos are.
            yield path, outcome._replace(detail=outcome.detail.replace(f"{path.parent}{os.sep}", ""))
        else:
            yield path, outcome


def in_child(
    work: Callable[[Item], Result], items: Iterable[Item], *, seconds: float
) -> Iterator[tuple[Item, Result | Refusal]]:
    """Call a function in a child process for each item, one at a time, in the given order.

    Args:
        work: Function that reads one file; the child imports it by its name.
        items: Arguments of the function.
        seconds: Time limit for each item.

    Yields:
        Each item with what `work` returns, or why it failed.

    Raises:
        UserError: The child does not start.
    """
    # The child is spawned, because this process has threads (the pool's), and a forked child might inherit a lock that
    # is never released.
    with ProcessPool(max_workers=1, context=multiprocessing.get_context("spawn")) as pool:
        try:
            for item in items:
                # One file at a time: a round trip takes 0.2 ms. `ProcessPool.map` would read all paths first, and its
                # iterator counts the time limit from when a result is requested, not from when a file is begun.
                future = pool.schedule(_result_or_reason, [work, item], timeout=seconds)
                yield item, _result(pool, future, seconds)
        except (RuntimeError, BrokenPipeError) as error:
            # The pool raises nothing more specific.
            raise UserError(
                f"the process that examines videos does not start ({error}): check whether memory, or the number of "
                "processes, is limited here"
            ) from error
        finally:
            # If the caller stops early, this does not wait for the file that is being examined.
            pool.stop()  # type: ignore[no-untyped-call]


def _result(pool: ProcessPool, future: "ProcessFuture[Result | Refusal]", seconds: float) -> Result | Refusal:
    while not wait([future], timeout=1).done:
        # If the child does not start, the pool may never finish the future.
        if not pool.active:
            raise RuntimeError("no answer")
    try:
        return future.result()
    except TimeoutError:
        return Refusal(NOT_FINISHED, f"in {seconds:g} s")
    except ProcessExpired:
        return Refusal(CRASHED)


def _result_or_reason(work: Callable[[Item], Result], item: Item) -> Result | Refusal:
    try:
        return work(item)
    except DecodeError as error:
        return Refusal(error.reason, error.detail)
    except Exception as error:  # noqa: BLE001 - a file may make a library raise anything, and must not end the index
        return Refusal(CRASHED, f"{type(error).__name__}: {error}")
