"""A configuration is read as it is meant, or refused in one line that names the key."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import pytest

from coordinator.builder import request_of
from coordinator.config import Config, Rule, ServerOptimizer, load_config
from coordinator.errors import ConfigError
from coordinator.guards import Estimator
from coordinator.policy.caff import Caff
from coordinator.policy.largest_that_fits import LargestThatFits
from coordinator.policy.registry import policy_of
from coordinator.policy.types import Choice
from coordinator.secure.opening import terms_of
from coordinator.task_book import Place, TaskMaker
from edge_sdk.wire.blobs import blob_of
from edge_sdk.wire.codecs import NEEDS_RESIDUAL
from edge_sdk.wire.messages import DeltaCodec
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.secure.said import Masking
from export.build import read_request
from export.levels import Drop, LevelRequest, Refitting
from export.public import PublicRequest
from tests.coordinator.samples import BLOB, CONFIG


def load(tmp_path: pathlib.Path, text: str) -> Config:
    """Load `text` as a file."""
    path = tmp_path / "coordinator.toml"
    path.write_text(text)
    return load_config(path)


def test_a_minimal_file_is_enough(tmp_path: pathlib.Path) -> None:
    """Defaults fill in, whole numbers pass for fractions, and paths are relative to the file."""
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG)
    config = load_config(path)
    assert config.model.dir == tmp_path / "model"
    assert config.out == tmp_path / "out"
    assert [level.bits for level in config.levels] == [32, 8]
    assert config.training.learning_rate == 1.0
    assert config.aggregation.rule is Rule.LORA_SVD
    assert config.evaluation is None
    assert config.training.integer_gradients is False


def test_a_level_says_what_its_blocks_lose(tmp_path: pathlib.Path) -> None:
    """Every technique is a key of the level, public data a table, and the exporter is asked for just that."""
    text = CONFIG.replace(
        "bits = 8", 'bits = 8\ndrop = "importance"\nlayers = 9\nffn = 0.5\nrefit = "distill"\ntensors_mb = 60'
    )
    text = (
        text.replace("layers = 9", 'layers = 9\nsvd = ["o_proj"]\nsvd_rank = 64')
        + "[public]\npath = 'texts'\nrows = 5\n"
    )
    path = tmp_path / "coordinator.toml"
    path.write_text(text)
    (tmp_path / "request.json").write_text(json.dumps(request_of(load_config(path))))
    request = read_request(tmp_path / "request.json")
    level = LevelRequest("int8", 8, 9, 6, None, Drop.IMPORTANCE, 0.5, ("o_proj",), 64, Refitting.DISTILL, tensors_mb=60)
    assert request.levels == (LevelRequest("fp32", 32, None, None), level)
    assert request.public == PublicRequest(tmp_path / "texts", rows=5)
    path.write_text(CONFIG)
    (tmp_path / "request.json").write_text(json.dumps(request_of(load_config(path))))
    assert read_request(tmp_path / "request.json").public is None


def test_integers_are_the_tasks_choice(tmp_path: pathlib.Path) -> None:
    """What the configuration allows is what every device's task allows."""
    path = tmp_path / "coordinator.toml"
    for text, allowed in (
        (CONFIG, False),
        (CONFIG.replace("[training]", "[training]\ninteger_gradients = true"), True),
    ):
        path.write_text(text)
        blob = blob_of(b"a file")
        task = TaskMaker("run", load_config(path).training, Rule.LORA_SVD).make(
            Place("pi", 1, 0), Choice("fp32"), artifact=blob, adapter=blob, left_s=1.0
        )
        assert task.integer_gradients is allowed


def test_the_policy_is_the_one_named(tmp_path: pathlib.Path) -> None:
    """With the limits that are set for it."""
    text = "[policy]\nname = 'caff'\nmax_upload_bytes = 1000\nmax_task_s = 60\n[training]"
    assert policy_of(load(tmp_path, CONFIG).policy) == LargestThatFits()
    named = load(tmp_path, CONFIG.replace("[training]", text)).policy
    assert policy_of(named) == Caff(max_upload_bytes=1000, max_task_s=60.0)


