-- Anchors of published checkpoints in Bitcoin, the calendars that hold them, and which process does a follower's work.
CREATE TABLE anchors (
    log_id       integer NOT NULL REFERENCES logs,
    tree_size    bigint  NOT NULL CHECK (tree_size > 0),
    root         bytea   NOT NULL CHECK (octet_length(root) = 32),
    checkpoint   bytea   NOT NULL,  -- the note, byte for byte as it was published then: what is anchored
    digest       bytea   NOT NULL CHECK (octet_length(digest) = 32),
    nonce        bytea   NOT NULL CHECK (octet_length(nonce) = 16),
    created_at   bigint  NOT NULL,
    state        text    NOT NULL CHECK (state IN ('queued', 'pending', 'complete', 'confirmed', 'superseded')),
    revision     integer NOT NULL,  -- counts the changes: whoever changes a row names the revision that it read
    ots          bytea   CHECK (octet_length(ots) <= 65536),
    submitted_at bigint,
    confirmed_at bigint,            -- when this server checked it; block_time is what the block's header says
    height       integer,
    block_hash   bytea   CHECK (octet_length(block_hash) = 32),
    header       bytea   CHECK (octet_length(header) = 80),
    block_time   bigint,            -- seconds since 1970 UTC
    next_at      bigint,            -- when its block is looked at next; null: not any more, or not yet
    last_error   text,
    logged_from  bigint,            -- size of the log before its entry was appended: where to look for it after a crash
    logged       bigint,            -- index of its entry
    PRIMARY KEY (log_id, tree_size)
);
CREATE INDEX anchors_next_at ON anchors (log_id, next_at) WHERE next_at IS NOT NULL;

CREATE TABLE anchor_calendars (
    log_id       integer NOT NULL,
    tree_size    bigint  NOT NULL,
    url          text    NOT NULL,
    state        text    NOT NULL
        CHECK (state IN ('queued', 'pending', 'complete', 'bad_attestation', 'unlisted', 'given_up', 'superseded')),
    attempts     integer NOT NULL,
    next_at      bigint,            -- when it is asked next; null: not any more
    submitted_at bigint,
    pending_uri  text,
    commitment   bytea,
    last_reason  text,
    height       integer,
    PRIMARY KEY (log_id, tree_size, url),
    FOREIGN KEY (log_id, tree_size) REFERENCES anchors
);
CREATE INDEX anchor_calendars_due ON anchor_calendars (log_id, url, tree_size) WHERE next_at IS NOT NULL;

CREATE TABLE followers (
    log_id integer NOT NULL REFERENCES logs,
    name   text    NOT NULL,
    holder text    NOT NULL,
    until  bigint  NOT NULL,
    PRIMARY KEY (log_id, name)
);

CREATE FUNCTION muniment_anchor_larger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM anchors a WHERE a.log_id = NEW.log_id AND a.tree_size >= NEW.tree_size) THEN
        RAISE EXCEPTION 'muniment: an anchor is of a larger tree than those before it' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION muniment_anchor_keeps() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.log_id, NEW.tree_size, NEW.root, NEW.checkpoint, NEW.digest, NEW.nonce, NEW.created_at)
            IS DISTINCT FROM (OLD.log_id, OLD.tree_size, OLD.root, OLD.checkpoint, OLD.digest, OLD.nonce, OLD.created_at)
        OR NEW.revision <> OLD.revision + 1
        OR (OLD.ots IS NOT NULL AND (NEW.ots IS NULL OR octet_length(NEW.ots) < octet_length(OLD.ots)))
        OR (OLD.logged IS NOT NULL AND NEW.logged IS DISTINCT FROM OLD.logged) THEN
        RAISE EXCEPTION 'muniment: what is anchored never changes, and its proof only grows' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION muniment_anchor_calendar_keeps() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.log_id, NEW.tree_size, NEW.url) IS DISTINCT FROM (OLD.log_id, OLD.tree_size, OLD.url) THEN
        RAISE EXCEPTION 'muniment: a calendar stays with its anchor' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER anchors_larger BEFORE INSERT ON anchors FOR EACH ROW EXECUTE FUNCTION muniment_anchor_larger();
CREATE TRIGGER anchors_keep BEFORE UPDATE ON anchors FOR EACH ROW EXECUTE FUNCTION muniment_anchor_keeps();
CREATE TRIGGER anchors_append_only BEFORE DELETE ON anchors FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER anchors_no_truncate BEFORE TRUNCATE ON anchors EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER anchor_calendars_keep BEFORE UPDATE ON anchor_calendars
    FOR EACH ROW EXECUTE FUNCTION muniment_anchor_calendar_keeps();
CREATE TRIGGER anchor_calendars_append_only BEFORE DELETE ON anchor_calendars FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER anchor_calendars_no_truncate BEFORE TRUNCATE ON anchor_calendars EXECUTE FUNCTION muniment_refuse();

ALTER TABLE anchors ENABLE ALWAYS TRIGGER anchors_larger, ENABLE ALWAYS TRIGGER anchors_keep,
    ENABLE ALWAYS TRIGGER anchors_append_only, ENABLE ALWAYS TRIGGER anchors_no_truncate;
ALTER TABLE anchor_calendars ENABLE ALWAYS TRIGGER anchor_calendars_keep,
    ENABLE ALWAYS TRIGGER anchor_calendars_append_only, ENABLE ALWAYS TRIGGER anchor_calendars_no_truncate;

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
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_reader') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO muniment_reader;
    END IF;
END $$;
SELECT muniment_grants();
