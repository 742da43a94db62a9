-- How far each sink of a log is: where entries are pushed to. What a sink is stands in the settings of the server, never here:
-- otherwise a writer of the database could have payloads sent to an address of its own.

CREATE TABLE sinks (
    log_id     INTEGER NOT NULL REFERENCES logs,
    name       TEXT    NOT NULL,
    mark       BLOB    NOT NULL CHECK (length(mark) = 32),  -- of the settings that decide what is sent
    start      INTEGER NOT NULL CHECK (start >= 0),         -- entries below it were taken
    looked     INTEGER NOT NULL CHECK (looked >= start),    -- entries of [start, looked) are none that the sink wants
    stop       INTEGER NOT NULL CHECK (stop >= start),      -- [start, stop) is the batch under way; none where they are equal
    tree_size  INTEGER NOT NULL CHECK (tree_size >= stop),  -- of the checkpoint at which that batch is sent
    failures   INTEGER NOT NULL CHECK (failures >= 0),      -- tries that failed since something was taken
    next_at    INTEGER NOT NULL,                            -- no try before
    moved_at   INTEGER NOT NULL,                            -- when something was taken last, or the sink was begun
    last_error TEXT    NOT NULL,
    PRIMARY KEY (log_id, name)
) STRICT, WITHOUT ROWID;
