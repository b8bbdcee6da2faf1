"""Both ends of the line: the device's and the coordinator's own code, and somebody between them who may do anything."""

from __future__ import annotations

import itertools
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from coordinator.gate import Gate, Reply
from coordinator.registry import Enrolment, Registry
from edge_sdk.identity import Identity
from edge_sdk.line import GREET_S, LONGEST_GREET_S, UNWELCOME_S, Line, presence_payload
from edge_sdk.wire.errors import SignatureError, WireError
from edge_sdk.wire.messages import (
    Greeting,
    Message,
    NotWelcome,
    Presence,
    TaskCancel,
    TaskProgress,
    Unwelcome,
    Welcome,
    decode_message,
    encode_message,
)
from edge_sdk.wire.signed import NO_CHANNEL, read_envelope, seal
from edge_sdk.wire.tokens import read_token
from edge_sdk.wire.topics import Topics

TOPICS = Topics("fleet")
UP, DOWN, PRESENCE = TOPICS.up("pi"), TOPICS.down("pi"), TOPICS.presence("pi")
CANCEL = TaskCancel("task", "why")


@dataclass(slots=True)
class Ends:
    """A coordinator in `folder`, and devices called pi, each with a folder of its own."""

    folder: pathlib.Path
    enrolment: Enrolment = Enrolment.OPEN
    registry: Registry = field(init=False)
    gate: Gate = field(init=False)

    def __post_init__(self) -> None:
        """Both are new."""
        self.registry = Registry(self.folder / "trust")
        self.restart()

    def restart(self) -> None:
        """The coordinator's process is another one."""
        self.gate = Gate(self.registry, TOPICS, self.enrolment)

    def line(self, who: str = "pi", token: str = "") -> Line:
        """The line of a device process whose files are those of `who`."""
        identity = Identity(self.folder / who, read_token(token) if token else None)
        return Line(identity, TOPICS, "pi", 0)

    def greet(self, line: Line, now_s: float = 0.0) -> Message:
        """What the coordinator answers."""
        line.begin(now_s)
        greeting = line.greeting(now_s)
        assert greeting is not None
        return line.open(DOWN, self.answer(greeting), now_s)

    def answer(self, greeting: bytes) -> bytes:
        """The payload of the answer."""
        reply = self.gate.hear("pi", UP, greeting, 0.0)
        assert isinstance(reply, Reply)
        return reply.payload

    def up(self, line: Line, message: Message) -> Message | Reply:
        """What the coordinator hears when the device says it."""
        payload = line.seal(message)
        assert payload is not None
        return self.gate.hear("pi", UP, payload, 0.0)

    def down(self, line: Line, message: Message) -> Message:
        """What the device hears when the coordinator says it."""
        payload = self.gate.seal("pi", message)
        assert payload is not None
        return line.open(DOWN, payload, 0.0)


@pytest.fixture
def ends(tmp_path: pathlib.Path) -> Iterator[Ends]:
    """Two ends that never met."""
    found = Ends(tmp_path)
    yield found
    found.registry.close()


def test_a_greeting_makes_a_channel(ends: Ends) -> None:
    """After the welcome both ends hear each other; before it neither says anything."""
    line = ends.line()
    assert line.seal(CANCEL) is None
    assert ends.gate.seal("pi", CANCEL) is None
    assert ends.greet(line) == Welcome(ends.gate.session, 0.0)
    assert ends.gate.seal("pi", CANCEL) is None, "the device has not spoken yet: the greeting may be an old one"
    progress = TaskProgress("task", 1, 2, 0.5)
    assert ends.up(line, progress) == progress
    assert ends.down(line, CANCEL) == CANCEL


def test_a_name_belongs_to_its_first_key(ends: Ends) -> None:
    """Another key under the name is answered with a signed refusal, and the device itself is heard as before."""
    line, thief = ends.line(), ends.line("thief")
    ends.greet(line)
    ends.up(line, TaskProgress("task", 1, 2, 0.5))
    answer = ends.greet(thief)
    assert isinstance(answer, NotWelcome)
    assert answer.reason is Unwelcome.OTHER_KEY
    assert thief.seal(CANCEL) is None
    assert ends.down(line, CANCEL) == CANCEL


def test_a_device_obeys_its_first_coordinator(ends: Ends, tmp_path: pathlib.Path) -> None:
    """Somebody else's answer, announcement and messages are refused, also after the device was started anew."""
    ends.greet(ends.line())
    impostor = Ends(tmp_path / "impostor")
    line = ends.line()
    with pytest.raises(SignatureError, match="signed with the key"):
        impostor.greet(line)
    with pytest.raises(SignatureError, match="signed with the key"):
        line.open(TOPICS.announcement, impostor.gate.announcement(1), 0.0)
    assert ends.greet(line) == Welcome(ends.gate.session, 0.0)
    impostor.registry.close()


