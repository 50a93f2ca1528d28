"""``python -m benchmarks [name ...]``: run all benchmarks, or those named."""

import importlib
import pkgutil
import sys
from pathlib import Path


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))
    known = [name for name in names if not name.startswith("_")]
    chosen = sys.argv[1:] or known
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        sys.exit(f"No benchmark named {', '.join(unknown)}; there are {', '.join(known)}.")
    for name in chosen:
        print(f"\n## {name}", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
