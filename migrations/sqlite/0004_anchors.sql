-- Anchors of published checkpoints in Bitcoin, the calendars that hold them, and which process does a follower's work.
CREATE TABLE anchors (
    log_id       INTEGER NOT NULL REFERENCES logs,
    tree_size    INTEGER NOT NULL CHECK (tree_size > 0),
    root         BLOB    NOT NULL CHECK (length(root) = 32),
    checkpoint   BLOB    NOT NULL,  -- the note, byte for byte as it was published then: what is anchored
    digest       BLOB    NOT NULL CHECK (length(digest) = 32),
    nonce        BLOB    NOT NULL CHECK (length(nonce) = 16),
    created_at   INTEGER NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('queued', 'pending', 'complete', 'confirmed', 'superseded')),
    revision     INTEGER NOT NULL,  -- counts the changes: whoever changes a row names the revision that it read
    ots          BLOB    CHECK (length(ots) <= 65536),
    submitted_at INTEGER,
    confirmed_at INTEGER,           -- when this server checked it; block_time is what the block's header says
    height       INTEGER,
    block_hash   BLOB    CHECK (length(block_hash) = 32),
    header       BLOB    CHECK (length(header) = 80),
    block_time   INTEGER,           -- seconds since 1970 UTC
    next_at      INTEGER,           -- when its block is looked at next; null: not any more, or not yet
    last_error   TEXT,
    logged_from  INTEGER,           -- size of the log before its entry was appended: where to look for it after a crash
    logged       INTEGER,           -- index of its entry
    PRIMARY KEY (log_id, tree_size)
) STRICT, WITHOUT ROWID;
CREATE INDEX anchors_next_at ON anchors (log_id, next_at) WHERE next_at IS NOT NULL;

CREATE TABLE anchor_calendars (
    log_id       INTEGER NOT NULL,
    tree_size    INTEGER NOT NULL,
    url          TEXT    NOT NULL,
    state        TEXT    NOT NULL
        CHECK (state IN ('queued', 'pending', 'complete', 'bad_attestation', 'unlisted', 'given_up', 'superseded')),
    attempts     INTEGER NOT NULL,
    next_at      INTEGER,           -- when it is asked next; null: not any more
    submitted_at INTEGER,
    pending_uri  TEXT,
    commitment   BLOB,
    last_reason  TEXT,
    height       INTEGER,
    PRIMARY KEY (log_id, tree_size, url),
    FOREIGN KEY (log_id, tree_size) REFERENCES anchors
) STRICT, WITHOUT ROWID;
CREATE INDEX anchor_calendars_due ON anchor_calendars (log_id, url, tree_size) WHERE next_at IS NOT NULL;

CREATE TABLE followers (
    log_id INTEGER NOT NULL REFERENCES logs,
    name   TEXT    NOT NULL,
    holder TEXT    NOT NULL,
    until  INTEGER NOT NULL,
    PRIMARY KEY (log_id, name)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER anchors_larger BEFORE INSERT ON anchors
WHEN EXISTS (SELECT 1 FROM anchors WHERE log_id = NEW.log_id AND tree_size >= NEW.tree_size)
BEGIN SELECT RAISE(ABORT, 'muniment: an anchor is of a larger tree than those before it'); END;
CREATE TRIGGER anchors_keep BEFORE UPDATE ON anchors
WHEN NEW.log_id IS NOT OLD.log_id OR NEW.tree_size IS NOT OLD.tree_size OR NEW.root IS NOT OLD.root
    OR NEW.checkpoint IS NOT OLD.checkpoint OR NEW.digest IS NOT OLD.digest OR NEW.nonce IS NOT OLD.nonce
    OR NEW.created_at IS NOT OLD.created_at OR NEW.revision <> OLD.revision + 1
    OR (OLD.ots IS NOT NULL AND (NEW.ots IS NULL OR length(NEW.ots) < length(OLD.ots)))
    OR (OLD.logged IS NOT NULL AND NEW.logged IS NOT OLD.logged)
BEGIN SELECT RAISE(ABORT, 'muniment: what is anchored never changes, and its proof only grows'); END;
CREATE TRIGGER anchors_no_delete BEFORE DELETE ON anchors
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on anchors is refused: the log is append-only'); END;

CREATE TRIGGER anchor_calendars_once BEFORE INSERT ON anchor_calendars
WHEN EXISTS (SELECT 1 FROM anchor_calendars WHERE log_id = NEW.log_id AND tree_size = NEW.tree_size AND url = NEW.url)
BEGIN SELECT RAISE(ABORT, 'muniment: a calendar stands once under an anchor'); END;
CREATE TRIGGER anchor_calendars_keep BEFORE UPDATE ON anchor_calendars
WHEN NEW.log_id IS NOT OLD.log_id OR NEW.tree_size IS NOT OLD.tree_size OR NEW.url IS NOT OLD.url
BEGIN SELECT RAISE(ABORT, 'muniment: a calendar stays with its anchor'); END;
CREATE TRIGGER anchor_calendars_no_delete BEFORE DELETE ON anchor_calendars
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on anchor_calendars is refused: the log is append-only'); END;