def test_a_servers_optimizer_is_read(tmp_path: pathlib.Path) -> None:
    """FedAdam takes the paper's constants where none are given; without an optimizer the server's rate is 1."""
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG)
    assert load_config(path).aggregation.rate == 1.0
    aggregation = '[aggregation]\nrule = "freeze-a"\noptimizer = "fedadam"\nlearning_rate = 0.01\n[training]'
    path.write_text(CONFIG.replace("[training]", aggregation))
    read = load_config(path).aggregation
    assert read.optimizer is ServerOptimizer.FEDADAM
    assert (read.rate, read.beta1, read.beta2, read.tau) == (0.01, 0.9, 0.99, 1e-3)


@pytest.mark.parametrize("rule", Rule)
@pytest.mark.parametrize("how", DeltaCodec)
def test_the_codec_is_the_tasks_and_residuals_where_they_mean_something(
    tmp_path: pathlib.Path, how: DeltaCodec, rule: Rule
) -> None:
    """A lossy codec has residuals, named after the run, under a rule that keeps coordinates, and is refused without
    them where it needs them.
    """
    path = tmp_path / "coordinator.toml"
    tables = f"[adapter]\nkind = '{'bias' if rule is Rule.MEAN else 'lora'}'\n[aggregation]\nrule = '{rule.value}'\n"
    path.write_text(CONFIG.replace("[training]", f"{tables}[training]\ndelta_codec = '{how.value}'"))
    keeps = rule in {Rule.FREEZE_A, Rule.MEAN}
    if how in NEEDS_RESIDUAL and not keeps:
        with pytest.raises(ConfigError, match=r"keeps no residuals; allowed: fp32, fp16, int8, int4, int2$"):
            load_config(path)
        return
    config, blob = load_config(path), blob_of(b"a file")
    task = TaskMaker("the run", config.training, config.aggregation.rule).make(
        Place("pi", 1, 0), Choice("fp32"), artifact=blob, adapter=blob, left_s=1.0
    )
    assert task.delta_codec is how
    assert task.residual == ("the run" if keeps and how is not DeltaCodec.FP32 else "")


