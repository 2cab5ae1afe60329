"""What a benchmark found: benchmarks/results/NAME-DATE.json, with the machine and the versions beside it."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, packages: Sequence[str], found: Mapping[str, Any]) -> None:
    """Writes what was found, by name, and prints it.

    What the file has already of the same machine and versions stays beside it, unless it is of the same name, so that a
    benchmark may run in parts; what it has of others is left alone.
    """
    machine, versions = _machine(), {package: importlib.metadata.version(package) for package in packages}
    file = RESULTS / f"{name}-{datetime.date.today()}.json"
    what = (sys.modules["__main__"].__doc__ or "").split("\n\n")[0].replace("\n", " ")
    content = json.loads(file.read_text()) if file.is_file() else {"what": what, "runs": []}
    run = next((r for r in content["runs"] if (r["machine"], r["versions"]) == (machine, versions)), None)
    if run is None:
        run = {"machine": machine, "versions": versions, "results": {}}
        content["runs"].append(run)
    run["results"] |= found
    file.write_text(json.dumps(content, indent=2) + "\n")
    print(json.dumps(found, indent=2), file, sep="\n", flush=True)


def _machine() -> dict[str, Any]:
    about = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", about.read_text()) if about.is_file() else []
    machine = {"cpu": names[0] if names else platform.machine(), "cores": os.cpu_count()}
    # Where JAX has not been at work, looking for a GPU would start it.
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge and bridge.backends_are_initialized():
        import jax

        machine["devices"] = f"{jax.device_count()} {jax.devices()[0].device_kind}"
    return machine | {"python": platform.python_version()}
