"""What --help says of each command: the first paragraph above the options, the others below them."""

from export.kinds import KINDS

ADAPTERS = "\n".join(f"  {name:<12} {kind.trains}" for name, kind in KINDS.items())

FAMILIES = """\
List the model families that can be exported.

A model is of the family that lists the model_type of its config.json.

  tasks        what it can be exported for: `fedpeat export --task`
  adapts       the modules that LoRA adapts unless `--targets` says otherwise

A model of another type: where its modules are called as those of a family here, its type is all that the family's
file in export/families/ lacks; else it takes a file of its own. `fedpeat export` then proves every gradient.

exit status: 0 listed
"""

DESCRIBE = """\
What a model folder holds, as JSON, before anything is exported.

  layers         so many blocks; a level keeps some of them
  labels         of a classification, the model's own where none are given
  image          of a model of images, the shape of one, as in 3x224x224
  weights_bytes  of all weights, were they held in 32, 16, 8 or 4 bits: what a level of all layers comes to, but for
                 graphs, adapter and tokenizer

exit status: 0 described, 2 it cannot be exported, and why
"""

EXPORT = f"""\
Export a foundation model as a training artifact, one emulator level.

An artifact is everything a device needs to train without torch: forward and backward graphs (ONNX), tensors,
tokenizer, and a manifest per level. Levels of one folder share the adapter and all files of equal content; export
again into the same folder, with other --bits, --layers or --train-last, to add one.

Supported models: Llama, Mistral, Qwen2, Qwen3, GPT-2, OPT, GPT-NeoX for causal-lm and sequence-classification, BERT,
RoBERTa and DistilBERT for sequence- and token-classification, ViT, DeiT and DINOv2 for image-classification;
`fedpeat families` has the list.
A folder without tokenizer.json exports too; devices then need token arrays as data. How pixels are scaled is read from
preprocessor_config.json.

What trains, `--adapter`, with a classifier always:

{ADAPTERS}

LoRA may begin where a run of kind sparse on the same targets ended, whose PEFT checkpoint --start is: SLoRA.
Prompts of a text begin as states of the model's own, which are large: they learn at rates of 0.1 and more.

Dropout is zero, whatever the model's configuration says. Every gradient is compared with torch's before anything is
written, and what the level costs is measured here.

With --runtime ort-training, DIR gets instead what the on-device training API of onnxruntime-training 1.19.2 takes:
training_model.onnx, eval_model.onnx, optimizer_model.onnx (AdamW without weight decay, no clipping) and checkpoint, for
32, 16 or 8 bits. A step's inputs are ids and attention_mask, for a classifier labels too, its output the mean loss;
`logits` can be had by export_model_for_inferencing. Its tools need an environment of their own, which the first export
makes with pip in the user's cache folder.

A level can lose more than bits and layers; what its adapter is on stays whole, so that it fits the full model:
  --drop importance  keep the --layers that change the hidden state of public text most, in place of every so-manieth
  --ffn S            keep that share of the neurons of every block's FFN, those with the largest weights
  --svd A,B --svd-rank R  hold the matrices of modules called A and B as a product of two of rank R
  --refit HOW        fit the level to the whole model, on public data: least-squares, in closed form, what a cut has
                     left of FFNs, a bridge in the place of blocks that were dropped, and how 4 bits round; or
                     distill, which trains bridges further, or blocks whose FFNs or matrices were cut, for
                     --distill-steps at --distill-rate (default: 6e-4 for bridges, 1e-4 for blocks). Blocks that the
                     adapter trains on stay as they are, where there are others.
  --tensors-mb MB    hold blocks and embedding in fewer than --bits until they fit, those first that mind least
Public data is what need not be private: a folder of .txt, a .csv, or a token folder; for a model of images a folder of
pictures for each class, a file in MNIST's format, or an image folder.

examples:
  fedpeat export SmolLM2-135M --task causal-lm --out artifact
  fedpeat export SmolLM2-135M --task causal-lm --out artifact --bits 8 --layers 24 --train-last 6
  fedpeat export SmolLM2-135M --task causal-lm --out artifact --bits 8 --tensors-mb 90 --public texts
  fedpeat export SmolLM2-135M --task causal-lm --out artifact --ffn 0.75 --refit least-squares --public texts
  fedpeat export SmolLM2-135M --task causal-lm --out artifact --layers 15 --train-last 6 --drop importance \\
      --refit distill --distill-steps 160 --public texts --public-rows 512
  fedpeat export MiniLM --task sequence-classification --labels negative,positive --out reviews
  fedpeat export SmolLM2-135M --task causal-lm --out four-files --runtime ort-training --bits 8
  fedpeat export BERT --task token-classification --labels O,PERSON,PLACE --out names
  fedpeat export ViT --task image-classification --labels whole,torn --out textile
  fedpeat export SmolLM2-135M --task causal-lm --out blocks --bits 8 --adapter layers --last 6
  fedpeat export SmolLM2-135M --task causal-lm --out soft --adapter prompt --length 8
  fedpeat export ViT --task image-classification --labels whole,torn --out prompts --adapter prompt --length 10

exit status: 0 exported, 1 the gradients are not torch's, 2 wrong input, 130 stopped; unless 0, nothing is written
"""

