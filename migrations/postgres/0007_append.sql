-- The append of a batch as one function: one round trip that stores it and reads it back, as decisions/0008 and 0014 say. A statement
-- that has nothing to do is left out. Whatever fails fails whole: it is one statement to whoever calls it.
--
-- Returns the tiles that were asked for, and the new leaves at level -1, each behind its length; nothing when no tile was asked for.
-- One row at level -2 says that the head is not the expected one, at level -3 that one of the leaf keys is stored: then nothing was
-- written.
CREATE FUNCTION muniment_append(
    log integer,
    -- the head as it has to be, and as it becomes
    old_size bigint, old_root bytea, old_logged_at bigint, old_epoch bigint, guard text,
    new_size bigint, new_root bytea, new_logged_at bigint, new_epoch bigint,
    absent bigint[],
    leaves bytea[],
    payload_indices bigint[], payloads bytea[], seeds bytea[],
    tile_levels smallint[], tile_indices bigint[], tile_parts smallint[], tile_befores bytea[], tile_additions bytea[],
    key_callers text[], keys text[], key_fingerprints bytea[], key_indices bigint[], key_counts integer[], key_expiries bigint[],
    reread_levels smallint[], reread_indices bigint[]
) RETURNS TABLE (level smallint, index bigint, data bytea) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    first bigint := (log::bigint << 40) + old_size;
BEGIN
    IF cardinality(absent) > 0 THEN
        -- `id / 2^40` and not a range of ids: the rows are to be found by leaf key, and the planner shall have no choice.
        PERFORM FROM entries WHERE muniment_leaf_key(leaf) = ANY (absent) AND id / 1099511627776 = log LIMIT 1;
        IF FOUND THEN
            RETURN QUERY SELECT (-3)::smallint, NULL::bigint, NULL::bytea;
            RETURN;
        END IF;
    END IF;

    -- Whoever stored such a leaf in between moved the head.
    UPDATE heads SET size = new_size, root = new_root, logged_at = new_logged_at, epoch = new_epoch
    WHERE log_id = log AND size = old_size AND root = old_root AND logged_at = old_logged_at AND epoch = old_epoch AND guard_id = guard;
    IF NOT FOUND THEN
        RETURN QUERY SELECT (-2)::smallint, NULL::bigint, NULL::bytea;
        RETURN;
    END IF;

    INSERT INTO entries (id, leaf) SELECT first + u.n - 1, u.leaf FROM unnest(leaves) WITH ORDINALITY AS u (leaf, n);

    IF cardinality(payloads) > 0 THEN
        INSERT INTO payloads (log_id, index, payload, seed)
        SELECT log, u.index, u.payload, u.seed FROM unnest(payload_indices, payloads, seeds) AS u (index, payload, seed);
    END IF;

    INSERT INTO tiles (log_id, level, index, part, data)
    SELECT log, u.level, u.index, u.part, CASE WHEN u.before IS NOT DISTINCT FROM (
        -- A tile that does not start as this writer thinks gets no data, which NOT NULL refuses: nothing is written.
        SELECT string_agg(t.data, '' ORDER BY t.part) FROM tiles t WHERE t.log_id = log AND t.level = u.level AND t.index = u.index
    ) THEN u.addition END
    FROM unnest(tile_levels, tile_indices, tile_parts, tile_befores, tile_additions) AS u (level, index, part, before, addition)
    ON CONFLICT (log_id, level, index, part) DO UPDATE SET data = tiles.data || excluded.data;

    IF cardinality(keys) > 0 THEN
        INSERT INTO idempotency (log_id, caller, key, fingerprint, first_index, count, expires_at)
        SELECT log, u.caller, u.key, u.fingerprint, u.first_index, u.count, u.expires_at
        FROM unnest(key_callers, keys, key_fingerprints, key_indices, key_counts, key_expiries)
            AS u (caller, key, fingerprint, first_index, count, expires_at)
        ON CONFLICT (log_id, caller, key) DO UPDATE SET
            -- A key still in use gets no fingerprint, with the same effect.
            fingerprint = CASE WHEN idempotency.expires_at <= new_logged_at THEN excluded.fingerprint END,
            first_index = excluded.first_index, count = excluded.count, expires_at = excluded.expires_at;
    END IF;

    IF cardinality(reread_levels) > 0 THEN
        RETURN QUERY
        SELECT u.level, u.index, t.data FROM unnest(reread_levels, reread_indices) AS u (level, index), LATERAL (
            SELECT string_agg(data, '' ORDER BY part) AS data FROM tiles
            WHERE log_id = log AND level = u.level AND index = u.index HAVING count(*) > 0) t
        UNION ALL
        SELECT (-1)::smallint, 0::bigint, string_agg(int4send(octet_length(e.leaf)) || e.leaf, '')
        FROM (SELECT leaf FROM entries WHERE id >= first AND id < first + new_size - old_size ORDER BY id) e;
    END IF;
END $$;
