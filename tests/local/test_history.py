"""Past states reconstructed from stream records: against a table that remembers every version it ever had."""

import json
import random

import pytest

from pipeline.local.history import (
    PastChange,
    UnprovableError,
    changes_between,
    key_text,
    past_change,
    roll_forward,
    state_at,
)

State = dict[str, str]


def written(random_source: random.Random, *, old_images: bool, before: State) -> tuple[list[PastChange], list[State]]:
    """Random writes one millisecond apart; the states before the first, and after each."""
    state = dict(before)
    states = [dict(state)]
    changes: list[PastChange] = []
    for at_ms in range(1, 60):
        key = str(random_source.randrange(8))
        old = state.get(key)
        remove = old is not None and random_source.random() < 0.4
        new = None if remove else f'"{key}@{at_ms}"'
        event = "REMOVE" if remove else "INSERT" if old is None else "MODIFY"
        changes.append(PastChange(key, f'"{key}"', at_ms, event, old if old_images else None, new))
        if new is None:
            del state[key]
        else:
            state[key] = new
        states.append(dict(state))
    return changes, states


@pytest.mark.parametrize("old_images", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_every_past_state_is_told(seed: int, *, old_images: bool) -> None:
    before = {"0": '"0@0"', "1": '"1@0"'} if old_images else {}
    changes, states = written(random.Random(seed), old_images=old_images, before=before)
    for at_ms in range(1, len(states)):
        # The state at a time contains what was written before it: changes have times 1, 2, …; states[n] follows
        # the n-th.
        assert state_at(states[-1], changes, at_ms) == states[at_ms - 1]


@pytest.mark.parametrize("seed", range(20))
def test_a_window_holds_each_key_that_differs_once_with_its_two_states(seed: int) -> None:
    source = random.Random(seed)
    changes, states = written(source, old_images=False, before={})
    first, end = sorted(source.sample(range(1, 60), 2))
    told = {change.keys.strip('"'): change for change in changes_between(changes, first, end, with_old=True)}
    start_state, end_state = states[first - 1], states[end - 1]
    for key in map(str, range(8)):
        was, became = start_state.get(key), end_state.get(key)
        touched = any(change.key == key and first <= change.at_ms < end for change in changes)
        assert (key in told) == (touched and not (was is None and became is None))
        if key in told:
            assert (told[key].old, told[key].new) == (was, became)
            assert told[key].at_ms == max(c.at_ms for c in changes if c.key == key and first <= c.at_ms < end)


@pytest.mark.parametrize("seed", range(20))
def test_a_scan_that_mixes_moments_is_rolled_forward_to_one(seed: int) -> None:
    source = random.Random(seed)
    changes, states = written(source, old_images=False, before={})
    begin, end = 20, 45
    # Each key is read at its own moment between the two.
    scanned: State = {}
    for key in map(str, range(8)):
        read = states[source.randrange(begin, end + 1)].get(key)
        if read is not None:
            scanned[key] = read
    roll_forward(scanned, [change for change in changes if begin < change.at_ms <= end])
    assert scanned == states[end]


def test_an_item_older_than_the_stream_is_not_guessed() -> None:
    change = PastChange("1", '"1"', 5, "MODIFY", None, '"new"')
    with pytest.raises(UnprovableError, match="old images"):
        state_at({"1": '"new"'}, [change], 3)
    with pytest.raises(UnprovableError, match="old images"):
        changes_between([change], 1, 9, with_old=True)
    assert state_at({"1": '"new"'}, [change], 6) == {"1": '"new"'}
    assert [c.new for c in changes_between([change], 1, 9, with_old=False)] == ['"new"']


def test_records_without_new_images_prove_nothing() -> None:
    change = PastChange("1", '"1"', 5, "INSERT", None, None)
    with pytest.raises(UnprovableError, match="new images"):
        roll_forward({}, [change])


def test_keys_are_equal_as_dynamodb_compares_them() -> None:
    assert key_text({"Id": {"N": "1"}}, ["Id"]) == key_text({"Id": {"N": "1.0"}}, ["Id"])
    digits = "1234567890123456789012345678901234567"
    assert key_text({"Id": {"N": digits + "1"}}, ["Id"]) != key_text({"Id": {"N": digits + "2"}}, ["Id"])
    assert key_text({"a": {"S": "x"}, "b": {"S": "y"}}, ["a", "b"]) != key_text(
        {"a": {"S": "x,y"}, "b": {"S": ""}}, ["a", "b"]
    )


def test_the_time_of_a_record_is_exact_with_ministack_and_a_second_elsewhere() -> None:
    record = {
        "eventName": "INSERT",
        "dynamodb": {
            "Keys": {"Id": {"N": "1"}},
            "NewImage": {"Id": {"N": "1"}},
            "SequenceNumber": "000000017954259956710000000001",
            "ApproximateCreationDateTime": 1795425995,
        },
    }
    assert past_change(record, ["Id"]).at_ms == 1795425995671
    other = json.loads(json.dumps(record).replace("000000017954259956710000000001", "800000000003126276362"))
    assert past_change(other, ["Id"]).at_ms == 1795425995000
