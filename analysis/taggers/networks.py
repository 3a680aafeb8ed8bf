"""The local tagger's two neural networks: pictures in, probabilities of their classes out.

The one rule: every number below belongs to the shipped model files. Another model needs others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
from PIL.Image import Resampling

from analysis.taggers import TaggerLoadError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

# onnxruntime's wheels contain a client that reports usage events to Microsoft.
onnxruntime.disable_telemetry_events()


class Classifier:
    """EfficientNet-Lite0: which one of the 1,000 classes of ImageNet-1k a picture shows.

    Source of the preparation: tensorflow/tpu, models/official/efficientnet/lite.
    """

    _SIDE = 224
    _CENTRE = 224 / 256  # of the shorter side: the part of a picture that it was trained on
    _MEAN, _SPREAD = np.float32(127), np.float32(128)

    def __init__(self, model: bytes, *, threads: int) -> None:
        self._session = _session(model, threads)

    def probabilities(self, rgb: Image) -> NDArray[np.float32]:
        """Return the probability of each class, (1000,), sum 1, of what is in the middle of *rgb*."""
        width, height = rgb.size
        side = max(1, int(self._CENTRE * min(width, height)))
        left, top = (width - side) // 2, (height - side) // 2
        middle = rgb.resize(
            (self._SIDE, self._SIDE), Resampling.BICUBIC, box=(left, top, left + side, top + side)
        )
        pixels = (np.asarray(middle, np.float32) - self._MEAN) / self._SPREAD
        (logits,) = self._session.run(None, {"image": _planes(pixels)})
        powers = np.exp(logits[0] - logits[0].max())
        probabilities: NDArray[np.float32] = powers / powers.sum()
        return probabilities


class Detector:
    """NanoDet-g: which of the 80 everyday things of COCO are in a picture, wherever.

    Source of the preparation: RangiLyu/nanodet, config/legacy_v0.x_configs/nanodet-g.yml.
    """

    _SIDE = 416
    _MEAN_BGR = np.array([103.53, 116.28, 123.675], np.float32)
    _SPREAD_BGR = np.array([57.375, 57.12, 58.395], np.float32)
    _GRIDS = ("out_Identity", "out_Identity_1", "out_Identity_2")  # anchors, coarse to fine

    # Platt scaling, from the best score for a class to the probability that the picture has one.
    # Fitted on 128 photos of COCO val2017: docs/tagging.md.
    _SLOPE, _OFFSET = np.float32(2.464), np.float32(1.140)

    def __init__(self, model: bytes, *, threads: int) -> None:
        self._session = _session(model, threads)

    def probabilities(self, rgb: Image) -> NDArray[np.float32]:
        """Return the probability that each class is in *rgb*, (80,), each 0 to 1."""
        whole = np.asarray(rgb.resize((self._SIDE, self._SIDE), Resampling.BILINEAR), np.float32)
        pixels = (whole[:, :, ::-1] - self._MEAN_BGR) / self._SPREAD_BGR
        grids = self._session.run(self._GRIDS, {"input_1": _planes(pixels)})
        # Where a thing is does not matter: the best of all anchors will do.
        best: NDArray[np.float32] = np.concatenate(grids, axis=1)[0].max(axis=0)
        best = best.clip(1e-4, 1 - 1e-4)
        logits = self._SLOPE * np.log(best / (1 - best)) + self._OFFSET
        probabilities: NDArray[np.float32] = 1 / (1 + np.exp(-logits))
        return probabilities


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Memory goes back between images: 40 MB less at rest, for 7 ms more an image.
    options.enable_cpu_mem_arena = False
    # The weights are int8 with DequantizeLinear behind; this folds them to float32 once, at load.
    # Without it they are converted at every call: three times the time for the same numbers.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no other base in common
        msg = f"onnxruntime {onnxruntime.__version__} cannot load a model: {error}"
        raise TaggerLoadError(msg) from error


def _planes(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn (side, side, 3) into the networks' (1, 3, side, side)."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[np.newaxis])
