"""The processes of a run: how they find one another, act as one, and let each other go."""

import atexit
import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcxr.errors import UserError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = "JAXCXR_COORDINATOR", "JAXCXR_NUM_PROCESSES", "JAXCXR_PROCESS_ID"
# Seconds; with JAX's own 100 the others of a process that died would wait for longer than a minute.
_HEARTBEAT_TIMEOUT = 30
_GONE = (
    b"jaxcxr: JAX has ended this process (see above), most likely since another of this run is gone; run all again\n"
)
_on_abort: Any = None  # C code will call it


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes, and leaves them at once when the block fails."""
    several = join()
    try:
        yield
    except BaseException as error:
        if several:
            if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
                # Often a connection that broke since another process is gone: JAX will know, and `_say_last` say it.
                time.sleep(_HEARTBEAT_TIMEOUT + 15)
            # At its exit JAX waits up to five minutes for the other processes, and they are waiting for this one.
            atexit.register(leave, 2 if isinstance(error, UserError) else 1)
        raise


def join(timeout: int = 300) -> bool:
    """Joins the other processes of this run, if the environment tells of some; to be called before devices are used.

    They are named by `JAXCXR_COORDINATOR` (host:port of process 0), `JAXCXR_NUM_PROCESSES` and `JAXCXR_PROCESS_ID`,
    or else by what JAX detects itself: srun, a TPU slice (on TPU VMs or GKE), a Kubernetes job with the package
    `kubernetes`. A process that does not find the others in `timeout` seconds says so in one line and exits with 1:
    JAX would abort with a stack trace.

    Returns:
      Whether there are others.

    Raises:
      UserError: the variables do not make sense, or what tells of the others cannot be read.
    """
    how = _told(os.environ)
    if how is None and _detected(os.environ):
        how = {"local_device_ids": _share(os.environ)}
    if how is None or jax.distributed.is_initialized():
        return jax.distributed.is_initialized()
    clock = threading.Timer(timeout, _give_up, [timeout, how])
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(
            **how, initialization_timeout=timeout + 60, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT
        )
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"this is one process of several, and the others cannot be found: {first}") from error
    finally:
        clock.cancel()
    _say_last(_GONE)
    return True


def on_first(do: Callable[[], Any]) -> None:
    """Runs `do` on the first process; all continue when it is done.

    Raises:
      UserError: on the first process, what `do` raised; on the others, that it did.
    """
    failure: UserError | None = None
    if jax.process_index() == 0:
        try:
            do()
        except UserError as error:
            failure = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = bool(multihost_utils.broadcast_one_to_all(np.array(failure is not None)))
        if failed and failure is None:
            raise UserError("the first process has stopped; its message says why")
    if failure is not None:
        raise failure


def from_first(make: Callable[[], list[int]]) -> list[int]:
    """What `make` returns on the first process, on all of them; the others do not call it.

    Raises:
      UserError: as `on_first`.
    """
    made: list[int] = []
    on_first(lambda: made.extend(make()))
    if jax.process_count() == 1:
        return made
    from jax.experimental import multihost_utils

    data = json.dumps(made).encode() if jax.process_index() == 0 else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))  # all give arrays of one shape
    sent = np.frombuffer(data or bytes(size), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())


def text_from_first(make: Callable[[], str]) -> str:
    """What `make` returns on the first process, as `from_first`."""
    return bytes(from_first(lambda: [*make().encode()])).decode()


def share_out(find: Callable[[], list[int]]) -> list[int]:
    """This process's share of the work that is left, as numbers.

    `find` finds it once, on the first process. So a job that is resumed is shared out anew, and all of its processes
    have as much to do.
    """
    return from_first(find)[jax.process_index() :: jax.process_count()]


def least(number: int) -> int:
    """The least of the numbers, below 2^31, that the processes give; each has to give one."""
    if jax.process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(number)).min())


def _told(env: Mapping[str, str]) -> dict[str, Any] | None:
    """What our own variables say, in the words of `jax.distributed.initialize`; None if they say that it is alone."""
    missing = [name for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID) if not env.get(name)]
    if len(missing) == 3:
        return None
    if missing:
        raise UserError(f"{missing[0]}: is not set; {COORDINATOR}, {NUM_PROCESSES} and {PROCESS_ID} go together")
    try:
        number, processes = int(env[PROCESS_ID]), int(env[NUM_PROCESSES])
    except ValueError as error:
        raise UserError(f"{NUM_PROCESSES} and {PROCESS_ID}: want whole numbers") from error
    if not 0 <= number < processes:
        raise UserError(f"{PROCESS_ID}={number}: wants 0 to {processes - 1}, there are {NUM_PROCESSES}={processes}")
    if ":" not in env[COORDINATOR]:
        raise UserError(f"{COORDINATOR}={env[COORDINATOR]}: wants host:port")
    if processes == 1:
        return None
    return {
        "coordinator_address": env[COORDINATOR],
        "num_processes": processes,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def _detected(env: Mapping[str, str]) -> bool:
    """Whether `jax.distributed.initialize` can learn of others by itself."""
    if int(env.get("SLURM_STEP_NUM_TASKS", 1)) > 1:  # of srun: what a batch script calls without it is alone
        return True
    hosts = env.get("TPU_PROCESS_ADDRESSES", env.get("TPU_WORKER_HOSTNAMES"))  # on GKE
    if hosts is not None:
        return len(hosts.split(",")) * int(env.get("MEGASCALE_NUM_SLICES") or 1) > 1
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= env.keys():
        return importlib.util.find_spec("kubernetes") is not None
    # On a TPU VM the metadata server knows, one host or many. Where there is no TPU, JAX has set this variable.
    return importlib.util.find_spec("libtpu") is not None and "TPU_SKIP_MDS_QUERY" not in env


def _share(env: Mapping[str, str]) -> list[int] | None:
    """Under Slurm, which of the GPUs it sees are this task's; None leaves it to JAX, which takes one a task.

    A task that Slurm has bound to its own GPUs sees no others; without binding every task sees all of the node's.
    """
    visible = [gpu for gpu in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
    if "SLURM_LOCALID" not in env or not visible:
        return None
    tasks = int(env.get("SLURM_STEP_NUM_TASKS", 1)) // int(env.get("SLURM_STEP_NUM_NODES", 1))
    if len(visible) < tasks or "SLURM_GPUS_PER_TASK" in env:
        return list(range(len(visible)))
    each, place = len(visible) // tasks, int(env["SLURM_LOCALID"])
    return list(range(place * each, (place + 1) * each))


def _give_up(timeout: int, how: Mapping[str, Any]) -> None:
    where = "" if "process_id" not in how else " at {coordinator_address}, process {process_id} of {num_processes}"
    print(
        f"jaxcxr: the processes of this run did not find one another in {timeout} s{where.format(**how)};"
        " see to it that all of them run and can reach the first one's host and port",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)


def _say_last(message: bytes) -> None:
    """When JAX aborts this process, which is how it tells of another that is gone, a line that says so, and exit 1."""
    global _on_abort

    def say(number: int) -> None:
        os.write(2, message)
        os._exit(1)

    # Python's own handlers run when an abort has long ended the process.
    _on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(say)
    ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def kept_handler(number: int) -> Callable[[], None]:
    """Remembers who handles a signal, also in C, which `signal.signal` forgets; returns what gives it back to them."""
    libc, kept = ctypes.CDLL(None), ctypes.create_string_buffer(1024)  # no system's `struct sigaction` is larger
    before = signal.getsignal(number)
    libc.sigaction(number, None, kept)

    def give_back() -> None:
        if callable(before):
            signal.signal(number, before)
        libc.sigaction(number, kept, None)

    return give_back


def leave(code: int) -> None:
    """Ends this process at once, without what Python and JAX do at its exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
