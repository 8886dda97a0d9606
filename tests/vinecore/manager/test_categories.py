"""Categories as a user sets them."""

from __future__ import annotations

import pytest

from tests.harness.processes import scheduler_state
from vinecore.resources.categories import MODES


@pytest.mark.parametrize(("number", "name"), list(enumerate(MODES)))
def test_mode_is_given_by_number(m, number, name):
    """As Parsl does, with the constants of TaskVine."""
    m.set_category_mode("numbered", number)
    mode = scheduler_state(m, lambda scheduler: scheduler.state.categories["numbered"].mode)
    assert mode == name


@pytest.mark.parametrize("number", [-1, len(MODES)])
def test_unknown_mode_number_is_refused(m, number):
    with pytest.raises(ValueError, match=f"no category mode {number}.*0 for fixed, 1 for max"):
        m.set_category_mode("numbered", number)
