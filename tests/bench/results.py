"""The results of a run of the suite, as stored in build/benchmarks.json: every part, and `ours` with its ratios."""

from __future__ import annotations

from typing import Any

from tests.bench.rounds import EXACT

Outcomes = dict[str, dict[str, Any]]
# Key of the outcome, suffix of the case, workers. A load has two by default: `narrow` and `wide` mean that.
_LOADS = (
    ("load_1", "-1-worker", 1),
    ("load_2", "", 2),
    ("load_2_without_isal", "-without-isal", 2),
    ("load_4", "-4-workers", 4),
)
_LOAD_RIVALS = {
    "ratio_to_copy_then_index": "copy_then_index",
    "ratio_to_copy_indexed": "copy_indexed",
    "ratio_to_upsert_by_hand": "upsert_by_hand",
    "ratio_to_boto3_executemany": "boto3_executemany",
    "ratio_to_pandas_to_sql": "pandas_to_sql",
    "ratio_to_pandas_copy": "pandas_copy",
    "ratio_to_duckdb_adbc": "duckdb_adbc",
}
_APPLY_RIVALS = {
    "ratio_to_seed": "seed",
    "ratio_to_seed_silent": "seed_silent",
    "ratio_to_seed_without_select": "seed_without_select",
    "ratio_to_seed_silent_without_select": "seed_silent_without_select",
}


def ours(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one object for each of our paths and cases."""
    found: list[dict[str, Any]] = []
    for shape in (name.removeprefix("load-") for name in parts if name.startswith("load-")):
        outcomes = _by_key(parts[f"load-{shape}"])
        found += [
            _load(outcomes[key], outcomes, f"{shape}{suffix}", workers)
            for key, suffix, workers in _LOADS
            if key in outcomes
        ]
        if "reconcile_2" in outcomes:
            found.append(_reconcile(outcomes, shape))
    for name, part in parts.items():
        if name.startswith("apply"):
            outcomes = _by_key(part)
            found += [_apply(outcomes, key, part) for key in outcomes if key.startswith("batch-")]
    return found


def _by_key(part: dict[str, Any]) -> Outcomes:
    return {outcome["key"]: outcome for outcome in part.get("outcomes", ())}


def _measured(outcome: dict[str, Any], path: str, case: str) -> dict[str, Any]:
    names = ("items", "items_per_s", "rss_mb", "client_us_per_item", "server_us_per_item", "verdict", "runs")
    return {"path": path, "case": case, **{name: outcome.get(name) for name in names}}


def _load(outcome: dict[str, Any], outcomes: Outcomes, case: str, workers: int) -> dict[str, Any]:
    found = _measured(outcome, "load", case) | {"workers": workers}
    found["stored_bytes_per_item"] = outcome.get("stored_bytes_per_item")
    found |= {name: ratio(outcome, outcomes.get(rival)) for name, rival in _LOAD_RIVALS.items()}
    # A wrong result does not count: of pandas' two ways, the faster one that ended exact.
    exact = [outcomes[key] for key in ("pandas_to_sql", "pandas_copy") if _exact(outcomes.get(key))]
    fastest = max(exact, key=lambda rival: rival["items_per_s"], default=None)
    return found | {"ratio_to_pandas": ratio(outcome, fastest)}


def _reconcile(outcomes: Outcomes, shape: str) -> dict[str, Any]:
    outcome = outcomes["reconcile_2"]
    return _measured(outcome, "reconcile", shape) | {"ratio_to_load": ratio(outcome, outcomes.get("load_2"))}


def _apply(outcomes: Outcomes, key: str, part: dict[str, Any]) -> dict[str, Any]:
    outcome = outcomes[key]
    found = _measured(outcome, "apply", key + part.get("suffix", ""))
    found |= {name: outcome.get(name) for name in ("round_trips_per_batch", "json_loads_us_per_item")}
    if "-rows-" in key:
        return found | {"ratio_to_100000_rows": ratio(outcome, outcomes.get("batch-100"))}
    if key == "batch-100":
        found |= _to_json_loads(outcome)
        found |= {name: ratio(outcome, outcomes.get(rival)) for name, rival in _APPLY_RIVALS.items()}
        if "without-history" in outcomes:
            found["ratio_to_without_history"] = ratio(outcome, outcomes["without-history"])
            found["bytes_per_version"] = outcome.get("bytes_per_version")
    return found


def _to_json_loads(outcome: dict[str, Any]) -> dict[str, float | None]:
    """Return the client's processor time in units of parsing the same event: with that parsing, and without.

    On Lambda the runtime parses the event; the rest is the handler's.
    """
    client: float | None = outcome.get("client_to_json_loads")
    handler = None if client is None else round(client - 1, 3)
    return {"ratio_client_to_json_loads": client, "ratio_handler_to_json_loads": handler}


def _exact(outcome: dict[str, Any] | None) -> bool:
    return outcome is not None and outcome["verdict"] == EXACT


def ratio(mine: dict[str, Any], rival: dict[str, Any] | None) -> float | None:
    """Return how many times faster than the rival; None when one of them did not finish."""
    if rival is None or not mine.get("items_per_s") or not rival.get("items_per_s"):
        return None
    return round(mine["items_per_s"] / rival["items_per_s"], 3)


def problems(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Return the problems: parts and contestants that failed, results of ours that are wrong."""
    found: list[str] = []
    for name, part in parts.items():
        if "failure" in part:
            found.append(f"{name}: {part['failure']}")
        for outcome in part.get("outcomes", ()):
            if outcome["failure"]:
                found.append(f"{name}, {outcome['label']}: {outcome['failure']}")
            elif outcome["kind"] == "ours" and outcome["verdict"] != EXACT:
                found.append(f"{name}, {outcome['label']}: {outcome['verdict']}")
    return found
