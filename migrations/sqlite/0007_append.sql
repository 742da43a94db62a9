-- Postgres gets a function at this version. Nothing changes here; both databases count their migrations alike.
SELECT 1;
