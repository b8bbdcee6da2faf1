"""Writes the tables and diagrams of docs/protocol.md, out of the code that they describe.

    python -m docs.protocol

replaces what stands between `<!-- generated: NAME -->` and `<!-- end -->`, and leaves the rest alone. A test holds that
running it changes nothing. What a field means is said in `docs.meanings`; one that is not there is a KeyError here.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import pathlib
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from coordinator import desk, rounds, tasks, validate
from coordinator.round_states import TRANSITIONS as STATE_TRANSITIONS
from coordinator.round_states import State
from coordinator.secure import steps
from docs.meanings import FIELDS, VALUES
from edge_sdk import line, phases, session
from edge_sdk.engine.optimizers import AdamW, Sgd
from edge_sdk.wire import blocks, channel, chunks, codec, codecs, delta, manifest, messages, mqtt, signed, tensors, web
from edge_sdk.wire.blobs import Blob
from edge_sdk.wire.keys import KEY_BYTES, Signer
from edge_sdk.wire.privacy import ExampleNoise
from edge_sdk.wire.secure import ring, said, shamir
from edge_sdk.wire.topics import Topics

PAGE: Final = pathlib.Path(__file__).with_suffix(".md")
MARKED: Final = re.compile(r"<!-- generated: ([a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)

UP, DOWN, BOTH = "device to coordinator", "coordinator to device", "both ways"
WAYS: Final = {
    messages.Presence: f"{UP}, retained, on the presence topic",
    messages.Announcement: f"{DOWN}, retained, on the announcement topic",
    messages.Greeting: f"{UP}, in the channel of its nonce alone",
    messages.Welcome: DOWN,
    messages.NotWelcome: DOWN,
    messages.Hello: UP,
    messages.TaskOffer: DOWN,
    messages.TaskCancel: DOWN,
    messages.TaskDeclined: UP,
    messages.TaskProgress: UP,
    messages.TaskFailed: UP,
    messages.ResultOffer: UP,
    messages.Receipt: DOWN,
    said.MaskKeys: UP,
    said.MaskPeers: DOWN,
    said.MaskShares: UP,
    said.MaskInbox: DOWN,
    said.UnmaskCall: DOWN,
    said.UnmaskShares: UP,
    messages.ChunkRequest: f"{BOTH}: from whoever needs a blob",
    messages.Chunk: f"{BOTH}: the answer to a ChunkRequest",
    messages.TransferRefused: f"{BOTH}: the other answer to a ChunkRequest",
}
INSIDE: Final = (messages.Task, ExampleNoise, messages.Report, said.Masking, said.Peer, Blob)
MANIFEST: Final = (
    manifest.Manifest,
    manifest.ModelSpec,
    manifest.ImageSpec,
    manifest.LevelSpec,
    manifest.Surgery,
    manifest.Refit,
    manifest.AdapterSpec,
    manifest.Structure,
    manifest.Keeping,
    manifest.Segment,
    manifest.VocabularyLoss,
    manifest.ClassesLoss,
    manifest.OptimizerGraphs,
    manifest.Cost,
)
NAMES: Final[Mapping[Any, str]] = {str: "text", int: "integer", float: "number", bool: "truth value", bytes: "binary"}
UNITS: Final = {"bytes": "bytes", "s": "seconds", "ms": "milliseconds"}


def rewritten(page: str) -> str:
    """The page with every generated part made anew. Raises KeyError for a part that is not known."""
    return MARKED.sub(lambda found: f"<!-- generated: {found[1]} -->\n\n{PARTS[found[1]]()}\n\n<!-- end -->", page)


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# ---- topics and bytes


def topics() -> str:
    """Every topic, as `Topics` builds it."""
    ours = Topics("FLEET")
    rows = [
        (ours.announcement, "yes", DOWN + "s", "`Announcement`"),
        (ours.manifest("SHA256"), "yes", DOWN + "s", "a manifest's bytes, as they are"),
        (ours.all("SHA256"), "no", DOWN + "s", "`Chunk` of that blob"),
        (ours.presence("DEVICE"), "yes", UP, "`Presence`"),
        (ours.up("DEVICE"), "no", UP, "every other message of a device"),
        (ours.down("DEVICE"), "no", DOWN, "every other message of the coordinator"),
    ]
    return table(("topic", "retained", "way", "payload"), ((f"`{topic}`", *rest) for topic, *rest in rows))


def examples() -> str:
    """Two messages and their bytes."""
    samples = (
        messages.Presence("pi-1", "9f86d081", online=True),
        messages.ChunkRequest("ab" * 32, messages.CHUNK_BYTES, 8, b"\x13", 3),
    )
    return "\n\n".join(f"`{sample!r}`\n\n```\n{_hex(messages.encode_message(sample))}\n```" for sample in samples)


def signed_example() -> str:
    """One signed message, and its bytes."""
    presence, topic = messages.Presence("pi-1", "9f86d081", online=True), Topics("FLEET").presence("pi-1")
    body = messages.encode_message(presence)
    payload = signed.seal(Signer(bytes([1]) * KEY_BYTES), topic, signed.NO_CHANNEL, 0, body)
    return f"```\n{_hex(payload)}\n```"


def _hex(data: bytes) -> str:
    return "\n".join(data[k : k + 32].hex(" ") for k in range(0, len(data), 32))


# ---- dataclasses and enumerations


def fields(kind: type) -> str:
    """A section about one dataclass: its docstring, and a row for each field."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    rows = ((f"`{name}`", _type_name(hints[name], _unit(name)), _meaning(kind, name)) for name in names)
    return f"{inspect.cleandoc(kind.__doc__ or '')}\n\n{table(('field', 'type', 'meaning'), rows)}"


