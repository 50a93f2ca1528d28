"""Makes the models that settings name, with privacy checked before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sae_lens_maira.data.study import Study
from sae_lens_maira.interpret.answers import Answers, Price
from sae_lens_maira.interpret.chat import Chat
from sae_lens_maira.interpret.judges import LanguageJudge, TruthJudge
from sae_lens_maira.interpret.local_model import LocalModel
from sae_lens_maira.interpret.privacy import check_private_text
from sae_lens_maira.interpret.run import Models
from sae_lens_maira.interpret.scoring import JudgeUse
from sae_lens_maira.interpret.server import ChatServer
from sae_lens_maira.interpret.settings import InterpretSettings, LocalConfig, ServerConfig


def make_models(
    settings: InterpretSettings,
    studies: Sequence[Study],
    folder: Path,
    *,
    dry_run: bool = False,
    show_progress: bool = True,
) -> Models:
    """The explainer and the judge.

    Args:
        settings: name them.
        studies: whose text and images they may be shown.
        folder: of the result, which also holds the answers.
        dry_run: ask nothing.
        show_progress: whether to show progress bars.

    Raises:
        InterpretError: private studies would leave this machine, or a server or model is not there.
    """
    for config in (settings.judge, settings.explainer):
        if isinstance(config, ServerConfig):
            check_private_text(config.url, (study.shareable for study in studies), config.private_host)

    def answers(config: ServerConfig | LocalConfig) -> Answers:
        is_server = isinstance(config, ServerConfig)
        price = Price(
            config.price_prompt if is_server else 0.0,
            config.price_completion if is_server else 0.0,
            settings.most_money,
            settings.most_requests,
        )
        concurrency = config.concurrency if is_server else 1
        return Answers(
            make_chat(config),
            folder / "answers",
            concurrency=concurrency,
            price=price,
            dry_run=dry_run,
            show_progress=show_progress,
        )

    explainer = answers(settings.explainer) if isinstance(settings.explainer, (ServerConfig, LocalConfig)) else None
    explainer_sees = isinstance(settings.explainer, ServerConfig) and settings.explainer.sees
    if not isinstance(settings.judge, (ServerConfig, LocalConfig)):
        return Models(JudgeUse(TruthJudge(())), None, explainer, explainer_sees)
    same = settings.judge == settings.explainer
    judge = explainer if same and explainer is not None else answers(settings.judge)
    max_tokens = settings.judge.max_tokens if isinstance(settings.judge, ServerConfig) else 1
    sees = isinstance(settings.judge, ServerConfig) and settings.judge.sees
    return Models(JudgeUse(LanguageJudge(judge, max_tokens=max_tokens), sees=sees), judge, explainer, explainer_sees)


def make_chat(config: ServerConfig | LocalConfig) -> Chat:
    """The language model that settings name."""
    if isinstance(config, LocalConfig):
        return LocalModel(config.path, config.device)
    return ChatServer(
        config.url, config.model, api_key=config.api_key, timeout=config.timeout, attempts=config.attempts
    )
