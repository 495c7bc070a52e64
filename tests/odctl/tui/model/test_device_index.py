"""Keys of devices, which are made when they are asked for: to whoever reads them they are a tuple of all."""

from __future__ import annotations

import pytest

from odctl.tui.model.device_index import DeviceKeys

HOSTS = ("empty", "gpu01", "gpu02", "none")
DEVICES = ((), ("cpu", "cuda:0", "cuda:1"), ("cpu", "cuda:0"), ())
KEYS = DeviceKeys(HOSTS, DEVICES)
ALL: tuple[str, ...] = ("gpu01/cpu", "gpu01/cuda:0", "gpu01/cuda:1", "gpu02/cpu", "gpu02/cuda:0")


def test_every_key_stands_at_its_row_and_is_found_there() -> None:
    assert (len(KEYS), tuple(KEYS), tuple(reversed(KEYS))) == (5, ALL, ALL[::-1])
    for row, key in enumerate(ALL):
        assert (KEYS[row], KEYS[row - 5], KEYS.index(key)) == (key, key, row)
        assert key in KEYS
    assert [KEYS.place(row) for row in range(5)] == [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


@pytest.mark.parametrize("cut", [slice(1, 3), slice(None, None, 2), slice(-2, None), slice(4, 1, -1), slice(9, 20)])
def test_slices_are_those_of_a_tuple(cut: slice) -> None:
    assert KEYS[cut] == ALL[cut]


def test_rows_and_keys_that_are_not_there_are_refused_as_by_a_tuple() -> None:
    number: object = 3
    assert number not in KEYS
    for row in (5, -6):
        with pytest.raises(IndexError):
            KEYS[row]
    for key in ("gpu01/cuda:2", "empty/cpu", "gpu03/cpu", "gpu01", ""):
        assert key not in KEYS
        with pytest.raises(ValueError, match="not in tuple"):
            KEYS.index(key)
    assert KEYS.index("gpu02/cpu", 2, 4) == 3
    for start, stop in ((4, None), (0, 3), (-1, 5)):
        with pytest.raises(ValueError, match="has another row"):
            KEYS.index("gpu02/cpu", start, stop)


def test_a_fleet_without_devices_has_no_keys() -> None:
    none = DeviceKeys((), ())
    assert (len(none), tuple(none)) == (0, ())
