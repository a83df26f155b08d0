-- State of the mirror. Owned by the extension; the worker and the extension's own functions write it.

GRANT USAGE ON SCHEMA servicenow TO PUBLIC;

-- Cache tables, one per foreign table. Nobody needs rights on them: foreign tables are read with their own.
CREATE SCHEMA servicenow_cache;

-- One row per mirrored foreign table.
CREATE TABLE servicenow.sync_table (
    foreign_table   oid PRIMARY KEY,
    cache_table     oid NOT NULL UNIQUE,
    remote_table    text NOT NULL,
    query           text NOT NULL DEFAULT '',
    -- What the cache was made for: an array of {number, name, type, field, show}, see cache/ddl.rs.
    columns         jsonb NOT NULL,
    -- When its columns were last made or changed.
    followed_at     timestamptz NOT NULL DEFAULT now(),
    -- Changes whenever what is mirrored changes; work begun before is discarded.
    generation      bigint NOT NULL DEFAULT 1,
    phase           text NOT NULL DEFAULT 'pending'
                    CHECK (phase IN ('pending', 'backfill', 'resync', 'catchup', 'synced')),
    -- There are rows already: those that are gone from the instance leave with the next fill.
    refill          boolean NOT NULL DEFAULT false,
    -- The columns, by number in the foreign table, that are all the next fill has to read; NULL for all.
    fill_columns    smallint[],
    -- Every record was read at least once since it is these that are mirrored.
    filled          boolean NOT NULL DEFAULT false,
    -- Seconds since 1970 by the instance's clock.
    watermark       bigint,
    rows            bigint NOT NULL DEFAULT 0,
    rows_filled     bigint NOT NULL DEFAULT 0,
    rows_total      bigint,
    rows_hidden     bigint,
    ranges_total    integer,
    fill_started_at timestamptz,
    fill_ended_at   timestamptz,
    last_change_at  timestamptz,
    last_poll_at    timestamptz,
    last_reconcile_at timestamptz,
    -- The full re-reading: when its round began, the record up to which it has come, how many records that were, and
    -- of how many.
    scrub_began_at  timestamptz,
    scrub_position  text,
    scrub_read      bigint,
    scrub_total     bigint,
    -- Records asked for at a time, as far as that is fewer than usual.
    page_size       integer,
    last_error      text,
    last_error_at   timestamptz,
    -- What was not undone after a rollback, and why; until everything is read again.
    undo_error      text,
    undo_error_at   timestamptz
) WITH (fillfactor = 70);

-- The ranges of sys_id that a fill has not completed.
CREATE TABLE servicenow.sync_range (
    foreign_table   oid NOT NULL REFERENCES servicenow.sync_table ON DELETE CASCADE,
    number          integer NOT NULL,
    lower_bound     text,
    upper_bound     text,
    position        text,
    PRIMARY KEY (foreign_table, number)
) WITH (fillfactor = 70);

-- Records of ranges of sys_id that the instance counts and does not show.
CREATE TABLE servicenow.hidden (
    foreign_table   oid NOT NULL REFERENCES servicenow.sync_table ON DELETE CASCADE,
    lower_bound     text,
    upper_bound     text,
    count           bigint NOT NULL
);
CREATE INDEX ON servicenow.hidden (foreign_table);

-- Rows that user statements have added to or taken from a cache, until the worker adds them up.
CREATE TABLE servicenow.row_delta (
    foreign_table   oid NOT NULL,
    delta           bigint NOT NULL
);

