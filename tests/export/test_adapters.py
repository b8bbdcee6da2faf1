"""Every kind of adapter: what it trains, that its gradients are torch's, and that it goes back into the full model."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from edge_sdk.engine.artifact import Artifact
from edge_sdk.engine.batch import Batch
from edge_sdk.engine.plan import Plan, choose_plan
from edge_sdk.engine.train import batch_gradient
from edge_sdk.engine.walk import Walk
from edge_sdk.wire.costs import Costs
from edge_sdk.wire.manifest import Surgery
from edge_sdk.wire.tensors import TensorFile, write_tensors
from export import inserted
from export.adapters import AdapterRequest, adapter_arrays
from export.compress.surgery import operated_model
from export.errors import ExportError
from export.foundation import open_foundation, quiet
from export.kinds import KINDS
from export.measure import measure
from export.parity import BOUND, Oracle, check_parity, draw_batch, relative_error, require_parity, torch_loss
from export.parts import backbone_of, blocks_of
from export.plug_in import plug_in, reload
from export.program import adapt
from export.prompt import Prompt, states_of_tokens
from export.public import seen
from export.reference import Batch as Rows
from export.reference import ReferenceWalk
from tests.export.conftest import CLASSES, LABELS, LM, Exported, Exports
from tests.export.test_plug_in import manifest_path, moved_adapter
from tests.models import FFN, WIDTH, tiny_model

CASES = {
    "rslora": (AdapterRequest("rslora", 2, 4.0), ("llama",)),
    "sparse": (AdapterRequest("sparse", 2), ("llama", "bert")),
    "ia3": (AdapterRequest("ia3"), ("gpt2", "bert", "deit")),
    "bottleneck": (AdapterRequest("bottleneck", rank=3), ("roberta", "dinov2")),
    "prompt": (AdapterRequest("prompt", length=3), ("vit", "dinov2", "mistral", "gpt2", "gpt_neox", "distilbert")),
    "prefix": (AdapterRequest("prefix", length=7), ("gpt2", "gpt_neox", "roberta")),
    "bias": (AdapterRequest("bias"), ("opt", "distilbert", "vit")),
    "layernorm": (AdapterRequest("layernorm"), ("qwen3", "bert")),
    "head": (AdapterRequest("head"), ("distilbert",)),
    "layers": (AdapterRequest("layers", last=2), ("llama",)),
    "outer": (AdapterRequest("layers", first=1, last=1), ("gpt2",)),
    "full": (AdapterRequest("full"), ("gpt2", "bert")),
}
LEVELS = ("fp32", "int8", "int8-2layers-last1")


@pytest.fixture(
    scope="module", params=[(kind, model) for kind, (_, models) in CASES.items() for model in models], ids="-".join
)
def trained(request: pytest.FixtureRequest, exports: Exports) -> Exported:
    """Each kind on models of several families, in turn."""
    kind, model = request.param
    return exports.of(model, CASES[kind][0])


def test_every_kind_is_tested() -> None:
    """Each kind but LoRA itself, which all other tests have, is among the cases."""
    assert {"lora", *(request.kind for request, _ in CASES.values())} == set(KINDS)


@pytest.mark.parametrize("level", LEVELS)
def test_gradients_are_torchs(trained: Exported, level: str) -> None:
    """Loss and every gradient agree with autograd through the peft model, whatever is frozen and in how many bits."""
    parity = check_parity(Oracle(trained.program.adapted, seed=1), trained.store, trained.manifests[level])
    assert parity.worst <= BOUND
    require_parity(parity)


def test_every_tensor_learns(trained: Exported) -> None:
    """After two steps down the gradient no trained tensor is where it started, and the loss is lower."""
    manifest = trained.manifests["int8"]
    walk, batch = ReferenceWalk(trained.store, manifest), draw_batch(trained.program.adapted.foundation, 0)
    start = adapter = trained.initial_adapter()
    losses = []
    for _ in range(2):
        found = walk.run(adapter, batch)
        losses.append(found.loss)
        assert set(found.gradients) == set(manifest.trained_shapes())
        steps = {name: 1e-3 * gradient / (np.abs(gradient).max() or 1) for name, gradient in found.gradients.items()}
        adapter = adapter | {name: adapter[name] - step for name, step in steps.items()}
    assert not {name for name in manifest.trained_shapes() if np.array_equal(adapter[name], start[name])}
    assert losses[1] < losses[0]


@pytest.mark.parametrize("level", ["fp32", "int8-2layers-last1"])
def test_the_checkpoint_is_the_model_that_devices_trained(
    trained: Exported, level: str, tmp_path: pathlib.Path
) -> None:
    """Loaded by peft, by way of our own loader where peft lacks the kind, it has the loss of the fp32 artifact."""
    start = trained.initial_adapter()
    adapter = {name: start[name] + 0.5 * value for name, value in moved_adapter(trained, level).items()}
    write_tensors(tmp_path / "adapter", adapter)
    out = tmp_path / "checkpoint"
    reported = plug_in(trained.model, manifest_path(trained, level), tmp_path / "adapter", out)
    foundation = trained.program.adapted.foundation
    batch = draw_batch(foundation, seed=0)
    base = foundation.load(seed=9)
    inserted.restore(out, base)
    with quiet(), torch.no_grad():
        model = PeftModel.from_pretrained(base, str(out)).eval()
        loss = torch_loss(model, foundation.spec.task, batch).item()
        again = torch_loss(reload(foundation, out), foundation.spec.task, batch).item()
    assert loss == again == pytest.approx(reported, rel=1e-6)
    walk = ReferenceWalk(trained.store, trained.manifests["fp32"])
    found = walk.run(start | adapter, batch).loss
    assert found == pytest.approx(loss, rel=1e-5)
    assert found != walk.run(start, batch).loss


def test_the_engine_walks_it_as_it_is(trained: Exported) -> None:
    """The device's engine plans for it and gives the gradients of the reference, every block keeping activations."""
    manifest, batch = trained.manifests["int8"], draw_batch(trained.program.adapted.foundation, seed=0)
    plan = choose_plan(manifest, len(batch.attention_mask), batch.attention_mask.shape[1], 10**9)
    assert isinstance(plan, Plan)
    adapter = Oracle(trained.program.adapted).adapter
    wanted = ReferenceWalk(trained.store, manifest).run(adapter, batch)
    walk = Walk(Artifact(manifest, trained.store), 1, Plan(len(batch.ids), 64, kept_blocks=2), lambda: None)
    rows = Batch(batch.ids, batch.attention_mask, batch.labels, batch.pixels)
    loss, found = batch_gradient(walk, adapter, rows, list(manifest.trained_shapes()))
    assert loss == pytest.approx(wanted.loss, rel=1e-5)
    for name, gradient in found.items():
        assert relative_error(gradient, wanted.gradients[name]) <= BOUND, name


