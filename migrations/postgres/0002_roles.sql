-- What the roles of deploy/postgres-roles.sql may do with the tables. Where those roles do not exist, nothing happens.
-- A later migration that adds a table, or a column that the server updates, replaces this function and calls it again.

CREATE FUNCTION muniment_grants() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_app') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO muniment_app;
        GRANT INSERT ON logs, heads, entries, payloads, tiles, checkpoints, idempotency, api_keys TO muniment_app;
        GRANT UPDATE (size, root, logged_at, epoch, published_size) ON heads TO muniment_app;
        GRANT UPDATE (data) ON tiles TO muniment_app;
        GRANT UPDATE (revoked_at) ON api_keys TO muniment_app;
        GRANT UPDATE (fingerprint, first_index, count, expires_at), DELETE ON idempotency TO muniment_app;
    END IF;
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_reader') THEN
        GRANT SELECT ON ALL TABLES IN SCHEMA public TO muniment_reader;
    END IF;
END $$;

REVOKE EXECUTE ON FUNCTION muniment_grants() FROM PUBLIC;
SELECT muniment_grants();
