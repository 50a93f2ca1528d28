"""Effects on the next token against the plain model, edited with a PyTorch hook."""

import numpy as np
import pytest
import torch

from sae_lens_maira.attribution.next_tokens import ERROR_NODE, next_effects, node_parts, summarize_next
from sae_lens_maira.maira2 import FindingsPrompt
from tests.plain_maira2 import first


def plain_log_probabilities(model, study, change):
    """Log probabilities after a prompt, with the second layer's output changed at the last token."""
    inputs = model.processor(
        [FindingsPrompt(study.frontal, None, None, study.indication, study.technique, study.comparison)]
    )
    seen = []

    def hook(_module, _args, output):
        hidden = first(output).clone()
        seen.append(hidden[0, -1].clone())
        hidden[0, -1] = change(hidden[0, -1])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.maira2.model.language_model.layers[1].register_forward_hook(hook)
    with torch.no_grad():
        logits = model.maira2(**inputs).logits[0, -1]
    handle.remove()
    return logits.log_softmax(-1), seen[0]


@pytest.fixture(scope="module")
def effects(reader, studies):
    return next_effects(reader, studies[1])


@torch.no_grad()
def test_exact_effects_are_the_plain_models(model, reader, studies, effects):
    sae, study = reader.sae, studies[1]
    plain, hidden = plain_log_probabilities(model, study, lambda value: value)
    activations = sae.encode(hidden[None])[0]
    error = hidden - sae.decode(activations[None])[0]
    assert set(effects["nodes"]) == {*activations.nonzero()[:, 0].tolist(), ERROR_NODE}
    assert effects["nodes"][-1] == ERROR_NODE
    for row in (0, 1, len(effects["nodes"]) - 1):
        node = effects["nodes"][row]
        part = error if node == ERROR_NODE else activations[node] * sae.W_dec[node]
        without, _ = plain_log_probabilities(model, study, lambda value, part=part: value - part)
        expected = (plain - without)[effects["tokens"]]
        np.testing.assert_allclose(effects["exact"][row], expected, rtol=1e-2, atol=2e-4)


def test_estimates_are_gradients_times_parts(model, reader, studies, effects):
    """Central differences of the plain model's log probabilities along each node's part."""
    _, hidden = plain_log_probabilities(model, studies[1], lambda value: value)
    nodes, parts = node_parts(reader, hidden)
    assert nodes == effects["nodes"]
    step = 1e-2
    for row in (0, len(nodes) - 1):
        ends = [
            plain_log_probabilities(model, studies[1], lambda value, sign=sign: value + sign * step * parts[row])[0]  # noqa: B023
            for sign in (1, -1)
        ]
        expected = ((ends[0] - ends[1]) / (2 * step))[effects["tokens"]]
        np.testing.assert_allclose(effects["estimated"][row], expected, rtol=5e-2, atol=5e-3)


def test_the_parts_of_a_residual_sum_to_it(reader, model, studies):
    _, hidden = plain_log_probabilities(model, studies[1], lambda value: value)
    _, parts = node_parts(reader, hidden)
    torch.testing.assert_close(parts.sum(dim=0) + reader.sae.b_dec.detach(), hidden, rtol=1e-4, atol=1e-4)


def test_agreement_is_the_correlation_of_all_effects(effects):
    exact, estimated = np.array(effects["exact"]), np.array(effects["estimated"])
    expected = np.corrcoef(exact.ravel(), estimated.ravel())[0, 1]
    assert effects["agreement"] == pytest.approx(expected, abs=1e-3)


def test_means_are_over_the_studies_in_which_a_node_fires():
    units = [
        {"nodes": [3, -1], "tokens": [7, 8], "exact": [[1.0, -4.0], [0.5, 0.0]], "estimated": [[1.0, 2.0], [0.0, 0.0]]},
        {"nodes": [3], "tokens": [7, 9], "exact": [[2.0, 0.1]], "estimated": [[3.0, 0.0]]},
    ]
    assert summarize_next(units, 2) == [
        (-1, 1, 7, 0.5, 0.0),
        (-1, 1, 8, 0.0, 0.0),
        (3, 2, 8, -2.0, 1.0),
        (3, 2, 7, 1.5, 2.0),
    ]