def _meaning(kind: type, name: str) -> str:
    return FIELDS.get(f"{kind.__name__}.{name}") or FIELDS[name]


def _unit(name: str) -> str:
    return UNITS.get(name.rpartition("_")[2], "") if "_" in name else ""


def _type_name(hint: Any, unit: str) -> str:  # noqa: ANN401 - an annotation is any object
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in {types.UnionType, typing.Union}:
        return f"{_type_name(arguments[0], unit)} or nil" if types.NoneType in arguments else NAMES[arguments[0]]
    if typing.get_origin(hint) is tuple:
        return f"array of {_type_name(arguments[0], unit)}"
    if typing.get_origin(hint) is Mapping:
        return f"map of text to {_type_name(arguments[1], unit)}"
    return f"{NAMES.get(hint, hint.__name__)}{', ' if unit else ''}{unit}"


def message_sections() -> str:
    """Every message, with its way."""
    return "\n\n".join(f"### {name}\n\n*{WAYS[kind]}*\n\n{fields(kind)}" for name, kind in messages.KINDS.items())


def sections(kinds: Iterable[type]) -> Callable[[], str]:
    """A part that describes these dataclasses."""
    return lambda: "\n\n".join(f"### {kind.__name__}\n\n{fields(kind)}" for kind in kinds)


def enumerations(module: types.ModuleType) -> Callable[[], str]:
    """A part that describes every enumeration that `module` defines."""
    kinds = [
        kind
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, enum.Enum) and kind.__module__ == module.__name__
    ]
    rows = [(f"`{k.__name__}`", f"`{v.value}`", VALUES[f"{k.__name__}.{v.value}"]) for k in kinds for v in k]
    return lambda: table(("type", "value", "meaning"), rows)


def delta_codecs() -> str:
    """Every codec, and what a number takes in a tensor of 8 x 576, as SmolLM2's LoRA A of rank 8."""
    count = 8 * 576
    rows = (
        (f"`{name.value}`", f"`{how!r}`", f"{8 * how.size_bytes(count) / count:.2f}")
        for name, how in codecs.CODECS.items()
    )
    return table(("codec", "layout", "bits a number, of 8 x 576"), rows)


# ---- states


def diagram(transitions: Mapping[Any, Mapping[Any, Any]], first: enum.Enum) -> Callable[[], str]:
    """A part that draws a table of transitions: state -> trigger -> state."""
    lines = ["stateDiagram-v2", f"    [*] --> {_id(first)}"]
    for state, ways in transitions.items():
        lines += [f"    {_id(state)} --> {_id(target)}: {trigger.value}" for trigger, target in ways.items()]
        lines += [] if ways else [f"    {_id(state)} --> [*]"]
    return lambda: "```mermaid\n{}\n```".format("\n".join(lines))


def _id(state: enum.Enum) -> str:
    return str(state.value).replace("-", "_")


# ---- bounds


