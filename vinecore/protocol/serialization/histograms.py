"""Large histograms of boost-histogram, and of hist, which holds those, are pickled without a copy of their bins.

By themselves they copy their bins into an array to be pickled, and are loaded from such an array: twice the memory, and with a packed buffer
three times. Here the memory of the bins is the buffer, and what comes back is copied, or unpacked, to where it stays.
"""

from __future__ import annotations

import functools
import pickle
import sys
from typing import Any, Callable

from vinecore.protocol.serialization.zero_suppression import ZeroSuppressedBuffer

MIN_BINS = 8192
"""Smaller ones are pickled as they would be elsewhere."""
KINDS = ("any_double", "any_int64", "any_atomic_int64", "any_weight", "any_mean", "any_weighted_mean")
"""Those whose bins lie in memory as they are pickled."""


def make_reducers() -> dict[type, Callable[[Any], Any]]:
    """Return the reducers that pickle histograms, by type; empty while this process has none."""
    return _reducers() if "boost_histogram._core" in sys.modules else {}


@functools.cache
def _reducers() -> dict[type, Callable[[Any], Any]]:
    kinds: Any = sys.modules["boost_histogram._core"].hist
    return {getattr(kinds, name): _reduced for name in KINDS if hasattr(kinds, name)}


def _reduced(histogram: Any) -> Any:
    if histogram.size() < MIN_BINS:
        return NotImplemented
    bins = histogram.view(True)
    if not bins.flags.f_contiguous:
        return NotImplemented
    axes = [histogram.axis(number) for number in range(histogram.rank())]
    return restore_histogram, (type(histogram), axes, pickle.PickleBuffer(_bytes_of(bins)))


def restore_histogram(kind: Any, axes: list[Any], content: Any) -> Any:
    """Make a histogram again, from a buffer or a `ZeroSuppressedBuffer`."""
    histogram = kind(axes)
    target = memoryview(_bytes_of(histogram.view(True)))
    if isinstance(content, ZeroSuppressedBuffer):
        content.unpack_into(target)
    else:
        target[:] = content
    return histogram


def is_bins(buffer: memoryview) -> bool:
    """Return whether a buffer is the bins of a histogram, which `restore_histogram` loads."""
    return isinstance(buffer.obj, _array_of_bins())


@functools.cache
def _array_of_bins() -> Any:
    """Create a subclass of array that distinguishes these buffers from others."""
    return type("Bins", (sys.modules["numpy"].ndarray,), {})


def _bytes_of(bins: Any) -> Any:
    return bins.T.reshape(-1).view("u1", _array_of_bins())
