"""The training's options: their range, and the command line that is made of them."""

from dataclasses import fields

import pytest

from sae_lens_maira.errors import ConfigError
from sae_lens_maira.phantom.training.config import PhantomTrainingConfig
from sae_lens_maira.phantom.training.train import main


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"report_steps": 0}, "report_steps is 0; it must be positive"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"report_batch": 1}, "A batch is smaller than the number of processes"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhantomTrainingConfig(**change)


def test_every_option_is_on_the_command_line_with_its_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for option in fields(PhantomTrainingConfig):
        assert f"--{option.name} " in shown
    assert "images per step, over all processes. (type: int, default: 32)" in shown
