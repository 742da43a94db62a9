-- How far each sink of a log is: where entries are pushed to. What a sink is stands in the settings of the server, never here:
-- otherwise a writer of the database could have payloads sent to an address of its own.

CREATE TABLE sinks (
    log_id     integer NOT NULL REFERENCES logs,
    name       text    NOT NULL,
    mark       bytea   NOT NULL CHECK (octet_length(mark) = 32),  -- of the settings that decide what is sent
    start      bigint  NOT NULL CHECK (start >= 0),               -- entries below it were taken
    looked     bigint  NOT NULL CHECK (looked >= start),          -- entries of [start, looked) are none that the sink wants
    stop       bigint  NOT NULL CHECK (stop >= start),            -- [start, stop) is the batch under way; none where they are equal
    tree_size  bigint  NOT NULL CHECK (tree_size >= stop),        -- of the checkpoint at which that batch is sent
    failures   bigint  NOT NULL CHECK (failures >= 0),            -- tries that failed since something was taken
    next_at    bigint  NOT NULL,                                  -- no try before
    moved_at   bigint  NOT NULL,                                  -- when something was taken last, or the sink was begun
    last_error text    NOT NULL,
    PRIMARY KEY (log_id, name)
) WITH (fillfactor = 50);  -- a few rows, each of which changes all the time

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
        GRANT INSERT ON sinks TO muniment_app;
        GRANT UPDATE (start, looked, stop, tree_size, failures, next_at, moved_at, last_error) ON sinks TO muniment_app;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_reader') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO muniment_reader;
    END IF;
END $$;
SELECT muniment_grants();
