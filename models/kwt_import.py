"""Stock Keyword Transformer from tflite: the constants of the published file, under our names.

Every weight and every front-end constant is a tensor of the file, named as in Keras. Layer i's four attention
matrices are `dense_{6i+1}` .. `dense_{6i+4}`, its feed-forward `dense_{6i+5}` and `dense_{6i+6}`; the head is
the next one. The shape follows from the tensors; only the number of heads does not, and is one per 64 channels
in all published sizes. Needs the optional `litert` extra.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.config import LABELS
from models.features import Array
from models.kwt_weights import FULL_SCALE, KWTConfig, KWTFileError, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.evaluate import LabelledClips
    from models.kwt_weights import Weights

HEAD_CHANNELS = 64
FRONT_END = {
    "window": "windowing/mul/y",
    "cosine": "magnitude_rdf_tmel/MatMul",
    "sine": "magnitude_rdf_tmel/MatMul_1",
    "mel": "magnitude_rdf_tmel/MatMul_2",
    "dct": "dct/MatMul",
    "offset": "normalizer/sub/y",
    "scale": "normalizer/truediv;speech_features/normalizer/truediv/y",
}


def interpreter(path: Path) -> Any:  # noqa: ANN401 - untyped package
    """The file in LiteRT, one thread, ready to run.

    Raises:
        ModuleNotFoundError: without the `litert` extra.
        KWTFileError: for a file LiteRT cannot read.
    """
    from ai_edge_litert.interpreter import Interpreter

    try:
        runtime = Interpreter(str(path), num_threads=1)
        runtime.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise KWTFileError(f"cannot read {path}: {error}") from error
    return runtime


def reference(path: Path) -> Callable[[Array], Array]:
    """The published network itself, run by LiteRT: int16-valued clip (S,) -> logits (K,)."""
    runtime = interpreter(path)
    source, sink = runtime.get_input_details()[0]["index"], runtime.get_output_details()[0]["index"]

    def judge(samples: Array) -> Array:
        runtime.set_tensor(source, (samples / FULL_SCALE).astype(np.float32)[None])
        runtime.invoke()
        return np.array(runtime.get_tensor(sink)[0])

    return judge


def compare(path: Path, config: KWTConfig, weights: Weights, clips: LabelledClips) -> dict[str, float]:
    """What an import is worth: accuracy of the published file, and how far our logits are from its own, at most."""
    import torch

    from models.kwt import KWT
    from models.kwt_clip import ClipNetwork

    judge, network = reference(path), ClipNetwork(config, weights)
    published = np.array([judge(clip) for clip in clips.samples])
    plain = np.array([network.logits(clip) for clip in clips.samples])
    model = KWT(config, weights)
    with torch.inference_mode():
        parts = torch.from_numpy(np.stack(clips.samples)).split(32)
        ours = torch.cat([model(part) for part in parts]).numpy()
    return {
        "clips": len(published),
        "accuracy": float((published.argmax(axis=1) == clips.targets).mean()),
        "logits_off_torch": float(np.abs(ours - published).max()),
        "logits_off_numpy": float(np.abs(plain - published).max()),
    }


def read_stock(path: Path) -> tuple[KWTConfig, dict[str, Array]]:
    """A stock network from tflite, or from our own format.

    Raises:
        KWTFileError: for a file that is none.
    """
    return import_tflite(path) if path.suffix == ".tflite" else load(path)


def import_tflite(path: Path) -> tuple[KWTConfig, dict[str, Array]]:
    """Read a published Keyword Transformer.

    Raises:
        KWTFileError: for a file that is none, naming the tensor that was looked for.
    """
    runtime = interpreter(path)
    index = {detail["name"]: detail["index"] for detail in reversed(runtime.get_tensor_details())}

    def tensor(name: str) -> Array:
        if name not in index:
            raise KWTFileError(f"{path} is no Keyword Transformer: it has no tensor {name}")
        return np.array(runtime.get_tensor(index[name]), dtype=np.float32)

    named = {f"frontend.{ours}": tensor(f"speech_features/{theirs}") for ours, theirs in FRONT_END.items()}
    named |= {
        "stem.weight": tensor("kws_transformer/dense/Tensordot/MatMul"),
        "stem.bias": tensor("kws_transformer/dense/bias"),
        "class_token": tensor("class_emb").ravel(),
        "positions": tensor("pos_emb")[0],
    }
    layers = sum("/multi_head_self_attention" in n and n.endswith("/bias") and ";" not in n for n in index)
    for i in range(layers):
        named |= {f"blocks.{i}.{name}": value for name, value in _block(i, tensor).items()}
    head = f"sequential_{layers}/dense_{6 * layers + 1}"
    named |= {"head.weight": tensor(f"{head}/MatMul"), "head.bias": tensor(f"{head}/bias")}
    return _config(named, layers), named


def _block(i: int, tensor: Callable[[str], Array]) -> dict[str, Array]:
    """Tensors of layer i."""
    suffix = f"_{i}" if i else ""
    block = f"kws_transformer/transformer_block{suffix}"
    attention, feed = f"{block}/multi_head_self_attention{suffix}", f"{block}/sequential{suffix}"
    query, key, value, out, up, down = (f"dense_{6 * i + n}" for n in range(1, 7))
    projections = [tensor(f"{attention}/{name}/Tensordot/MatMul") for name in (query, key, value)]
    found = {
        "qkv.weight": np.concatenate(projections),
        "out.weight": tensor(f"{attention}/{out}/Tensordot/MatMul"),
        "out.bias": tensor(f"{attention}/{out}/bias"),
        "up.weight": tensor(f"{feed}/{up}/Tensordot/MatMul"),
        "up.bias": tensor(f"{feed}/{up}/bias"),
        "down.weight": tensor(f"{feed}/{down}/Tensordot/MatMul"),
        "down.bias": tensor(f"{feed}/{down}/bias"),
    }
    for norm, number in (("norm1", 2 * i), ("norm2", 2 * i + 1)):
        name = f"{block}/layer_normalization" + (f"_{number}" if number else "")
        found |= {f"{norm}.weight": tensor(f"{name}/gamma"), f"{norm}.bias": tensor(f"{name}/beta")}
    return found


def _config(weights: Mapping[str, Array], layers: int) -> KWTConfig:
    """The shape that the tensors have."""
    channels, coefficients = weights["stem.weight"].shape
    return KWTConfig(
        labels=LABELS,
        window=len(weights["frontend.window"]),
        bins=weights["frontend.mel"].shape[1],
        bands=weights["frontend.mel"].shape[0],
        coefficients=coefficients,
        channels=channels,
        layers=layers,
        heads=channels // HEAD_CHANNELS,
        hidden=len(weights["blocks.0.up.bias"]),
    )
