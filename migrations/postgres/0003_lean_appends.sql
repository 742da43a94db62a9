-- The same check as before, with one look-up for each insert instead of one for each row. As a join with EXISTS it was planned so that it
-- read all entries of the log, in a database that was not analyzed since it was empty. (SQLite gets smaller rows at this version.)
CREATE OR REPLACE FUNCTION muniment_entries_dense() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    run record;
BEGIN
    FOR run IN SELECT log_id, min(index) AS low, max(index) AS high, count(*) AS entries FROM added GROUP BY log_id LOOP
        IF run.high - run.low + 1 <> run.entries
            OR run.high + 1 IS DISTINCT FROM (SELECT size FROM heads WHERE log_id = run.log_id)
            OR (run.low > 0 AND NOT EXISTS (SELECT FROM entries WHERE log_id = run.log_id AND index = run.low - 1)) THEN
            RAISE EXCEPTION 'muniment: entries of log % from % leave a gap, or do not end at its head', run.log_id, run.low
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    END LOOP;
    RETURN NULL;
END $$;