def bounds() -> str:
    """Every bound and every time that the page speaks of."""
    rows = [
        ("MAX_MESSAGE_BYTES", messages, "a whole message"),
        ("MAX_SIGNED_BYTES", signed, "a signed message, all but a `Chunk`"),
        ("WINDOW", channel, "numbers of a channel that are remembered; a lower one is refused"),
        ("GREET_S", line, "before the first `Greeting` is repeated, before it is spread by up to a half"),
        ("LONGEST_GREET_S", line, "the same after many of them"),
        ("UNWELCOME_S", line, "before a device that is not welcome greets again"),
        ("RENEW_S", line, "after which a device begins a new channel"),
        ("MAX_ITEMS", codec, "entries of one array or map"),
        ("MAX_TEXT", messages, "characters of a text that is a field of a message itself"),
        ("MAX_MANIFEST_BYTES", manifest, "a manifest"),
        ("CHUNK_BYTES", messages, "a chunk, unless asked otherwise"),
        ("MAX_CHUNK_BYTES", messages, "a chunk at most"),
        ("MAX_WINDOW", messages, "chunks asked for at once"),
        ("MAX_BITMAP_BYTES", messages, "the bitmap of a request"),
        ("KEEPALIVE_S", mqtt, "MQTT's keepalive"),
        ("RETRY_S", mqtt, "before the first attempt to connect again, at most"),
        ("LONGEST_RETRY_S", mqtt, "the same after many attempts"),
        ("FIRST_WAIT_S", chunks, "silence after which chunks are asked for again"),
        ("LONGEST_WAIT_S", chunks, "the same at most, before it is spread by up to a half"),
        ("RESTARTS", chunks, "times a blob with a wrong SHA-256 is fetched anew"),
        ("BLOCK_BYTES", blocks, "a block of a file"),
        ("MAX_LIST_BYTES", blocks, "a list of blocks"),
        ("MAX_HEADER_BYTES", tensors, "the header of a tensor file"),
        ("MAX_DIMENSIONS", tensors, "dimensions of a tensor"),
        ("MAX_BATCH", messages, "rows of a batch"),
        ("MAX_TOKENS", messages, "tokens of a row"),
        ("MAX_STEPS", messages, "steps of a task"),
        ("MAX_SOURCES", messages, "web servers that a task may name"),
        ("SILENCE_S", web, "before a web server that is silent is given up"),
        ("LEAST_BYTES_S", web, "bytes a second below which it is given up, too"),
        ("MIN_POWER", messages, "the least share of its threads that a device trains with"),
        ("MAX_PEERS", said, "neighbours of a device in a secure sum"),
        ("LONGEST_BOX", said, "bytes of a box in a secure sum"),
        ("SHARE_BYTES", shamir, "a share of a secret"),
        ("LARGEST", ring, "the numbers of a secure sum, without their sign"),
        ("ASK_S", steps, "after which a device of a secure sum is asked again"),
        ("MAX_CHANGE", validate, "a number of a delta, without its sign"),
        ("SHARE", codecs, "numbers of which `top-k` keeps one"),
        ("ENTRY_BYTES", validate, "allowed around each tensor of a delta"),
        ("FILE_BYTES", validate, "allowed around all of them"),
        ("RESEND_S", session, "after which a device offers its results again"),
        ("PROGRESS_S", session, "between two progress messages"),
        ("REMEMBERED", session, "declines and failures that a device remembers"),
        ("SILENCE_S", desk, "silence after which an offer is repeated"),
        ("BUSY_S", desk, "the same after `busy`"),
        ("GRACE_S", tasks, "after the deadline, for deltas that are being fetched"),
        ("REPEAT_S", rounds, "before a round is tried again"),
    ]
    found = ((f"`{name}`", f"{getattr(module, name):,}", f"`{module.__name__}`", what) for name, module, what in rows)
    return table(("name", "value", "module", "what it bounds"), found)


def optimizers() -> str:
    """The constants that a task does not name."""
    adamw, sgd = AdamW(), Sgd()
    return textwrap.dedent(
        f"""\
        - `adamw`: AdamW, beta1 = {adamw.beta1}, beta2 = {adamw.beta2}, epsilon = {adamw.epsilon}, moments from zero.
        - `sgd`: momentum {sgd.momentum}, no dampening, velocity from zero."""
    )


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "topics": topics,
    "examples": examples,
    "signed-example": signed_example,
    "messages": message_sections,
    "message-types": sections(INSIDE),
    "message-values": enumerations(messages),
    "manifest": sections(MANIFEST),
    "manifest-values": enumerations(manifest),
    "optimizers": optimizers,
    "delta": sections((delta.DeltaFile, delta.Tensor)),
    "codecs": delta_codecs,
    "phases": diagram(phases.TRANSITIONS, phases.Phase.IDLE),
    "states": diagram(STATE_TRANSITIONS, State.WAITING),
    "bounds": bounds,
}


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
