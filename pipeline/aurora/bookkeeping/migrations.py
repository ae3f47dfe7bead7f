"""The migrations of schema `replication`, oldest first, as SQL by name; `bookkeeping` applies them."""

from __future__ import annotations

# Each entry is one migration, applied once. Never change one after a release: add a new one.
MIGRATIONS: tuple[tuple[str, str], ...] = (
    (
        "0001 tables, exports, watermarks, rejects, reconciliations",
        """
        CREATE TABLE replication.tables (
            name text PRIMARY KEY,
            source_table text NOT NULL,
            stream_label text,
            purged_through timestamptz,
            created_at timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON COLUMN replication.tables.purged_through IS
            'tombstones up to here are gone: nothing this old may create a row';

        CREATE TABLE replication.exports (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            table_name text NOT NULL REFERENCES replication.tables,
            kind text NOT NULL CHECK (kind IN ('full', 'incremental', 'scan')),
            location text NOT NULL,
            export_arn text,
            snapshot_time timestamptz NOT NULL,
            as_of timestamptz NOT NULL,
            item_count bigint NOT NULL,
            file_count int NOT NULL,
            size_bytes bigint NOT NULL,
            strategy text NOT NULL DEFAULT 'merge' CHECK (strategy IN ('merge', 'aside')),
            shape text NOT NULL DEFAULT '',
            status text NOT NULL DEFAULT 'loading' CHECK (status IN ('loading', 'loaded', 'failed')),
            reason text,
            started_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz,
            UNIQUE (table_name, location, as_of)
        );
        COMMENT ON COLUMN replication.exports.strategy IS
            'merge: file by file into the storage tables; aside: into new tables that then take their places';

        CREATE TABLE replication.export_files (
            export_id bigint NOT NULL REFERENCES replication.exports ON DELETE CASCADE,
            file_key text NOT NULL,
            item_count bigint NOT NULL,
            size_bytes bigint NOT NULL,
            applied bigint NOT NULL,
            stale bigint NOT NULL,
            rejected bigint NOT NULL,
            ignored bigint NOT NULL DEFAULT 0,
            loaded_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (export_id, file_key)
        );

        CREATE TABLE replication.builds (
            export_id bigint NOT NULL REFERENCES replication.exports ON DELETE CASCADE,
            storage_name text NOT NULL,
            build_name text NOT NULL,
            overtaken bigint NOT NULL DEFAULT 0,
            swapped_at timestamptz,
            PRIMARY KEY (export_id, storage_name)
        );
        COMMENT ON TABLE replication.builds IS
            'tables of schema replica that an export is loaded into aside, until they become the storage tables';
        COMMENT ON COLUMN replication.builds.overtaken IS
            'rows counted as applied by their files that repeated a key, or gave way to newer ones in storage';

        CREATE TABLE replication.watermarks (
            table_name text NOT NULL REFERENCES replication.tables,
            writer text NOT NULL,
            stream_label text,
            sequence_number numeric,
            as_of timestamptz,
            applied_at timestamptz NOT NULL DEFAULT now(),
            batches bigint NOT NULL DEFAULT 0,
            records bigint NOT NULL DEFAULT 0,
            applied bigint NOT NULL DEFAULT 0,
            stale bigint NOT NULL DEFAULT 0,
            deleted bigint NOT NULL DEFAULT 0,
            expired bigint NOT NULL DEFAULT 0,
            rejected bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (table_name, writer)
        ) WITH (fillfactor = 50);
        COMMENT ON TABLE replication.watermarks IS
            'how far each writer has applied its stream: one row a writer, so that concurrent writers never queue';

        CREATE TABLE replication.rejects (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            table_name text NOT NULL REFERENCES replication.tables,
            target text NOT NULL,
            digest text NOT NULL,
            key_digest text,
            reason text NOT NULL,
            source text NOT NULL,
            position_version numeric,
            position_as_of timestamptz,
            record json NOT NULL,
            rejected_at timestamptz NOT NULL DEFAULT now(),
            replayed_at timestamptz,
            UNIQUE (table_name, target, digest)
        );
        COMMENT ON COLUMN replication.rejects.record IS
            'the whole record as it came; type json, because jsonb cannot hold the escape of U+0000';

        CREATE TABLE replication.reconciliations (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            table_name text NOT NULL REFERENCES replication.tables,
            snapshot text NOT NULL,
            snapshot_time timestamptz NOT NULL,
            as_of timestamptz NOT NULL,
            status text NOT NULL DEFAULT 'comparing' CHECK (status IN ('comparing', 'done', 'failed')),
            compared bigint,
            in_flight bigint,
            missing bigint,
            extra bigint,
            different bigint,
            repaired bigint,
            rejected bigint,
            by_column json,
            started_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz
        );

        CREATE TABLE replication.drift (
            reconciliation_id bigint NOT NULL REFERENCES replication.reconciliations ON DELETE CASCADE,
            target text NOT NULL,
            key_digest text NOT NULL,
            kind text NOT NULL CHECK (kind IN ('missing', 'extra', 'different')),
            columns text[] NOT NULL DEFAULT '{}',
            repaired boolean NOT NULL DEFAULT false,
            found_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (reconciliation_id, target, key_digest)
        );
        """,
    ),
    (
        "0002 settled values",
        """
        CREATE TABLE replication.settled_values (
            table_name text NOT NULL REFERENCES replication.tables,
            target text NOT NULL,
            column_name text NOT NULL,
            settled bigint NOT NULL,
            first_at timestamptz NOT NULL DEFAULT now(),
            last_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (table_name, target, column_name)
        );
        COMMENT ON TABLE replication.settled_values IS
            'how many values a column could not hold and its on_error made NULL or cut; a redelivered one counts again';
        """,
    ),
    (
        "0003 promotions",
        """
        CREATE TABLE replication.promotions (
            table_name text NOT NULL REFERENCES replication.tables,
            target text NOT NULL,
            attribute text NOT NULL,
            after_key text[],
            filled bigint NOT NULL DEFAULT 0,
            started_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            finished_at timestamptz,
            PRIMARY KEY (table_name, target, attribute)
        );
        COMMENT ON COLUMN replication.promotions.after_key IS
            'an unfinished promotion goes on behind this key; it saves time, for every promotion ends with a full pass';
        """,
    ),
    (
        "0004 probes, lost history",
        """
        CREATE TABLE replication.probes (
            table_name text PRIMARY KEY REFERENCES replication.tables,
            ticks bigint NOT NULL DEFAULT 1,
            stream_label text,
            ticked_at timestamptz NOT NULL,
            caught_up_through timestamptz,
            unread_until timestamptz,
            newest_read timestamptz,
            hole_since timestamptz,
            read_whole boolean NOT NULL,
            waiting int NOT NULL,
            oldest_waiting timestamptz,
            shards int NOT NULL,
            calls int NOT NULL,
            records int NOT NULL
        );
        COMMENT ON TABLE replication.probes IS
            'what the last tick of the probe found: one row a table';
        COMMENT ON COLUMN replication.probes.caught_up_through IS
            'no change that the source made before this time is still on its way; NULL when not known';
        COMMENT ON COLUMN replication.probes.unread_until IS
            'the probe passed records made before this time by without reading them';

        COMMENT ON COLUMN replication.probes.hole_since IS
            'from here on the stream dropped changes unread, while others waited; NULL again once none waits';

        CREATE TABLE replication.probe_shards (
            table_name text NOT NULL REFERENCES replication.tables,
            stream_label text NOT NULL,
            shard_id text NOT NULL,
            parent_id text,
            sequence_number numeric,
            iterator text,
            iterator_at timestamptz,
            read_through timestamptz,
            finished boolean NOT NULL DEFAULT false,
            PRIMARY KEY (table_name, stream_label, shard_id)
        );
        COMMENT ON TABLE replication.probe_shards IS
            'how far the probe has read each shard: behind the sequence number, or where the iterator points';

        CREATE TABLE replication.probe_waiting (
            table_name text NOT NULL REFERENCES replication.tables,
            target text NOT NULL,
            key text[] NOT NULL,
            version numeric NOT NULL,
            as_of timestamptz NOT NULL,
            since timestamptz NOT NULL,
            shard_id text NOT NULL,
            PRIMARY KEY (table_name, target, version)
        );
        COMMENT ON COLUMN replication.probe_waiting.key IS
            'primary key of the row it is for; empty for a record that only a reject can settle';
        COMMENT ON COLUMN replication.probe_waiting.since IS
            'creation time of the oldest change of the key that was not found applied';
        COMMENT ON TABLE replication.probe_waiting IS
            'changes that the probe has read from the stream and has not found applied yet';

        CREATE TABLE replication.source_states (
            table_name text PRIMARY KEY REFERENCES replication.tables,
            seen_at timestamptz NOT NULL,
            stream_label text,
            streamed_at timestamptz,
            mapping_ids text[],
            mapped_at timestamptz
        );
        COMMENT ON TABLE replication.source_states IS
            'the stream and the event source mappings as they were last seen at work';

        CREATE TABLE replication.losses (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            table_name text NOT NULL REFERENCES replication.tables,
            kind text NOT NULL,
            since timestamptz NOT NULL,
            until timestamptz NOT NULL,
            found_at timestamptz NOT NULL DEFAULT now(),
            healed_at timestamptz
        );
        CREATE UNIQUE INDEX losses_open ON replication.losses (table_name, kind) WHERE healed_at IS NULL;
        COMMENT ON TABLE replication.losses IS
            'spans of time whose changes may never have been applied, until a load or a catch-up has covered them';

        CREATE INDEX rejects_by_version ON replication.rejects (table_name, position_version);
        """,
    ),
    (
        "0005 reconciliations that resume",
        """
        ALTER TABLE replication.reconciliations
            ADD COLUMN shape text NOT NULL DEFAULT '',
            ADD COLUMN repairs boolean NOT NULL DEFAULT false,
            ADD COLUMN stale bigint,
            ADD COLUMN undecided bigint,
            ADD COLUMN reason text,
            DROP CONSTRAINT reconciliations_status_check,
            ADD CONSTRAINT reconciliations_status_check
                CHECK (status IN ('comparing', 'done', 'failed', 'abandoned'));
        COMMENT ON COLUMN replication.reconciliations.shape IS
            'of the mapping that the snapshot was staged under: a run resumes under the same one only';
        COMMENT ON COLUMN replication.reconciliations.in_flight IS
            'rows that differed from the snapshot, because they were changed since, and were right when read again';
        COMMENT ON COLUMN replication.reconciliations.undecided IS
            'rows of which it is not known that replication had come as far as the state that they were compared with';

        ALTER TABLE replication.drift
            DROP CONSTRAINT drift_kind_check,
            ADD CONSTRAINT drift_kind_check CHECK (kind IN ('missing', 'extra', 'different', 'stale'));
        CREATE INDEX drift_key ON replication.drift (key_digest);
        CREATE INDEX rejects_key ON replication.rejects (table_name, key_digest);

        -- A run's working state is unlogged like its staging tables, so that a crash of the server empties all or none.
        CREATE UNLOGGED TABLE replication.reconciliation_files (
            reconciliation_id bigint NOT NULL REFERENCES replication.reconciliations ON DELETE CASCADE,
            file_key text NOT NULL,
            item_count bigint NOT NULL,
            row_count bigint NOT NULL,
            staged_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (reconciliation_id, file_key)
        );
        COMMENT ON TABLE replication.reconciliation_files IS 'files of a snapshot whose rows are staged';

        CREATE UNLOGGED TABLE replication.reconciliation_ranges (
            reconciliation_id bigint NOT NULL REFERENCES replication.reconciliations ON DELETE CASCADE,
            target int NOT NULL,
            lane int NOT NULL,
            after_key text[],
            through_key text[],
            chunks bigint NOT NULL DEFAULT 0,
            found bigint NOT NULL DEFAULT 0,
            extra bigint NOT NULL DEFAULT 0,
            seconds double precision NOT NULL DEFAULT 0,
            done boolean NOT NULL DEFAULT false,
            PRIMARY KEY (reconciliation_id, target, lane)
        );
        COMMENT ON TABLE replication.reconciliation_ranges IS
            'how far each lane of keys is compared: one connection works on one lane, chunk by chunk';

        CREATE UNLOGGED TABLE replication.reconciliation_unfit (
            reconciliation_id bigint NOT NULL REFERENCES replication.reconciliations ON DELETE CASCADE,
            item_digest text NOT NULL,
            PRIMARY KEY (reconciliation_id, item_digest)
        );
        COMMENT ON TABLE replication.reconciliation_unfit IS 'items that a target cannot hold, or that match none';
        """,
    ),
    (
        "0006 windows of incremental exports, refused changes",
        """
        ALTER TABLE replication.exports ADD COLUMN from_time timestamptz;
        COMMENT ON COLUMN replication.exports.from_time IS
            'of an incremental export, the beginning of its window; snapshot_time is the end';
        ALTER TABLE replication.exports ADD COLUMN is_seam boolean NOT NULL DEFAULT false;
        COMMENT ON COLUMN replication.exports.is_seam IS
            'an incremental export across the cut between two windows, of which only the earlier half counts';
        ALTER TABLE replication.watermarks ADD COLUMN refused bigint NOT NULL DEFAULT 0;
        COMMENT ON COLUMN replication.watermarks.refused IS
            'of the stale changes, those that had no row and were as old as what was purged';
        """,
    ),
    (
        "0007 ranges caught up",
        """
        CREATE TABLE replication.caught_up (
            table_name text NOT NULL REFERENCES replication.tables,
            since timestamptz NOT NULL,
            until timestamptz NOT NULL,
            finished_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (table_name, since, until)
        );
        COMMENT ON TABLE replication.caught_up IS
            'ranges of the past whose catch-up came to its end: every window, every seam, every item read again';
        """,
    ),
    (
        "0008 requests of exports",
        """
        CREATE TABLE replication.export_requests (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            table_name text NOT NULL REFERENCES replication.tables,
            from_time timestamptz,
            to_time timestamptz,
            request text NOT NULL,
            client_token text NOT NULL,
            export_arn text,
            requested_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            outcome text CHECK (outcome IN ('used', 'refused', 'failed', 'superseded')),
            ended_at timestamptz
        );
        CREATE UNIQUE INDEX export_requests_open ON replication.export_requests
            (table_name, COALESCE(from_time, '-infinity'), COALESCE(to_time, '-infinity')) WHERE ended_at IS NULL;
        COMMENT ON TABLE replication.export_requests IS
            'exports that were requested, each recorded before DynamoDB heard of it; the next run resumes an open one';
        COMMENT ON COLUMN replication.export_requests.export_arn IS
            'NULL while it is not known whether DynamoDB has heard of the request';
        """,
    ),
    (
        "0009 what is on its way, stuck or lost",
        """
        ALTER TABLE replication.losses
            ADD COLUMN keys_kept boolean NOT NULL DEFAULT false;
        COMMENT ON COLUMN replication.losses.keys_kept IS
            'each change of the span is in probe_waiting: the loss closes by itself once none of them is left';
        COMMENT ON TABLE replication.losses IS
            'spans of time whose changes may never have been applied, until something shows that they are in Aurora';
        INSERT INTO replication.losses (table_name, kind, since, until)
            SELECT table_name, 'unread',
                   COALESCE(LEAST(caught_up_through, unread_until), unread_until - interval '1 day'), unread_until
              FROM replication.probes WHERE unread_until > now() - interval '25 hours'
            UNION ALL
            SELECT table_name, 'gap', LEAST(hole_since, ticked_at), ticked_at
              FROM replication.probes WHERE hole_since IS NOT NULL
            ON CONFLICT DO NOTHING;

        ALTER TABLE replication.probes
            DROP COLUMN unread_until,
            DROP COLUMN hole_since,
            ADD COLUMN table_id text,
            ADD COLUMN settled_through timestamptz,
            ADD COLUMN read_through timestamptz,
            ADD COLUMN settles_from timestamptz,
            ADD COLUMN stuck int NOT NULL DEFAULT 0,
            ADD COLUMN lost int NOT NULL DEFAULT 0,
            ADD COLUMN clock_ahead_seconds double precision;
        COMMENT ON COLUMN replication.probes.table_id IS
            'DynamoDB''s id of the table: another one means that a table was created under the name of one deleted';
        COMMENT ON COLUMN replication.probes.caught_up_through IS
            'every change that the source made before this time is in Aurora; NULL when not known; may go back';
        COMMENT ON COLUMN replication.probes.settled_through IS
            'no change made before this time is still on its way: what is missing will not come by itself';
        COMMENT ON COLUMN replication.probes.read_through IS
            'the same for a key that has no change on its way in probe_waiting';
        COMMENT ON COLUMN replication.probes.settles_from IS
            'an earlier stream may still bring changes; they lose against what is read from the source after this time';
        COMMENT ON COLUMN replication.probes.waiting IS
            'changes on their way, stuck ones included; lost ones are not counted here';
        COMMENT ON COLUMN replication.probes.clock_ahead_seconds IS
            'how far the clock of the host that ticked was ahead of the source''s; NULL: not known';

        ALTER TABLE replication.probe_shards
            ADD COLUMN applied_version numeric,
            ADD COLUMN applied_as_of timestamptz,
            ADD COLUMN moved_at timestamptz,
            ADD COLUMN still_ticks int NOT NULL DEFAULT 0,
            ADD COLUMN unread_since timestamptz,
            ADD COLUMN unread_until timestamptz,
            ADD COLUMN scout text,
            ADD COLUMN scout_at timestamptz;
        COMMENT ON COLUMN replication.probe_shards.applied_version IS
            'newest record of the shard that was seen applied: what is older and not there will not come';
        COMMENT ON COLUMN replication.probe_shards.moved_at IS
            'when a tick last found something new in the shard, read or applied';
        COMMENT ON COLUMN replication.probe_shards.unread_since IS
            'from here to unread_until the shard was passed by unread';
        COMMENT ON COLUMN replication.probe_shards.scout IS
            'iterator at the shard''s end, from which is read while so much waits that the place does not move on';

        ALTER TABLE replication.probe_waiting
            ADD COLUMN state text NOT NULL DEFAULT 'on_its_way'
                CHECK (state IN ('on_its_way', 'stuck', 'passed', 'trimmed'));
        COMMENT ON COLUMN replication.probe_waiting.state IS
            'stuck: nothing moves in its shard; passed, trimmed: lost, nothing brings it by itself';

        ALTER TABLE replication.source_states
            ADD COLUMN table_id text,
            ADD COLUMN parallelization int,
            ADD COLUMN batching_window_seconds int;
        COMMENT ON COLUMN replication.source_states.parallelization IS
            'largest of the event source mappings: above 1, batches of a shard overtake each other';
        """,
    ),
    (
        "0010 source of record, leads of loads",
        """
        ALTER TABLE replication.tables
            ADD COLUMN source_arn text,
            ADD COLUMN source_table_id text,
            ADD COLUMN source_since timestamptz;
        COMMENT ON COLUMN replication.tables.source_table IS
            'the DynamoDB table of record: changes of any other are refused; `dynaurora repoint` switches it';
        COMMENT ON COLUMN replication.tables.source_arn IS
            'its ARN, with account and Region; NULL until a job has seen the table';
        COMMENT ON COLUMN replication.tables.source_table_id IS
            'its id, which tells it from another table that had its name; NULL until a job has seen the table';
        COMMENT ON COLUMN replication.tables.source_since IS
            'when the mapping was last re-pointed; NULL: never';
        COMMENT ON COLUMN replication.tables.stream_label IS
            'where the table took the place of another: records of older streams are refused';

        ALTER TABLE replication.exports ADD COLUMN lead bigint;
        COMMENT ON COLUMN replication.exports.lead IS
            'the ticket of the run that leads the load, as long as the session that holds it lives';
        """,
    ),
    (
        "0011 what is proven is not taken back",
        """
        ALTER TABLE replication.tables ADD COLUMN proven tstzmultirange;
        COMMENT ON COLUMN replication.tables.proven IS
            'changes made in these times are proven to be in Aurora, by catch-ups or a clean reconciliation:'
            ' the stream may bring them late, and takes nothing back by it';
        """,
    ),
    (
        "0012 storage tables of mappings",
        """
        ALTER TABLE replication.tables ADD COLUMN storage_tables text[] NOT NULL DEFAULT '{}';
        COMMENT ON COLUMN replication.tables.storage_tables IS
            'tables of schema replica that the mapping writes: no other mapping is migrated onto one of them';
        """,
    ),
    (
        "0013 indexes of mappings",
        """
        CREATE TABLE replication.indexes (
            name text PRIMARY KEY,
            storage_name text NOT NULL,
            recorded_at timestamptz NOT NULL DEFAULT now()
        );
        COMMENT ON TABLE replication.indexes IS
            'indexes of schema replica that mappings asked for, recorded before they are built: only these are dropped';
        """,
    ),
    (
        "0014 readers of mappings",
        """
        CREATE TABLE replication.reader_grants (
            schema_name text NOT NULL,
            view_name text NOT NULL,
            role text NOT NULL,
            table_name text NOT NULL REFERENCES replication.tables,
            granted_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (schema_name, view_name, role)
        );
        COMMENT ON TABLE replication.reader_grants IS
            'SELECT on views, and USAGE of schemas (view_name empty), that mappings granted: only these are revoked';
        """,
    ),
    (
        "0015 histories",
        """
        CREATE TABLE replication.histories (
            history_name text PRIMARY KEY,
            storage_name text NOT NULL,
            table_name text NOT NULL REFERENCES replication.tables,
            keep interval NOT NULL,
            partition_days int NOT NULL,
            kept_from timestamptz NOT NULL,
            view_digest text NOT NULL,
            filled_at timestamptz,
            filled_xid xid8,
            created_at timestamptz NOT NULL DEFAULT now(),
            stopped_at timestamptz
        );
        COMMENT ON COLUMN replication.histories.kept_from IS
            'from here on the view answers: of what was before, the base has what was valid at this time';
        COMMENT ON COLUMN replication.histories.filled_at IS
            'until then every stored row has its version in the history';
        COMMENT ON COLUMN replication.histories.filled_xid IS
            'rows of older transactions are there: the next pass leaves them out';
        COMMENT ON COLUMN replication.histories.stopped_at IS
            'when the mapping gave the history up: its table stays, and its view is gone';

        CREATE TABLE replication.history_gaps (
            history_name text NOT NULL REFERENCES replication.histories ON DELETE CASCADE,
            since timestamptz NOT NULL,
            until timestamptz NOT NULL,
            reason text NOT NULL,
            PRIMARY KEY (history_name, since, until)
        );
        COMMENT ON TABLE replication.history_gaps IS
            'spans in which versions went unrecorded because a writer did not know of the history';
        """,
    ),
    (
        "0016 protected attributes",
        """
        ALTER TABLE replication.tables ADD COLUMN protection text;
        COMMENT ON COLUMN replication.tables.protection IS
            'what is protected, by target, and the fingerprint of the privacy key: writers with another are refused';
        ALTER TABLE replication.rejects ADD COLUMN protection text;
        COMMENT ON COLUMN replication.rejects.protection IS
            'what is replaced in the record already: a replay replaces only what is not';
        """,
    ),
)
