"""onnxruntime-training 1.19.2 as a target: a level as the four files that its on-device training API takes.

- `environment`  the environment that its wheel needs for itself
- `whole`        a level, from token ids to the loss, as one ONNX graph
- `artifacts`    that graph -> training_model.onnx, eval_model.onnx, optimizer_model.onnx and checkpoint, proved
- `stages`       what runs in that environment: it has neither torch nor anything of ours
"""
