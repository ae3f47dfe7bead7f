"""Gives mappings that hash the privacy key, read anew each time: a key that was replaced is used at once.

Invariant: it is read for the first batch of a table that hashes, and again after an error, so other tables never wait
for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lambda_replicator.database import read, secrets_provider
from pipeline.core.model.protection import privacy_key
from pipeline.dynamodb.secrets import PRIVACY_KEY_SECRET

if TYPE_CHECKING:
    from pipeline.core.model.mapping import TableMapping
    from pipeline.settings import Settings


class WithKey:
    """Call it with a mapping. Raises ConfigurationError, TransientError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, mapping: TableMapping) -> TableMapping:
        """Return the mapping with the key; without a setting for it, the mapping as it is."""
        text, variable = self._settings.privacy_key, "PRIVACY_KEY"
        if text is None and self._settings.privacy_key_secret_id is not None:
            variable = PRIVACY_KEY_SECRET.variable
            text = read(secrets_provider(), self._settings.privacy_key_secret_id, PRIVACY_KEY_SECRET, fresh=True)
        return mapping if text is None else replace(mapping, privacy_key=privacy_key(text, variable=variable))
