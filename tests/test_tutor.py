"""Tutors: what one believes is what its network says of the same streams, and half of every target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from models.checkpoint import Checkpoint, CheckpointError, save
from models.clip_cnn import WINDOW, ClipCNN, load_clip_cnn, save_clip_cnn
from models.clip_stage import TUTOR
from models.compose import Batch
from models.config import ModelConfig
from models.data import DataError
from models.folding import filled
from models.transformer import StreamingKWT
from models.tutor import TRUST, ClipTutor, StreamTutor, load_tutor, tutored

CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, labels=("_silence_", "_unknown_", "yes", "no"))


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    return Checkpoint(CONFIG, {name: tensor.numpy() for name, tensor in StreamingKWT(CONFIG).state_dict().items()})


@pytest.fixture
def network(checkpoint: Checkpoint) -> StreamingKWT:
    return filled(StreamingKWT(CONFIG), checkpoint)


@pytest.fixture
def tutor(checkpoint: Checkpoint) -> StreamTutor:
    return StreamTutor(checkpoint)


@pytest.fixture
def clip_tutor(tmp_path: Path) -> ClipTutor:
    torch.manual_seed(1)
    save_clip_cnn(ClipCNN(CONFIG), CONFIG, tmp_path / TUTOR, {})
    return ClipTutor(tmp_path / TUTOR)


@pytest.fixture
def batch() -> Batch:
    """Two streams of five tokens, all of them "no"."""
    frames = torch.randn(2, 5 * CONFIG.stride, CONFIG.frontend.bands)
    targets = torch.full((2, 5), 3)
    segments = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
    starts = torch.tensor([[0, 4], [0, 9]])
    return Batch(frames, targets, torch.ones(2, 5), targets, torch.eye(4)[targets], segments, starts)


def test_half_of_every_target_is_what_the_dense_network_says(
    tutor: StreamTutor, network: StreamingKWT, batch: Batch
) -> None:
    believed = tutored(batch, [tutor])
    says = network(batch.frames)[0].softmax(-1).detach()
    assert torch.allclose(believed.beliefs, (1 - TRUST) * batch.beliefs + TRUST * says, atol=1e-6)
    assert torch.allclose(believed.beliefs.sum(-1), torch.ones(2, 5))
    assert believed.frames is batch.frames
    assert believed.targets is batch.targets


def test_student_learns_and_the_tutor_does_not(tutor: StreamTutor, network: StreamingKWT, batch: Batch) -> None:
    believed = tutored(batch, [tutor])
    loss = torch.nn.functional.cross_entropy(network(batch.frames)[0].flatten(0, 1), believed.beliefs.flatten(0, 1))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(parameter.grad is None for parameter in tutor.network.parameters())


def test_every_token_is_told_what_the_clip_network_says_of_its_segment(clip_tutor: ClipTutor, batch: Batch) -> None:
    believed = tutored(batch, [clip_tutor])
    for stream, start in ((0, 4), (1, 9)):
        second = torch.full((1, WINDOW, CONFIG.frontend.bands), -1.0)  # silence, once the stream has ended
        rest = batch.frames[stream, start:]
        second[0, : len(rest)] = rest
        says = clip_tutor.network(second).softmax(-1).detach()
        told = believed.beliefs[stream, batch.segments[stream] == 1]
        wanted = torch.lerp(batch.beliefs[stream, -1:], says, TRUST).expand_as(told)
        torch.testing.assert_close(told, wanted, atol=0.02, rtol=0)  # products in half precision
    assert not torch.allclose(believed.beliefs[0, 0], believed.beliefs[0, 4], atol=1e-6)
    clip_tutor.check(replace(CONFIG, stride=2))
    with pytest.raises(DataError, match="its student's labels"):
        clip_tutor.check(replace(CONFIG, labels=("_silence_", "_unknown_", "yes", "up")))


def test_tutors_have_equal_shares(tutor: StreamTutor, clip_tutor: ClipTutor, batch: Batch) -> None:
    assert tutored(batch, []) is batch
    one, other = (tutored(batch, [t]).beliefs for t in (tutor, clip_tutor))
    torch.testing.assert_close(tutored(batch, [tutor, clip_tutor]).beliefs, (one + other) / 2)
    assert not torch.allclose(one, other)


def test_file_says_which_kind_of_tutor_it_holds(clip_tutor: ClipTutor, checkpoint: Checkpoint, tmp_path: Path) -> None:
    save(checkpoint, tmp_path / "ours")
    assert isinstance(load_tutor(tmp_path / "ours"), StreamTutor)
    again = load_tutor(tmp_path / TUTOR)
    assert isinstance(again, ClipTutor)
    assert again.fingerprint == clip_tutor.fingerprint
    for name, tensor in clip_tutor.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor), name
    with pytest.raises(DataError, match="no network of `deltaspot train --stage clip`"):
        load_clip_cnn(tmp_path / "ours")
    (tmp_path / "none").write_bytes(b"none")
    with pytest.raises(CheckpointError):
        load_tutor(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "value"), [("labels", ("_silence_", "_unknown_", "yes", "up")), ("stride", 2), ("kernel", 5)]
)
def test_student_that_hears_or_answers_otherwise_is_refused(tutor: StreamTutor, name: str, value: object) -> None:
    tutor.check(replace(CONFIG, layers=2, filters=()))
    with pytest.raises(DataError, match=f"its student's {name}"):
        tutor.check(replace(CONFIG, **{name: value}))
