#!/bin/sh
# Run by the Postgres image after postgres-roles.sql: gives the roles of the containers their passwords, from files.
# psql reads the files itself: a password on its command line could be seen by others.
SECRETS="${SECRETS:-/run/secrets}" psql --set ON_ERROR_STOP=1 --no-psqlrc --quiet --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
\set app `cat "$SECRETS/muniment_app_password"`
\set migrate `cat "$SECRETS/muniment_migrate_password"`
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
ALTER ROLE muniment_app PASSWORD :'app';
ALTER ROLE muniment_migrate PASSWORD :'migrate';
SQL
