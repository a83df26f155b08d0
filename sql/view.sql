-- How servers capture changes. What is left from before an option was set back is not shown.
CREATE VIEW servicenow._capture AS
SELECT o.server,
       o.capture,
       CASE WHEN o.capture = 'poll' THEN 'off' ELSE coalesce(c.state, 'absent') END AS capture_state,
       CASE WHEN o.capture <> 'poll' AND c.state IN ('active', 'silent') THEN c.lag * interval '1 second' END AS capture_lag,
       CASE WHEN o.capture <> 'poll' THEN c.reason END AS capture_error,
       -- Of webhooks nobody knows whether all have come.
       CASE WHEN o.capture = 'queue' AND c.state = 'active' THEN c.complete_at END AS complete_at,
       CASE WHEN o.capture <> 'poll' THEN c.events END AS events,
       CASE WHEN o.capture <> 'poll' THEN c.coalesced END AS coalesced,
       CASE WHEN o.capture <> 'poll' THEN c.refused END AS refused
FROM (SELECT s.oid AS server,
             coalesce((SELECT option_value FROM pg_catalog.pg_options_to_table(s.srvoptions)
                       WHERE option_name = 'capture'), 'poll') AS capture
      FROM pg_catalog.pg_foreign_server s) o
     LEFT JOIN servicenow.capture c USING (server);

CREATE VIEW servicenow.sync_status WITH (security_barrier) AS
SELECT s.srvname AS server,
       t.foreign_table::regclass AS foreign_table,
       t.cache_table::regclass AS cache_table,
       t.phase,
       n.rows,
       CASE WHEN t.phase IN ('catchup', 'synced') THEN n.rows + t.rows_hidden ELSE t.rows_total END AS rows_total,
       t.rows_hidden,
       CASE WHEN t.phase IN ('catchup', 'synced') THEN 100.0
            WHEN t.phase = 'pending' THEN 0.0
            WHEN t.rows_total > 0 THEN round(least(100.0, 100.0 * t.rows_filled / t.rows_total), 1)
       END AS percent,
       round(r.rate) AS rows_per_second,
       CASE WHEN t.phase IN ('backfill', 'resync') AND r.rate > 0
            THEN greatest(0, t.rows_total - t.rows_filled) / r.rate * interval '1 second'
       END AS eta,
       t.last_change_at,
       -- A table is as it was at the last poll or, while events come, when all of them had last been noted, but for what is still
       -- to be looked up: as after a large transaction that was rolled back.
       CASE WHEN t.filled THEN clock_timestamp() - least(greatest(t.last_poll_at, e.complete_at), u.since) END AS lag,
       t.last_poll_at,
       t.last_reconcile_at,
       coalesce(w.writes, 0) AS pending_writes,
       coalesce(t.last_error, v.last_error, v.metadata_error, t.undo_error) AS last_error,
       CASE WHEN t.last_error IS NOT NULL THEN t.last_error_at
            WHEN v.last_error IS NOT NULL THEN v.last_error_at
            WHEN v.metadata_error IS NOT NULL THEN v.metadata_error_at
            ELSE t.undo_error_at
       END AS last_error_at,
       e.capture,
       e.capture_state,
       e.capture_lag,
       e.capture_error,
       e.events AS capture_events,
       e.coalesced AS capture_coalesced,
       e.refused AS capture_refused,
       t.page_size,
       v.concurrency,
       CASE WHEN v.held_until > clock_timestamp() THEN v.held_until END AS held_until,
       v.calls_left,
       (SELECT string_agg(n, ', ' ORDER BY n)
        FROM jsonb_array_elements_text(v.unfollowed -> t.foreign_table::text) n) AS names_not_followed
FROM servicenow.sync_table t
     JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
     JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver
     LEFT JOIN servicenow.sync_server v ON v.server = f.ftserver
     LEFT JOIN servicenow._pending_writes() w ON w.foreign_table = t.foreign_table
     JOIN servicenow._capture e ON e.server = f.ftserver,
     LATERAL (SELECT t.rows + coalesce(sum(d.delta), 0)::bigint AS rows
              FROM servicenow.row_delta d WHERE d.foreign_table = t.foreign_table) n,
     LATERAL (SELECT min(r.since) AS since
              FROM servicenow.recheck r WHERE r.foreign_table = t.foreign_table AND r.looks = 0) u,
     LATERAL (SELECT (t.rows_filled / nullif(extract(epoch FROM
                  coalesce(t.fill_ended_at, clock_timestamp()) - t.fill_started_at), 0))::numeric AS rate) r
