"""Importing the package is silent and light."""

import subprocess
import sys


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_import_is_silent_and_leaves_the_heavy_libraries_alone():
    heavy = ("sae_lens", "sae_dashboard", "nnsight", "transformer_lens", "datasets", "matplotlib", "wandb")
    result = run(f"import sys, sae_lens_maira; print([name for name in {heavy} if name in sys.modules])")
    assert result.stdout == "[]\n"
    assert result.stderr == ""
