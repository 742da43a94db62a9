-- The four roles of a Muniment database. Run as a superuser, in that database, before the first `muniment-server migrate`:
--
--     psql --dbname muniment --file deploy/postgres-roles.sql
--
-- May be run again at any time, also on a database that one role has owned so far: it hands everything over to muniment_owner.
-- No role has a password yet: \password muniment_app in psql, or pg_hba.conf with certificates.
--
--     muniment_owner    owns the tables; nobody can log in as it
--     muniment_migrate  becomes muniment_owner: `migrate`, and `guard adopt`
--     muniment_app      adds entries and advances heads, and cannot change what is there: `serve`, `init`, `log`, `key`, `restore`
--     muniment_reader   reads: `serve --read-only`, `fsck`, `backup`

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_owner') THEN
        CREATE ROLE muniment_owner NOLOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_migrate') THEN
        CREATE ROLE muniment_migrate LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_app') THEN
        CREATE ROLE muniment_app LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'muniment_reader') THEN
        CREATE ROLE muniment_reader LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;
    END IF;
END $$;

GRANT muniment_owner TO muniment_migrate;

-- The database: nobody else connects, nobody makes temporary tables that could stand before ours in the search path.
DO $$
DECLARE
    db text := current_database();
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', db);
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM muniment_app, muniment_reader', db);
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO muniment_migrate, muniment_app, muniment_reader', db);
    EXECUTE format('ALTER ROLE muniment_migrate IN DATABASE %I SET role = muniment_owner', db);
    EXECUTE format('ALTER ROLE muniment_app IN DATABASE %I SET search_path = public', db);
    EXECUTE format('ALTER ROLE muniment_reader IN DATABASE %I SET search_path = public', db);
    EXECUTE format('ALTER ROLE muniment_reader IN DATABASE %I SET default_transaction_read_only = on', db);
END $$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO muniment_owner;
GRANT USAGE ON SCHEMA public TO muniment_app, muniment_reader;

-- What is there already, and who may do what with it.
DO $$
DECLARE
    item record;
BEGIN
    FOR item IN SELECT c.oid::regclass AS name FROM pg_class c
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') LOOP
        EXECUTE format('ALTER TABLE %s OWNER TO muniment_owner', item.name);
        EXECUTE format('REVOKE ALL ON %s FROM PUBLIC, muniment_app, muniment_reader', item.name);
    END LOOP;
    FOR item IN SELECT p.oid::regprocedure AS name FROM pg_proc p
        WHERE p.pronamespace = 'public'::regnamespace AND p.proname LIKE 'muniment%' LOOP
        EXECUTE format('ALTER FUNCTION %s OWNER TO muniment_owner', item.name);
    END LOOP;
    IF to_regprocedure('public.muniment_grants()') IS NOT NULL THEN
        PERFORM public.muniment_grants();
    END IF;
END $$;

-- Tables of later migrations can be read at once; what else the server may do with them, their migration says.
ALTER DEFAULT PRIVILEGES FOR ROLE muniment_owner IN SCHEMA public GRANT SELECT ON TABLES TO muniment_app, muniment_reader;
