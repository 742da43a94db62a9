-- One row id for log and index: 30 bytes less for each entry than a key of two columns, and appends fill their pages. Columns that are
-- computed and not stored give log and index back.
CREATE TABLE packed (
    id       INTEGER PRIMARY KEY CHECK (id >= 0),  -- log_id * 2^40 + index
    leaf_key INTEGER NOT NULL,  -- first 8 bytes of the leaf hash, as a signed integer: finds candidates, proves nothing
    leaf     BLOB    NOT NULL CHECK (length(leaf) <= 65535),
    log_id   INTEGER GENERATED ALWAYS AS (id >> 40) VIRTUAL,
    "index"  INTEGER GENERATED ALWAYS AS (id & 1099511627775) VIRTUAL
) STRICT;
INSERT INTO packed (id, leaf_key, leaf)
SELECT (log_id << 40) + "index", leaf_key, leaf FROM entries ORDER BY log_id, "index";
DROP TABLE entries;
ALTER TABLE packed RENAME TO entries;
CREATE INDEX entries_leaf_key ON entries (log_id, leaf_key);

CREATE TRIGGER entries_dense BEFORE INSERT ON entries
WHEN (NEW.id & 1099511627775) IS NOT
    (SELECT coalesce((max(id) & 1099511627775) + 1, 0) FROM entries WHERE id >= (NEW.id >> 40) << 40 AND id < ((NEW.id >> 40) + 1) << 40)
    OR (NEW.id & 1099511627775) >= coalesce((SELECT size FROM heads WHERE log_id = NEW.id >> 40), 0)
BEGIN SELECT RAISE(ABORT, 'muniment: entries are appended without gap, and not beyond the head: the log is append-only'); END;
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'muniment: UPDATE on entries is refused: the log is append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on entries is refused: the log is append-only'); END;