@pytest.mark.parametrize(
    ("kind", "rule"),
    [("lora", Rule.LORA_SVD), ("rslora", Rule.LORA_SVD), ("ia3", Rule.MEAN), ("layernorm", Rule.MEAN)],
)
def test_the_adapter_chooses_the_rule(tmp_path: pathlib.Path, kind: str, rule: Rule) -> None:
    """Without a rule, factors are aggregated by their products, and all else by its mean."""
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG.replace("[training]", f"[adapter]\nkind = '{kind}'\n[training]", 1))
    assert load_config(path).aggregation.rule is rule


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("count = 3", "count = 3\nqourum = 1", "unknown key 'rounds.qourum'; allowed here: count, devices"),
        ("count = 3", "count = 0", "rounds.count is 0; it must be from 1 to 100000"),
        ("count = 3", 'count = "3"', "rounds.count is '3'; it must be a whole number"),
        ("count = 3", "count = true", "rounds.count is True; it must be a whole number"),
        ("count = 3\n", "", "rounds.count is missing"),
        ("learning_rate = 1", "learning_rate = nan", "training.learning_rate is nan; it must be from 0 to 100"),
        (
            "learning_rate = 1",
            'delta_codec = "int3"',
            "training.delta_codec is 'int3'; allowed: fp32, fp16, int8, int4",
        ),
        ("learning_rate = 1", 'optimizer = "adam"', "training.optimizer is 'adam'; allowed: adamw, sgd"),
        ('"causal-lm"', '"chat"', "model.task is 'chat'; allowed: causal-lm, sequence-classification"),
        ('"causal-lm"', '"sequence-classification"', "model.labels are needed"),
        ('"causal-lm"', '"causal-lm"\nlabels = ["a", "b"]', "model.labels are for a classification"),
        ("devices = 5", "devices = 5\nquorum = 6", "rounds.quorum is 6, more than rounds.devices"),
        (
            "devices = 5",
            "devices = 5\nparticipants = 2\nquorum = 3",
            "rounds.quorum is 3, more than rounds.participants",
        ),
        ("bits = 8", "bits = 7", "levels.int8.bits is 7; allowed: 32, 16, 8, 4"),
        ("bits = 8", "layers = 4", "levels.int8 trains more layers than it keeps"),
        ("bits = 8", "ffn = 0", "levels[1].ffn is 0; it must be from 0.001 to 1"),
        ("bits = 8", 'drop = "evenly"', "levels[1].drop is 'evenly'; allowed: uniform, importance"),
        ("bits = 8", 'refit = "least-squares"', "levels.int8 needs a [public] table with a path"),
        ("bits = 8", "tensors_mb = 9", "levels.int8 needs a [public] table with a path"),
        ("bits = 8", 'drop = "importance"', "levels.int8 needs a [public] table with a path"),
        ('name = "int8"', 'name = "fp32"', "levels share a name"),
        ("bits = 8", "rank = 9", "levels.int8.rank is 9, more than adapter.rank, 8"),
        ("bits = 8", "rank = 1025", "levels[1].rank is 1025; it must be from 0 to 1024"),
        (
            "train_last = 6",
            "rank = 4\n[aggregation]\nrule = 'freeze-a'",
            "levels.int8.rank is 4; only aggregation.rule = 'lora-svd' brings an adapter to a lower rank",
        ),
        (
            'name = "fp32"\n\n[[levels]]',
            'name = "fp32"\nrank = 4\n\n[[levels]]\nrank = 4',
            "no level has the adapter's own rank, 8: set no rank in one",
        ),
        ('name = "int8"', 'name = "a/b"', "levels[1].name is 'a/b'; allowed: letters"),
        ('fleet = "demo"', 'fleet = "a/+"', "fleet is 'a/+'"),
        ("[training]", '[adapter]\nkind = "dora"\n[training]', "adapters of kind 'dora' are not supported; supp"),
        ("[training]", '[adapter]\nkind = "head"\n[training]', "adapter: an adapter of kind head is for sequence-"),
        ("[training]", '[adapter]\nkind = "layers"\n[training]', "adapter: an adapter of kind layers needs first or"),
        (
            "[training]",
            '[adapter]\nkind = "sparse"\nstart = "run"\n[training]',
            "adapter.start is for adapters of kind lora or rslora, this one is of kind 'sparse'",
        ),
        ("[training]", '[adapter]\nkind = "bias"\ntargets = ["q"]\n[training]', "of kind bias takes no targets"),
        (
            "[training]",
            "[aggregation]\nrule = 'majority'\n[training]",
            "aggregation.rule is 'majority'; allowed: auto, lora-svd, freeze-a, mean",
        ),
        (
            "[training]",
            "[aggregation]\nrule = 'mean'\n[training]",
            "aggregation.rule is 'mean'; allowed for an adapter of kind 'lora': auto, lora-svd, freeze-a",
        ),
        (
            "[training]",
            "[adapter]\nkind = 'bias'\n[aggregation]\nrule = 'freeze-a'\n[training]",
            "aggregation.rule is 'freeze-a'; allowed for an adapter of kind 'bias': auto, mean",
        ),
        ("[training]", "[policy]\nmax_task_s = 60\n[training]", "policy.max_task_s is for the policy caff"),
        ("[training]", "[policy]\nname = 'kkt'\nseed = 1\n[training]", "policy.seed is for the policy random"),
        ("[training]", "[policy]\nname = 'fixed'\n[training]", "policy.level is missing; fixed needs one of: fp32"),
        (
            "[training]",
            "[policy]\nname = 'fixed'\nlevel = 'x'\n[training]",
            "policy.level is 'x'; the levels are: fp32",
        ),
        (
            "[training]",
            "[aggregation]\nmean_over = 'some'\n[training]",
            "aggregation.mean_over is 'some'; allowed: trained, all",
        ),
        (
            "[training]",
            "[aggregation]\noptimizer = 'adam'\n[training]",
            "aggregation.optimizer is 'adam'; allowed: fedavg, fedavgm, fedadam",
        ),
        (
            "[training]",
            "[aggregation]\noptimizer = 'fedavgm'\n[training]",
            "aggregation.optimizer is 'fedavgm', which keeps moments of each number from round to round; lora-svd",
        ),
        (
            "[training]",
            "[aggregation]\nrule = 'freeze-a'\noptimizer = 'fedadam'\n[training]",
            "aggregation.learning_rate is missing; fedadam needs one",
        ),
        (
            "[training]",
            "[aggregation]\nlearning_rate = 0\n[training]",
            "aggregation.learning_rate is 0; it must be from 1e-06 to 100",
        ),
        ("[training]", "[aggregation]\nbeta1 = 0.5\n[training]", "aggregation.beta1 is for fedavgm and fedadam"),
        ("[training]", "[aggregation]\nbeta2 = 0.5\n[training]", "aggregation.beta2 is for fedadam"),
        ("[training]", "[aggregation]\ntau = 0.5\n[training]", "aggregation.tau is for fedadam"),
        ("[training]", "[checks]\nover_norm = 'drop'\n[training]", "checks.over_norm is 'drop'; allowed: clip, refuse"),
        ("[rounds]", "[[rounds]]", "it must be a table, [rounds]"),
        ("name = ", "name = = ", "cannot be read"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: pathlib.Path, old: str, new: str, complaint: str) -> None:
    """Each mistake gives one line with the file, the key and what is allowed."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, CONFIG.replace(old, new, 1))
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "coordinator.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("quorum", "aggregation", "complaint"),
    [
        (5, "byzantine = 1", "aggregation.byzantine is for the estimators median"),
        (5, "estimator = 'krum'", "aggregation.estimator is 'krum'; allowed: mean, median, trimmed-mean, multi-krum"),
        (5, "rule = 'freeze-a'\nestimator = 'median'", "byzantine is missing: how many deltas of a round median has"),
        (
            4,
            "rule = 'freeze-a'\nestimator = 'trimmed-mean'\nbyzantine = 2",
            "rounds.quorum is 4; trimmed-mean withstands 2 deltas that lie among 5 or more: set rounds.quorum to 5",
        ),
        (
            4,
            "estimator = 'multi-krum'\nbyzantine = 1",
            "rounds.quorum is 4; multi-krum withstands 1 deltas that lie among 5 or more",
        ),
        (
            5,
            "estimator = 'median'\nbyzantine = 1",
            "'median', which is taken number by number; the numbers of LoRA's factors mean nothing apart",
        ),
        (
            5,
            "estimator = 'multi-krum'\nbyzantine = 1",
            "'multi-krum', which needs deltas of the same tensors; levels keep or train different layers",
        ),
    ],
)
def test_an_estimator_that_cannot_hold_is_refused(
    tmp_path: pathlib.Path, quorum: int, aggregation: str, complaint: str
) -> None:
    """Too few deltas for so many liars, or a space in which it means nothing: one line before anything runs."""
    text = CONFIG.replace("devices = 5\n", f"devices = 5\nquorum = {quorum}\n") + f"[aggregation]\n{aggregation}\n"
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, text)


def test_the_middle_of_a_few_large_numbers_is_refused(tmp_path: pathlib.Path) -> None:
    """In top-k most of a delta's numbers are zero, so their median is zero."""
    robust = "[aggregation]\nrule = 'freeze-a'\nestimator = 'median'\nbyzantine = 1\n"
    text = CONFIG.replace("devices = 5\n", "devices = 5\nquorum = 3\n")
    assert load(tmp_path, text + robust).aggregation.estimator is Estimator.MEDIAN
    with pytest.raises(ConfigError, match="most numbers of a delta in top-k are zero"):
        load(tmp_path, text + "delta_codec = 'top-k'\n" + robust)


