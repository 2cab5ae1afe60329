"""Folders on `gs://` that one job holds, and resumes.

The job holds the object `.lock`, which one writer alone can create, and which it renews. No clocks are compared: what
counts is whether a lock is renewed while another job waits.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcxr.buckets import COMPLETE, explained, is_complete, output, sizes
from jaxcxr.errors import UserError

LOCK, IDENTITY = ".lock", ".identity"
_RENEWED, _STALE = 15.0, 45.0  # seconds: a lock is renewed so often; one that is not for so long is of a job that died


@contextlib.contextmanager
def begun_folder(path: Path, identity: str) -> Iterator[Path]:
    """Yields `path`, held for this job, with what an interrupted block of the same identity left; then marks it.

    Raises:
      UserError: it is whole already, was begun with another identity, is held, or cannot be written.
    """
    with held(path), explained(path):
        if is_complete(path):
            raise UserError(f"{path}: exists already; name a new folder or remove this one")
        begun = (path / IDENTITY).read_bytes().decode() if (path / IDENTITY).is_file() else ""
        if begun != identity and sizes(path).keys() - {LOCK}:
            raise UserError(
                f"{path}: was begun with other settings; run it with those to finish it, name another --out, or type"
                f" gcloud storage rm --recursive {path}"
            )
        (path / IDENTITY).write_bytes(identity.encode())
        yield path
        (path / COMPLETE).write_bytes(b"")
        (path / IDENTITY).unlink()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a folder of a bucket for this job, by an object that one writer alone can create, and renews.

    A lock whose job is gone is taken: at once where the job was a process of this machine, after 45 seconds without
    renewal otherwise. A job whose lock was taken ends at once, with a line: it would write beside another.

    Raises:
      UserError: another job has it, or the bucket is absent or denies permission.
    """
    job, ended = uuid.uuid4().hex, threading.Event()
    with explained(folder):
        store = _store(folder)
        generation = _take(folder, store, job)

    def renew() -> None:
        nonlocal generation
        while not ended.wait(_RENEWED):
            with contextlib.suppress(ValueError, OSError):  # the network: the next renewal may get through
                written = store.write(LOCK, _content(job), if_equal=generation).result().generation
                if not written and job.encode() in (found := store.read(LOCK).result()).value:
                    written = found.stamp.generation  # of a renewal that got through, though its answer was lost
                if not written:
                    print(f"jaxcxr: {folder}: was taken by another job; this one ends", file=sys.stderr, flush=True)
                    os._exit(1)
                generation = written

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(ValueError, OSError):
            store.write(LOCK, None, if_equal=generation).result()


def _store(folder: Path) -> Any:
    import tensorstore

    bucket, _, name = str(output(folder)).removeprefix("gs://").partition("/")
    return tensorstore.KvStore.open({"driver": "gcs", "bucket": bucket, "path": f"{name}/"}).result()


def _take(folder: Path, store: Any, job: str) -> bytes:
    """Writes the lock of a job where there is none, or that one's job is gone; returns its generation."""
    found = store.read(LOCK).result()
    if found.state != "missing" and not _is_gone(found.value):
        print(f"{folder}: has a lock; waiting {_STALE:.0f} s to see if its job is at work", file=sys.stderr, flush=True)
        end, seen = time.monotonic() + _STALE, found.stamp.generation
        while time.monotonic() < end and found.stamp.generation == seen:
            time.sleep(min(1.0, _STALE / 10))
            found = store.read(LOCK).result()
        if found.state != "missing" and found.stamp.generation != seen:
            raise UserError(f"{folder}: another process is writing it")
    generation = store.write(LOCK, _content(job), if_equal=found.stamp.generation).result().generation
    if not generation:
        raise UserError(f"{folder}: another process is writing it")
    return generation


def _content(job: str) -> bytes:
    about = {"job": job, "host": socket.gethostname(), **_process(os.getpid()), "renewed": uuid.uuid4().hex}
    return json.dumps(about).encode()


def _process(number: int) -> dict[str, str]:
    """What tells a process of this machine from all others; empty if it is gone."""
    try:
        started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"pid": str(number), "started": started, "boot": boot, "namespace": os.readlink("/proc/self/ns/pid")}
    except (OSError, IndexError):
        return {}


def _is_gone(lock: bytes) -> bool:
    """Whether a lock is of a process of this machine that has ended; of another machine's nothing is known."""
    try:
        about: dict[str, str] = json.loads(lock)
        own = _process(os.getpid())
        here = bool(own) and all(about.get(key) == own[key] for key in ("boot", "namespace"))
        return here and _process(int(about["pid"])).get("started") != about["started"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
