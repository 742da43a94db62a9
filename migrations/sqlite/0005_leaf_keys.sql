-- The index of leaf keys becomes a table that is written behind the entries, some at a time and in its own order. As an index of
-- entries it took a page of write-ahead log for each entry: at a million entries more than all the rest of an append.
CREATE TABLE leaf_keys (
    log_id   INTEGER NOT NULL,
    leaf_key INTEGER NOT NULL,
    "index"  INTEGER NOT NULL,
    PRIMARY KEY (log_id, leaf_key, "index")
) STRICT, WITHOUT ROWID;

-- How far it has come: see muniment_server.storage.leaf_keys. No row: nothing was carried over yet.
CREATE TABLE leaf_keys_carried (
    log_id INTEGER PRIMARY KEY REFERENCES logs,
    steps  INTEGER NOT NULL CHECK (steps > 0)
) STRICT;

INSERT INTO leaf_keys_carried SELECT log_id, size / 1024 FROM heads WHERE size >= 1024;
INSERT INTO leaf_keys
SELECT log_id, leaf_key, "index" FROM entries JOIN leaf_keys_carried USING (log_id)
WHERE "index" < CASE WHEN steps > (leaf_key >> 58 & 63) THEN (steps - (steps - 1 - (leaf_key >> 58 & 63)) % 64) * 1024 ELSE 0 END
ORDER BY log_id, leaf_key, "index";
DROP INDEX entries_leaf_key;

CREATE TRIGGER leaf_keys_no_update BEFORE UPDATE ON leaf_keys
BEGIN SELECT RAISE(ABORT, 'muniment: UPDATE on leaf_keys is refused: the log is append-only'); END;
CREATE TRIGGER leaf_keys_no_delete BEFORE DELETE ON leaf_keys
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on leaf_keys is refused: the log is append-only'); END;
CREATE TRIGGER leaf_keys_carried_on BEFORE UPDATE ON leaf_keys_carried
WHEN NEW.log_id IS NOT OLD.log_id OR NEW.steps < OLD.steps
BEGIN SELECT RAISE(ABORT, 'muniment: the index of leaf keys only grows'); END;
CREATE TRIGGER leaf_keys_carried_no_delete BEFORE DELETE ON leaf_keys_carried
BEGIN SELECT RAISE(ABORT, 'muniment: DELETE on leaf_keys_carried is refused: the log is append-only'); END;