@pytest.mark.parametrize(
    ("aggregation", "privacy", "complaint"),
    [
        ("rule = 'lora-svd'", "", "set aggregation.rule = 'freeze-a', not 'lora-svd'"),
        ("rule = 'freeze-a'\nestimator = 'median'\nbyzantine = 1", "", "[privacy] is for the mean; how far one device"),
        ("rule = 'freeze-a'\nclip_norm = 1", "", "aggregation.clip_norm is beside privacy.clip_norm: leave it out"),
        ("rule = 'freeze-a'", "quantile = 0.5", "privacy.count_noise is 0; with a quantile and this noise_multiplier"),
        ("rule = 'freeze-a'", "quantile = 1.0", "privacy.quantile is 1.0; it must be from 0 to 0.99"),
    ],
)
def test_privacy_that_cannot_hold_is_refused(
    tmp_path: pathlib.Path, aggregation: str, privacy: str, complaint: str
) -> None:
    """Where nothing bounds what one device adds, or a bound stands beside the bound: one line."""
    table = f"[aggregation]\n{aggregation}\n[privacy]\nnoise_multiplier = 1\nclip_norm = 1\ndelta = 1e-5\n{privacy}\n"
    text = CONFIG.replace("devices = 5\n", "devices = 5\nquorum = 3\n") + table
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, text)


