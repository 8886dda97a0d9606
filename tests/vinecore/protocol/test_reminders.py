"""A trouble that lasts is told at growing intervals, another one at once."""

from __future__ import annotations

from vinecore.protocol.reminders import Reminder


def test_lasting_trouble_is_repeated_less_often():
    """A trouble that lasts is told at growing intervals."""
    reminder = Reminder()
    told = [now for now in range(20_000) if reminder.is_due("no address", float(now))]
    assert told == [0, 60, 180, 420, 900, 1860, 3780, 7380, 10980, 14580, 18180]


def test_new_or_returning_trouble_is_immediate():
    """Another trouble is told at once and so is one that comes back."""
    reminder = Reminder()
    said = [reminder.is_due(text, 1.0) for text in ("a", "a", "b", "b", "", "b")]
    assert said == [True, False, True, False, False, True]