BUILD = """\
Export several levels at once, as a JSON request says; a line of JSON per stage.

The model is loaded and captured once, and once more for each lower rank of the adapter. The folder changes when all
levels are done, or not at all. The coordinator uses this; by hand, it is the quick way to several levels.

request:
  {"model": "MODEL_DIR", "task": "causal-lm", "out": "DIR", "labels": [],
   "adapter": {"kind": "lora", "rank": 8, "alpha": 16, "targets": []},
   "levels": [{"name": "fp32", "bits": 32, "layers": null, "train_last": null},
              {"name": "int8-last6", "bits": 8, "layers": null, "train_last": 6, "rank": 4}],
   "tokens": 128, "parity": true, "seed": 0, "public": {"path": "texts", "text_column": "text", "rows": 16},
   "start": null}

A level may also have "drop", "ffn", "refit", "svd", "svd_rank", "distill_steps", "distill_rate" and "tensors_mb": see
fedpeat export. Levels that are alike in "rank", "ffn", "svd" and "svd_rank" are captured together, unless only some of
those with less than the model's FFNs and ranks are refitted.

start names a PEFT checkpoint of kind sparse: the factors of a new LoRA begin from what it changed.
"""

PARITY = """\
Prove an artifact: compare its gradients with torch's.

Every file is checked against its SHA-256. Then loss and gradients of a drawn batch, with a drawn adapter, are computed
twice for each level: by the artifact's graphs in onnxruntime, and by torch and peft on the model brought into the
level's state (layers dropped, blocks cut, matrices rounded). Printed is, for each group of tensors (one name in all
layers), the largest |difference| over the largest |gradient|. A level that was refitted is compared with the model that
has the blocks of its own files.

exit status: 0 all within 1e-4, 1 one is above, 2 wrong input
"""

INSPECT = """\
Show an artifact's levels, sizes and costs; check its files.

  files, MB    what a device of this level downloads; `shared` of it is also another level's
  needs MB     predicted peak memory of a worker with one row of --tokens tokens: the least budget of this level
  costs        of one structure: growth of resident memory while it runs, and time, on the machine that exported

exit status: 0 shown, 2 no artifact, or a file is missing or not the one that the manifest promises
"""

PLUG_IN = """\
Put a trained adapter into the full model: a PEFT checkpoint.

Tensors that the file lacks (of layers that no device trained) keep their starting values. The checkpoint is loaded
again and must give the same loss; then a line of JSON tells where it is. Load it with
peft.PeftModel.from_pretrained(model, DIR). peft has no bottlenecks and no prompts in blocks: before, for these,
export.inserted.restore(Path(DIR), model) puts them into the model.

exit status: 0 written, 1 the checkpoint, loaded again, is another model, 2 wrong input; unless 0, nothing is written
"""

EVALUATE = """\
Held-out loss of the full model, as JSON.

Without --adapter and --peft, of the model as training starts. ROWS_DIR is what fedpeat-edge prepare makes.
"""
