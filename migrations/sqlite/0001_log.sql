-- Logs, their entries and tiles, and what keeps them append-only. The tables are those of migrations/postgres.

CREATE TABLE logs (
    log_id     INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT    NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 63),
    origin     TEXT    NOT NULL UNIQUE CHECK (length(CAST(origin AS BLOB)) BETWEEN 1 AND 255),
    kind       TEXT    NOT NULL CHECK (kind IN ('event', 'raw')),
    public     INTEGER NOT NULL,  -- may anyone read checkpoint, tiles and proofs
    open       INTEGER NOT NULL,  -- may anyone read the payloads of events
    created_at INTEGER NOT NULL   -- milliseconds since 1970 UTC, as all times here
) STRICT;

-- The compare-and-swap row. Whoever updates it with the values it last read is the sequencer of that moment.
CREATE TABLE heads (
    log_id         INTEGER PRIMARY KEY REFERENCES logs,
    size           INTEGER NOT NULL CHECK (size >= 0),
    root           BLOB    NOT NULL CHECK (length(root) = 32),
    logged_at      INTEGER NOT NULL,
    epoch          INTEGER NOT NULL,
    guard_id       TEXT    NOT NULL,
    published_size INTEGER NOT NULL CHECK (published_size <= size)
) STRICT;

-- No foreign key: rows are only added in the statement that moves the head, whose row has one; checking it again for each entry costs.
CREATE TABLE entries (
    log_id   INTEGER NOT NULL,
    "index"  INTEGER NOT NULL,
    leaf_key INTEGER NOT NULL,  -- first 8 bytes of the leaf hash, as a signed integer: finds candidates, proves nothing
    leaf     BLOB    NOT NULL CHECK (length(leaf) <= 65535),
    PRIMARY KEY (log_id, "index")
) STRICT, WITHOUT ROWID;
CREATE INDEX entries_leaf_key ON entries (log_id, leaf_key);

-- Apart from the leaf, because it can be erased.
CREATE TABLE payloads (
    log_id  INTEGER NOT NULL,
    "index" INTEGER NOT NULL,
    payload BLOB    NOT NULL,  -- canonical JSON
    seed    BLOB    NOT NULL CHECK (length(seed) = 32),
    PRIMARY KEY (log_id, "index")
) STRICT, WITHOUT ROWID;

-- One row per tile that only grows: every narrower tile is its prefix, so every old size stays provable.
CREATE TABLE tiles (
    log_id  INTEGER NOT NULL REFERENCES logs,
    level   INTEGER NOT NULL CHECK (level BETWEEN 0 AND 63),
    "index" INTEGER NOT NULL,
    data    BLOB    NOT NULL CHECK (length(data) BETWEEN 32 AND 8192 AND length(data) % 32 = 0),
    UNIQUE (log_id, level, "index")
) STRICT;

