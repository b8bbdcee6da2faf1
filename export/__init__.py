"""From a foundation model to training artifacts, and from a trained adapter back to a PEFT checkpoint.

- `foundation`  a model folder -> the model, its family and its sizes
- `families/`   where each family's blocks are and how they are called
- `adapters`    the trained tensors and their names
- `capture`     a part of the model -> ONNX graphs, forward and backward
- `lowering`    graph passes, each with a contract
- `compress/`   what makes a level smaller than the model: fewer layers, bits, neurons, ranks
- `public`      public text, by which a level can be chosen and refitted
- `artifact`    blobs and manifests
- `build`       all of the above, for several levels at once
- `parity`      the proof: every gradient against torch's
- `plug_in`     an adapter -> a PEFT checkpoint of the full model
- `evaluate`    held-out loss of the full model
- `folder`      an artifact read back; which folders may become one
- `cli`         the commands; `manual` what their --help says, `progress` and `report` what they print

Nothing here is imported with the package: torch takes seconds to load, and a command's --help should not.
"""
