"""Lower rank: a frozen matrix as the product of two thin ones, its truncated singular value decomposition.

    w (out, in) = u s v'    ->    (u sqrt(s)) (out, rank), (sqrt(s) v') (rank, in)

No product of that rank is nearer in squares (Eckart and Young, https://doi.org/10.1007/BF02288367); halves of s on
either side leave both factors in one range, for those who hold them in fewer bits.

Refitted, it is nearest in what it computes on public data: with r r' the second moments of the inputs, w r is what is
decomposed, and v' is multiplied by the inverse of r. SVD-LLM, https://arxiv.org/abs/2403.07378.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.compress.refit import with_ridge
from export.compress.width import is_product, matrix_of
from export.errors import ExportError


def factors(matrix: Tensor, rank: int, moments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The two factors (out, rank) and (rank, in) of a matrix (out, in); refitted where inputs have these `moments`."""
    whole = matrix.double()
    if moments is None:
        u, s, v = torch.linalg.svd(whole, full_matrices=False)
    else:
        weight = torch.linalg.cholesky(with_ridge(moments))
        u, s, v = torch.linalg.svd(whole @ weight, full_matrices=False)
        v = torch.linalg.solve_triangular(weight, v, upper=False, left=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(matrix.dtype), (root[:, None] * v[:rank]).to(matrix.dtype)


def require_saving(path: str, module: nn.Module, rank: int) -> None:
    """Raise ExportError where a module is no product with a matrix, or two of `rank` would take no fewer bytes."""
    if not is_product(module):
        msg = f"{path} is a {type(module).__name__}, not a product with a matrix: it has no rank"
        raise ExportError(msg)
    out, width = matrix_of(module).shape
    most = (out * width - 1) // (out + width)
    if rank > most:
        msg = f"a rank of {rank} saves nothing of {path} ({out} x {width}): give at most {most}"
        raise ExportError(msg)


def replace(block: nn.Module, path: str, factors: tuple[Tensor, Tensor]) -> None:
    """Put the product with two factors, as of `factors`, in the place of the one at `path` of a block."""
    up_matrix, down_matrix = factors
    bias: Tensor | None = getattr(block.get_submodule(path), "bias", None)
    (out, rank), width = up_matrix.shape, down_matrix.shape[1]
    down = nn.utils.skip_init(nn.Linear, width, rank, bias=False)
    up = nn.utils.skip_init(nn.Linear, rank, out, bias=bias is not None)
    with torch.no_grad():
        up.weight.copy_(up_matrix)
        down.weight.copy_(down_matrix)
        if bias is not None:
            up.bias.copy_(bias)
    parent, _, name = path.rpartition(".")
    setattr(block.get_submodule(parent), name, nn.Sequential(down, up))
