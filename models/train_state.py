"""Everything that a training run is, in one safetensors file: read back, it goes on as if it had never stopped.

Weights, their average, the optimizer's moments, the random generator and the objective's own numbers are tensors;
settings and the place in the schedule are JSON in the file's metadata. Nothing in it is code.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.aside import aside
from models.checkpoint import Checkpoint
from models.compose import Batch
from models.config import ConfigError, ModelConfig
from models.recipe import Recipe
from models.validation import Validation

STATE = "state.safetensors"
FORMAT = "deltaspot-training-1"


class TrainingError(RuntimeError):
    """A run that cannot start, go on or be resumed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard to train. One step sees `streams * Recipe.segments` clips."""

    steps: int = 24_000
    streams: int = 20
    shards: int = 2
    """Parts of a step that are composed and judged at the same time, each on its own core."""
    warmup: int = 600
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.02
    movement: float = 0.05
    naming: float = 0.3
    """Weight of the second question, see `models.naming`."""
    average: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0
    report_every: int = 500

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Objective(Protocol):
    """What a stage minimises: a module whose parameters are learned along, and whose state is the run's."""

    stage: str

    def __call__(
        self,
        model: Any,  # noqa: ANN401 (what `network` makes)
        batch: Batch,
        schedule: Schedule,
        generator: torch.Generator,
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch, and figures for the log; called from several threads at once."""

    def network(self, config: ModelConfig) -> nn.Module:
        """What is trained, with random weights."""

    def keep(self, state: State, validation: Validation, out: Path) -> dict[str, dict[str, Any]]:
        """Write the averaged weights into a folder, and judge them: figures by operating point."""

    def follow(self, figures: dict[str, float], progress: float) -> None:
        """Take note of a step's figures, `progress` (0..1) of the way."""

    def parameters(self) -> Any:  # noqa: ANN401 (as `torch.nn.Module` has it)
        """What is learned besides the weights."""

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:  # noqa: ANN401
        """Inverse of `state_dict`."""


@dataclass
class State:
    """A run between two steps.

    All randomness comes from `generator`; `figures` are smoothed over steps; `taught` says by whom it is taught.
    """

    config: ModelConfig
    recipe: Recipe
    schedule: Schedule
    objective: Objective
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    step: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    taught: str | None = ""


def new_state(
    config: ModelConfig, recipe: Recipe, schedule: Schedule, objective: Objective, start: Checkpoint | None = None
) -> State:
    """The beginning of a run: random weights from the schedule's seed, or those of a checkpoint.

    Layers that the checkpoint folds otherwise begin anew, and so does the head where its labels are others.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        model = objective.network(config)
    if start:
        folds = zip(config.factors, start.config.factors, strict=True)
        anew = [f"blocks.{layer}." for layer, (mine, theirs) in enumerate(folds) if mine != theirs]
        anew += ["readout.head."] if config.labels != start.config.labels else []
        taken = {name: torch.tensor(a) for name, a in start.weights.items() if not name.startswith(tuple(anew))}
        model.load_state_dict(model.state_dict() | taken)
    optimizer = build_optimizer(model, objective, schedule)
    generator = torch.Generator().manual_seed(schedule.seed)
    return State(config, recipe, schedule, objective, model, copy.deepcopy(model), optimizer, generator)


def build_optimizer(model: nn.Module, objective: Objective, schedule: Schedule) -> torch.optim.Optimizer:
    """AdamW; only matrices decay, and the objective's parameters move at their own `pace`."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": schedule.weight_decay, "pace": 1.0},
        {"params": vectors, "weight_decay": 0.0, "pace": 1.0},
    ]
    if own := list(objective.parameters()):
        groups.append({"params": own, "weight_decay": 0.0, "pace": getattr(objective, "pace", 1.0)})
    return torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.98), fused=True)


def be_taught(state: State, names: Sequence[str]) -> None:
    """Note who has a say in a run's targets.

    Raises:
        TrainingError: if it was begun with others.
    """
    taught = ", ".join(names)
    if state.step and taught != state.taught and state.taught is not None:
        raise TrainingError(f"this run had {state.taught or 'no teacher'}, not {taught or 'none'}: name the same again")
    state.taught = taught


def how_made(state: State) -> dict[str, str]:
    """What the file of a run's weights says of the run."""
    made = {"stage": state.objective.stage, "step": str(state.step)}
    made |= {"taught": state.taught} if state.taught else {}
    made |= {name: json.dumps(asdict(part)) for name, part in (("recipe", state.recipe), ("schedule", state.schedule))}
    return made


def save_state(state: State, path: Path) -> None:
    """Write a run; a half-written file never takes the place of a whole one."""
    tensors = {"generator": state.generator.get_state()}
    for part in ("model", "average", "objective"):
        tensors |= {f"{part}.{name}": tensor for name, tensor in getattr(state, part).state_dict().items()}
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    settings = {
        "config": state.config.to_dict(),
        "recipe": asdict(state.recipe),
        "schedule": asdict(state.schedule),
        "stage": state.objective.stage,
        "step": state.step,
        "figures": state.figures,
        "taught": state.taught,
    }
    with aside(path) as partial:
        save_file(tensors, partial, {"format": FORMAT, **{name: json.dumps(value) for name, value in settings.items()}})


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a run: `stage` says which objective `load_state` wants.

    Raises:
        TrainingError: for a missing, broken or foreign file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError as error:
        raise TrainingError(f"nothing to resume at {path}; start without --resume") from error
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"{path} is no whole training state ({error}); start anew in another folder") from error
    if metadata.pop("format", None) != FORMAT:
        raise TrainingError(f"{path} is no {FORMAT} file; start anew in another folder")
    settings = {name: json.loads(value) for name, value in metadata.items()}
    try:
        settings["config"] = ModelConfig.from_dict(settings["config"])
        settings["recipe"] = Recipe.from_dict(settings["recipe"])
        settings["schedule"] = Schedule(**settings["schedule"])
    except (TypeError, ConfigError) as error:
        raise TrainingError(f"{path} was written by another version ({error}); start anew in another folder") from error
    return settings


def load_state(path: Path, objective: Objective) -> State:
    """Read a run back.

    Raises:
        TrainingError: for a missing, broken or foreign file, or one of another stage.
    """
    settings = read_settings(path)
    if settings["stage"] != objective.stage:
        raise TrainingError(f"{path} is of stage {settings['stage']!r}, not {objective.stage!r}")
    state = new_state(settings["config"], settings["recipe"], settings["schedule"], objective)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    state.generator.set_state(tensors.pop("generator"))
    for part in ("model", "average", "objective"):
        getattr(state, part).load_state_dict(_below(part, tensors))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below("optimizer", tensors).items():
        index, _, key = name.partition(".")
        moments.setdefault(int(index), {})[key] = tensor
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    state.step, state.figures = settings["step"], settings["figures"]
    state.taught = settings.get("taught")  # older runs do not say
    return state


def _below(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose names begin with `part`, without it."""
    return {name.removeprefix(f"{part}."): tensor for name, tensor in tensors.items() if name.startswith(f"{part}.")}