@pytest.mark.parametrize(("kind", "model"), [("head", "distilbert"), ("full", "gpt2")])
def test_what_it_costs_is_measured(exports: Exports, kind: str, model: str) -> None:
    """Where nothing is walked back, and where no segment but the embedding has weights of its own."""
    exported = exports.of(model, CASES[kind][0])
    manifest = measure(manifest_path(exported, "fp32"), exported.manifests["fp32"])
    assert manifest.needs_bytes > 0
    assert Costs(manifest.costs).pages_ms(10**6) > 0


def test_levels_hold_what_trains_in_full(trained: Exported) -> None:
    """What trains is in the adapter's file, float32, and in no segment's; graphs of a way back are where one leads."""
    for manifest in trained.manifests.values():
        returning = {segment.structure for segment in manifest.walked_back()}
        for segment in manifest.walk:
            structure = manifest.structures[segment.structure]
            assert bool(structure.backward) == (segment.structure in returning)
            with TensorFile(trained.store.path(manifest.files[segment.tensors].sha256)) as file:
                assert set(file) == set(structure.frozen)
                assert not {name.removesuffix(".scale") for name in file} & set(structure.trained)


def test_rank_stabilisation_is_another_scale(exports: Exports) -> None:
    """Of rank r, the same factors change the model sqrt(r) times as much as LoRA's."""
    plain, stable = exports["llama"], exports.of("llama", CASES["rslora"][0])
    layer = stable.program.adapted.backbone.layers[0].self_attn.q_proj
    other = plain.program.adapted.backbone.layers[0].self_attn.q_proj
    assert layer.scaling["default"] == pytest.approx(other.scaling["default"] * 2**0.5)


def names_in(exported: Exported, segment: str) -> set[str]:
    """The adapter's tensors in a segment of the full model."""
    names = exported.manifests["fp32"].adapter_shapes()
    return {name.removeprefix(f"{segment}/") for name in names if name.startswith(f"{segment}/")}


