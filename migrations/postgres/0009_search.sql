-- The search index: which entries may have a value or a word. It is made of the payloads and can be made again; what it holds of a value
-- goes when the value goes. No trigger: nothing is proved by it.

CREATE TABLE search_state (
    log_id     integer PRIMARY KEY REFERENCES logs,
    generation bytea   NOT NULL CHECK (octet_length(generation) = 16),  -- drawn anew with each rebuild; never leaves the server
    size       bigint  NOT NULL CHECK (size >= 0),                      -- entries below it are in the index
    erasures   bigint  NOT NULL,                                        -- counts what destroys payloads: postings made before are not added after
    clearing   boolean NOT NULL                                         -- rows of an older generation are still there
);

-- A term carries its own postings, in lists that are appended: most terms have few. See muniment_server/terms.py for keys.
CREATE TABLE search_terms (
    log_id  integer NOT NULL,
    key     bytea   NOT NULL,
    tail    bytea   NOT NULL,
    chunked boolean NOT NULL,  -- whether there are chunks
    PRIMARY KEY (log_id, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);  -- each growth of a tail leaves a dead row

-- Where a tail is moved that has grown long. All its indices are below `stop`, and those of later chunks are not.
CREATE TABLE search_chunks (
    log_id integer NOT NULL,
    key    bytea   NOT NULL,
    stop   bigint  NOT NULL,
    body   bytea   NOT NULL,
    PRIMARY KEY (log_id, key, stop)
);

-- Otherwise ANALYZE copies values into pg_statistic, where they outlive their rows.
ALTER TABLE search_terms ALTER COLUMN key SET STATISTICS 0, ALTER COLUMN tail SET STATISTICS 0;
ALTER TABLE search_chunks ALTER COLUMN key SET STATISTICS 0, ALTER COLUMN body SET STATISTICS 0;

-- Adds the postings of some entries, if the index is still as the caller read it; tells whether it was. One round trip, one commit.
-- Terms are found by point look-ups: without statistics the planner would rather read the whole table.
CREATE FUNCTION muniment_index(
    log integer, old_generation bytea, old_size bigint, old_erasures bigint, new_size bigint, keys bytea[], lists bytea[], most integer
) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    moved bytea[];
    one   bytea;
BEGIN
    UPDATE search_state SET size = new_size
    WHERE log_id = log AND generation = old_generation AND size = old_size AND erasures = old_erasures AND NOT clearing;
    IF NOT FOUND THEN
        RETURN false;
    END IF;

    WITH grown AS (
        INSERT INTO search_terms AS t (log_id, key, tail, chunked)
        SELECT log, u.key, u.list, false FROM unnest(keys, lists) AS u (key, list)
        ON CONFLICT (log_id, key) DO UPDATE SET tail = t.tail || excluded.tail
        RETURNING t.key, t.tail
    ), chunks AS (
        INSERT INTO search_chunks SELECT log, g.key, new_size, g.tail FROM grown g WHERE octet_length(g.tail) > most RETURNING key
    )
    SELECT array_agg(c.key) INTO moved FROM chunks c;

    FOREACH one IN ARRAY coalesce(moved, '{}') LOOP
        UPDATE search_terms SET tail = '', chunked = true WHERE log_id = log AND key = one;
    END LOOP;
    RETURN true;
END $$;

CREATE OR REPLACE FUNCTION muniment_grants() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_app') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO muniment_app;
        GRANT INSERT ON logs, heads, entries, payloads, tiles, checkpoints, idempotency, api_keys TO muniment_app;
        GRANT UPDATE (size, root, logged_at, epoch, published_size) ON heads TO muniment_app;
        GRANT UPDATE (data) ON tiles TO muniment_app;
        GRANT UPDATE (revoked_at) ON api_keys TO muniment_app;
        GRANT UPDATE (fingerprint, first_index, count, expires_at), DELETE ON idempotency TO muniment_app;
        GRANT INSERT ON anchors, anchor_calendars, followers TO muniment_app;
        GRANT UPDATE (state, revision, ots, submitted_at, confirmed_at, height, block_hash, header, block_time, next_at, last_error,
            logged_from, logged) ON anchors TO muniment_app;
        GRANT UPDATE (state, attempts, next_at, submitted_at, pending_uri, commitment, last_reason, height)
            ON anchor_calendars TO muniment_app;
        GRANT UPDATE (holder, until) ON followers TO muniment_app;
        GRANT INSERT, UPDATE ON search_state TO muniment_app;
        GRANT INSERT, UPDATE, DELETE ON search_terms, search_chunks TO muniment_app;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_reader') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO muniment_reader;
    END IF;
END $$;
SELECT muniment_grants();
