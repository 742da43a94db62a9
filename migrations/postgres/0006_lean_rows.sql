-- Fewer bytes for each entry, and none left behind by tiles that grow: see docs/decisions/0013. All in one transaction, which keeps
-- everybody out of entries and tiles and needs room for both a second time until it ends.

-- First 8 bytes of the leaf hash, as a signed integer: finds candidates, proves nothing. In an index, and in no row.
CREATE FUNCTION muniment_leaf_key(leaf bytea) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ('x' || encode(substring(sha256('\x00'::bytea || leaf) FOR 8), 'hex'))::bit(64)::bigint;

ALTER TABLE entries RENAME TO entries_before;
ALTER INDEX entries_pkey RENAME TO entries_before_pkey;
CREATE TABLE entries (
    id   bigint NOT NULL,  -- log_id * 2^40 + index
    leaf bytea  NOT NULL CHECK (octet_length(leaf) <= 65535)
);
INSERT INTO entries SELECT (log_id::bigint << 40) + index, leaf FROM entries_before ORDER BY log_id, index;
DROP TABLE entries_before;
ALTER TABLE entries ADD PRIMARY KEY (id);
CREATE INDEX entries_leaf_key ON entries (muniment_leaf_key(leaf));

-- For reading by hand. Where many entries are stored, choose them by id: nothing else here has an index.
CREATE VIEW log_entries AS SELECT id, (id >> 40)::integer AS log_id, id & 1099511627775 AS index, leaf FROM entries;

CREATE OR REPLACE FUNCTION muniment_entries_dense() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    run record;
BEGIN
    FOR run IN SELECT id >> 40 AS log_id, min(id) AS low, max(id) AS high, count(*) AS entries FROM added GROUP BY id >> 40 LOOP
        IF run.high - run.low + 1 <> run.entries
            OR (run.high & 1099511627775) + 1 IS DISTINCT FROM (SELECT size FROM heads WHERE log_id = run.log_id)
            OR ((run.low & 1099511627775) > 0 AND NOT EXISTS (SELECT FROM entries WHERE id = run.low - 1)) THEN
            RAISE EXCEPTION 'muniment: entries of log % from % leave a gap, or do not end at its head',
                run.log_id, run.low & 1099511627775 USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER entries_append_only BEFORE UPDATE OR DELETE ON entries FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER entries_no_truncate BEFORE TRUNCATE ON entries EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER entries_dense AFTER INSERT ON entries
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION muniment_entries_dense();
ALTER TABLE entries ENABLE ALWAYS TRIGGER entries_append_only, ENABLE ALWAYS TRIGGER entries_no_truncate, ENABLE ALWAYS TRIGGER entries_dense;

-- A tile is the data of its parts, one behind the other. What is appended when it has n hashes goes to the part n / 32, however much
-- it is: a row that is written often stays small and on its page, which gives the room of its old versions back by itself.
-- No foreign key, for the reason that entries have none.
ALTER TABLE tiles RENAME TO tiles_before;
ALTER INDEX tiles_pkey RENAME TO tiles_before_pkey;
CREATE TABLE tiles (
    log_id integer  NOT NULL,
    level  smallint NOT NULL CHECK (level BETWEEN 0 AND 63),
    part   smallint NOT NULL,
    index  bigint   NOT NULL,
    data   bytea    NOT NULL CHECK (octet_length(data) BETWEEN 32 AND 8192 AND octet_length(data) % 32 = 0)
);
ALTER TABLE tiles ALTER COLUMN data SET STORAGE EXTERNAL;  -- hashes do not compress
INSERT INTO tiles SELECT log_id, level, 0, index, data FROM tiles_before ORDER BY log_id, index, level;
DROP TABLE tiles_before;
ALTER TABLE tiles ADD PRIMARY KEY (log_id, level, index, part);

CREATE OR REPLACE FUNCTION muniment_tile_grows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last smallint;
    size bigint;
BEGIN
    SELECT max(part), sum(octet_length(data)) INTO last, size
    FROM tiles WHERE log_id = NEW.log_id AND level = NEW.level AND index = NEW.index;
    IF NEW.part <> last OR (size - octet_length(NEW.data)) / 1024 <> NEW.part OR size > 8192 THEN
        RAISE EXCEPTION 'muniment: a tile may only grow at its end' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        IF (NEW.log_id, NEW.level, NEW.index, NEW.part) IS DISTINCT FROM (OLD.log_id, OLD.level, OLD.index, OLD.part)
            OR octet_length(NEW.data) <= octet_length(OLD.data)
            OR substring(NEW.data FOR octet_length(OLD.data)) <> OLD.data THEN
            RAISE EXCEPTION 'muniment: a tile may only grow at its end' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER tiles_grow AFTER INSERT OR UPDATE ON tiles FOR EACH ROW EXECUTE FUNCTION muniment_tile_grows();
CREATE TRIGGER tiles_append_only BEFORE DELETE ON tiles FOR EACH ROW EXECUTE FUNCTION muniment_refuse();
CREATE TRIGGER tiles_no_truncate BEFORE TRUNCATE ON tiles EXECUTE FUNCTION muniment_refuse();
ALTER TABLE tiles ENABLE ALWAYS TRIGGER tiles_grow, ENABLE ALWAYS TRIGGER tiles_append_only, ENABLE ALWAYS TRIGGER tiles_no_truncate;

SELECT muniment_grants();
