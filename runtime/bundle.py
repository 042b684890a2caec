"""Opens a bundle: the folder with `manifest.json` and the ONNX graphs that it lists.

A stranger's bundle is checked before anything of it is run: the manifest strictly, every graph's sha256, and
that it keeps no data elsewhere. (Inputs and outputs are compared by the engine that loads them.) The folder
may be a symbolic link, the files in it must not be; other files in it are not read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from litemed.runtime import manifest as manifests
from litemed.runtime.errors import BundleError
from litemed.runtime.files import open_plain
from litemed.runtime.manifest import Graph, Manifest, parse_manifest

MANIFEST = "manifest.json"

DEFAULT = Path(__file__).with_name("model")  # the bundle that ships with litemed

# Of its manifest, and so of all of it. Whoever exports it again puts the new one here.
DEFAULT_SHA256 = "a02e42baf7b835240327bbd95d4bf62e7d3625d49a14bd7ab507e6457191f568"


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
        text = _read(folder / MANIFEST, manifests.MAX_BYTES)
        manifest = parse_manifest(text, str(folder / MANIFEST))
        graphs = {key: _verified(folder / graph.file, graph) for key, graph in manifest.graphs.items()}
        return cls(folder, manifest, hashlib.sha256(text).hexdigest(), graphs)

    @classmethod
    def default(cls) -> Bundle:
        """Open the model that ships with litemed, the light one, as `open` does; its name has its version.

        Raises BundleError if it is missing or was changed.
        """
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