def test_a_revoked_device_is_told_so(ends: Ends) -> None:
    """Its greeting is answered with a signed refusal; it asks again after a while, and not at once."""
    line = ends.line()
    ends.greet(line)
    assert ends.registry.revoke("pi") is not None
    answer = ends.greet(line)
    assert isinstance(answer, NotWelcome)
    assert answer.reason is Unwelcome.REVOKED
    assert line.seal(CANCEL) is None
    assert line.greeting(UNWELCOME_S - 0.1) is None
    assert line.greeting(UNWELCOME_S) is not None


def test_a_device_that_is_revoked_while_it_talks(ends: Ends) -> None:
    """The next look at the registry ends its channel with a word; approved again, it is welcome again."""
    line = ends.line()
    ends.greet(line)
    ends.up(line, TaskProgress("task", 1, 2, 0.5))
    assert ends.gate.revoked() == {}
    with Registry(ends.folder / "trust") as command:
        command.revoke("pi")
    payload = line.seal(TaskProgress("task", 2, 2, 0.5))
    last_words = ends.gate.revoked()["pi"]
    answer = line.open(DOWN, last_words, 0.0)
    assert isinstance(answer, NotWelcome)
    assert answer.reason is Unwelcome.REVOKED
    assert line.seal(CANCEL) is None
    assert ends.gate.seal("pi", CANCEL) is None
    assert ends.gate.revoked() == {}
    assert payload is not None
    with pytest.raises(SignatureError, match="not enrolled"):
        ends.gate.hear("pi", UP, payload, 0.0)
    with Registry(ends.folder / "trust") as command:
        command.approve("pi")
    assert ends.greet(line) == Welcome(ends.gate.session, 0.0)


def test_a_stolen_key_is_the_device_until_it_is_revoked(ends: Ends) -> None:
    """Whoever greets last is heard and told, thief or device; once it is revoked neither is."""
    device, thief = ends.line(), ends.line()  # of the same files: a copy of the card
    for number, line in enumerate((device, thief, device)):
        ends.greet(line)
        progress = TaskProgress("task", number, 2, 0.5)
        assert ends.up(line, progress) == progress
        assert ends.down(line, CANCEL) == CANCEL
    payload = ends.gate.seal("pi", CANCEL)
    assert payload is not None
    with pytest.raises(SignatureError):
        thief.open(DOWN, payload, 0.0)
    ends.registry.revoke("pi")
    for line in (device, thief):
        assert isinstance(ends.greet(line), NotWelcome)


def test_a_backup_knows_nobody_who_came_since(ends: Ends) -> None:
    """Who was enrolled before is welcome, by the same key of the coordinator's; the key of a later token is not."""
    ends.enrolment = Enrolment.TOKEN
    ends.restart()
    early = ends.line("early", ends.registry.invite("pi"))
    ends.greet(early)
    ends.registry.close()
    shutil.copytree(ends.folder / "trust", ends.folder / "backup")
    ends.registry = Registry(ends.folder / "trust")
    ends.restart()
    ends.greet(ends.line("late", ends.registry.invite("pi")))
    ends.registry.close()
    shutil.rmtree(ends.folder / "trust")
    (ends.folder / "backup").rename(ends.folder / "trust")
    ends.registry = Registry(ends.folder / "trust")
    ends.restart()
    answer = ends.greet(ends.line("late"))
    assert isinstance(answer, NotWelcome)
    assert answer.reason is Unwelcome.OTHER_KEY
    assert ends.greet(early) == Welcome(ends.gate.session, 0.0)


def test_a_token_introduces_both_to_each_other(ends: Ends, tmp_path: pathlib.Path) -> None:
    """With it the device is welcome and obeys that coordinator alone; without one, under another key, it is not."""
    ends.enrolment = Enrolment.TOKEN
    ends.restart()
    token = ends.registry.invite("pi")
    impostor = Ends(tmp_path / "impostor")
    with pytest.raises(SignatureError, match="signed with the key"):
        impostor.greet(ends.line(token=token))
    impostor.registry.close()
    assert ends.greet(ends.line(token=token)) == Welcome(ends.gate.session, 0.0)
    answers = [ends.greet(ends.line("thief")), ends.greet(ends.line("another thief", token))]
    reasons = [answer.reason for answer in answers if isinstance(answer, NotWelcome)]
    assert reasons == [Unwelcome.OTHER_KEY, Unwelcome.BAD_TOKEN]


