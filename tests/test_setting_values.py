"""YAML from elsewhere: plain values, or one sentence that names the file."""

import time

import pytest

from sae_lens_maira.errors import ConfigError, UserError
from sae_lens_maira.setting_values import read_value, read_yaml
from sae_lens_maira.training.config import TrainConfig
from tests.damage import check_sentence, outcomes

CONFIG = """\
model: {name: phantom, dtype: float32}
source: {kind: phantom, n_studies: 400, seed: 1}
policy: {sections: [findings, indication]}
hook_name: blocks.2.hook_resid_post
context_size: 128
sae: {architecture: maira_matryoshka, d_sae: 256, k: 16, lr: 1e-3}
runner: {training_tokens: 100000, train_batch_size_tokens: 1024}
"""
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(12))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"sae: {'[' * 9000}", "it is nested too deeply"),
        (f"sae: {'{a: ' * 9000}", "it is nested too deeply"),
        (BOMB, r"aliases such as \*name are not read; write the value again"),
        ("a: &a [*a]", "aliases such as"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor for the tag"),
        ("a: !!int ''", "a value is not what its form or tag says"),
        ("a: 2024-13-45", "a value is not what its form or tag says"),
        ("a: !!timestamp x", "a value is not what its form or tag says"),
        ("a: \x1b[2J", "special characters are not allowed"),
        ("[a]: 1", "found unhashable key"),
        ("3", "holds no settings"),
    ],
)
def test_yaml_that_is_no_settings_is_one_sentence(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    started = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        read_yaml(tmp_path / "run.yaml")
    check_sentence(str(caught.value), "run.yaml")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("text", ["[" * 9000, "!!python/name:os.system", "&a [*a]", "!!int ''", "2024-13-45"])
def test_on_the_command_line_it_stays_text(text):
    assert read_value(text) == text


def test_a_kind_of_another_type_is_one_sentence():
    values = {
        "hook_name": "h",
        "context_size": 64,
        "sae": {"architecture": "topk", "d_sae": 8, "k": 2},
        "source": {"kind": ["phantom"]},
    }
    with pytest.raises(UserError, match=r"source\.kind .* is unknown; choose phantom"):
        TrainConfig.from_dict(values)


def test_damaged_configurations_end_as_settings_or_as_a_sentence(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    assert TrainConfig.from_dict(read_yaml(path)).context_size == 128

    def read(path):
        values = read_yaml(path)
        try:
            TrainConfig.from_dict(values).to_dict()
        except UserError as error:  # names the setting; the file was read
            raise ConfigError(f"{error} [{path.name}]") from error

    assert outcomes(read, path, seed=11, n=80)["sentence"] > 0
