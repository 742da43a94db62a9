-- Roles are a matter of Postgres. Nothing changes here; both databases count their migrations alike.
SELECT 1;