def test_a_name_given_to_another_key_is_taken_from_the_first(ends: Ends) -> None:
    """Also in the middle of its conversation: what the first key still says is not heard, and nothing is told to it."""
    first = ends.line()
    ends.greet(first)
    ends.up(first, TaskProgress("task", 1, 2, 0.5))
    second = ends.line("another card", ends.registry.invite("pi"))
    assert ends.greet(second) == Welcome(ends.gate.session, 0.0)
    assert ends.gate.seal("pi", CANCEL) is None
    with pytest.raises(SignatureError):
        ends.up(first, TaskProgress("task", 2, 2, 0.5))
    assert ends.up(second, TaskProgress("task", 2, 2, 0.5)) == TaskProgress("task", 2, 2, 0.5)


def test_who_hears_a_token_used_cannot_use_it(ends: Ends) -> None:
    """The proof in a greeting, under another key, is refused; the device itself may come later."""
    ends.enrolment = Enrolment.TOKEN
    ends.restart()
    line = ends.line(token=ends.registry.invite("pi"))
    line.begin(0.0)
    greeting = line.greeting(0.0)
    assert greeting is not None
    heard = decode_message(read_envelope(greeting).body)
    stolen = seal(Identity(ends.folder / "thief").signer, UP, read_envelope(greeting).channel, 0, encode_message(heard))
    with pytest.raises(SignatureError, match="not of this key"):
        ends.gate.hear("pi", UP, stolen, 0.0)
    assert line.open(DOWN, ends.answer(greeting), 0.0) == Welcome(ends.gate.session, 0.0)


def test_a_greeting_is_repeated_until_it_is_answered(ends: Ends) -> None:
    """More and more seldom, and no more once the answer is there."""
    line = ends.line()
    line.begin(0.0)
    at_s = [t / 10 for t in range(6000) if line.greeting(t / 10) is not None]
    gaps_s = [later - earlier for earlier, later in itertools.pairwise(at_s)]
    assert at_s[0] == 0.0
    assert GREET_S <= gaps_s[0] <= 1.5 * GREET_S + 0.1
    assert LONGEST_GREET_S <= gaps_s[-1] <= 1.5 * LONGEST_GREET_S + 0.1
    ends.greet(line, 600.0)
    assert all(line.greeting(700.0 + k) is None for k in range(100))


def test_an_old_greeting_changes_nothing(ends: Ends) -> None:
    """Said again by somebody else it is answered, and neither the answer nor the offered channel is of any use."""
    line = ends.line()
    line.begin(0.0)
    greeting = line.greeting(0.0)
    assert greeting is not None
    line.open(DOWN, ends.answer(greeting), 0.0)
    ends.up(line, TaskProgress("task", 1, 2, 0.5))
    with pytest.raises(SignatureError, match="another conversation"):
        line.open(DOWN, ends.answer(greeting), 0.0)
    assert ends.down(line, CANCEL) == CANCEL
    assert ends.up(line, TaskProgress("task", 2, 2, 0.5)) == TaskProgress("task", 2, 2, 0.5)


def test_an_announcement_of_another_coordinator_process_leads_to_a_greeting(ends: Ends) -> None:
    """That of the one that the device talks to does not; and until the answer comes the old channel is heard."""
    line = ends.line()
    line.open(TOPICS.announcement, ends.gate.announcement(1), 0.0)
    assert line.greeting(0.0) is not None
    ends.greet(line)
    ends.up(line, TaskProgress("task", 1, 2, 0.5))
    line.open(TOPICS.announcement, ends.gate.announcement(2), 0.0)
    assert line.greeting(0.0) is None
    earlier = ends.gate.seal("pi", CANCEL)
    assert earlier is not None
    ends.restart()
    line.open(TOPICS.announcement, ends.gate.announcement(2), 0.0)
    assert line.greeting(0.0) is not None
    assert line.open(DOWN, earlier, 0.0) == CANCEL


def test_presence_is_signed(ends: Ends) -> None:
    """A presence is heard from the device's own key alone, and nothing else is heard on its topic."""
    ends.greet(ends.line())
    identity, thief = Identity(ends.folder / "pi"), Identity(ends.folder / "thief")
    presence = Presence("pi", "session", online=False)
    assert ends.gate.hear("pi", PRESENCE, presence_payload(identity, TOPICS, presence), 0.0) == presence
    for payload in (
        presence_payload(thief, TOPICS, presence),
        seal(identity.signer, PRESENCE, NO_CHANNEL, 0, encode_message(CANCEL)),
        encode_message(presence),
    ):
        with pytest.raises(WireError):
            ends.gate.hear("pi", PRESENCE, payload, 0.0)


