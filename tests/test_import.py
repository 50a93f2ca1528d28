"""Importing the package is silent and light, and registers with transformers and SAE-Lens in either order."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import sae_lens_maira
from tests.conftest import CHECKPOINT_PATH

ROOT = Path(__file__).parent.parent
HEAVY = (
    *("torch", "transformers", "sae_lens", "transformer_lens", "nnsight", "sae_dashboard", "datasets", "tokenizers"),
    *("PIL", "pandas", "scipy", "pyarrow", "matplotlib", "wandb"),
)
# Packages that are light, some of them until one of their names is used.
LIGHT = (
    *("activations", "cli.main", "dashboard", "dashboard.serve", "data", "hooked", "phantom", "rows", "share"),
    *("sources", "training", "training.config"),
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)


def heavy_after(module: str, path: Path = ROOT) -> str:
    """The heavy libraries that a module imports, as a list, and the output of the import."""
    result = run(
        f"import sys; sys.path.insert(0, {str(path)!r}); import {module}; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    return result.stdout + result.stderr


@pytest.mark.parametrize("module", ["sae_lens_maira", *(f"sae_lens_maira.{room}" for room in LIGHT)])
def test_import_is_silent_and_leaves_the_heavy_libraries_alone(module):
    assert heavy_after(module) == "[]\n"


def test_that_test_can_fail(tmp_path):
    (tmp_path / "weighty.py").write_text("import torch\n")
    (tmp_path / "chatty.py").write_text("print('hello')\n")
    assert heavy_after("weighty", tmp_path) == "['torch']\n"
    assert heavy_after("chatty", tmp_path) == "hello\n[]\n"


def test_time_of_the_import(record_property):
    code = "import time; start = time.perf_counter(); import sae_lens_maira; print(time.perf_counter() - start)"
    seconds = float(run(code).stdout)
    record_property("import_seconds", seconds)
    print(f"import sae_lens_maira: {seconds * 1000:.0f} ms")  # for information; machines differ  # noqa: T201


def test_every_name_of_the_face_is_there_and_documented():
    for name in sae_lens_maira.__all__:
        value = getattr(sae_lens_maira, name)
        assert value.__doc__, name
        assert not value.__doc__.startswith(f"{name}("), f"{name} has no docstring but the one dataclasses make"


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(AttributeError, match="module 'sae_lens_maira' has no attribute 'HookdMaira2'"):
        sae_lens_maira.HookdMaira2  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert set(sae_lens_maira.__all__) <= set(dir(sae_lens_maira))
    assert "Did you mean: 'HookedMaira2'" in run("import sae_lens_maira; sae_lens_maira.HookdMaira2").stderr


def packages_with_lazy_names() -> list[str]:
    files = [file for file in (ROOT / "sae_lens_maira").rglob("__init__.py") if "lazy_names(" in file.read_text()]
    return sorted(".".join(file.parent.relative_to(ROOT).parts) for file in files)


@pytest.mark.parametrize("package", packages_with_lazy_names())
def test_lazy_names_are_those_that_type_checkers_see(package):
    """Every name under ``if TYPE_CHECKING`` is in the table, and is the same object."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    table = next(node for branch in guarded.orelse for node in ast.walk(branch) if isinstance(node, ast.Dict))
    assert {ast.literal_eval(key) for key in table.keys if key is not None} == set(typed)
    module = importlib.import_module(package)
    assert set(typed) <= set(module.__all__)
    for name, home in typed.items():
        assert getattr(module, name) is getattr(importlib.import_module(str(home)), name)


REGISTERED = """
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
config = AutoConfig.from_pretrained({path!r})
print(type(config).__name__, type(AutoModelForImageTextToText.from_config(config)).__name__)
print(type(AutoProcessor.from_pretrained({path!r})).__name__)
""".format(path=str(CHECKPOINT_PATH))
ORDERS = {
    "ours first": "import sae_lens_maira",
    "transformers first": "from transformers import AutoModelForImageTextToText; import sae_lens_maira",
    "one of our modules first": "import sae_lens_maira.maira2.modeling",
    "looked for first": (
        "import importlib.util, sae_lens_maira; spec = importlib.util.find_spec('transformers'); "
        "assert spec.loader.get_filename('transformers') == spec.origin"
    ),
    "reloaded": (
        "import importlib, sae_lens_maira; importlib.reload(sae_lens_maira); import transformers; "
        "importlib.reload(sae_lens_maira); importlib.reload(transformers)"
    ),
    "SAE-Lens first": "import sae_lens, sae_lens_maira",
    "ours, then SAE-Lens": "import sae_lens_maira, sae_lens",
}


