"""One training step inside a budget: the walk there and back, losses, optimizers, plans.

- `runtime`     onnxruntime, imported here alone
- `artifact`    an opened artifact: manifest and verified files
- `batch`       rows of tokens; loads no runtime
- `costs`       what a graph costs at any shape, from what was measured
- `plan`        how a step is executed inside a budget; pure, loads no runtime
- `shelf`       what is kept between the two directions
- `walk`        embed -> blocks -> norm -> loss, and back to the lowest segment that trains
- `losses`      where the walk turns round
- `optimizers`  AdamW and SGD, schedules, clipping
- `moments`     an optimizer's state, in 32 or 8 bits
- `train`       training as an iterator
- `probe`       what each graph costs, measured
- `settle`      from a budget to a walk that is ready to train within it
"""
