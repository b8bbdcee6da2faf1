"""How deltas become the next adapter: one file per rule, each `init`, `accumulate`, `finish` over explicit state.

A rule says in which space deltas are added (numbers, or LoRA's products); an estimator what is taken of them there: the
mean, or a middle that some liars cannot move far (`coordinatewise`, `krum`).

What a rule finds for a single number is a mean change, and `server_optimizers` makes a step of it.

There is no rule that averages LoRA's A and B apart: `mean(B) @ mean(A)` is not the mean of the devices' changes.
"""
