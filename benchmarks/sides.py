"""Two sides of a benchmark, ours and PyTorch's, each a process of its own that is timed when it is asked."""

import json
import resource
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SIDES = ("jaxcxr", "diffusers")
_OUT_OF_MEMORY = 3  # the exit code of a process that runs out of memory
_NO_MEMORY = ("resource_exhausted", "out of memory", "can't allocate memory", "alloc_failed", "unable to allocate")


def say(what: Any) -> None:
    """Sends a line of JSON to the process that compares."""
    print(json.dumps(what), flush=True)


def serve(side: str, told: Any, seconds: Callable[[], float]) -> None:
    """Sends `told`, then what `seconds` returns for each line that is read, then the memory in GB."""
    say(told)
    for _ in sys.stdin:
        say(seconds())
    peaks = {"host_peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "device_peak_gb": None}
    if side == "jaxcxr":
        import jax

        peaks["device_peak_gb"] = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    else:
        import torch

        peaks["device_peak_gb"] = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    say({name: round(size / 1e9, 2) for name, size in peaks.items() if size})


def guarded(side: Callable[[], None]) -> None:
    """Runs a side; where it runs out of memory its exit code says so."""
    try:
        side()
    except Exception as error:
        if any(words in str(error).lower() for words in _NO_MEMORY):
            sys.exit(_OUT_OF_MEMORY)
        raise


class Side:
    """The process of one side: this command with further options. Out of memory, all its answers are None.

    Attributes:
      told: what the side sent when it was ready.
    """

    def __init__(self, side: str, options: Sequence[str] = ()):
        self._name = " ".join([side, *options])
        self._process = subprocess.Popen(
            [sys.executable, *sys.argv, "--side", side, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.told = self._read()

    def _read(self) -> Any:
        line = self._process.stdout.readline()
        if not line and self._process.wait() not in (_OUT_OF_MEMORY, -signal.SIGKILL):
            raise SystemExit(f"{self._name}: ended with {self._process.returncode}; see above")
        return json.loads(line) if line else None

    def seconds(self) -> float | None:
        """One measurement."""
        if self._process.poll() is not None:
            return None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def end(self) -> dict[str, float]:
        """Ends the process; its peaks of memory."""
        if self._process.poll() is not None:
            return {}
        self._process.stdin.close()
        memory = self._read() or {}
        self._process.wait()  # and gives its memory back
        return memory


def measured(rounds: int, take_turns: bool) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Times, what was told, and memory, each by side.

    Where they take turns, both are there at once, and a ratio holds when the machine's speed drifts; elsewhere the
    second starts when the first has ended, so that each has a GPU for itself.
    """
    times, told, memory = {}, {}, {}
    for at_once in [SIDES] if take_turns else [[side] for side in SIDES]:
        sides = {name: Side(name) for name in at_once}
        taken = [[side.seconds() for side in sides.values()] for _ in range(rounds)]
        times |= zip(sides, zip(*taken, strict=True), strict=True)
        told |= {name: side.told for name, side in sides.items()}
        memory |= {name: side.end() for name, side in sides.items()}
    return times, told, memory


def compared(images: int, times: Mapping[str, Any], memory: Mapping[str, Any]) -> dict[str, Any]:
    """Rates of both sides, their ratio and their memory; a side that ran out of memory has null for its rate."""
    fits = {name: None not in column for name, column in times.items()}
    row: dict[str, Any] = {
        f"{name}_images_per_s": round(images / statistics.median(column), 3) if fits[name] else None
        for name, column in times.items()
    }
    if all(fits.values()):
        ratios = [b / a for a, b in zip(times["jaxcxr"], times["diffusers"], strict=True)]
        row |= {"speedup": round(statistics.median(ratios), 2)}
        row |= {"speedup_range": [round(f(ratios), 2) for f in (min, max)]}
    return row | {f"{name}_{key}": size for name in memory for key, size in memory[name].items()}