def test_biases_are_all_that_do_something(exports: Exports) -> None:
    """All of OPT's but those of its keys, which change no probability; a classifier's too; nothing in the embedding."""
    opt = exports.of("opt", CASES["bias"][0])
    own = {name for name, _ in opt.program.adapted.backbone.decoder.layers[0].named_parameters()}
    assert names_in(opt, "block.0") == {name for name in own if name.endswith("bias")} - {"self_attn.k_proj.bias"}
    assert names_in(opt, "norm") == {"bias"}
    distilbert = exports.of("distilbert", CASES["bias"][0])
    assert names_in(distilbert, "head") >= {"pre_classifier.bias", "classifier.bias"}
    assert not names_in(distilbert, "embed")


def test_norms_of_blocks_and_above_them(exports: Exports) -> None:
    """Qwen3 has norms on queries and keys as well; the last norm stands above the blocks."""
    qwen3 = exports.of("qwen3", CASES["layernorm"][0])
    inner = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
    assert names_in(qwen3, "block.1") == {f"{name}.weight" for name in inner}
    assert names_in(qwen3, "norm") == {"weight"}
    level = qwen3.manifests["int8-2layers-last1"]
    assert [segment.name for segment in level.walk if segment.trains] == ["block.2", "norm"]


def test_ia3_scales_keys_values_and_the_inner_feedforward(exports: Exports) -> None:
    """Of BERT's two modules called output.dense, the feed-forward's alone: its inputs are scaled, else outputs are."""
    bert = exports.of("bert", CASES["ia3"][0])
    shapes = bert.manifests["fp32"].structures["block"].trained
    assert shapes == {
        "attention.self.key.ia3_l": (32, 1),
        "attention.self.value.ia3_l": (32, 1),
        "output.dense.ia3_l": (1, 48),
    }
    assert all((array == 1).all() for name, array in bert.initial_adapter().items() if name.endswith("ia3_l"))


def test_the_head_alone_walks_nothing_back(exports: Exports) -> None:
    """No block trains, no gradient flows below the classifier, and no graph of a way back is sent."""
    manifest = exports.of("distilbert", CASES["head"][0]).manifests["int8"]
    assert (manifest.walked_back(), manifest.level.trained_layers) == ((), ())
    assert {name.partition("/")[0] for name in manifest.trained_shapes()} == {"head"}
    assert not any("backward" in name for name in manifest.files)


def test_layers_are_frozen_below_and_whole_above(exports: Exports) -> None:
    """Blocks below the last two are held in 8 bits, and are the very blobs that LoRA's level has; a level that trains
    one of the two has the other's values from the adapter, for other devices train it.
    """
    llama = exports.of("llama", CASES["layers"][0])
    int8, last = llama.manifests["int8"], llama.manifests["int8-2layers-last1"]
    assert [segment.name for segment in int8.walked_back()] == ["block.2", "block.3", "norm"]
    assert {name.partition("/")[0] for name in int8.adapter_shapes()} == {"block.2", "block.3"}
    own = {name for name, _ in exports["llama"].program.structures["block"].frozen.items()}
    assert names_in(llama, "block.3") == own
    files = exports["llama"].manifests["int8"].files
    assert int8.files["block.0.safetensors"] == files["block.0.safetensors"]
    assert int8.files["block.2.safetensors"].size_bytes < 100
    assert [segment.name for segment in last.walk if segment.trains] == ["block.3"]


def test_outer_layers_stay_where_others_are_dropped(exports: Exports) -> None:
    """The first and the last block train, and the emulator is what lies between: a level of two layers is those two."""
    outer = exports.of("gpt2", CASES["outer"][0])
    int8, two = outer.manifests["int8"], outer.manifests["int8-2layers-last1"]
    assert {name.partition("/")[0] for name in int8.adapter_shapes()} == {"block.0", "block.2"}
    assert [segment.name for segment in int8.walked_back()] == ["block.0", "block.1", "block.2", "norm"]
    assert [segment.structure for segment in int8.walk] == ["embed", "block", "block2", "block", "norm"]
    assert (two.level.layers, two.level.trained_layers) == ((0, 2), (2,))


def test_full_is_all_blocks_and_the_norm(exports: Exports) -> None:
    """Every tensor between embedding and loss, and neither of those."""
    gpt2 = exports.of("gpt2", CASES["full"][0])
    backbone: Any = gpt2.program.adapted.foundation.load().base_model
    wanted = {f"block.{k}/{name}" for k, block in enumerate(backbone.h) for name, _ in block.named_parameters()}
    assert set(gpt2.manifests["fp32"].adapter_shapes()) == wanted | {"norm/weight", "norm/bias"}


