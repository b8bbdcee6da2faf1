"""The tasks, as optimum and peft know them; what a device must know of one is in `edge_sdk.wire.manifest.TaskType`."""

from __future__ import annotations

from dataclasses import dataclass

from edge_sdk.wire.manifest import TaskType


@dataclass(frozen=True, slots=True)
class Task:
    """What optimum calls the task, and peft, None where it has no name for it.

    `saved_by_peft` are the modules that peft trains and saves with any adapter, without being told.
    """

    optimum: str
    peft: str | None
    saved_by_peft: tuple[str, ...] = ()


CLASSIFIERS = ("classifier", "score")

TASKS = {
    TaskType.CAUSAL_LM: Task("text-generation", "CAUSAL_LM"),
    TaskType.SEQUENCE_CLASSIFICATION: Task("text-classification", "SEQ_CLS", CLASSIFIERS),
    TaskType.TOKEN_CLASSIFICATION: Task("token-classification", "TOKEN_CLS", CLASSIFIERS),
    TaskType.IMAGE_CLASSIFICATION: Task("image-classification", None),
}
