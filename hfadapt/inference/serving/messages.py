"""What clients send and get, as the OpenAPI page shows it; needs the extra ``serve``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "AddTask",
    "Answer",
    "Answers",
    "Health",
    "Predict",
    "PredictAll",
    "Problem",
    "ReplaceTask",
    "TaskOf",
    "Tasks",
]

Texts = Annotated[list[str], Field(min_length=1)]


class _Sent(BaseModel):
    """What a client sends: nothing is converted, and no key is overlooked."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Predict(_Sent):
    """Texts of any tasks."""

    texts: Texts = Field(description="N texts.", examples=[["a good film", "rates rise again"]])
    tasks: Texts | str = Field(description="N names of tasks, or one for all texts.", examples=[["mood", "topic"]])
    pairs: list[str | None] | None = Field(None, description="N second texts, for tasks that read two.")


class PredictAll(_Sent):
    """One text for several tasks."""

    text: str = Field(examples=["a good film"])
    tasks: Texts | None = Field(None, description="By default every task that reads as many texts as are given.")
    pair: str | None = Field(None, description="The second text, for tasks that read two.")


class AddTask(_Sent):
    """A folder whose tasks are to be served."""

    folder: str = Field(description="Below the root that the server was started with.")
    name: str | None = Field(None, description="Which task of a folder with several; by default all.")
    called: str | None = Field(None, description="What to call it here.")


class ReplaceTask(_Sent):
    """A folder that a task is served from from now on."""

    folder: str = Field(description="Below the root that the server was started with.")
    name: str | None = Field(None, description="Which task of a folder with several.")


class Answer(BaseModel):
    """The answer of a task to a text; what it does not have is left out."""

    task: str
    label: Any = Field(description="A class, a list of them, a number, [word, label] a word, or a text.")
    score: float | None = Field(None, description="Probability of the class.")
    scores: dict[str, float] | None = Field(None, description="Probability of every class.")
    span: tuple[int, int] | None = Field(None, description="Where in the second text the answer stands.")


class Answers(BaseModel):
    """In the order in which was asked."""

    answers: list[Answer]


class TaskOf(BaseModel):
    """A task that is served."""

    name: str
    kind: str = Field(description="Of its head.")
    pair: bool = Field(description="Whether it reads two texts.")
    labels: list[str] | None = Field(None, description="Names of its classes.")
    changed: bool = Field(description="Whether it is refused, as its folder changed.")


class Tasks(BaseModel):
    """The tasks that are served."""

    tasks: list[TaskOf]


class Health(BaseModel):
    """Whether requests are answered."""

    status: str = Field(description="ok, or closing.")
    tasks: int
    waiting: int = Field(description="Texts in the queue.")
    changed: list[str] = Field(description="Tasks that are refused, as their folders changed.")


class _Parts(BaseModel):
    kind: str
    what: str
    where: str
    got: str
    allowed: str
    try_: str = Field(alias="try")


class Problem(BaseModel):
    """Why a request was refused, and what to do."""

    error: _Parts
