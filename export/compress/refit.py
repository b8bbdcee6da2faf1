"""What is left of a block made better: it learns, in closed form, to compute what the whole did on public data.

With the neurons' values a of the whole model on that data, and a' those of them that were kept, the matrix w (out, in)
that took all of them becomes the least squares solution of  w' a' = w a,  drawn a little to the kept columns of w:

    w' = (w C + r w[:, kept]) (G + r I)^-1      C = a a'^T,  G = a' a'^T,  r = RIDGE mean(diag G)

Its error on that data is never larger than that of the kept columns as they are. Nothing is trained. Of inputs nothing
but their second moments is needed, for a thinner matrix (`export.compress.rank`) as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from export.compress.width import matrix_of
from export.evaluate import Rows
from export.public import run, seen

RIDGE = 1e-3  # of the inputs' mean square: data may have fewer tokens than a matrix has columns
AT_ONCE_BYTES = 1 << 28  # of moments; the model runs again for more


def second_moments(model: nn.Module, modules: Sequence[nn.Module], public: Rows) -> Iterator[Tensor]:
    """Of each product in turn, the sum over public tokens of a a^T (in, in), float64, of its input a.

    Summed over some rows in float32 first, which is several times as fast; and once where products have one input, as
    queries, keys and values do. The model must stay as it is until the last.
    """
    waiting = list(modules)
    while waiting:
        sizes_bytes = [8 * matrix_of(module).shape[1] ** 2 for module in waiting]
        count = max(1, sum(total <= AT_ONCE_BYTES for total in accumulate(sizes_bytes)))
        now, waiting = waiting[:count], waiting[count:]
        moments = [torch.zeros(n, n, dtype=torch.float64) for n in (matrix_of(module).shape[1] for module in now)]
        with seen(now) as found:
            for mask, _ in run(model, public):
                sums: dict[int, Tensor] = {}
                for k, (a, _) in found.items():
                    if id(a) not in sums:
                        rows = a.reshape(len(mask), -1, a.shape[-1])  # OPT's have two dimensions, not three
                        tokens = rows[:, -mask.shape[1] :][mask]  # prompts stand before them
                        sums[id(a)] = (tokens.T @ tokens).double()
                    moments[k] += sums[id(a)]
        yield from moments


def with_ridge(moments: Tensor, ridge: float = RIDGE) -> Tensor:
    """Moments (n, n) that can be inverted, however few tokens they are of."""
    return moments + ridge * moments.diagonal().mean().clamp(min=torch.finfo().tiny) * torch.eye(len(moments))


def refitted(matrix: Tensor, kept: Tensor, moments: Tensor) -> Tensor:
    """The matrix (out, kept) that does best what `matrix` (out, in) does, of inputs with these moments (in, in)."""
    whole, gram = matrix.double(), moments[kept][:, kept]
    invertible = with_ridge(gram)
    wanted = whole @ moments[:, kept] + whole[:, kept] @ (invertible - gram)
    solved: Tensor = torch.linalg.solve(invertible, wanted, left=False)
    return solved.to(matrix.dtype)
