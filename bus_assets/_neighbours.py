"""``resources`` and ``sensors`` are common names: make sure that the ones found are this project's own.

A foreign package of that name earlier on ``sys.path`` would fail later and elsewhere; it fails here, by name.
"""

import importlib.util
from pathlib import Path

_HOME = Path(__file__).resolve().parent.parent

for _name in ("resources", "sensors"):
    _spec = importlib.util.find_spec(_name)
    _found = Path(_spec.origin).resolve() if _spec and _spec.origin else None
    if _found is None or _found.parent.parent != _HOME:
        raise ImportError(
            f"bus_assets needs its own package '{_name}' from {_HOME / _name}, but '{_name}' is found at {_found or 'no place'}; "
            f"rename that package or put {_HOME} before it on sys.path"
        )