PRIVATE = "[aggregation]\nrule = 'freeze-a'\n[privacy]\nnoise_multiplier = 1\nclip_norm = 1\ndelta = 1e-5\n"


@pytest.mark.parametrize(
    ("rounds", "other", "complaint"),
    [
        ("extra = 2", "", "rounds.extra is beside rounds.participants: set how many results a round is made of"),
        ("mode = 'buffered'", "", "rounds.mode is 'buffered', which needs rounds.buffer"),
        ("buffer = 2", "", "rounds.buffer is for rounds.mode = 'buffered'"),
        (
            "mode = 'buffered'\nbuffer = 2\nparticipants = 3",
            "",
            "free device trains: leave out rounds.participants",
        ),
        ("mode = 'buffered'\nbuffer = 2\nquorum = 2", "", "how many results are enough: leave out rounds.quorum"),
        ("late = 'maybe'", "", "rounds.late is 'maybe'; allowed: refuse, discount"),
        ("late = 'discount'\nmax_staleness = 0", "", "rounds.max_staleness is 0; it must be from 1 to 1000"),
        (
            "late = 'discount'\nquorum = 3",
            "[aggregation]\nrule = 'freeze-a'\nestimator = 'median'\nbyzantine = 1\n",
            "rounds.late = 'discount' discounts deltas by how late they are; a median knows no weights",
        ),
        ("late = 'discount'", PRIVATE, "rounds.late = 'discount' puts deltas of several rounds into one"),
        ("mode = 'buffered'\nbuffer = 2", PRIVATE, "rounds.mode = 'buffered' puts deltas of several rounds into one"),
        ("participants = 3\nextra = 1", PRIVATE, "one's data decides who else counts, which [privacy] cannot account"),
    ],
)
def test_rounds_that_cannot_hold_are_refused(tmp_path: pathlib.Path, rounds: str, other: str, complaint: str) -> None:
    """A setting without its other half, or one for which there is no estimator or no accounting: one line."""
    text = CONFIG.replace("devices = 5\n", f"devices = 5\n{rounds}\n") + other
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("rollout", "complaint"),
    [
        ("canary = 1\nlevels = ['int4']", "rollout.levels has int4; there is no such level"),
        ("canary = 1.5", "rollout.canary is 1.5; give a whole number of devices, or a share below 1"),
        ("canary = 0", "rollout.canary is 0; it must be from 1e-06 to 10000"),
        ("canary = 1", "rollout.canary is 1, fewer than rounds.quorum, 2, and every level begins with them"),
        ("tasks = 4", "rollout.canary is missing"),
    ],
)
def test_a_rollout_that_cannot_hold_is_refused(tmp_path: pathlib.Path, rollout: str, complaint: str) -> None:
    """A level that there is not, or fewer canaries than a round needs: one line."""
    text = CONFIG.replace("devices = 5\n", "devices = 5\nquorum = 2\n") + f"[rollout]\n{rollout}\n"
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, text)


