-- The search index: which entries may have a value or a word. It is made of the payloads and can be made again; what it holds of a value
-- goes when the value goes. No trigger: nothing is proved by it. The tables are those of migrations/postgres.

CREATE TABLE search_state (
    log_id     INTEGER PRIMARY KEY REFERENCES logs,
    generation BLOB    NOT NULL CHECK (length(generation) = 16),  -- drawn anew with each rebuild; never leaves the server
    size       INTEGER NOT NULL CHECK (size >= 0),                -- entries below it are in the index
    erasures   INTEGER NOT NULL,                                  -- counts what destroys payloads: postings made before are not added after
    clearing   INTEGER NOT NULL                                   -- rows of an older generation are still there
) STRICT;

-- A term carries its own postings, in lists that are appended: most terms have few. See muniment_server/terms.py for keys.
CREATE TABLE search_terms (
    log_id  INTEGER NOT NULL,
    key     BLOB    NOT NULL,
    tail    BLOB    NOT NULL,
    chunked INTEGER NOT NULL,  -- whether there are chunks
    PRIMARY KEY (log_id, key)
) STRICT, WITHOUT ROWID;

-- Where a tail is moved that has grown long. All its indices are below `stop`, and those of later chunks are not.
CREATE TABLE search_chunks (
    log_id INTEGER NOT NULL,
    key    BLOB    NOT NULL,
    stop   INTEGER NOT NULL,
    body   BLOB    NOT NULL,
    PRIMARY KEY (log_id, key, stop)
) STRICT, WITHOUT ROWID;
