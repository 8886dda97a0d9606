"""A trouble that lasts is told at growing intervals, another one at once."""

from __future__ import annotations

from vinecore.protocol.reminders import Reminder


def test_a_trouble_that_lasts_is_told_at_growing_intervals():
    reminder = Reminder()
    told = [now for now in range(20_000) if reminder.is_due("no address", float(now))]
    assert told == [0, 60, 180, 420, 900, 1860, 3780, 7380, 10980, 14580, 18180]


def test_another_trouble_is_told_at_once_and_so_is_one_that_comes_back():
    reminder = Reminder()
    said = [reminder.is_due(text, 1.0) for text in ("a", "a", "b", "b", "", "b")]
    assert said == [True, False, True, False, False, True]
