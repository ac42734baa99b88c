"""Types of values, and the tables that files of several kinds share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, Strict, model_validator
from pydantic_core import PydanticCustomError

_LONGEST = 1 << 20  # characters


def _text(value: Any) -> str:
    """Any text: pydantic refuses the surrogates that stand for the bytes of a name that is no UTF-8."""
    if not isinstance(value, str):
        raise PydanticCustomError("expected", "text")
    if len(value) > _LONGEST:
        raise PydanticCustomError("expected", f"text of at most {_LONGEST} characters")
    return value


# No type is converted into another: a file whose number is a text was not written by this project.
Text = Annotated[str, PlainValidator(_text)]
Objective = Annotated[Text, Field(max_length=200, pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]  # the name of a folder
Flag = Annotated[bool, Strict()]
Count = Annotated[int, Strict(), Field(ge=0, lt=1 << 53)]
Positive = Annotated[int, Strict(), Field(ge=1, lt=1 << 53)]
Side = Annotated[int, Strict(), Field(ge=1, le=1 << 16)]  # pixels
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Amount = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]
Seconds = Annotated[float, Strict(), Field(ge=0, le=1e12, allow_inf_nan=False)]


class Table(BaseModel):
    """A table of keys and values. Keys of later versions are let through."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


def absent() -> Any:
    """The default of a key that may be absent, but has a value if it is there: null is refused."""
    return Field(None)


def wrong(expected: str) -> PydanticCustomError:
    """The error of a validator. expected: what would fit, as a noun phrase."""
    return PydanticCustomError("expected", expected)


class Figures(Table):
    """The result of `mean_and_std`: accuracies are fractions."""

    mean: Fraction | None
    std: Fraction | None
    n: Count
    diverged: Count = 0
    accuracies: list[Fraction | None] | None = None

    @model_validator(mode="after")
    def _agree(self) -> Figures:
        if (self.mean is None) != (self.n == 0) or (self.std is None) != (self.mean is None):
            raise wrong("a mean and a std of n networks, or null for both if all have diverged")
        if self.n == 0 and self.diverged == 0:
            raise wrong("at least one network that has diverged, if there is no mean")
        return self


class Point(Figures):
    """One evaluation, as `point_of` writes it."""

    network: Text | None = None
    iteration: Count = absent()
    networks: Mapping[Text, Figures] = absent()
    validation: Figures = absent()
    step_size: Amount | None = None


class Evaluated(Figures):
    """The figures of a network in an evaluation of a run."""

    accuracies: list[Fraction | None]


class RunPoint(Point):
    """One evaluation of a run."""

    accuracies: list[Fraction | None]
    iteration: Count
    networks: Mapping[Text, Evaluated] = absent()


class Content(Table):
    """What a dataset holds, as `content_of` tells it."""

    fingerprint: Text
    class_names: list[Text]
    train: Count
    test: Count


class Evaluation(Table):
    """How evaluation networks are trained. Absent keys are unknown. Keys of later versions would change figures."""

    model_config = ConfigDict(extra="forbid")

    epochs: Annotated[int, Strict(), Field(ge=0, le=10**7)] | None = None
    lr: Amount | None = None
    batch: Positive = 1
    strategy: Text = ""
    dc_strategy: Text = ""
    kind: Literal["dc", "glad"] = "dc"
    augmentation: Text = "dsa"

    @model_validator(mode="after")
    def _has_a_step_size(self) -> Evaluation:
        if self.kind == "dc" and "lr" in self.model_fields_set and self.lr is None:
            raise wrong("a number for lr, which the protocol dc does not choose by the network")
        return self


class Hardware(Table):
    """What `describe_hardware` tells."""

    device: Text = "cpu"
    cpu: Text
    gpu: Text | None = None
    torch: Text
    threads: Count
    processes: Count = 1


def check_alike(points: list[RunPoint]) -> None:
    """Raise the error of a validator for evaluations of which only some are on images that are held back, too."""
    if len({point.validation is None for point in points}) > 1:
        raise wrong("a validation in each of the evaluations, or in none")