def test_bottlenecks_stand_where_they_are_asked_for(exports: Exports, tmp_path: pathlib.Path) -> None:
    """Behind the feed-forward unless told otherwise; behind attention as well with both of RoBERTa's modules named."""
    roberta = exports.of("roberta", CASES["bottleneck"][0])
    inner = {f"{part}.{what}" for part in ("down", "up") for what in ("weight", "bias")}
    assert names_in(roberta, "block.1") == {f"output.dense.bottleneck.{name}" for name in inner}
    foundation = roberta.program.adapted.foundation
    both = AdapterRequest("bottleneck", rank=2, targets=("output.dense", "attention.output.dense"))
    adapted = adapt(foundation, both.resolved(foundation), seed=0)
    assert len(adapted.parameters) == 3 * 2 * 4 + len(names_in(roberta, "head"))
    for module, why in (("roberta.nothing", "no such module"), ("roberta.encoder", "it is no projection")):
        (tmp_path / inserted.FILE).write_text(json.dumps({"kind": "bottleneck", "size": 2, "modules": [module]}))
        with pytest.raises(ExportError, match=f"cannot put a bottleneck at {module}: {why}"):
            reload(foundation, tmp_path)


def test_prompts_are_tokens_of_each_block(exports: Exports) -> None:
    """Every block has tokens of its own, which its output lacks; activations are counted with them."""
    vit = exports.of("vit", CASES["prompt"][0])
    manifest = vit.manifests["fp32"]
    assert names_in(vit, "block.1") == {"prompt.weight"}
    assert manifest.adapter_shapes()["block.2/prompt.weight"] == (3, WIDTH)
    floats = 4 * WIDTH + FFN  # queries, keys, values, what lies between attention and feed-forward, and in the latter
    found = {(keeping.floats, keeping.row_floats) for keeping in manifest.structures["block"].keepings}
    assert found == {(floats, 3 * floats)}


def test_all_tokens_see_the_prompts_of_a_text(exports: Exports) -> None:
    """Also those that look back through a window only; what they see of each other is as it was, and no cache is known,
    in which a generated token would find prompts anew.
    """
    adapted = exports.of("mistral", CASES["prompt"][0]).program.adapted
    model, ids = adapted.peft_model, torch.arange(3, 23)[None]  # a window of 6
    last = f"block.{adapted.foundation.spec.layers - 1}/prompt.weight"
    with torch.no_grad():
        before, later = (model(input_ids=row).logits for row in (ids, torch.cat([ids[:, :-1], ids[:, :1]], dim=1)))
        assert torch.equal(before[:, :-1], later[:, :-1])
        held = adapted.parameters[last].clone()
        adapted.parameters[last].add_(torch.linspace(-1, 1, WIDTH))
        after = model(input_ids=ids).logits
        adapted.parameters[last].copy_(held)
    assert bool(((after - before).abs().amax(dim=2) > 1e-5).all())
    with torch.no_grad():
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
    assert len(states) == adapted.foundation.spec.layers + 1
    with pytest.raises(ValueError, match="prompts in blocks know no cache: give use_cache=False"):
        model(input_ids=ids, use_cache=True)
    with pytest.raises(ValueError, match="prompts in blocks know masks of eager attention alone"):
        adapted.backbone.layers[0](torch.zeros(1, 4, WIDTH), attention_mask=torch.ones(1, 4))


def test_prompts_of_a_text_begin_as_states_of_tokens(exports: Exports) -> None:
    """In each block as what a row's first token comes there as, of tokens drawn from the seed; of a model that was
    slimmed, as of the full one.
    """
    foundation, request = open_foundation(exports.model("gpt2"), LM, ()), AdapterRequest("prompt", length=3)
    adapted = adapt(foundation, request, seed=0)
    model, ids = foundation.load(), torch.tensor([5, 7])
    with torch.no_grad(), seen(list(blocks_of(backbone_of(model)))) as states:
        model(input_ids=torch.stack([ids, ids + 1], dim=1))
    found = states_of_tokens(model, ids)
    for k, (given, _) in states.items():
        torch.testing.assert_close(found[k], given[:, 0])
    own = adapter_arrays(adapted.parameters)
    vocabulary = torch.arange(foundation.spec.vocabulary)
    first = torch.from_numpy(own["block.0/prompt.weight"])
    assert (torch.cdist(first, states_of_tokens(model, vocabulary)[0]).amin(dim=1) < 1e-4).all()
    slimmed = operated_model(foundation, Surgery(ffn=0.5), request.targets)
    same, other = (adapter_arrays(adapt(foundation, request, *of).parameters) for of in ((0, slimmed), (1,)))
    assert all(np.array_equal(own[name], same[name]) and not np.array_equal(own[name], other[name]) for name in own)