CREATE TABLE checkpoints (
    log_id       INTEGER NOT NULL REFERENCES logs,
    size         INTEGER NOT NULL,
    note         TEXT    NOT NULL,
    published_at INTEGER NOT NULL,
    PRIMARY KEY (log_id, size)
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    log_id      INTEGER NOT NULL REFERENCES logs,
    caller      TEXT    NOT NULL,
    key         TEXT    NOT NULL,
    fingerprint BLOB    NOT NULL,  -- HMAC under the seed of the first entry: it dies with that entry's payload
    first_index INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    PRIMARY KEY (log_id, caller, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_expires_at ON idempotency (expires_at);

CREATE TABLE api_keys (
    key_id     TEXT    PRIMARY KEY,
    digest     BLOB    NOT NULL UNIQUE CHECK (length(digest) = 32),
    scopes     TEXT    NOT NULL,
    log_name   TEXT,              -- null: every log
    label      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;

-- A tripwire, not the proof: whoever owns the file can drop it. fsck against signed checkpoints is the proof.
-- BEFORE INSERT as well: INSERT OR REPLACE deletes the old row without firing DELETE triggers.
CREATE TRIGGER entries_dense BEFORE INSERT ON entries
WHEN NEW."index" IS NOT (SELECT coalesce(max("index") + 1, 0) FROM entries WHERE log_id = NEW.log_id)
    OR NEW."index" >= coalesce((SELECT size FROM heads WHERE log_id = NEW.log_id), 0)
BEGIN SELECT RAISE(ABORT, 'muniment: entries are appended without gap, and not beyond the head: the log is append-only'); END;
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'muniment: UPDATE on entries is refused: the log is append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on entries is refused: the log is append-only'); END;

CREATE TRIGGER payloads_once BEFORE INSERT ON payloads
WHEN EXISTS (SELECT 1 FROM payloads WHERE log_id = NEW.log_id AND "index" = NEW."index")
BEGIN SELECT RAISE(ABORT, 'muniment: a payload is written once: the log is append-only'); END;
CREATE TRIGGER payloads_no_update BEFORE UPDATE ON payloads
BEGIN SELECT RAISE(ABORT, 'muniment: UPDATE on payloads is refused: the log is append-only'); END;
CREATE TRIGGER payloads_no_delete BEFORE DELETE ON payloads
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on payloads is refused: the log is append-only'); END;

-- tiles has row ids (large rows are slow without): a tile may also be replaced through the row id of another one.
CREATE TRIGGER tiles_once BEFORE INSERT ON tiles
WHEN EXISTS (SELECT 1 FROM tiles WHERE log_id = NEW.log_id AND level = NEW.level AND "index" = NEW."index")
    OR EXISTS (SELECT 1 FROM tiles WHERE rowid = NEW.rowid)
BEGIN SELECT RAISE(ABORT, 'muniment: a tile is made once and then grows: the log is append-only'); END;
CREATE TRIGGER tiles_grow BEFORE UPDATE ON tiles
WHEN NEW.log_id IS NOT OLD.log_id OR NEW.level IS NOT OLD.level OR NEW."index" IS NOT OLD."index" OR NEW.rowid IS NOT OLD.rowid
    OR length(NEW.data) <= length(OLD.data) OR substr(NEW.data, 1, length(OLD.data)) IS NOT OLD.data
BEGIN SELECT RAISE(ABORT, 'muniment: a tile may only grow at its end'); END;
CREATE TRIGGER tiles_no_delete BEFORE DELETE ON tiles
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on tiles is refused: the log is append-only'); END;

CREATE TRIGGER checkpoints_once BEFORE INSERT ON checkpoints
WHEN EXISTS (SELECT 1 FROM checkpoints WHERE log_id = NEW.log_id AND size >= NEW.size)
BEGIN SELECT RAISE(ABORT, 'muniment: a published checkpoint is larger than those before it'); END;
CREATE TRIGGER checkpoints_no_update BEFORE UPDATE ON checkpoints
BEGIN SELECT RAISE(ABORT, 'muniment: UPDATE on checkpoints is refused: the log is append-only'); END;
CREATE TRIGGER checkpoints_no_delete BEFORE DELETE ON checkpoints
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on checkpoints is refused: the log is append-only'); END;

CREATE TRIGGER heads_once BEFORE INSERT ON heads
WHEN EXISTS (SELECT 1 FROM heads WHERE log_id = NEW.log_id)
BEGIN SELECT RAISE(ABORT, 'muniment: a log has one head'); END;
CREATE TRIGGER heads_advance BEFORE UPDATE ON heads
WHEN NEW.log_id IS NOT OLD.log_id OR NEW.size < OLD.size OR (NEW.size = OLD.size AND NEW.root IS NOT OLD.root)
    OR NEW.logged_at < OLD.logged_at OR NEW.epoch < OLD.epoch OR NEW.published_size < OLD.published_size
BEGIN SELECT RAISE(ABORT, 'muniment: a head may only advance'); END;
CREATE TRIGGER heads_no_delete BEFORE DELETE ON heads
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on heads is refused: the log is append-only'); END;

CREATE TRIGGER logs_once BEFORE INSERT ON logs
WHEN EXISTS (SELECT 1 FROM logs WHERE log_id = NEW.log_id OR name = NEW.name OR origin = NEW.origin)
BEGIN SELECT RAISE(ABORT, 'muniment: names and origins of logs are used once'); END;
CREATE TRIGGER logs_stay BEFORE UPDATE ON logs
WHEN NEW.log_id IS NOT OLD.log_id OR NEW.name IS NOT OLD.name OR NEW.origin IS NOT OLD.origin
    OR NEW.kind IS NOT OLD.kind OR NEW.created_at IS NOT OLD.created_at
BEGIN SELECT RAISE(ABORT, 'muniment: name, origin and kind of a log never change'); END;
CREATE TRIGGER logs_no_delete BEFORE DELETE ON logs
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on logs is refused: the log is append-only'); END;
