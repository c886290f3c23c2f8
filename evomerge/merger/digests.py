"""What tells weights from others: 128-bit hashes of tensors and of models."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import xxhash


def weights_digest(digests: Mapping[str, str]) -> str:
    """Return a 128-bit hash of a model's weights from the digests of its tensors, by name."""
    lines = sorted(f"{name} {digest}" for name, digest in digests.items())
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def tensor_digest(tensor: torch.Tensor) -> str:
    """Return dtype, shape and a 128-bit hash of a tensor's bits."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f"{tensor.dtype} {list(tensor.shape)} {xxhash.xxh3_128_hexdigest(data.data)}"