@pytest.mark.parametrize("order", ORDERS)
def test_transformers_knows_maira2_whatever_comes_first(order):
    result = run(ORDERS[order] + REGISTERED)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.split() == ["Maira2Config", "Maira2ForConditionalGeneration", "Maira2Processor"]


@pytest.mark.parametrize("order", [order for order in ORDERS if "SAE-Lens" in order])
def test_sae_lens_knows_the_matryoshka_variant_whatever_comes_first(order):
    look = "; from sae_lens.registry import get_sae_training_class as get; print(get('maira_matryoshka')[0].__name__)"
    assert run(ORDERS[order] + look).stdout == "MairaMatryoshkaTrainingSAE\n"


def test_transformers_itself_is_left_as_it_was():
    look = (
        "import transformers, importlib.resources, sys; "
        "print(type(transformers.__spec__.loader).__name__, type(transformers.__loader__).__name__); "
        "print(importlib.resources.files('transformers').joinpath('__init__.py').is_file(), 'sae_lens' in sys.modules)"
    )
    with_ours = run(f"import sae_lens_maira, {look.removeprefix('import ')}")
    assert with_ours.stdout.endswith("True False\n"), with_ours.stderr[-2000:]
    assert with_ours.stdout == run(look).stdout


def test_threads_that_import_both_at_once_do_not_stop_each_other(tmp_path):
    """One thread imports our package and waits for transformers; the other has imported transformers and registers."""
    (tmp_path / "events.py").write_text(
        "import threading\nours_begun, theirs_begun = threading.Event(), threading.Event()\n"
    )
    (tmp_path / "transformers.py").write_text(
        "import events, time\nevents.theirs_begun.set()\nevents.ours_begun.wait()\ntime.sleep(0.5)\n"
    )
    (tmp_path / "maira2.py").write_text(
        "import events\nevents.theirs_begun.wait()\nevents.ours_begun.set()\nimport transformers\ndone = True\n"
    )
    code = f"""
import sys, sae_lens_maira
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, {str(tmp_path)!r})
sae_lens_maira.__path__.insert(0, {str(tmp_path)!r})
with ThreadPoolExecutor(2) as pool:
    for future in [pool.submit(__import__, name) for name in ("transformers", "sae_lens_maira.maira2")]:
        future.result()
print(sys.modules["sae_lens_maira.maira2"].done)
"""
    result = run(code)
    assert result.stdout == "True\n", result.stderr[-2000:]


def test_a_spawned_process_unpickles_our_classes(tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        f"""
import multiprocessing, sae_lens_maira

def model_type(config):
    from transformers import AutoConfig
    return config.model_type, type(AutoConfig.from_pretrained({str(CHECKPOINT_PATH)!r})).__name__

if __name__ == "__main__":
    config = sae_lens_maira.maira2.Maira2Config.from_pretrained({str(CHECKPOINT_PATH)!r})
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(*pool.apply(model_type, (config,)))
"""
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.stdout.split() == ["maira2", "Maira2Config"], result.stderr[-2000:]


def test_a_library_that_fails_to_import_is_tried_again(tmp_path):
    """The hook waits until a library's own code has run to its end."""
    broken = tmp_path / "transformers.py"
    broken.write_text("raise ImportError('broken')\n")
    code = f"""
import sys, sae_lens_maira
sys.path.insert(0, {str(tmp_path)!r})
try:
    import transformers
except ImportError as error:
    print(error)
sys.path.pop(0)
sys.path_importer_cache.clear()
"""
    result = run(code + REGISTERED)
    assert result.stdout.split() == ["broken", "Maira2Config", "Maira2ForConditionalGeneration", "Maira2Processor"]
