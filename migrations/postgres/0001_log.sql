-- Logs, their entries and tiles, and what keeps them append-only.
-- Every primary key starts with log_id and no statement of the log path spans two logs.

CREATE TABLE logs (
    log_id     integer     PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name       text        NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    origin     text        NOT NULL UNIQUE CHECK (octet_length(origin) BETWEEN 1 AND 255),
    kind       text        NOT NULL CHECK (kind IN ('event', 'raw')),
    public     boolean     NOT NULL,  -- may anyone read checkpoint, tiles and proofs
    open       boolean     NOT NULL,  -- may anyone read the payloads of events
    created_at bigint      NOT NULL   -- milliseconds since 1970 UTC, as all times here
);

-- The compare-and-swap row. Whoever updates it with the values it last read is the sequencer of that moment.
CREATE TABLE heads (
    log_id         integer  PRIMARY KEY REFERENCES logs,
    size           bigint   NOT NULL CHECK (size >= 0),
    root           bytea    NOT NULL CHECK (octet_length(root) = 32),
    logged_at      bigint   NOT NULL,
    epoch          bigint   NOT NULL,
    guard_id       text     NOT NULL,
    published_size bigint   NOT NULL CHECK (published_size <= size)
);

-- No foreign key: rows are only added in the statement that moves the head, whose row has one; checking it again for each entry costs.
CREATE TABLE entries (
    log_id   integer NOT NULL,
    index    bigint  NOT NULL,
    leaf_key bigint  NOT NULL,  -- first 8 bytes of the leaf hash, as a signed integer: finds candidates, proves nothing
    leaf     bytea   NOT NULL CHECK (octet_length(leaf) <= 65535),
    PRIMARY KEY (log_id, index)
);
CREATE INDEX entries_leaf_key ON entries (log_id, leaf_key);

-- Apart from the leaf, because it can be erased.
CREATE TABLE payloads (
    log_id  integer NOT NULL,
    index   bigint  NOT NULL,
    payload bytea   NOT NULL,  -- canonical JSON
    seed    bytea   NOT NULL CHECK (octet_length(seed) = 32),
    PRIMARY KEY (log_id, index)
);

-- One row per tile that only grows: every narrower tile is its prefix, so every old size stays provable.
CREATE TABLE tiles (
    log_id integer  NOT NULL REFERENCES logs,
    level  smallint NOT NULL CHECK (level BETWEEN 0 AND 63),
    index  bigint   NOT NULL,
    data   bytea    NOT NULL CHECK (octet_length(data) BETWEEN 32 AND 8192 AND octet_length(data) % 32 = 0),
    PRIMARY KEY (log_id, level, index)
);
ALTER TABLE tiles ALTER COLUMN data SET STORAGE EXTERNAL;  -- hashes do not compress

CREATE TABLE checkpoints (
    log_id       integer NOT NULL REFERENCES logs,
    size         bigint  NOT NULL,
    note         text    NOT NULL,
    published_at bigint  NOT NULL,
    PRIMARY KEY (log_id, size)
);

CREATE TABLE idempotency (
    log_id      integer NOT NULL REFERENCES logs,
    caller      text    NOT NULL,
    key         text    NOT NULL,
    fingerprint bytea   NOT NULL,  -- HMAC under the seed of the first entry: it dies with that entry's payload
    first_index bigint  NOT NULL,
    count       integer NOT NULL,
    expires_at  bigint  NOT NULL,
    PRIMARY KEY (log_id, caller, key)
);
CREATE INDEX idempotency_expires_at ON idempotency (expires_at);

CREATE TABLE api_keys (
    key_id     text   PRIMARY KEY,
    digest     bytea  NOT NULL UNIQUE CHECK (octet_length(digest) = 32),
    scopes     text   NOT NULL,
    log_name   text,              -- null: every log
    label      text   NOT NULL,
    created_at bigint NOT NULL,
    revoked_at bigint
);

-- A tripwire, not the proof: an owner can still disable it. fsck against signed checkpoints is the proof.
CREATE FUNCTION muniment_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'muniment: % on % is refused: the log is append-only', TG_OP, TG_TABLE_NAME USING ERRCODE = 'integrity_constraint_violation';
END $$;

CREATE FUNCTION muniment_entries_dense() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.log_id, min(n.index) AS low INTO bad
    FROM added n LEFT JOIN heads h ON h.log_id = n.log_id
    GROUP BY n.log_id, h.size
    HAVING max(n.index) - min(n.index) + 1 <> count(*)
        OR max(n.index) + 1 IS DISTINCT FROM h.size
        OR (min(n.index) > 0 AND NOT EXISTS (
            SELECT 1 FROM entries e WHERE e.log_id = n.log_id AND e.index = min(n.index) - 1));
    IF FOUND THEN
        RAISE EXCEPTION 'muniment: entries of log % from % leave a gap, or do not end at its head', bad.log_id, bad.low
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END $$;