WHERE pg_catalog.has_any_column_privilege(t.foreign_table, 'SELECT')
   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');

COMMENT ON VIEW servicenow.sync_status IS 'how far each foreign table''s cache is behind ServiceNow';

GRANT SELECT ON servicenow.sync_status TO PUBLIC;

CREATE VIEW servicenow.stat_capture WITH (security_barrier) AS
SELECT s.srvname AS server,
       e.capture,
       c.subscription,
       c.queue_table,
       e.capture_state AS state,
       c.state_at AS state_since,
       e.capture_error AS error,
       c.events,
       c.coalesced,
       c.echoes,
       c.refused,
       e.capture_lag AS lag,
       c.last_event_at,
       c.complete_at,
       -- Of the cluster's listener: whom these were for is not known.
       CASE WHEN e.capture = 'webhook' THEN servicenow._turned_away() END AS turned_away
FROM servicenow.capture c
     JOIN pg_catalog.pg_foreign_server s ON s.oid = c.server
     JOIN servicenow._capture e ON e.server = c.server
WHERE pg_catalog.has_server_privilege(s.oid, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');

COMMENT ON VIEW servicenow.stat_capture IS 'what instances have told of changes by themselves, per server';

GRANT SELECT ON servicenow.stat_capture TO PUBLIC;

CREATE VIEW servicenow.schema_drift WITH (security_barrier) AS
SELECT s.srvname AS server,
       t.foreign_table::regclass AS foreign_table,
       d.field,
       d.change,
       d.detail,
       d.noticed_at
FROM servicenow.sync_table t
     JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
     JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver
     JOIN servicenow.drift d ON d.server = f.ftserver AND d.remote_table = t.remote_table,
     LATERAL (SELECT EXISTS (SELECT FROM jsonb_array_elements(t.columns) c WHERE c ->> 'field' = d.field) AS shown) c
WHERE CASE d.change WHEN 'added' THEN NOT c.shown AND d.noticed_at > t.followed_at
                    WHEN 'removed' THEN c.shown
                    ELSE c.shown AND d.noticed_at > t.followed_at END
  AND (pg_catalog.has_any_column_privilege(t.foreign_table, 'SELECT')
       OR pg_catalog.pg_has_role('pg_monitor', 'USAGE'));

COMMENT ON VIEW servicenow.schema_drift IS 'how ServiceNow''s fields differ by now from the foreign tables'' columns';

GRANT SELECT ON servicenow.schema_drift TO PUBLIC;

CREATE VIEW servicenow.stat_requests WITH (security_barrier) AS
SELECT s.srvname AS server,
       r.endpoint,
       (r.counters ->> 'calls')::bigint AS calls,
       (r.counters ->> 'errors')::bigint AS errors,
       (r.counters ->> 'retries')::bigint AS retries,
       (r.counters ->> 'rate_limited')::bigint AS rate_limited,
       (r.counters ->> 'bytes_in')::bigint AS bytes_in,
       round(l.min_us / 1000, 3) AS latency_min,
       round(l.sum_us / nullif(l.count, 0) / 1000, 3) AS latency_mean,
       round(least(l.p95_us, l.max_us) / 1000, 3) AS latency_p95,
       round(l.max_us / 1000, 3) AS latency_max,
       round(least(l.p50_us, l.max_us) / 1000, 3) AS latency_p50,
       round(least(l.p99_us, l.max_us) / 1000, 3) AS latency_p99
FROM servicenow.request_stat r
     JOIN pg_catalog.pg_foreign_server s ON s.oid = r.server,
     LATERAL (SELECT (r.counters -> 'latency' ->> 'min_us')::numeric AS min_us,
                     (r.counters -> 'latency' ->> 'sum_us')::numeric AS sum_us,
                     (r.counters -> 'latency' ->> 'max_us')::numeric AS max_us,
                     max(c.count) AS count,
                     -- Bucket n holds latencies from 2^(n/8) to 2^((n+1)/8) microseconds.
                     power(2, (min(c.bucket) FILTER (WHERE c.below >= 0.50 * c.count) + 0.5) / 8)::numeric AS p50_us,
                     power(2, (min(c.bucket) FILTER (WHERE c.below >= 0.95 * c.count) + 0.5) / 8)::numeric AS p95_us,
                     power(2, (min(c.bucket) FILTER (WHERE c.below >= 0.99 * c.count) + 0.5) / 8)::numeric AS p99_us
              FROM (SELECT (b ->> 0)::int AS bucket,
                           sum((b ->> 1)::numeric) OVER (ORDER BY (b ->> 0)::int) AS below,
                           sum((b ->> 1)::numeric) OVER () AS count
                    FROM jsonb_array_elements(r.counters -> 'latency' -> 'buckets') b) c) l
WHERE pg_catalog.has_server_privilege(s.oid, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');

COMMENT ON VIEW servicenow.stat_requests IS 'calls made to ServiceNow; latencies in milliseconds';

GRANT SELECT ON servicenow.stat_requests TO PUBLIC;

CREATE VIEW servicenow.progress WITH (security_barrier) AS
SELECT w.pid,
       d.oid AS datid,
       d.datname,
       s.srvname AS server,
       t.foreign_table::regclass AS foreign_table,
       CASE WHEN t.fill_columns IS NOT NULL THEN 'added columns' WHEN t.refill THEN 'resync' ELSE 'backfill' END AS command,
       CASE t.phase WHEN 'pending' THEN 'initializing' WHEN 'catchup' THEN 'catching up' ELSE 'reading records' END AS phase,
       t.rows_filled AS rows_done,
       t.rows_total,
       CASE WHEN t.phase = 'pending' THEN 0
            WHEN t.phase = 'catchup' THEN t.ranges_total
            ELSE t.ranges_total - (SELECT count(*) FROM servicenow.sync_range r WHERE r.foreign_table = t.foreign_table)::integer
       END AS ranges_done,
       t.ranges_total,
       t.fill_started_at AS started_at
FROM servicenow.sync_table t
     JOIN pg_catalog.pg_foreign_table f ON f.ftrelid = t.foreign_table
     JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver
     JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database()
     -- The lock that the worker of a database holds, see worker/mod.rs.
     LEFT JOIN pg_catalog.pg_locks w
          ON w.locktype = 'advisory' AND w.database = d.oid AND w.classid = 1936617335::oid AND w.objid = 1::oid
             AND w.objsubid = 3 AND w.granted
WHERE t.phase IN ('pending', 'backfill', 'resync', 'catchup')
  AND (pg_catalog.has_any_column_privilege(t.foreign_table, 'SELECT')
       OR pg_catalog.pg_has_role('pg_monitor', 'USAGE'));

COMMENT ON VIEW servicenow.progress IS 'fills under way, as pg_stat_progress_* shows other commands';

GRANT SELECT ON servicenow.progress TO PUBLIC;

CREATE VIEW servicenow.sync_error WITH (security_barrier) AS
SELECT x.last_at AS at,
       s.srvname AS server,
       x.foreign_table::regclass AS foreign_table,
       x.phase,
       x.sqlstate,
       x.message,
       x.detail,
       x.hint,
       x.count,
       x.first_at,
       x.recovered_at
FROM servicenow.failure x
     JOIN pg_catalog.pg_foreign_server s ON s.oid = x.server
WHERE CASE WHEN x.foreign_table IS NULL THEN pg_catalog.has_server_privilege(s.oid, 'USAGE')
           ELSE coalesce(pg_catalog.has_any_column_privilege(x.foreign_table, 'SELECT'), false) END
   OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');

COMMENT ON VIEW servicenow.sync_error IS 'what went wrong with foreign tables in the last month, and how often in a row';

GRANT SELECT ON servicenow.sync_error TO PUBLIC;

CREATE VIEW servicenow.stat_mail WITH (security_barrier) AS
SELECT s.srvname AS server,
       coalesce(m.sent, 0) AS sent,
       coalesce(m.failed, 0) AS failed,
       e.waiting,
       e.waiting_since,
       m.last_sent_at,
       m.last_error,
       m.last_error_at,
       m.retry_at
FROM pg_catalog.pg_foreign_server s
     LEFT JOIN servicenow.mail m ON m.server = s.oid,
     LATERAL (SELECT count(*) AS waiting, min(e.at) AS waiting_since
              FROM servicenow.mail_event e WHERE e.server = s.oid) e
WHERE (m.server IS NOT NULL OR e.waiting > 0)
  AND (pg_catalog.has_server_privilege(s.oid, 'USAGE') OR pg_catalog.pg_has_role('pg_monitor', 'USAGE'));

COMMENT ON VIEW servicenow.stat_mail IS 'mails sent about a server, and events that wait to be told';

GRANT SELECT ON servicenow.stat_mail TO PUBLIC;
