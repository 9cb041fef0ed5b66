"""The process of a party that is elsewhere (places.There): does what is ordered over a pipe.

Knows: the pipe, and how errors travel. Must not know: what is ordered.
"""

from __future__ import annotations

import pickle
import signal
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import Any

import bulktransfer as bulk

from .places import Failed, Here

_IDLE_S = 300  # how long the process lives without an order


def _serve(pipe: Connection[Any, Any]) -> None:
    """Do what the other process orders, until it hangs up."""
    place: Here | None = None
    while True:
        signal.alarm(_IDLE_S)
        try:
            what, *args = pipe.recv()
        except EOFError:
            break
        try:
            if what == "prepare":
                place = Here(*args)
                value: Any = None
            elif what == "party":
                assert place is not None
                value = place.party().number
            else:
                value = getattr(place, what)(*args)
            answer = (True, value)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other process must hear of it
            answer = (False, _that_travels(error))
        pipe.send(answer)
    if place is not None:
        place.close()


def _that_travels(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - what fails is the error's own code
        return Failed("".join(traceback.format_exception(error)))
    return error


def serve(fd: int) -> None:
    """Be the other process, of which `fd` is a socket. Raises: whatever ends it."""
    warnings.simplefilter("ignore", bulk.SecurityWarning)  # both processes are a test's, and know it
    with Connection(fd) as pipe:
        _serve(pipe)
