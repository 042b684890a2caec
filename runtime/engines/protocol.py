"""What an inference engine does for the runtime, and what all engines share."""

import concurrent.futures
import ctypes
import dataclasses
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.errors import EngineError, LitemedError, in_short
from litemed.runtime.precision import DECODERS, MASK_ENCODER

BOXES_PER_CALL = 6
"""How many boxes the decoder graph is given at once.

Milliseconds a box and peak memory over the loaded decoder in MiB, for 2 / 4 / 6 / 8 / 16 boxes at once (2
threads, AMD EPYC 7003): OpenVINO 22.0 / 20.9 / 20.6 / 20.6 / 19.8 and 93 / 161 / 222 / 293 / 561, ONNX
Runtime (with its arena) 22.0 / 21.2 / 22.8 / 24.0 / 20.4 and 95 / 194 / 193 / 390 / 781.
"""

# What points are, as the published prompt encoder numbers them.
NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = range(-1, 4)

Float = NDArray[np.float32]
# Shapes of inputs by name, with None for a dynamic axis, and names of outputs.
Interface = tuple[Mapping[str, tuple[int | None, ...]], set[str]]


class Engine:
    """A bundle's encoder and decoder, loaded; subclasses say how a graph is loaded and run.

    Further decoders and the encoder of masks, where the bundle has some, are loaded when first needed.

    Attributes:
        name: the engine's name, as `open_engine` takes it; `title` the one for messages, `package` for pip.
        version: of the engine's package.
        choice: why it was chosen, and why in this precision, in one line; empty if it was asked for so.
        bf16: the roles whose graphs are to be computed in bf16.
        decoders: which of `litemed.runtime.precision.DECODERS` the bundle has.
    """

    name: str
    title: str
    package: str
    decoders: Collection[str] = DECODERS[:1]
    _further: Mapping[str, bytes] = {}  # what was not loaded yet, by the fields of `Precision`

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        precision: str,
        choice: str,
        cache: Cache | None,
        later: bool = False,
    ) -> None:
        """Begin to load encoder and decoder of a precision, each in a thread of its own; `later` in `ready`.

        Raises EngineError if the engine is missing, or does not compute in that precision.
        """
        self.threads, self.precision, self.choice, self.cache = threads, precision, choice, cache
        self._graphs = graphs = bundle.manifest.precisions[precision]
        self.bf16 = graphs.bf16
        self.version: str = self._guarded(self.prepare)
        self._unloaded: Bundle | None = bundle
        self._loaded: dict[str, Future[Any]] = {}
        self.decoders = graphs.decoders
        # Of the bundle no more is kept than what may be loaded yet.
        further = (*DECODERS[1:], MASK_ENCODER)
        self._further = {k: bundle.graphs[v] for k in further if (v := getattr(graphs, k)) is not None}
        self._bundle = bundle.released()
        if not later:
            self._load_graphs()

    def prepare(self) -> str:
        """Import the engine and return its version; refuse a precision that it does not compute in."""
        raise NotImplementedError

    def load(self, bundle: Bundle, role: str, key: str) -> tuple[Any, Interface]:
        """Return a graph, ready to run, with its inputs and outputs."""
        raise NotImplementedError

    def run(self, graph: Any, outputs: list[str], inputs: dict[str, Float]) -> list[Float]:
        """Return a graph's outputs in arrays of their own."""
        raise NotImplementedError

    def _load_graphs(self) -> None:
        """Begin to load encoder and decoder, unless that was done before."""
        if self._unloaded is not None:
            bundle, self._unloaded = self._unloaded, None
            graphs = self._graphs
            self._encoder, self._loaded["decoder"] = self._begin(
                bundle, encoder=graphs.encoder, decoder=graphs.decoder
            )

    def ready(self) -> None:
        """Return once all graphs that were begun are loaded, for which `encode` and `decode` wait themselves.

        Raises EngineError if the engine does not accept them, or they are not what their role asks for.
        """
        self._load_graphs()
        for graph in (self._encoder, *self._loaded.values()):
            graph.result()

    def load_decoder(self, name: str) -> None:
        """Begin to load one of `decoders`, unless that was begun before; `ready` waits for it.

        Raises EngineError if the bundle has none of that name.
        """
        if name not in self.decoders:
            option = name.replace("_", "-")
            raise EngineError(f"the bundle has no {name.replace('_', ' ')}; export it with --{option}")
        self._load_further(name, "decoder")

    def encode(self, image: Float) -> Float:
        """Return the embedding (1, 256, S/4, S/4) float32 of a network input (1, 3, S, S) float32 in [0, 1].

        Raises EngineError if the engine fails.
        """
        found = self._guarded(self.run, self._encoder.result(), ["image_embedding"], {"image": image})
        return np.asarray(found[0])

    def encode_mask(self, mask: Float) -> Float:
        """Return what a mask prompt (S, S) float32, in logits, adds to the embedding of its image.

        Raises EngineError if the engine fails, or the bundle takes no masks.
        """
        self._load_further(MASK_ENCODER, MASK_ENCODER)
        if MASK_ENCODER not in self._loaded:
            raise EngineError("the bundle takes no masks as prompts; export it again")
        graph, inputs = self._loaded[MASK_ENCODER].result(), {"mask": mask[np.newaxis, np.newaxis]}
        return np.asarray(self._guarded(self.run, graph, ["mask_embedding"], inputs)[0])

    def rest_encoder(self) -> None:
        """Give the encoder's working memory back, if the engine can; the next `encode` takes it anew."""

    def decode(self, embedding: Float, boxes: Float, decoder: str = "decoder") -> tuple[Float, Float]:
        """Return logits (N, S, S) and predicted IoU (N,), float32, of N >= 1 boxes on one embedding.

        `boxes` is float32 (N, 4), x0 y0 x1 y1 in pixels of the network's input. Otherwise as `decode_points`.
        """
        corners = np.full((len(boxes), 2), [TOP_LEFT, BOTTOM_RIGHT], np.float32)
        return self.decode_points(embedding, boxes.reshape(-1, 2, 2), corners, decoder)

    def decode_points(
        self, embedding: Float, points: Float, labels: Float, decoder: str = "decoder"
    ) -> tuple[Float, Float]:
        """Return logits (N, S, S) and predicted IoU (N,), float32, of N >= 1 prompts on one embedding.

        `points` is float32 (N, P, 2), x y in pixels of the network's input, `labels` float32 (N, P) what each
        is, from `NOT_A_POINT` to `BOTTOM_RIGHT`; the graph is given `BOXES_PER_CALL` prompts at a time.
        `decoder` is one of `decoders`, which is loaded first if need be.
        Raises EngineError if the engine fails, or returns other shapes, or there is no such graph.
        """
        self.load_decoder(decoder)
        graph = self._loaded[decoder].result()
        count, size = len(points), 4 * embedding.shape[-1]
        parts = []
        for start in range(0, count, BOXES_PER_CALL):
            some = slice(start, start + BOXES_PER_CALL)
            inputs = {"image_embedding": embedding, "points": points[some], "labels": labels[some]}
            found = self._guarded(self.run, graph, ["logits", "iou"], inputs)
            wanted = len(points[some])
            if (shapes := [one.shape for one in found]) != [(wanted, size, size), (wanted,)]:
                raise EngineError(f"the decoder returned arrays of {shapes}; export the bundle again")
            parts.append(found)
        if len(parts) == 1:
            return parts[0][0], parts[0][1]
        logits, iou = map(np.concatenate, zip(*parts, strict=True))
        return logits, iou

    def _load_further(self, name: str, role: str) -> None:
        """Begin to load a graph that is not always needed, unless that was begun before or there is none."""
        if name in self._further:
            key = getattr(self._graphs, name)
            bundle = dataclasses.replace(self._bundle, graphs={key: self._further[name]})
            self._further = {k: graph for k, graph in self._further.items() if k != name}
            (self._loaded[name],) = self._begin(bundle, **{role: key})

    def _begin(self, bundle: Bundle, **keys: str) -> list[Future[Any]]:
        """Begin to load graphs, whose keys are given by role."""
        pool = ThreadPoolExecutor(2, thread_name_prefix="litemed-load")
        graphs = [pool.submit(self._guarded, self._load, bundle, role, key) for role, key in keys.items()]
        pool.submit(_tidy, graphs)
        pool.shutdown(wait=False)
        return graphs

    def _load(self, bundle: Bundle, role: str, key: str) -> Any:
        """Return a graph that has the interface of its role."""
        graph, found = self.load(bundle, role, key)
        size, side = bundle.manifest.input_size, bundle.manifest.input_size // 4
        wanted: Interface = {"image": (1, 3, size, size)}, {"image_embedding"}
        if role == "decoder":
            prompts = {"points": (None, None, 2), "labels": (None, None)}
            wanted = {"image_embedding": (1, 256, side, side), **prompts}, {"logits", "iou"}
        elif role == MASK_ENCODER:
            wanted = {"mask": (1, 1, size, size)}, {"mask_embedding"}
        if found != wanted:
            file = bundle.path / bundle.manifest.graphs[key].file
            raise EngineError(f"{file}: is no {role}, but of {str(found)[:300]!a}; export the bundle again")
        return graph

    def _guarded(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do something of the engine's, whose exceptions have no base class of their own."""
        try:
            return work(*arguments)
        except LitemedError:
            raise
        except ImportError as error:
            where = "in the checkout: " * self.package.startswith("'.")
            advice = f"{where}pip install {self.package}"
            raise EngineError(f"{self.title} cannot be loaded ({error}); {advice}") from error
        except Exception as error:
            raise EngineError(f"{self.title} failed: {in_short(error)}") from error


def _tidy(graphs: list[Future[Any]]) -> None:
    """Once graphs are loaded, let glibc return what loading has used, some 40 MiB, to the system."""
    concurrent.futures.wait(graphs)
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        return  # another C library; the last as on Windows
