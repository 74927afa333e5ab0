"""The ledger: whole lines only, whatever a kill left behind."""

import pytest

from ffjax import ledger
from ffjax.errors import InputError


def test_rows_come_back_in_order_and_a_missing_file_is_empty(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert ledger.read(path) == []
    ledger.append(path, [{"id": 0}, {"id": 1}])
    ledger.append(path, [{"id": 2}])
    assert [row["id"] for row in ledger.read(path)] == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 8])
def test_half_a_last_line_is_forgotten_and_written_over(tmp_path, cut):
    path = tmp_path / "ledger.jsonl"
    ledger.append(path, [{"id": 0}, {"id": 1}])
    path.write_bytes(path.read_bytes()[:-cut])
    assert ledger.read(path) == [{"id": 0}]
    ledger.append(path, [{"id": 7}])
    assert ledger.read(path) == [{"id": 0}, {"id": 7}]


def test_a_line_that_no_kill_leaves_is_named(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"id": 0}\n{"id": \n{"id": 2}\n')
    with pytest.raises(InputError, match=r"ledger\.jsonl: line 2 is not JSON"):
        ledger.read(path)
