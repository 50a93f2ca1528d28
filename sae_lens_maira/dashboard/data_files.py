"""The gallery's data files: scripts that a page can load from disk.

A page that is opened from disk may not fetch files, but may load scripts. So each file calls ``GALLERY.put(name,
value)`` with plain JSON:

=========================  ==========================================================================================
``data/index.js``          ``index``: titles and facts, and one column over all features per property
``data/hierarchy.js``      ``hierarchy``: the finer features inside each feature, and the share of each
``data/features/3.js``     ``features/3``: details of 64 features
``data/studies/17.js``     ``studies/17``: tokens, labels, images, and the strongest features at each token
``data/results.js``        ``results``: figures of features and tables, from the other verbs' results
``data/serving.js``        ``serving``: whether a server makes standard pages on demand
``images/17-frontal.webp`` an image
``pages/feature_3.html``   sae-dashboard's page
=========================  ==========================================================================================

Studies that may not be shown are not written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_lens_maira.dashboard.safety import to_script_json

INDEX = "data/index.js"
SERVING = "data/serving.js"


def put(path: Path, name: str, value: Any) -> None:
    """Write one data file at once: a page that is open reads either the old file or the new one."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(script(name, value), encoding="utf-8")
    unfinished.replace(path)


def script(name: str, value: Any) -> str:
    """The text of a data file."""
    return f"GALLERY.put({to_script_json(name)},{to_script_json(value)});\n"


def read(path: Path) -> Any:
    """The value in a data file."""
    arguments = path.read_text(encoding="utf-8").removeprefix("GALLERY.put(").rstrip().removesuffix(");")
    return json.loads(f"[{arguments}]")[1]
