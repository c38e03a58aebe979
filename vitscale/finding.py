"""What a check of `vitscale doctor` found; and the first check, of where our packages come from. Imports none of the others."""

import importlib.util
from pathlib import Path
from typing import Literal, NamedTuple

PACKAGES = ("vitscale", "data_pipeline", "launcher")
Status = Literal["pass", "warn", "fail"]


class Finding(NamedTuple):
    """What a check found, and how to mend it."""

    name: str
    status: Status
    found: str
    fix: str = ""

    def tell(self) -> bool:
        """Print it as soon as it is there; whether it failed."""
        fix = f"\n      -> {self.fix}" if self.fix else ""
        print(f"{self.status}  {self.name:<14}{self.found}{fix}", flush=True)
        return self.status == "fail"


def grade(name: str, found: str, fix: str, bad: bool, worst: Status = "fail") -> Finding:
    """Passed, or `worst` and how to mend it."""
    return Finding(name, worst, found, fix) if bad else Finding(name, "pass", found)


def check_origin() -> Finding:
    """One of our names is also that of an unrelated package."""
    specs = {name: importlib.util.find_spec(name) for name in PACKAGES}
    places = {name: Path(spec.origin).parent.parent if spec and spec.origin else None for name, spec in specs.items()}
    found = "; ".join(f"{', '.join(n for n in PACKAGES if places[n] == place)} from {place}" for place in set(places.values()))
    fix = "pip uninstall the package that stands before ours on sys.path, or leave its folder out of PYTHONPATH"
    return grade("origin", found, fix, len(set(places.values())) > 1 or None in places.values())
