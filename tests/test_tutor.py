"""The tutor: what it believes is what its dense network says on the same streams, and half of every target."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.checkpoint import Checkpoint
from models.compose import Batch
from models.config import ModelConfig
from models.data import DataError
from models.folding import filled
from models.transformer import StreamingKWT
from models.tutor import TRUST, Tutor

CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, labels=("_silence_", "_unknown_", "yes", "no"))


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(CONFIG, {name: tensor.numpy() for name, tensor in StreamingKWT(CONFIG).state_dict().items()})


@pytest.fixture
def network(checkpoint: Checkpoint) -> StreamingKWT:
    return filled(StreamingKWT(CONFIG), checkpoint)


@pytest.fixture
def tutor(checkpoint: Checkpoint) -> Tutor:
    return Tutor(checkpoint)


@pytest.fixture
def batch() -> Batch:
    """Two streams of five tokens, all of them "no"."""
    frames = torch.randn(2, 5 * CONFIG.stride, CONFIG.frontend.bands)
    targets = torch.full((2, 5), 3)
    return Batch(frames, targets, torch.ones(2, 5), targets, torch.eye(4)[targets])


def test_half_of_every_target_is_what_the_dense_network_says(tutor: Tutor, network: StreamingKWT, batch: Batch) -> None:
    believed = tutor.believed(batch)
    says = network(batch.frames)[0].softmax(-1).detach()
    assert torch.allclose(believed.beliefs, (1 - TRUST) * batch.beliefs + TRUST * says, atol=1e-6)
    assert torch.allclose(believed.beliefs.sum(-1), torch.ones(2, 5))
    assert believed.frames is batch.frames
    assert believed.targets is batch.targets


def test_student_learns_and_the_tutor_does_not(tutor: Tutor, network: StreamingKWT, batch: Batch) -> None:
    believed = tutor.believed(batch)
    loss = torch.nn.functional.cross_entropy(network(batch.frames)[0].flatten(0, 1), believed.beliefs.flatten(0, 1))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in tutor.network.parameters())


@pytest.mark.parametrize(
    ("name", "value"), [("labels", ("_silence_", "_unknown_", "yes", "up")), ("stride", 2), ("kernel", 5)]
)
def test_student_that_hears_or_answers_otherwise_is_refused(tutor: Tutor, name: str, value: object) -> None:
    tutor.check(replace(CONFIG, layers=2, filters=()))
    with pytest.raises(DataError, match=f"its student's {name}"):
        tutor.check(replace(CONFIG, **{name: value}))