-- Records the worker has to look up: those that user statements have written under another login than its own,
-- which the cache has as that login sees them; and those that it could not bring in line, because a user was
-- writing them or because what it read seemed older than what the cache has.
CREATE TABLE servicenow.recheck (
    foreign_table   oid NOT NULL,
    sys_id          text NOT NULL,
    -- The version of which the instance has told: a row that has it by then need not be looked up. NULL if not known.
    updated_on      bigint,
    mod_count       bigint,
    -- The instance has told that it is gone: no row is enough, too. With a version: that, and that it was written.
    gone            boolean NOT NULL DEFAULT false,
    -- The instance has told of it without saying its version: one look may have been too early, another one settles it.
    twice           boolean NOT NULL DEFAULT false,
    -- A look that began before does not settle it.
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- When it was first asked for.
    since           timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Looks that have not shown yet what was told, and when the next one is due.
    looks           smallint NOT NULL DEFAULT 0,
    due             timestamptz
);
CREATE INDEX ON servicenow.recheck (foreign_table, sys_id);

-- Records that are gone since a short while: deleted by a user's statement, or looked up by the worker and not there. A page
-- that was asked for before and comes now may still show them. A crash may forget them, as no page outlives it.
CREATE UNLOGGED TABLE servicenow.absent (
    foreign_table   oid NOT NULL,
    sys_id          text NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON servicenow.absent (foreign_table, sys_id);

-- One row per server with mirrored tables: from when on deletions have not been read.
CREATE TABLE servicenow.sync_server (
    server            oid PRIMARY KEY,
    -- By which it is known again when pg_upgrade has given it another OID.
    name              name,
    -- Where the rows of its tables come from, and as whom the worker sees them; no secret is in it.
    source_instance   text,
    source_login      text,
    deletes_watermark bigint,
    last_deletes_at   timestamptz,
    last_error        text,
    last_error_at     timestamptz,
    -- From when on changes of the dictionary, of choices and of names of referenced records have not been read.
    metadata_watermark bigint,
    last_metadata_at  timestamptz,
    metadata_error    text,
    metadata_error_at timestamptz,
    -- By foreign table: tables whose records' names it shows and that cannot be asked for what has changed in them.
    unfollowed        jsonb NOT NULL DEFAULT '{}',
    -- How the worker calls at the moment: calls at a time, until when none are made, and how many there may be in the hour.
    concurrency       integer,
    held_until        timestamptz,
    calls_left        integer
);

-- Subscriptions to changes, one row per server whose option capture is not poll. The key is a secret: whoever has it can
-- tell of changes.
CREATE TABLE servicenow.capture (
    server          oid PRIMARY KEY,
    subscription    text NOT NULL,
    -- Counts how often it had to get another id.
    salt            integer NOT NULL DEFAULT 0,
    -- Made by install_capture(), and how often anything was made or taken away by hand.
    installed       boolean NOT NULL DEFAULT false,
    installs        integer NOT NULL DEFAULT 0,
    -- The data directory it belongs to: a copy must not touch what is the original's.
    place           text,
    queue_table     text,
    signing_key     text NOT NULL,
    -- The remote tables that were given a rule.
    rules           text[] NOT NULL DEFAULT '{}',
    -- Others may have one still, which is being taken away.
    leaving         boolean NOT NULL DEFAULT false,
    state           text NOT NULL DEFAULT 'absent' CHECK (state IN ('absent', 'active', 'silent', 'failed')),
    reason          text,
    state_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    events          bigint NOT NULL DEFAULT 0,
    coalesced       bigint NOT NULL DEFAULT 0,
    echoes          bigint NOT NULL DEFAULT 0,
    refused         bigint NOT NULL DEFAULT 0,
    -- Seconds from the oldest of the last events to its record in the cache.
    lag             double precision,
    last_event_at   timestamptz,
    -- Everything that had changed by then has been told and noted.
    complete_at     timestamptz
) WITH (fillfactor = 50);

-- Refresh tokens that nobody but a person gets again, for a standby that takes over. Nobody may read it.
CREATE TABLE servicenow.token (
    -- Server, user mapping, version of it, and a digest of the addresses.
    login           text PRIMARY KEY,
    refresh_token   text NOT NULL
);

-- Changes that polls have found while events were to tell of them. A crash may forget them.
CREATE UNLOGGED TABLE servicenow.suspect (
    server          oid NOT NULL,
    foreign_table   oid NOT NULL,
    sys_id          text NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One row per change of a cache after its first fill. Holds values of rows: nobody may read it unless it is granted.
CREATE TABLE servicenow._sync_cdc (
    seq             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    server          text NOT NULL,
    foreign_table   regclass NOT NULL,
    sys_id          text NOT NULL,
    op              text NOT NULL CHECK (op IN ('insert', 'update', 'delete')),
    source          text NOT NULL CHECK (source IN ('backfill', 'poll', 'capture', 'reconcile', 'write')),
    -- Column to {"before": …, "after": …}; columns that stayed as they were, or empty, are left out.
    changed         jsonb NOT NULL,
    sys_updated_on  timestamptz,
    sys_updated_by  text
);
CREATE INDEX ON servicenow._sync_cdc (at);
COMMENT ON TABLE servicenow._sync_cdc IS 'every change of a foreign table''s rows, from either side';

-- What ServiceNow's dictionary says about tables.
CREATE TABLE servicenow.dictionary (
    server          oid NOT NULL,
    remote_table    text NOT NULL,
    definition      jsonb NOT NULL,
    fetched_at      timestamptz NOT NULL DEFAULT now(),
    -- Columns of mirrored tables show something of it, by way of references.
    walked          boolean NOT NULL DEFAULT false,
    PRIMARY KEY (server, remote_table)
);

-- Calls made to instances, per endpoint: counters as client/stats.rs keeps them.
CREATE TABLE servicenow.request_stat (
    server          oid NOT NULL,
    endpoint        text NOT NULL,
    counters        jsonb NOT NULL,
    PRIMARY KEY (server, endpoint)
) WITH (fillfactor = 50);

-- Calls of the last hour, by the minute: max_calls_per_hour is about them, whoever makes them.
CREATE TABLE servicenow.call_count (
    server          oid NOT NULL,
    minute          timestamptz NOT NULL,
    calls           integer NOT NULL,
    PRIMARY KEY (server, minute)
) WITH (fillfactor = 50);

-- What has changed in ServiceNow's dictionary since its description above was read for the first time.
CREATE TABLE servicenow.drift (
    server          oid NOT NULL,
    remote_table    text NOT NULL,
    field           text NOT NULL,
    change          text NOT NULL CHECK (change IN ('added', 'removed', 'changed', 'choices')),
    detail          text NOT NULL,
    noticed_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (server, remote_table, field)
);

-- What went wrong, and how often in a row; kept for a month. A server's own errors are about no table.
CREATE TABLE servicenow.failure (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server          oid NOT NULL,
    foreign_table   oid,
    phase           text,
    sqlstate        text,
    message         text NOT NULL,
    detail          text,
    hint            text,
    first_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    count           bigint NOT NULL DEFAULT 1,
    recovered_at    timestamptz
) WITH (fillfactor = 70);
CREATE INDEX ON servicenow.failure (server, foreign_table) WHERE recovered_at IS NULL;

-- What is to be told by mail and was not yet: of servers with the option notify_email.
CREATE TABLE servicenow.mail_event (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    server          oid NOT NULL,
    at              timestamptz NOT NULL DEFAULT clock_timestamp(),
    event           text NOT NULL CHECK (event IN ('backfill_completed', 'sync_failed', 'sync_recovered')),
    foreign_table   text NOT NULL,
    rows            bigint,
    error           text
);

-- What became of mails, one row per server.
CREATE TABLE servicenow.mail (
    server          oid PRIMARY KEY,
    sent            bigint NOT NULL DEFAULT 0,
    failed          bigint NOT NULL DEFAULT 0,
    last_sent_at    timestamptz,
    last_error      text,
    last_error_at   timestamptz,
    retry_at        timestamptz
) WITH (fillfactor = 50);

-- Whether the worker of this database may run: one row.
CREATE TABLE servicenow.worker (
    enabled         boolean NOT NULL
);
INSERT INTO servicenow.worker VALUES (true);
