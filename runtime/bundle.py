"""Opens a bundle: the folder with `manifest.json` and the ONNX graphs that it lists.

A stranger's bundle is checked before anything of it is run: the manifest strictly, every graph's sha256, and
that it keeps no data elsewhere. (Inputs and outputs are compared by the engine that loads them.) The folder
may be a symbolic link, the files in it must not be; other files in it are not read. A change of the manifest
that a reader must know of raises its schema.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from litemed.runtime.errors import BundleError
from litemed.runtime.files import open_plain
from litemed.runtime.precision import REFERENCE, Precision
from litemed.runtime.strict_json import Record, parse_json, read, shown

MANIFEST = "manifest.json"
SCHEMA = 5  # the only one that is read and written
MAX_MANIFEST_BYTES = 1 << 20
MAX_GRAPH_BYTES = 1 << 29  # the light encoder takes 52 MB in float32

PREPROCESSING = {
    "channels": 3,
    "resize": "longest side, area",
    "normalise": "min-max of the resized image",
    "pad": "zeros right and bottom",
}
"""What `litemed.runtime.preprocess` does, in the manifest's words; nothing else is accepted."""

DEFAULT = Path(__file__).with_name("model")  # the bundle that ships with litemed

# Of its manifest, and so of all of it. Whoever exports it again puts the new one here.
DEFAULT_SHA256 = "5d08404d165a7092c31a7ff3fee7d3323c8dd50ee962774f05e2d676ca458ef0"

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}\.onnx")


@dataclass(frozen=True)
class Input(Record):
    """The network's input: the side of its square in pixels, and `PREPROCESSING`."""

    size: int
    channels: int
    resize: str
    normalise: str
    pad: str

    def check(self) -> None:
        """Refuse what this runtime does not do."""
        if self.size not in range(64, 1025, 64):
            raise ValueError(f"size {self.size} is not a multiple of 64 from 64 to 1024")
        for key, ours in PREPROCESSING.items():
            if (found := getattr(self, key)) != ours:
                raise ValueError(f"{key} is {shown(found)}; this runtime does {ours!r} only")


@dataclass(frozen=True)
class Graph(Record):
    """One graph: its file in the bundle, that file's sha256 and size in bytes, and its operator set."""

    file: str
    sha256: str
    bytes: int
    opset: int
    further_keys = True

    def check(self) -> None:
        """Refuse a file that lies elsewhere or is too large."""
        if not _FILE_NAME.fullmatch(self.file):
            raise ValueError(f"file {shown(self.file)} is not a plain file name ending in .onnx")
        if not 0 < self.bytes <= MAX_GRAPH_BYTES:
            raise ValueError(f"{self.bytes} bytes are not between 1 and {MAX_GRAPH_BYTES}")


@dataclass(frozen=True)
class Weights(Record):
    """Where the weights came from; `trained` is False for random ones, whose masks mean nothing.

    `loose_decoder` and `tile_decoder` say it of those decoders, None where there is none.
    """

    file: str
    sha256: str
    layout: str
    encoder: str
    trained: bool
    lora: object
    loose_decoder: object = None
    tile_decoder: object = None
    further_keys = True


@dataclass(frozen=True)
class Manifest(Record):
    """A checked manifest.

    `litemed` is the version that wrote it, `created` the time in ISO 8601; `graphs` by key, `precisions` by
    name ("float32" always among them). What an `object` is may be any JSON, for people to read.
    """

    schema: int
    name: str
    litemed: str
    created: str
    input: Input
    graphs: Mapping[str, Graph]
    precisions: Mapping[str, Precision]
    weights: Weights
    parity: object
    tools: object

    @property
    def input_size(self) -> int:
        """The side S of the network's square input in pixels."""
        return self.input.size

    def check(self) -> None:
        """Check that all precisions are known and have their graphs."""
        if REFERENCE not in self.precisions:
            raise ValueError(f"precisions: there is no {REFERENCE}; export the bundle again")
        for name, precision in self.precisions.items():
            precision.check_as(name)
            for key in precision.graphs:
                if key not in self.graphs:
                    raise ValueError(f"precision {name!r} needs graph {shown(key)}, which is not there")


@dataclass(frozen=True)
class Bundle:
    """A bundle all of whose files were checked; made by `Bundle.open`.

    `graphs` are the files' bytes by key: what is run is what was verified. `digest` is the sha256 of the
    manifest in hexadecimal; as the manifest holds the graphs' hashes, it stands for the whole bundle.
    """

    path: Path
    manifest: Manifest
    digest: str
    graphs: Mapping[str, bytes] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and check a bundle folder; it keeps the graphs' bytes until `released`.

        Raises BundleError, one line that names the file, for whatever is missing, damaged or does not fit.
        """
        folder = Path(path)
        text = _read(folder / MANIFEST, MAX_MANIFEST_BYTES)
        manifest = _parse(text, str(folder / MANIFEST))
        graphs = {key: _verified(folder / graph.file, graph) for key, graph in manifest.graphs.items()}
        return cls(folder, manifest, hashlib.sha256(text).hexdigest(), graphs)

    @classmethod
    def default(cls) -> Bundle:
        """Open the model that ships with litemed, the light one, as `open` does; its name has its version."""
        try:
            bundle = cls.open(DEFAULT)
            if bundle.digest != DEFAULT_SHA256:
                raise BundleError(f"{DEFAULT / MANIFEST}: its sha256 is not that of the model that ships")
        except BundleError as error:
            fault = str(error).split("; ")[0]  # what else a message advises is for bundles of one's own
            raise BundleError(f"{fault}; install litemed again") from error
        return bundle

    @property
    def name(self) -> str:
        """The name that the manifest gives."""
        return self.manifest.name

    def released(self) -> Bundle:
        """Return the same bundle without its graphs, for keeping once the engine has them."""
        return dataclasses.replace(self, graphs={})


def _parse(data: bytes, source: str) -> Manifest:
    try:
        content = parse_json(data.decode())
    except ValueError as error:
        raise BundleError(f"{source}: is not sound JSON ({error}); export the bundle again") from None
    if isinstance(content, dict) and (schema := content.get("schema", SCHEMA)) != SCHEMA:
        raise BundleError(f"{source}: is of schema {shown(schema)}, not {SCHEMA}; export again")
    manifest: Manifest = read(Manifest, content, source)
    return manifest


def _verified(path: Path, graph: Graph) -> bytes:
    """Return a graph's bytes after checking them against the manifest."""
    data = _read(path, graph.bytes)
    if len(data) != graph.bytes or hashlib.sha256(data).hexdigest() != graph.sha256:
        raise BundleError(f"{path}: its size or sha256 is not that of the manifest; copy the bundle again")
    # ONNX's first field is its version; there are engines that guess at other formats.
    if not data.startswith(b"\x08"):
        raise BundleError(f"{path}: is not an ONNX file; export it again")
    # A tensor whose data lie in another file, wherever it stands in the graph, names that file by this key.
    if b"location" in data:
        raise BundleError(f"{path}: may keep data in another file; export it in one piece")
    return data


def _read(path: Path, limit: int) -> bytes:
    """Return a plain file of at most `limit` bytes."""
    try:
        with open_plain(path) as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise BundleError(f"{path}: is missing; name the folder that litemed-export wrote") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}; name a folder of litemed-export") from None
    if len(data) > limit:
        raise BundleError(f"{path}: has more than the {limit} bytes expected; copy the bundle again")
    return data