def test_what_counts_is_the_run(tmp_path: pathlib.Path) -> None:
    """Rounds in step may be continued with more patience or more devices; with late results, or a buffer, it is
    another run.
    """
    courses = ("", "participants = 3\nextra = 1", "late = 'discount'", "mode = 'buffered'\nbuffer = 2")
    texts = [CONFIG.replace("devices = 5\n", f"devices = 5\n{rounds}\n") for rounds in courses]
    plain, *others = (load(tmp_path, text).digest() for text in texts)
    assert others[0] == plain
    assert len({plain, *others}) == 3


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ("quantile = 0.5", "privacy.quantile is for where = 'coordinator'"),
        ("where = 'nobody'", "privacy.where is 'nobody'"),
        ("[participant]\nbudget = '1GB'\npath = 'texts'", "[participant] is beside privacy.where = 'device'"),
    ],
)
def test_privacy_on_devices_is_read(tmp_path: pathlib.Path, extra: str, complaint: str) -> None:
    """It goes with any rule; what only the coordinator's noise has is refused."""
    table, where = "[privacy]\nnoise_multiplier = 1\nclip_norm = 1\ndelta = 1e-5\n", "where = 'device'\n"
    assert load(tmp_path, CONFIG + table + where).example_noise == ExampleNoise(1.0, 1.0)
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, CONFIG + table + ("" if "where" in extra else where) + extra)


SECURE = """
[aggregation]
rule = "freeze-a"
[checks]
norm_factor = 0
[secure]
"""
SECURE_CONFIG = CONFIG.replace("devices = 5\n", "devices = 5\nparticipants = 5\nquorum = 3\n").replace(
    "train_last = 6\n", ""
)


def test_a_secure_sum_is_asked_for_by_its_table(tmp_path: pathlib.Path) -> None:
    """And tasks say then where their deltas go, in no codec, and as finely as so many devices allow."""
    config = load(tmp_path, SECURE_CONFIG + SECURE)
    assert config.secure is not None
    terms = terms_of(config)
    maker = TaskMaker("run", config.training, config.aggregation.rule, terms)
    task = maker.make(Place("a", 2, 3), Choice("fp32"), artifact=BLOB, adapter=BLOB, left_s=1.0)
    assert task.masking == Masking("run.2.3", 4.0, (2**31 - 1) // 5, 20)
    assert maker.codecs == (DeltaCodec.FP32,)
    assert terms_of(load(tmp_path, CONFIG)) is None


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('rule = "freeze-a"', 'rule = "lora-svd"', "set aggregation.rule = 'freeze-a', not 'lora-svd'"),
        ('"freeze-a"', '"freeze-a"\nestimator = "median"\nbyzantine = 1', "of which there is no median"),
        ("norm_factor = 0", "norm_factor = 10", "checks.norm_factor is 10; with [secure] nobody sees a delta's size"),
        (
            "learning_rate = 1",
            'learning_rate = 1\ndelta_codec = "int8"',
            "training.delta_codec is 'int8'",
        ),
        ("[secure]", "[privacy]\nnoise_multiplier = 1\nclip_norm = 1\ndelta = 1e-5\n[secure]", "is beside [secure]"),
        ("bits = 8", "bits = 8\ntrain_last = 6", "levels keep or train different layers: make them alike"),
        ("participants = 5\n", "", "rounds.participants is missing"),
        ("quorum = 3", "quorum = 3\nlate = 'discount'", "a secure sum is of devices that are there together"),
        ("quorum = 3", "quorum = 2", "rounds.quorum is 2; [secure] needs 3 at least"),
        ("[secure]", "[secure]\nneighbours = 3", "secure.neighbours is 3; it must be even, or 0"),
        ("steps = 20", "steps = 1000000\nbatch = 4096", "a sum of weights has to stay below 2^31"),
    ],
)
def test_what_a_secure_sum_makes_impossible_is_refused(
    tmp_path: pathlib.Path, old: str, new: str, complaint: str
) -> None:
    """Whoever asks for both is told in one line which of them to leave."""
    text = SECURE_CONFIG + SECURE
    assert old in text
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(tmp_path, text.replace(old, new))


def test_a_missing_file_is_said(tmp_path: pathlib.Path) -> None:
    """No file gives one line, too."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


def test_the_digest_is_the_run(tmp_path: pathlib.Path) -> None:
    """More rounds, another broker or another folder continue a run; another learning rate is another run."""
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG)
    config = load_config(path)
    longer = dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, count=9), out=pathlib.Path("/x"))
    other = dataclasses.replace(config, training=dataclasses.replace(config.training, learning_rate=2.0))
    assert config.digest() == longer.digest()
    assert config.digest() != other.digest()
