"""What an inference engine does for the runtime, and what all engines share."""

import concurrent.futures
import ctypes
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from litemed.runtime.bundle import Bundle
from litemed.runtime.engines.cache import Cache
from litemed.runtime.errors import EngineError, LitemedError, in_short

BOXES_PER_CALL = 6
"""How many boxes the decoder graph is given at once.

Milliseconds a box and peak memory over the loaded decoder in MiB, for 2 / 4 / 6 / 8 / 16 boxes at once (2
threads, AMD EPYC 7003): OpenVINO 22.0 / 20.9 / 20.6 / 20.6 / 19.8 and 93 / 161 / 222 / 293 / 561, ONNX
Runtime (with its arena) 22.0 / 21.2 / 22.8 / 24.0 / 20.4 and 95 / 194 / 193 / 390 / 781.
"""

Float = NDArray[np.float32]
# Shapes of inputs by name, with None for a dynamic axis, and names of outputs.
Interface = tuple[Mapping[str, tuple[int | None, ...]], set[str]]


class Engine:
    """A bundle's encoder and decoder, loaded; subclasses say how a graph is loaded and run.

    A decoder for loose boxes, where the bundle has one, is loaded when it is first needed.

    Attributes:
        name: the engine's name, as `open_engine` takes it; `title` the one for messages, `package` for pip.
        version: of the engine's package.
        choice: why it was chosen, and why in this precision, in one line; empty if it was asked for so.
        bf16: the roles whose graphs are to be computed in bf16.
        has_loose_decoder: whether the bundle has a decoder for loose boxes.
    """

    name: str
    title: str
    package: str
    has_loose_decoder = False

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
        graphs = bundle.manifest.precisions[precision]
        self.bf16 = graphs.bf16
        self.version: str = self._guarded(self.prepare)
        self._unloaded: Bundle | None = bundle
        self._decoders: dict[bool, Future[Any]] = {}  # under True that for loose boxes
        if not later:
            self._load_graphs()
        if (key := graphs.loose_decoder) is not None:
            self.has_loose_decoder, self._loose_key = True, key
            self._bundle = dataclasses.replace(bundle, graphs={key: bundle.graphs[key]})  # no more is kept

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
            graphs = bundle.manifest.precisions[self.precision]
            self._encoder, self._decoders[False] = self._begin(
                bundle, encoder=graphs.encoder, decoder=graphs.decoder
            )

    def ready(self) -> None:
        """Return once all graphs that were begun are loaded, for which `encode` and `decode` wait themselves.

        Raises EngineError if the engine does not accept them, or they are not what their role asks for.
        """
        self._load_graphs()
        for graph in (self._encoder, *self._decoders.values()):
            graph.result()

    def load_loose_decoder(self) -> None:
        """Begin to load the decoder for loose boxes, unless that was begun before; `ready` waits for it.

        Raises EngineError if the bundle has none.
        """
        if not self.has_loose_decoder:
            raise EngineError("the bundle has no decoder for loose boxes; export it with --loose-decoder")
        if True not in self._decoders:
            (self._decoders[True],) = self._begin(self._bundle, decoder=self._loose_key)
            self._bundle = self._bundle.released()

    def encode(self, image: Float) -> Float:
        """Return the embedding (1, 256, S/4, S/4) float32 of a network input (1, 3, S, S) float32 in [0, 1].

        Raises EngineError if the engine fails.
        """
        found = self._guarded(self.run, self._encoder.result(), ["image_embedding"], {"image": image})
        return np.asarray(found[0])

    def rest_encoder(self) -> None:
        """Give the encoder's working memory back, if the engine can; the next `encode` takes it anew."""

    def decode(self, embedding: Float, boxes: Float, loose: bool = False) -> tuple[Float, Float]:
        """Return logits (N, S, S) and predicted IoU (N,), float32, of N >= 1 boxes on one embedding.

        `boxes` is float32 (N, 4), x0 y0 x1 y1 in pixels of the network's input; the graph is given
        `BOXES_PER_CALL` at a time. With `loose` it is that for loose boxes, which is loaded first if need be.
        Raises EngineError if the engine fails, or returns other shapes, or there is no such graph.
        """
        if loose:
            self.load_loose_decoder()
        graph = self._decoders[loose].result()
        count, size = len(boxes), 4 * embedding.shape[-1]
        parts = []
        for start in range(0, count, BOXES_PER_CALL):
            some = boxes[start : start + BOXES_PER_CALL]
            inputs = {"image_embedding": embedding, "boxes": some}
            found = self._guarded(self.run, graph, ["logits", "iou"], inputs)
            if (shapes := [one.shape for one in found]) != [(len(some), size, size), (len(some),)]:
                raise EngineError(f"the decoder returned arrays of {shapes}; export the bundle again")
            parts.append(found)
        if len(parts) == 1:
            return parts[0][0], parts[0][1]
        logits, iou = map(np.concatenate, zip(*parts, strict=True))
        return logits, iou

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
            wanted = {"image_embedding": (1, 256, side, side), "boxes": (None, 4)}, {"logits", "iou"}
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
            advice = f"pip install {self.package}"
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