def test_prompts_take_no_positions(exports: Exports) -> None:
    """Rows may be as long as without, and the context's graph is the one that all other kinds have."""
    for name in ("llama", "gpt2"):
        prompted, plain = (one.manifests["fp32"] for one in (exports.of(name, CASES["prompt"][0]), exports[name]))
        assert prompted.model == plain.model
        assert prompted.files[prompted.context] == plain.files[plain.context]


def test_prefixes_are_keys_and_values_of_each_block(exports: Exports) -> None:
    """Every block has its own, of as many heads as its keys have, and is else as it was."""
    llama = exports.of("llama", CASES["prefix"][0])
    assert names_in(llama, "block.1") == {"prefix.key", "prefix.value"}
    shapes = llama.manifests["fp32"].adapter_shapes()
    assert shapes["block.3/prefix.value"] == (2, 7, 8)  # heads, length, width of a head
    int8, files = llama.manifests["int8"], exports["llama"].manifests["int8"].files
    assert int8.files["block.0.safetensors"] == files["block.0.safetensors"]
    require_parity(check_parity(Oracle(llama.program.adapted), llama.store, int8))


def test_a_prefix_takes_the_first_positions(exports: Exports) -> None:
    """As in peft, where a prefix was read before: of 64 positions 57 are left, and the longest row takes them all."""
    gpt2 = exports.of("gpt2", CASES["prefix"][0])
    manifest = gpt2.manifests["fp32"]
    assert manifest.model.max_tokens == 57
    ids = np.random.default_rng(0).integers(0, manifest.model.vocabulary, (2, 57))
    batch = Rows(ids, np.ones_like(ids), np.zeros(2, np.int64))
    found = ReferenceWalk(gpt2.store, manifest).run(gpt2.initial_adapter(), batch)
    model = gpt2.program.adapted.peft_model
    assert found.loss == pytest.approx(torch_loss(model, manifest.model.task, batch).item(), rel=1e-5)
    with pytest.raises(ExportError, match="a prefix of length 63 in 64 positions: give 1 to 62"):
        AdapterRequest("prefix", length=63).resolved(gpt2.program.adapted.foundation)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("distilbert", "the blocks of this distilbert take no keys and values but their own: choose another kind"),
        ("mistral", "a prefix beside windowed attention is not supported: choose another kind"),
    ],
)
def test_prefixes_that_cannot_be_are_refused(exports: Exports, model: str, message: str) -> None:
    """Where a block cannot be given any, or would lose sight of them: one line."""
    task, labels = (CLASSES, LABELS) if model == "distilbert" else (LM, ())
    foundation = open_foundation(exports.model(model), task, labels)
    with pytest.raises(ExportError, match=message):
        adapt(foundation, AdapterRequest("prefix", length=2).resolved(foundation), seed=0)


def test_prompts_are_as_many_parameters_as_in_the_papers() -> None:
    """ViT-B/16 with ten tokens a block and a classifier of 100: FedPEFT's 169,060."""
    blocks, width, classes = 12, 768, 100
    assert blocks * sum(p.numel() for p in Prompt(10, width).parameters()) + (width + 1) * classes == 169_060


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        ("opt-plain", "bias", "this opt has no biases: choose another kind"),
        ("opt-plain", "layernorm", "the norms of this opt have no weights: choose another kind"),
    ],
)
def test_what_a_model_lacks_is_said(tmp_path: pathlib.Path, model: str, kind: str, message: str) -> None:
    """A model without biases, or with norms that have no weights, has no such adapter: one line."""
    foundation = open_foundation(tiny_model(model, tmp_path / "model"), LM, ())
    with pytest.raises(ExportError, match=message):
        adapt(foundation, AdapterRequest(kind).resolved(foundation), seed=0)


def test_embeddings_train_with_no_kind(exports: Exports) -> None:
    """Tied to the vocabulary's matrix or not, they are outside the blocks: a target that reaches them is refused."""
    llama, bert = exports.model("llama"), exports.model("bert")
    for folder, task, target in (
        (llama, LM, "lm_head"),
        (llama, LM, "embed_tokens"),
        (bert, CLASSES, "word_embeddings"),
    ):
        foundation = open_foundation(folder, task, LABELS if task is CLASSES else ())
        for kind in ("lora", "ia3"):
            request = AdapterRequest(kind, rank=2, alpha=4.0, targets=(target,))
            with pytest.raises(ExportError, match=r"outside the blocks|cannot adapt"):
                adapt(foundation, request.resolved(foundation), seed=0)
