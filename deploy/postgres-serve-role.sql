-- A role for `muniment-server serve`, init, log and key that can add to a log but cannot change what is in it.
-- Run as the owner of the tables after each `muniment-server migrate`:  psql --file deploy/postgres-serve-role.sql muniment
-- It has no password yet: ALTER ROLE muniment_serve PASSWORD '...'.
-- The owner role stays for migrations only. What the triggers forbid, this role may not even try, and it cannot disable them.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_serve') THEN
        CREATE ROLE muniment_serve LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOINHERIT;
    END IF;
END $$;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM muniment_serve;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO muniment_serve;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO muniment_serve;

GRANT INSERT ON logs, heads, entries, payloads, tiles, checkpoints, idempotency, api_keys TO muniment_serve;
GRANT UPDATE (size, root, logged_at, epoch, published_size) ON heads TO muniment_serve;
GRANT UPDATE (data) ON tiles TO muniment_serve;
GRANT UPDATE (revoked_at) ON api_keys TO muniment_serve;
GRANT UPDATE, DELETE ON idempotency TO muniment_serve;
