"""Many alike cases: a few in `make test`, all of them in `make test-all`."""

from collections.abc import Collection, Iterable

import pytest


def slow_but(few: Collection, cases: Iterable) -> list:
    """Return the cases as pytest's parameters; those that are not among `few` are slow.

    Raises:
      ValueError: if one of the few is no case.
    """
    cases = list(cases)
    if missing := [case for case in few if case not in cases]:
        raise ValueError(f"`few` holds {missing}, which are no cases")
    marks = lambda case: () if case in few else pytest.mark.slow
    return [pytest.param(case, marks=marks(case)) for case in cases]
