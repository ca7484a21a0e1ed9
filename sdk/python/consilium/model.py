"""A model as `kubectl consilium model pull` writes it: a safetensors file, and beside it the release that it is of."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

#: Bytes of a full chunk; a model's digest is that of the table of its chunks.
CHUNK = 4 << 20
#: Longest header that is read.
MAX_HEADER = 16 << 20


class ModelError(ValueError):
    """A file that is not the model that it should be."""


@dataclass(frozen=True)
class Model:
    """A model and what the hub says of it."""

    #: The parameters by name, float32.
    tensors: dict[str, np.ndarray]
    #: The spec of the ModelRelease: study, round, config, evidence, attestation.
    release: dict[str, Any]
    #: The digest that names the model, `sha256:…`.
    digest: str

    @property
    def output(self) -> dict[str, Any] | None:
        """What the model answers: the study's `spec.output`, if it has one."""
        return self.release.get("output")


def open(path: str | PathLike[str]) -> Model:
    """Opens a model with the release beside it (`NAME.release.json`), and checks that it is the release's.

    The attestation is checked by `kubectl consilium model verify --hub-key`, not here.
    """
    path = Path(path)
    beside = path.with_suffix(".release.json")
    release = json.loads(beside.read_text(encoding="utf-8"))["spec"]
    found = digest(path)
    if found != release["model"]:
        raise ModelError(f"{path} is {found}, but {beside} is of {release['model']}: pull it again")
    return Model(load_file(path), release, found)


def digest(path: str | PathLike[str]) -> str:
    """The digest of the model in a safetensors file, computed anew: of its tensors' names and shapes, and of their
    numbers by chunks of 4 MiB."""
    with Path(path).open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > MAX_HEADER:
            raise ModelError(f"{path}: its header would have {length} bytes, and at most 16 MiB are read")
        header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
        if other := [name for name, tensor in tensors if tensor["dtype"] != "F32"]:
            raise ModelError(f"{path}: tensor {other[0]} is not F32, and a model that is handed out holds nothing else")
        chunks = []
        while chunk := file.read(CHUNK):
            chunks.append(f"sha256:{hashlib.sha256(chunk).hexdigest()}")
    shapes = [{"name": name, "shape": tensor["shape"]} for name, tensor in tensors]
    manifest = {"chunks": chunks, "format": "consilium-model/v1", "tensors": shapes}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
