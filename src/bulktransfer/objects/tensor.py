"""How a torch tensor in ordinary memory travels: its bytes outside the pickle, like an array's.

Knows: which tensors are plain rows of bytes. Must not know: letters. Imported only where torch is.
"""

from __future__ import annotations

import pickle
from typing import Any


def reduced(thing: Any) -> Any:
    """A reduction for a dense tensor in ordinary memory; NotImplemented (the usual way) for all else."""
    import torch  # type: ignore[import-not-found, import-untyped, unused-ignore]

    if type(thing) is not torch.Tensor or thing.device.type != "cpu" or thing.layout is not torch.strided:
        return NotImplemented
    if not thing.is_contiguous() or not thing.is_leaf or thing.is_conj() or thing.is_neg() or not thing.numel():
        return NotImplemented
    octets = thing.detach().reshape(-1).view(torch.uint8).numpy()
    return _tensor, (pickle.PickleBuffer(octets), thing.dtype, tuple(thing.shape), thing.requires_grad)


def _tensor(octets: Any, dtype: Any, shape: tuple[int, ...], requires_grad: bool) -> Any:
    import torch

    return torch.frombuffer(octets, dtype=dtype).reshape(shape).requires_grad_(requires_grad)
