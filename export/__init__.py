"""From a foundation model to training artifacts, and from a trained adapter back to a PEFT checkpoint.

- `foundation`  a model folder -> the model, its family and its sizes
- `families/`   where each family's blocks are and how they are called
- `kinds`       the kinds of adapter, without torch
- `adapters`    the trained tensors and their names; `inserted` (`bottleneck` `prompt`) those that peft lacks, `prefix`
- `capture`     a part of the model -> ONNX graphs, forward and backward
- `lowering`    graph passes, each with a contract
- `compress/`   what makes a level smaller than the model: fewer layers, bits, neurons, ranks
- `public`      public data, by which a level can be chosen and refitted
- `artifact`    blobs and manifests
- `build`       all of the above, for several levels at once
- `parity`      the proof: every gradient against torch's
- `ort_training/` the same level for onnxruntime-training: whole graph, its four files, their environment
- `plug_in`     an adapter -> a PEFT checkpoint of the full model
- `evaluate`    held-out loss of the full model
- `folder`      an artifact read back; which folders may become one
- `cache`       what is made once and kept: environments for what cannot be installed beside us
- `options`     of command lines that ask for an adapter
- `cli`         the commands; `manual` what their --help says, `progress` and `report` what they print

Nothing here is imported with the package: torch takes seconds to load, and a command's --help should not.
"""
