"""A sum of which nobody sees the parts: deltas are masked so that the masks cancel in the sum, and nowhere else.

K. Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017 (arXiv 1611.04482),
figure 4, on a sparse graph of neighbours: J. H. Bell et al., Secure Single-Server Aggregation with (Poly)Logarithmic
Overhead, CCS 2020 (IACR eprint 2020/704), algorithm 2.

- Numbers are integers modulo 2^32 (`ring`): a delta's are quantised, so that the sum is exact.
- Device u sends `y_u = x_u + PRG(b_u) + sum over its neighbours v of (u < v ? 1 : -1) PRG(s_uv)`, of which `s_uv` comes
  from a key agreement of the two (`keys`), and `b_u` is its own. In the sum of all y the second kind cancels.
- `b_u`, and the private key from which every `s_uv` of u comes, are dealt out to u's neighbours (`shamir`): of a device
  whose y is in the sum they give up the shares of `b_u`, of one that dropped out those of its key. Never both.

What is said, in which order: `said`. What a device does: `edge_sdk.secure`; the coordinator: `coordinator.secure`.
"""