CREATE FUNCTION muniment_tile_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.log_id, NEW.level, NEW.index) IS DISTINCT FROM (OLD.log_id, OLD.level, OLD.index)
        OR octet_length(NEW.data) <= octet_length(OLD.data)
        OR substring(NEW.data FOR octet_length(OLD.data)) <> OLD.data THEN
        RAISE EXCEPTION 'muniment: a tile may only grow at its end' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION muniment_head_advances() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.log_id <> OLD.log_id OR NEW.size < OLD.size OR (NEW.size = OLD.size AND NEW.root <> OLD.root)
        OR NEW.logged_at < OLD.logged_at OR NEW.epoch < OLD.epoch OR NEW.published_size < OLD.published_size THEN
        RAISE EXCEPTION 'muniment: a head may only advance' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION muniment_checkpoint_larger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM checkpoints c WHERE c.log_id = NEW.log_id AND c.size >= NEW.size) THEN
        RAISE EXCEPTION 'muniment: a published checkpoint is larger than those before it' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION muniment_log_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.log_id, NEW.name, NEW.origin, NEW.kind, NEW.created_at)
        IS DISTINCT FROM (OLD.log_id, OLD.name, OLD.origin, OLD.kind, OLD.created_at) THEN
        RAISE EXCEPTION 'muniment: name, origin and kind of a log never change' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER entries_no_truncate BEFORE TRUNCATE ON entries EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER entries_dense AFTER INSERT ON entries
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION muniment_entries_dense();
CREATE TRIGGER payloads_append_only BEFORE UPDATE OR DELETE ON payloads FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER payloads_no_truncate BEFORE TRUNCATE ON payloads EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER tiles_grow BEFORE UPDATE ON tiles FOR EACH ROW EXECUTE FUNCTION muniment_tile_grows();
CREATE TRIGGER tiles_append_only BEFORE DELETE ON tiles FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER tiles_no_truncate BEFORE TRUNCATE ON tiles EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER checkpoints_larger BEFORE INSERT ON checkpoints FOR EACH ROW EXECUTE FUNCTION muniment_checkpoint_larger();
CREATE TRIGGER checkpoints_append_only BEFORE UPDATE OR DELETE ON checkpoints FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER checkpoints_no_truncate BEFORE TRUNCATE ON checkpoints EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER heads_advance BEFORE UPDATE ON heads FOR EACH ROW EXECUTE FUNCTION muniment_head_advances();
CREATE TRIGGER heads_no_delete BEFORE DELETE ON heads FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER heads_no_truncate BEFORE TRUNCATE ON heads EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER logs_stay BEFORE UPDATE ON logs FOR EACH ROW EXECUTE FUNCTION muniment_log_stays();
CREATE TRIGGER logs_no_delete BEFORE DELETE ON logs FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER logs_no_truncate BEFORE TRUNCATE ON logs EXECUTE FUNCTION muniment_refuse();

-- ALWAYS: an ordinary trigger is skipped under session_replication_role = replica.
ALTER TABLE entries ENABLE ALWAYS TRIGGER entries_append_only, ENABLE ALWAYS TRIGGER entries_no_truncate, ENABLE ALWAYS TRIGGER entries_dense;
ALTER TABLE payloads ENABLE ALWAYS TRIGGER payloads_append_only, ENABLE ALWAYS TRIGGER payloads_no_truncate;
ALTER TABLE tiles ENABLE ALWAYS TRIGGER tiles_grow, ENABLE ALWAYS TRIGGER tiles_append_only, ENABLE ALWAYS TRIGGER tiles_no_truncate;
ALTER TABLE checkpoints ENABLE ALWAYS TRIGGER checkpoints_larger, ENABLE ALWAYS TRIGGER checkpoints_append_only, ENABLE ALWAYS TRIGGER checkpoints_no_truncate;
ALTER TABLE heads ENABLE ALWAYS TRIGGER heads_advance, ENABLE ALWAYS TRIGGER heads_no_delete, ENABLE ALWAYS TRIGGER heads_no_truncate;
ALTER TABLE logs ENABLE ALWAYS TRIGGER logs_stay, ENABLE ALWAYS TRIGGER logs_no_delete, ENABLE ALWAYS TRIGGER logs_no_truncate;
