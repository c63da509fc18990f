from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream2llm_rag.engine.swap.books import Copy, HostBooks, HostRecord

BLOCK = 4


class CheckedBooks(HostBooks):
    """Looks at all records each time, for the least valuable one."""

    def _find_least(self) -> HostRecord | None:
        found = super()._find_least()
        values = [record.value for record in self._records.values() if record.num_slots]
        assert (None if found is None else found.value) == min(values, default=None)
        return found


def books(num_slots: int = 8) -> HostBooks:
    """Tokens are worth more the more stand before them."""
    return CheckedBooks(num_slots, BLOCK, lambda num_tokens, context: num_tokens * (1.0 + context + num_tokens / 2))


def slots_of(copies: list[Copy]) -> dict[int, int]:
    return {copy.block: copy.slot for copy in copies}


def test_nothing_is_copied_until_the_pool_hands_a_block_out() -> None:
    made = books()
    made.keep("a", 0, 10, [7, 8, 9])
    assert made.take_copies().early_outs == []
    assert made.num_used_slots == 0
    made.handed_out([3, 9])
    assert [copy.block for copy in made.take_copies().early_outs] == [9]
    assert made.num_used_slots == 1


def test_blocks_that_a_step_in_flight_writes_are_copied_behind_it() -> None:
    made = books()
    made.keep("a", 0, 8, [1, 2], in_flight=True)
    made.handed_out([1])
    assert [copy.block for copy in made.take_copies().outs] == [1]


def test_what_comes_back_is_read_from_the_slots_that_it_went_to() -> None:
    made = books()
    made.keep("a", 0, 8, [1, 2])
    made.handed_out([2, 1])
    out = slots_of(made.take_copies().early_outs)
    record = made.borrow("a", 0, 7)
    assert record is not None
    assert record.end == 7
    made.load(record, 0, [5, 6])
    assert made.take_copies().ins == [Copy(5, out[1]), Copy(6, out[2])]
    assert made.num_used_slots == 0


def test_what_nobody_has_taken_goes_out_and_in_with_one_step() -> None:
    made = books()
    made.keep("a", 0, 8, [1, 2])
    record = made.borrow("a", 4, 8)
    assert record is not None
    made.load(record, 4, [5, 6])
    copies = made.take_copies()
    assert [copy.block for copy in copies.early_outs] == [2]
    assert copies.ins == [Copy(6, copies.early_outs[0].slot)]


def test_a_slot_that_a_step_reads_is_not_written_by_it() -> None:
    made = books(1)
    made.keep("a", 0, 4, [1])
    made.handed_out([1])
    made.take_copies()
    record = made.borrow("a", 0, 4)
    assert record is not None
    made.load(record, 0, [2])
    made.keep("b", 0, 4, [3])
    made.handed_out([3])
    assert made.take_copies().early_outs == []
    assert made.get("b") is None


def test_tails_cut_one_after_the_other_are_one() -> None:
    made = books()
    made.keep("a", 3, 14, [1, 2, 3, 4])
    made.keep("a", 1, 12, [1, 2, 3])
    record = made.get("a")
    assert record is not None
    assert (record.start, record.end) == (4, 14)
    made.keep("a", 0, 4, [1])
    assert made.get("a").end == 14  # type: ignore[union-attr]


def test_a_tail_that_does_not_join_on_is_given_up() -> None:
    made = books()
    made.keep("a", 3, 14, [1, 2, 3, 4])
    made.keep("a", 0, 8, [1, 2])
    assert made.get("a").end == 8  # type: ignore[union-attr]


def test_a_block_that_was_part_full_is_kept_as_it_was_when_it_was_fuller() -> None:
    made = books()
    made.keep("a", 1, 8, [1, 2])
    made.handed_out([2])
    slot = slots_of(made.take_copies().early_outs)[2]
    made.keep("a", 0, 6, [1, 5])
    record = made.borrow("a", 4, 8)
    assert record is not None
    made.load(record, 4, [6, 7])
    assert made.take_copies().ins == [Copy(7, slot)]


def test_a_change_leaves_what_stands_before_it() -> None:
    made = books()
    made.keep("a", 1, 14, [1, 2, 3, 4])
    made.handed_out([4])
    made.trim("a", 9)
    assert made.get("a").end == 9  # type: ignore[union-attr]
    assert made.num_used_slots == 0
    made.trim("a", 3)
    assert made.get("a") is None


