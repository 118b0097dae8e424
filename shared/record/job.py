"""Records of a whole job as values: `result.json`, and the base that all typed records share."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.events import BlobRef, Figures, JobId, Missing, Sentence, TrainingEnd
from shared.s3.json_records import figures, reading

Number = Annotated[float, BeforeValidator(float)]
#: Figures by name; JSON's null is NaN.
Measured = Annotated[Figures, BeforeValidator(figures)]


class Document(BaseModel):
    """Base of typed records: fields that a later version added are ignored, so that old readers read new records."""

    model_config = ConfigDict(frozen=True)

    @classmethod
    def read(cls, key: str, found: Any) -> Self:
        """The record that `key` holds; `Refused`, with the key, if a field is missing or of another kind."""
        with reading(key):
            return cls.model_validate(found)


class Result(Document):
    """The end of a job, `result.json`; times are seconds since the epoch, by Redis's clock."""

    job: JobId
    outcome: Literal["finished", "stopped", "failed"]
    reason: Sentence = ""
    rounds: Annotated[int, Field(ge=-1, le=1_000_000)]
    metrics: Measured = {}
    model: BlobRef | None = None
    missing: Missing = Missing()
    seconds: float = 0.0
    started: Number
    ended: Number

    @property
    def end(self) -> TrainingEnd:
        """The event that told of it."""
        return TrainingEnd.model_validate({name: getattr(self, name) for name in _TOLD})


_TOLD = [name for name in TrainingEnd.model_fields if name in Result.model_fields]
