"""What a slot answers, and what its log says beside."""

import pytest
import structlog
from structlog.testing import capture_logs

from services.trainer.slot import replies
from shared.errors import BadInput


@pytest.mark.parametrize(("cause", "is_shown"), [(None, False), (ValueError("in their code"), True)])
def test_the_stack_is_logged_where_it_helps(cause: Exception | None, is_shown: bool) -> None:
    """A sentence of fedq's own says what to mend; of the user's code people want to know the lines."""
    error = BadInput("t.csv is empty")
    error.__cause__ = cause
    with capture_logs() as lines:
        replies.log_failure(structlog.get_logger(), error)

    assert [(line["reason"], line["exc_info"] is not None) for line in lines] == [("t.csv is empty", is_shown)]