def test_the_least_valuable_gives_way_from_its_end() -> None:
    made = books(3)
    made.keep("cheap", 0, 8, [1, 2])
    made.handed_out([2, 1])
    made.take_copies()
    made.keep("dear", 4, 24, [9, 9, 9, 9, 5, 6])
    made.handed_out([6, 5])
    assert made.get("cheap").end == 4  # type: ignore[union-attr]
    assert made.get("dear").end == 24  # type: ignore[union-attr]
    assert made.num_used_slots == 3


def test_what_is_worth_less_than_all_that_is_kept_takes_nobodys_place() -> None:
    made = books(2)
    made.keep("dear", 4, 24, [9, 9, 9, 9, 5, 6])
    made.handed_out([6, 5])
    made.keep("cheap", 0, 8, [1, 2])
    made.handed_out([2, 1])
    assert made.get("dear").end == 24  # type: ignore[union-attr]
    assert made.get("cheap") is None


def test_one_that_came_in_cheaper_since_the_last_look_gives_up_first() -> None:
    made = books(3)
    made.keep("middle", 2, 16, [9, 9, 1, 2])
    made.handed_out([1, 2])
    made.keep("dear", 4, 24, [9, 9, 9, 9, 5, 6])
    made.handed_out([6, 5])
    assert made.get("middle").end == 12  # type: ignore[union-attr]
    made.drop("dear")
    made.keep("cheap", 0, 4, [3])
    made.handed_out([3])
    made.keep("dear", 4, 24, [9, 9, 9, 9, 5, 6])
    made.handed_out([6, 5])
    assert made.get("cheap") is None
    assert made.get("middle").end == 12  # type: ignore[union-attr]


def test_a_record_longer_than_host_memory_keeps_its_front() -> None:
    made = books(2)
    made.keep("a", 0, 16, [1, 2, 3, 4])
    made.handed_out([4, 3, 2, 1])
    assert made.get("a").end == 8  # type: ignore[union-attr]
    assert sorted(copy.block for copy in made.take_copies().early_outs) == [1, 2]


def test_without_slots_nothing_fails() -> None:
    made = books(0)
    made.keep("a", 0, 8, [1, 2])
    made.handed_out([1])
    assert made.get("a") is None
    made.keep("b", 0, 8, [1, 2])
    assert made.borrow("b", 0, 8) is None


def test_a_front_that_is_gone_leaves_nothing_to_load() -> None:
    made = books()
    made.keep("a", 2, 16, [1, 2, 3, 4])
    assert made.borrow("a", 4, 16) is None
    record = made.borrow("a", 9, 16)
    assert record is not None
    made.give_back(record)
    assert made.get("a") is record


@given(
    st.integers(0, 5),
    st.lists(
        st.one_of(
            st.tuples(st.just("keep"), st.integers(0, 2), st.integers(0, 3), st.integers(1, 20)),
            st.tuples(st.just("hand out"), st.lists(st.integers(0, 11), unique=True)),
            st.tuples(st.just("drop"), st.integers(0, 2)),
            st.tuples(st.just("trim"), st.integers(0, 2), st.integers(0, 20)),
            st.tuples(st.just("load"), st.integers(0, 2), st.integers(0, 20)),
            st.tuples(st.just("lend"), st.integers(0, 2), st.integers(0, 20), st.lists(st.integers(0, 11), unique=True)),
            st.tuples(st.just("step")),
        ),
        max_size=40,
    ),
)
def test_every_slot_is_free_or_used_once(num_slots: int, actions: list[tuple]) -> None:  # type: ignore[type-arg]
    made = books(num_slots)
    for name, *values in actions:
        match name:
            case "keep" if values[2] > values[1] * BLOCK:
                made.keep(str(values[0]), values[1], values[2], [(values[0] * 3 + i) % 12 for i in range(5)])
            case "hand out":
                made.handed_out(values[0])
            case "drop":
                made.drop(str(values[0]))
            case "trim":
                made.trim(str(values[0]), values[1])
            case "load":
                record = made.borrow(str(values[0]), values[1], 20)
                if record is not None:
                    made.load(record, values[1], range(100, 110))
            case "lend":
                record = made.borrow(str(values[0]), values[1], 20)
                made.handed_out(values[2])
                if record is not None:
                    made.give_back(record)
            case "step":
                copies = made.take_copies()
                written = [copy.slot for copy in (*copies.early_outs, *copies.outs)]
                assert len(set(written)) == len(written)
        assert made.num_promised_slots == made.num_used_slots + sum(map(len, made._on_device.values()))
    made.take_copies()
    used = [held.slot for record in made._records.values() for held in record._held if held.slot is not None]
    assert sorted([*made._free, *used]) == list(range(num_slots))
    for request_id in "012":
        made.drop(request_id)
    assert made.num_used_slots == 0
    assert not made._on_device