def test_a_greeting_names_its_device(ends: Ends) -> None:
    """One that names another device than its topic enrols nobody."""
    signer = Identity(ends.folder / "pi").signer
    greeting = seal(signer, UP, NO_CHANNEL, 0, encode_message(Greeting("pi-2")))
    with pytest.raises(WireError, match="no greeting of this device"):
        ends.gate.hear("pi", UP, greeting, 0.0)
    assert ends.registry.devices() == []


class Conversation(RuleBasedStateMachine):
    """Everything ever sent may come again, at any time, in any order, or never; both ends may be started anew.

    Whatever happens, a message is heard at most once, by the process that it was said to; and whenever nobody
    interferes, the two find to each other.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ends = Ends(pathlib.Path(self.folder.name))
        self.line, self.count = self.ends.line(), itertools.count()
        self.up: list[bytes] = []
        self.down: list[tuple[str, bytes]] = []
        self.said_to: dict[int, object] = {}  # message: the process that it is for
        self.heard = list[int]()

    @rule()
    def device_begins(self) -> None:
        """The connection was lost and found."""
        self.line.begin(0.0)

    @rule()
    def device_starts_anew(self) -> None:
        """With the files of the one before."""
        self.line = self.ends.line()
        self.line.begin(0.0)

    @rule()
    def coordinator_starts_anew(self) -> None:
        """And announces itself."""
        self.ends.restart()
        self.down.append((TOPICS.announcement, self.ends.gate.announcement(1)))

    @rule(now_s=st.sampled_from([0.0, 1000.0]))
    def device_greets(self, now_s: float) -> None:
        """If it has to."""
        if (payload := self.line.greeting(now_s)) is not None:
            self.up.append(payload)

    @rule()
    def device_speaks(self) -> None:
        """To the coordinator process that welcomed it."""
        number = next(self.count)
        if (payload := self.line.seal(TaskProgress("", number, 0, 0.0))) is not None:
            self.said_to[number] = self.line._coordinator
            self.up.append(payload)

    @rule()
    def coordinator_speaks(self) -> None:
        """To whichever device process has the channel."""
        number = next(self.count)
        if (payload := self.ends.gate.seal("pi", TaskCancel(str(number), ""))) is not None:
            self.said_to[number] = self.ends.gate._channels["pi"].nonces
            self.down.append((DOWN, payload))

    @rule(data=st.data(), back=st.integers(1, 4))
    def something_arrives_at_the_coordinator(self, data: st.DataObject, back: int) -> None:
        """Something recent, or anything at all."""
        if not self.up:
            return
        payload = self.up[-1] if back == 1 else data.draw(st.sampled_from(self.up))
        try:
            heard = self.ends.gate.hear("pi", UP, payload, 0.0)
        except SignatureError:
            return
        if isinstance(heard, Reply):
            self.down.append((DOWN, heard.payload))
        elif isinstance(heard, TaskProgress):
            assert self.said_to[heard.step] == self.ends.gate.session
            self.heard.append(heard.step)

    @rule(data=st.data(), back=st.integers(1, 4))
    def something_arrives_at_the_device(self, data: st.DataObject, back: int) -> None:
        """Something recent, or anything at all."""
        if not self.down:
            return
        topic, payload = self.down[-1] if back == 1 else data.draw(st.sampled_from(self.down))
        try:
            heard = self.line.open(topic, payload, 0.0)
        except SignatureError:
            return
        if isinstance(heard, TaskCancel):
            channel = self.line._channel
            assert channel is not None
            assert self.said_to[int(heard.task_id)] == channel.nonces
            self.heard.append(int(heard.task_id))

    @invariant()
    def nothing_is_heard_twice(self) -> None:
        """By either end."""
        assert len(set(self.heard)) == len(self.heard)

    def teardown(self) -> None:
        """Left alone, they hear each other."""
        assert self.ends.greet(self.line) == Welcome(self.ends.gate.session, 0.0)
        assert self.ends.up(self.line, TaskProgress("", 0, 0, 0.0)) == TaskProgress("", 0, 0, 0.0)
        assert self.ends.down(self.line, CANCEL) == CANCEL
        self.ends.registry.close()
        self.folder.cleanup()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
